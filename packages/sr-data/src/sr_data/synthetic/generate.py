"""One generated picture: layers of leaves, strokes and text, light, focus, and a camera's downscaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sr_data.synthetic.colours import Palette, random_palette
from sr_data.synthetic.dead_leaves import LeafSettings, draw_leaves, paint, texture_bank
from sr_data.synthetic.strokes import draw_curves, draw_fur, draw_grid
from sr_data.synthetic.text import draw_text
from sr_data.synthetic.textures import power_law_noise

Pixels = NDArray[np.uint8]


def generate_image(seed: int, index: int, size: int = 256) -> Pixels:
    """Return generated picture number `index`: a pure function of its arguments.

    Args:
        seed: family of pictures, >= 0.
        index: number of the picture, >= 0.
        size: side in pixels, >= 16.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: a negative number, or a size below 16.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"expected seed and index >= 0, got {seed} and {index}; count from 0")
    if size < 16:
        raise ValueError(f"expected size >= 16, got {size}; generate a larger picture and crop it")
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    # Rendered larger and reduced with a good filter, edges are antialiased as in a camera.
    render_size = round(size * float(rng.choice([1.75, 2.0], p=[0.7, 0.3])))
    scene = _scene(rng, render_size)
    picture = scene.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.25:  # out of focus, or a soft lens
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.exponential(0.5))))
    return _develop(rng, picture)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number that is uniform on a logarithmic scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _scene(rng: np.random.Generator, size: int) -> Image.Image:
    """Return the picture before light and camera."""
    palette = random_palette(rng)
    bank = texture_bank(rng, 4)
    roughness = _between(rng, 0.03, 0.22)
    smallest = _between(rng, 4.0, 60.0)
    settings = LeafSettings(smallest, 0.9 * size, coverage=_between(rng, 0.3, 4.0), at_most=900)
    scene = paint(rng, draw_leaves(rng, size, settings), palette, bank, roughness)
    _thin_structure(rng, scene, palette, 0.8)
    far = rng.random() < 0.25
    if far:
        scene = _defocus(scene, _between(rng, 1.0, 8.0))
    # Something in focus lies before a background that is not.
    if far or rng.random() < 0.5:
        _foreground(rng, scene, palette, bank, roughness)
    _thin_structure(rng, scene, palette, 0.4)
    return scene


def _foreground(
    rng: np.random.Generator,
    scene: Image.Image,
    palette: Palette,
    bank: NDArray[np.float32],
    roughness: float,
) -> None:
    """Lay few leaves over the scene, most of which stays in sight; some throw a soft shadow."""
    size = scene.width
    smallest = _between(rng, 3.0, 60.0)
    settings = LeafSettings(smallest, 0.6 * size, coverage=_between(rng, 0.05, 0.7), at_most=150)
    leaves = draw_leaves(rng, size, settings)
    mask = Image.fromarray((leaves.labels > 0) * np.uint8(255))
    if rng.random() < 0.4:
        depth = float(rng.uniform(0.2, 0.7))
        shadow = _defocus(mask, _between(rng, 2.0, 8.0)).point(lambda value: value * depth)
        shift = rng.integers(-size // 40, size // 40 + 1, 2).tolist()
        scene.paste((0, 0, 0), (shift[0], shift[1]), shadow)
    scene.paste(paint(rng, leaves, palette, bank, roughness), (0, 0), mask)


def _defocus(image: Image.Image, sigma: float) -> Image.Image:
    """Return the picture blurred by a Gaussian; a wide one is applied at half the size, which is faster."""
    if sigma < 2.5:
        return image.filter(ImageFilter.GaussianBlur(sigma))
    blurred = image.reduce(2).filter(ImageFilter.GaussianBlur(sigma / 2))
    return blurred.resize(image.size, Image.Resampling.BILINEAR)


def _thin_structure(rng: np.random.Generator, image: Image.Image, palette: Palette, rate: float) -> None:
    """Draw lines, fur, grids and text, each now and then."""
    for draw, probability in ((draw_grid, 0.15), (draw_fur, 0.3), (draw_curves, 0.3), (draw_text, 0.2)):
        if rng.random() < rate * probability:
            draw(rng, image, palette)


def _develop(rng: np.random.Generator, image: Image.Image) -> Pixels:
    """Return the picture after uneven light, gamma and contrast, as 8-bit pixels."""
    size = image.width
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    slope = rng.normal(0, 0.12, 2).astype(np.float32)
    light = 1.0 + slope[0] * axis[:, None] + slope[1] * axis[None, :]
    if rng.random() < 0.25:  # vignette
        light -= np.float32(rng.uniform(0.05, 0.25)) * (axis[:, None] ** 2 + axis[None, :] ** 2)
    if rng.random() < 0.6:  # clouded light; the field is periodic, so a cut of it is used
        field = Image.fromarray(power_law_noise(rng, 64, exponent=1.6)[:48, :48])
        clouds = np.asarray(field.resize((size, size), Image.Resampling.BICUBIC))
        light *= np.exp(np.float32(rng.exponential(0.1)) * clouds)
    light *= np.float32(np.exp(rng.normal(0, 0.08)))
    np.minimum(light, np.float32(1.3), out=light)  # few burnt-out areas
    pixels = np.asarray(image, dtype=np.float32) * (light / np.float32(255.0))[..., None]
    np.clip(pixels, 0.0, 1.0, out=pixels)
    np.power(pixels, np.float32(np.exp(rng.normal(0, 0.15))), out=pixels)
    pixels *= np.float32(255.0)
    return np.asarray(np.rint(pixels), dtype=np.uint8)
