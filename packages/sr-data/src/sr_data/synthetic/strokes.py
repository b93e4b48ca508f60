"""Thin structure: lines, curves, hair, grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sr_data.synthetic.colours import Palette

Colour = tuple[int, int, int]


def to_colour(values: NDArray[np.float64]) -> Colour:
    """Return an 8-bit colour from three values in [0,1]."""
    red, green, blue = (round(float(value) * 255) for value in values)
    return red, green, blue


def _curves(
    start: NDArray[np.float64],
    angle: NDArray[np.float64],
    length: NDArray[np.float64],
    bend: NDArray[np.float64],
    points: int = 12,
) -> NDArray[np.float64]:
    """Return arcs (count, points, 2) that leave `start` at `angle` and turn by `bend` radians."""
    along = np.linspace(0.0, 1.0, points)[None, :]
    direction = angle[:, None] + bend[:, None] * along
    step = length[:, None] / points
    x = start[:, :1] + np.cumsum(step * np.cos(direction), axis=1)
    y = start[:, 1:] + np.cumsum(step * np.sin(direction), axis=1)
    return np.stack((x, y), axis=-1)


def draw_curves(rng: np.random.Generator, image: Image.Image, palette: Palette) -> None:
    """Draw a few separate lines and curves of any direction: wires, cracks, outlines."""
    size, count = image.width, int(rng.integers(2, 14))
    lines = _curves(
        rng.uniform(0, size, (count, 2)),
        rng.uniform(0, 2 * np.pi, count),
        rng.uniform(0.2, 1.5, count) * size,
        rng.normal(0, 1.2, count) * (rng.random(count) < 0.7),
        points=24,
    )
    draw = ImageDraw.Draw(image)
    for points, colour in zip(lines.reshape(count, -1).tolist(), palette.sample(rng, count), strict=True):
        draw.line(points, fill=to_colour(colour), width=int(1 + rng.exponential(1.8)), joint="curve")


def draw_fur(rng: np.random.Generator, image: Image.Image, palette: Palette) -> None:
    """Draw many similar fine curves whose direction changes slowly with the place: hair, grass, feathers."""
    size, count = image.width, int(np.exp(rng.uniform(np.log(40), np.log(900))))
    centre, reach = rng.uniform(0, size, 2), rng.uniform(0.1, 0.5) * size
    start = centre + rng.normal(0, 1, (count, 2)) * reach
    swirl = np.sin(start @ rng.normal(0, 4.0 / size, 2) + rng.uniform(0, 2 * np.pi))
    lines = _curves(
        start,
        rng.uniform(0, 2 * np.pi) + rng.uniform(0, 1.5) * swirl + rng.normal(0, 0.2, count),
        rng.uniform(0.04, 0.3) * size * rng.uniform(0.5, 1.5, count),
        rng.normal(0, 0.6) + rng.normal(0, 0.3, count),
        points=8,
    )
    contrast = rng.uniform(0.03, 0.2)
    colours = np.clip(palette.sample(rng, 1) * np.exp(rng.normal(0, 2 * contrast, (count, 1))), 0.0, 1.0)
    draw = ImageDraw.Draw(image)
    width = int(rng.integers(1, 4))
    for points, colour in zip(lines.reshape(count, -1).tolist(), colours, strict=True):
        draw.line(points, fill=to_colour(colour), width=width)


def draw_grid(rng: np.random.Generator, image: Image.Image, palette: Palette) -> None:
    """Draw a lattice or a set of parallel bars in slight perspective: fences, windows, roofs."""
    size = image.width
    angle = float(rng.choice([0.0, rng.normal(0, 0.1), rng.uniform(0, np.pi)]))
    gap = float(np.exp(rng.uniform(np.log(7), np.log(size / 5))))
    width = int(max(1, round(gap * rng.uniform(0.08, 0.35))))
    fan = rng.normal(0, 0.25)
    colour = to_colour(palette.sample(rng, 1)[0])
    draw = ImageDraw.Draw(image)
    reach = np.arange(-0.75 * size, 0.75 * size, gap)
    for direction in (angle, angle + np.pi / 2)[: int(rng.integers(1, 3))]:
        along = np.array([np.cos(direction), np.sin(direction)]) * size
        across = np.array([-np.sin(direction), np.cos(direction)])
        for shift in reach:
            first = size / 2 - along + across * shift * (1 - fan)
            second = size / 2 + along + across * shift * (1 + fan)
            draw.line([*first.tolist(), *second.tolist()], fill=colour, width=width)
