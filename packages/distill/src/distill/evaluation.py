"""What a run measures before and after: figures in a table, pictures in a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sr_models.geometry import upsample

METRICS = ("PSNR-Y", "SSIM-Y", "PSNR-RGB", "sharpness")


@dataclass(frozen=True)
class Evaluation:
    """Figures by method and pictures by column title.

    Args:
        rows: method -> metric -> value.
        pictures: column title -> (B, 3, H, W) pixels [-1, 1], all of the same size.
    """

    rows: Mapping[str, Mapping[str, float]]
    pictures: Mapping[str, Tensor]


def measure(images: Tensor, reference: Tensor) -> dict[str, float]:
    """PSNR and SSIM on Y, PSNR on RGB (no luma metric shows a lost colour), and sharpness.

    Sharpness is the mean gradient magnitude of Y relative to the reference's.

    Args:
        images: pixels [-1, 1], (B, 3, H, W).
        reference: HR images of the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    y, y_ref = luma(images), luma(reference)
    ssim = structural_similarity_index_measure(y, y_ref, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return {
        "PSNR-Y": _psnr(y, y_ref),
        "SSIM-Y": ssim.item(),
        "PSNR-RGB": _psnr(images.add(1).div(2), reference.add(1).div(2)),
        "sharpness": (gradient(y) / gradient(y_ref)).item(),
    }


def _psnr(images: Tensor, reference: Tensor) -> float:
    """PSNR in dB of values in [0, 1], averaged over the images."""
    mse = (images - reference).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * mse.log10()).mean())


def luma(images: Tensor) -> Tensor:
    """BT.601 luma as MATLAB and the papers use it: pixels [-1, 1] (B, 3, H, W) -> (B, 1, H, W) in [16/255, 235/255]."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=images.device, dtype=images.dtype) / 255
    return (images.add(1).div(2) * weights[:, None, None]).sum(1, keepdim=True) + 16 / 255


def gradient(y: Tensor) -> Tensor:
    """Mean gradient magnitude (forward differences) of (B, 1, H, W)."""
    dx = y[..., :-1, 1:] - y[..., :-1, :-1]
    dy = y[..., 1:, :-1] - y[..., :-1, :-1]
    return (dx.square() + dy.square()).sqrt().mean()


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Bicubic baseline, pixels [-1, 1]."""
    return upsample(lr, scale)
