"""Resizing without antialiasing, as the second-order degradation uses it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sr_data.degradation.config import ResizeMode


def resize(images: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    """Resize so that the borders of input and output coincide; aliasing is part of the degradation.

    Args:
        images: ``(B, C, H, W)``, floating.
        size: height and width of the result.
        mode: "area" (mean of the covered pixels), "bilinear" or "bicubic" (may overshoot the input's range).

    Returns:
        Images ``(B, C, *size)``; the input itself if it already has that size.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    if mode == "area":
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode=mode, align_corners=False)
