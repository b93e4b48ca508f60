"""Sizes, enlargement and tiles of pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TILE_OVERLAP = 16
"""LR pixels that neighbouring tiles share at least and in which one fades into the other (docs/restoring.md)."""


def upsample(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling by ``scale``, pixels [-1, 1], clamped: what the encoder sees of the LR image."""
    return F.interpolate(lr, scale_factor=float(scale), mode="bicubic", align_corners=False).clamp(-1, 1)


def padded_part(image: NDArray[Any], rows: slice, columns: slice, multiple: int) -> NDArray[Any]:
    """Cut a part from an image that is padded right and bottom to whole multiples, without padding all of it.

    It is padded by reflection, or by its last pixels where it is too small to reflect.

    Args:
        image: (H, W, C).
        rows: of the padded image.
        columns: of the padded image.
        multiple: that height and width are padded to.
    """
    height, width = image.shape[:2]
    if rows.stop <= height and columns.stop <= width:
        return image[rows, columns]
    mirror = -height % multiple < height and -width % multiple < width
    down, across = _inside(rows, height, mirror), _inside(columns, width, mirror)
    return image[down[:, None], across]


def _inside(span: slice, length: int, mirror: bool) -> NDArray[np.int64]:
    """Which position of the image stands for each of a span that may go beyond its end."""
    place = np.arange(span.start, span.stop)
    return np.where(place < length, place, 2 * (length - 1) - place if mirror else length - 1)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is at least ``value``."""
    return -(-value // multiple) * multiple


def tile_spans(length: int, tile: int, overlap: int, multiple: int) -> list[slice]:
    """Cut 0..length into spans of ``tile`` that overlap by at least ``overlap`` and start at multiples.

    Args:
        length: a multiple of ``multiple``.
        tile: a multiple of ``multiple``, larger than ``overlap``; the last span ends at ``length``.
        overlap: at least this many positions are shared.
        multiple: latents of tiles line up with those of the picture.
    """
    stride = max((tile - overlap) // multiple, 1) * multiple
    starts = [*range(0, max(length - tile, 0), stride), max(length - tile, 0)]
    return [slice(start, min(start + tile, length)) for start in starts]


def scaled(span: slice, factor: float) -> slice:
    """Return the same span in a picture ``factor`` times as large."""
    return slice(int(span.start * factor), int(span.stop * factor))


def tile_ramps(spans: list[slice], scale: int) -> list[Tensor]:
    """Weights of the tiles along one axis, (tile * scale,) each: smooth where tiles overlap, 1 in sum everywhere."""
    total = torch.zeros(spans[-1].stop * scale)
    ramps = []
    for span in spans:
        ramp = _ramp(span, spans[-1].stop, scale)
        total[scaled(span, scale)] += ramp
        ramps.append(ramp)
    return [ramp / total[scaled(span, scale)] for span, ramp in zip(spans, ramps, strict=True)]


def _ramp(span: slice, length: int, scale: int) -> Tensor:
    """1 within the tile, half a cosine wave down to 0 at its ends, except at the border of the picture."""
    size, fade = (span.stop - span.start) * scale, TILE_OVERLAP * scale
    inside = torch.full((size,), float(fade))
    position = torch.arange(size) + 0.5
    if span.start > 0:
        inside = torch.minimum(inside, position)
    if span.stop < length:
        inside = torch.minimum(inside, size - position)
    return 0.5 - 0.5 * torch.cos(inside / fade * math.pi)
