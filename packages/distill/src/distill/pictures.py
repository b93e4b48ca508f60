"""Picture grids: one row per image, one titled column per method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sr_data.images import write_image

TITLE_HEIGHT = 26
GAP = 4


def save_grid(path: Path, columns: Mapping[str, Tensor], rows: int = 6) -> None:
    """Write a PNG with the first ``rows`` images of every column, titled.

    Args:
        path: file to write.
        columns: title -> (B, 3, H, W) pixels [-1, 1], all of one shape.
        rows: at most this many images.
    """
    first = next(iter(columns.values()))
    count, height, width = min(rows, first.shape[0]), first.shape[-2], first.shape[-1]
    canvas = Image.new("RGB", (len(columns) * (width + GAP) - GAP, TITLE_HEIGHT + count * (height + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(columns.items()):
        left = column * (width + GAP)
        draw.text((left + 3, 4), title, fill="black", font=ImageFont.load_default(size=15))
        for row in range(count):
            pixels = images[row].add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
            canvas.paste(Image.fromarray(pixels), (left, TITLE_HEIGHT + row * (height + GAP)))
    write_image(path, np.asarray(canvas))
