"""Printed text: letters of many sizes, directions and contrasts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sr_data.synthetic.colours import Palette
from sr_data.synthetic.strokes import to_colour

LETTERS = np.array(list("eeeeetttaaaooiinnsshhrrdlcumwfgypbvkxjqzABCDEFGHIKLMNOPRSTUVW0123456789.,-:&"))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's bundled font; no file of the machine is read, so every machine draws the same."""
    return ImageFont.load_default(size)


def random_words(rng: np.random.Generator, count: int) -> str:
    """Return `count` made-up words separated by blanks."""
    lengths = rng.integers(1, 9, count)
    letters = "".join(rng.choice(LETTERS, int(lengths.sum())).tolist())
    ends = np.cumsum(lengths)
    return " ".join(letters[end - length : end] for end, length in zip(ends, lengths, strict=True))


def draw_text(rng: np.random.Generator, image: Image.Image, palette: Palette) -> None:
    """Draw one block of text, as on a sign or a page."""
    size = image.width
    # Few sizes, so that the font cache serves them.
    height = int(rng.choice([11, 13, 16, 20, 26, 34, 46, 64, 90]))
    lines = int(rng.integers(1, max(2, min(8, size // (2 * height)))))
    text = "\n".join(random_words(rng, int(rng.integers(1, max(2, size // (4 * height))))) for _ in range(lines))
    font = _font(height)
    box = ImageDraw.Draw(image).multiline_textbbox((0, 0), text, font=font)
    margin = height // 2
    width, depth = (min(2 * size, int(edge) + 2 * margin) for edge in box[2:])
    mask = Image.new("L", (width, depth), 0)
    ImageDraw.Draw(mask).multiline_text((margin, margin), text, fill=255, font=font)
    ink, plate = palette.sample(rng, 2)
    if abs(ink.mean() - plate.mean()) < 0.3:
        ink = np.clip(plate + (0.5 if plate.mean() < 0.5 else -0.5), 0.0, 1.0)
    angle = float(rng.choice([0.0, rng.normal(0, 8.0), rng.uniform(-90, 90)]))
    where = tuple(rng.integers(-size // 6, size * 2 // 3, 2).tolist())
    if rng.random() < 0.5:
        board = Image.new("L", mask.size, 255).rotate(angle, expand=True)
        image.paste(to_colour(plate), where, board)
    turned = mask.rotate(angle, resample=Image.Resampling.BILINEAR, expand=True) if angle else mask
    image.paste(to_colour(ink), where, turned)
