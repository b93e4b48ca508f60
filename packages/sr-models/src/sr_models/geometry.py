"""Sizes, enlargement and tiles of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_OVERLAP = 32
"""LR pixels that neighbouring tiles share and in which one fades into the other."""


def upsample(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling by ``scale``, pixels [-1, 1], clamped: what the encoder sees of the LR image."""
    return F.interpolate(lr, scale_factor=float(scale), mode="bicubic", align_corners=False).clamp(-1, 1)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to a multiple by reflection, or by replication where the image is too small to reflect."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return image
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode)


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


def tile_ramp(span: slice, length: int, scale: int) -> Tensor:
    """Weights of a tile along one axis, (tile * scale,): fading at both ends, except at the border of the picture."""
    size, fade = (span.stop - span.start) * scale, TILE_OVERLAP * scale
    position = torch.arange(size) + 0.5
    ramp = torch.ones(size)
    if span.start > 0:
        ramp = torch.minimum(ramp, position / fade)
    if span.stop < length:
        ramp = torch.minimum(ramp, (size - position) / fade)
    return ramp
