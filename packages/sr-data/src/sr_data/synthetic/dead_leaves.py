"""Dead leaves: random shapes with power-law sizes that hide each other, as objects in a picture do.

Source: Achddou, Gousseau, Ladjal, "Fully synthetic training for image restoration tasks" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sr_data.synthetic.colours import Palette
from sr_data.synthetic.textures import TEXTURE_BITS, Field, power_law_noise, random_texture

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
SHAPES = ("disk", "blob", "polygon", "quadrilateral", "triangle", "stripe")
SHAPE_WEIGHTS = (0.22, 0.22, 0.18, 0.2, 0.08, 0.1)
LARGE_RADIUS = 40.0
"""Radius in pixels from which round outlines get more corners."""


@dataclass(frozen=True)
class LeafSettings:
    """How many leaves of which sizes cover a layer."""

    smallest: float
    largest: float
    coverage: float
    at_most: int = 700


@dataclass(frozen=True)
class Leaves:
    """Leaves drawn over each other.

    Args:
        labels: (H,W) the leaf seen at each pixel: 0 = none, 1.. = leaf.
        centres: (leaves + 1, 2) x, y in pixels; entry 0, the ground, is at the centre of the picture.
        radii: (leaves + 1,) in pixels; the ground has half the side.
    """

    labels: NDArray[np.int32]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]


def power_law_radii(rng: np.random.Generator, count: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """Return radii with density r^-3 in [smallest, largest], which makes the picture scale invariant."""
    low, high = smallest**-2.0, largest**-2.0
    return np.asarray((low - rng.random(count) * (low - high)) ** -0.5)


def outlines(rng: np.random.Generator, shape: str, count: int, corners: int) -> NDArray[np.float64]:
    """Return `count` outlines (count, points, 2) of one kind within about the unit circle."""
    if shape in ("quadrilateral", "stripe"):
        angles = np.broadcast_to(np.pi / 4 + np.pi / 2 * np.arange(4), (count, 4))
        if shape == "quadrilateral":  # half of them right-angled
            jitter = rng.normal(0, 0.25, (count, 4)) * (rng.random((count, 1)) < 0.5)
            angles = angles + jitter
        radii = np.ones((count, 4))
    elif shape in ("triangle", "polygon"):
        points = 3 if shape == "triangle" else int(rng.integers(5, 9))
        angles = 2 * np.pi * (np.arange(points) + rng.uniform(-0.4, 0.4, (count, points))) / points
        radii = rng.uniform(0.7, 1.0, (count, points))
    else:
        angles = np.broadcast_to(2 * np.pi * np.arange(corners) / corners, (count, corners))
        radii = np.ones((count, corners))
        if shape == "blob":
            for order in range(2, 6):
                phase = rng.uniform(0, 2 * np.pi, (count, 1))
                radii = radii + rng.normal(0, 0.45 / order, (count, 1)) * np.cos(order * angles + phase)
            radii = np.clip(radii, 0.15, 1.6)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=-1)


def _placed_outlines(rng: np.random.Generator, centres: Doubles, radii: Doubles) -> list[list[float]]:
    """Return the outline of each leaf as x0, y0, x1, y1, ... in pixels."""
    count = len(radii)
    kinds = rng.choice(len(SHAPES), size=count, p=SHAPE_WEIGHTS)
    # Pictures hold repeated objects, so one kind is the favourite.
    kinds = np.where(rng.random(count) < 0.35, rng.integers(len(SHAPES)), kinds)
    aspect = np.exp(rng.uniform(-0.6, 0.6, count))
    stripe = kinds == SHAPES.index("stripe")
    aspect = np.where(stripe, np.exp(rng.uniform(1.0, 2.2, count)), aspect)
    # Structure is aligned in pictures, so half of the angles follow one main direction.
    turn = rng.uniform(0, np.pi, count)
    main = rng.uniform(0, np.pi) + np.pi / 2 * rng.integers(0, 2, count)
    turn = np.where(rng.random(count) < 0.5, main, turn)
    points: list[list[float]] = [[] for _ in range(count)]
    for index, shape in enumerate(SHAPES):
        for large in (False, True):
            members = np.flatnonzero((kinds == index) & ((radii > LARGE_RADIUS) == large))
            if not len(members):
                continue
            outline = outlines(rng, shape, len(members), 96 if large else 18)
            stretch = np.sqrt(aspect[members])[:, None]
            x = outline[..., 0] * stretch * radii[members, None]
            y = outline[..., 1] / stretch * radii[members, None]
            cos, sin = np.cos(turn[members])[:, None], np.sin(turn[members])[:, None]
            placed = np.stack((cos * x - sin * y, sin * x + cos * y), axis=-1) + centres[members, None, :]
            for member, flat in zip(members.tolist(), placed.reshape(len(members), -1).tolist(), strict=True):
                points[member] = flat
    return points


def draw_leaves(rng: np.random.Generator, size: int, settings: LeafSettings) -> Leaves:
    """Return leaves that fall on a picture of side `size`, the last one on top."""
    mean_area = 4.0 * settings.smallest**2 * np.log(settings.largest / settings.smallest)
    count = int(min(settings.at_most, 1 + settings.coverage * size**2 / mean_area))
    radii = power_law_radii(rng, count, settings.smallest, settings.largest)
    centres = rng.uniform(-0.05 * size, 1.05 * size, (count, 2))
    canvas = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    for label, points in enumerate(_placed_outlines(rng, centres, radii), start=1):
        draw.polygon(points, fill=label)
    return Leaves(
        np.asarray(canvas, dtype=np.int32),
        np.concatenate((np.full((1, 2), size / 2), centres)),
        np.concatenate(([size / 2], radii)),
    )


def _trend(rng: np.random.Generator, centres: Doubles, size: int) -> Doubles:
    """Return a slow wave over the picture at the leaves, in [-1,1]: neighbours are alike, as in scenes."""
    wave = rng.normal(0, 2 * np.pi / size, 2)
    return np.asarray(np.sin(centres @ wave + rng.uniform(0, 2 * np.pi)))


def _texture_at(rng: np.random.Generator, labels: NDArray[np.int32], entries: int, bank: Field) -> Floats:
    """Return (H,W) texture values: every leaf looks at a random place of a random texture."""
    area_bits = 2 * TEXTURE_BITS
    # One gather serves texture number (high bits) and place (low bits, with spare bits for the sum below).
    number = rng.integers(0, len(bank), entries, dtype=np.int32) << (area_bits + 4)
    code = number + rng.integers(0, 1 << area_bits, entries, dtype=np.int32)
    height, width = labels.shape
    place = (np.arange(height, dtype=np.int32)[:, None] << TEXTURE_BITS) & ((1 << area_bits) - 1)
    place = place + (np.arange(width, dtype=np.int32)[None, :])
    where = code.take(labels)
    where += place
    number_part = where >> (area_bits + 4)
    number_part <<= area_bits
    where &= (1 << area_bits) - 1
    where |= number_part
    return np.asarray(bank.reshape(-1).take(where))


def paint(rng: np.random.Generator, leaves: Leaves, palette: Palette, bank: Field, roughness: float) -> Image.Image:
    """Return the coloured, textured and shaded leaves.

    Args:
        rng: source of randomness.
        leaves: what to paint; label 0 is painted as one more leaf.
        palette: colours of this picture.
        bank: (textures, TEXTURE_SIZE, TEXTURE_SIZE) texture fields.
        roughness: typical standard deviation of the texture, pixels [0,1].
    """
    labels, entries = leaves.labels, len(leaves.radii)
    size = labels.shape[0]
    colour = palette.sample(rng, entries, _trend(rng, leaves.centres, size))
    amplitude = roughness * rng.exponential(1.0, entries) * (rng.random(entries) < 0.85)
    tint = 1.0 + rng.normal(0, 0.15, (entries, 3))
    # Dark surfaces show less texture.
    strength = (amplitude * (0.25 + 1.5 * colour.mean(axis=1)))[:, None] * tint
    texture = _texture_at(rng, labels, entries, bank)

    # Shading 1 + slope . d - bulge |d|^2 with d = (position - centre) / radius, expanded in the position:
    # one gather for the constant, two for the slope, one for the bulge.
    slope = rng.normal(0, 0.12, (entries, 2))
    bulge = np.abs(rng.normal(0, 0.15, entries)) * (rng.random(entries) < 0.5)
    slope[0] *= 0.5
    x, y = leaves.centres.T / leaves.radii
    constant = 1.0 - slope[:, 0] * x - slope[:, 1] * y - bulge * (x**2 + y**2)
    linear = (slope + 2.0 * bulge[:, None] * np.stack((x, y), axis=1)) / leaves.radii[:, None]
    quadratic = -bulge / leaves.radii**2
    axis = np.arange(size, dtype=np.float32)
    shade = quadratic.astype(np.float32).take(labels)
    shade *= axis[:, None] ** 2 + axis[None, :] ** 2
    shade += linear[:, 0].astype(np.float32).take(labels) * axis[None, :]
    shade += linear[:, 1].astype(np.float32).take(labels) * axis[:, None]
    shade += constant.astype(np.float32).take(labels)
    shade *= np.float32(255.0)
    np.clip(shade, 60.0, 310.0, out=shade)

    channels = []
    for channel in range(3):
        plane = strength[:, channel].astype(np.float32).take(labels)
        plane *= texture
        plane += colour[:, channel].astype(np.float32).take(labels)
        plane *= shade
        np.clip(plane, 0.0, 255.0, out=plane)
        channels.append(Image.fromarray(plane.astype(np.uint8)))
    return Image.merge("RGB", channels)


def texture_bank(rng: np.random.Generator, count: int) -> Field:
    """Return `count` textures (count, TEXTURE_SIZE, TEXTURE_SIZE): 1/f noise, and others with some of it."""
    base = power_law_noise(rng, exponent=float(rng.uniform(0.7, 1.3)))
    bank = [base]
    for _ in range(count - 1):
        share = np.float32(rng.uniform(0.0, 0.8))
        bank.append((random_texture(rng) + share * base) / np.sqrt(1.0 + share**2, dtype=np.float32))
    return np.stack(bank)
