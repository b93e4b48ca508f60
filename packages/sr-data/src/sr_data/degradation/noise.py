"""Gaussian and Poisson noise with one strength a sample, drawn on the CPU from an explicit generator.

Noise is drawn on the CPU and moved, so that the same generator gives the same noise on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def add_gaussian_noise(images: Tensor, sigma: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Add white Gaussian noise; the sum is not clamped.

    Args:
        images: ``(B, 3, H, W)``, pixels [0, 1], floating.
        sigma: standard deviation in 8-bit levels, ``(B,)``.
        grey: where true the three channels share one noise field, ``(B,)`` bool.
        generator: CPU generator; 3 H W normal numbers a sample are drawn whether grey or not.

    Returns:
        Noisy images ``(B, 3, H, W)``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check(images, sigma, grey)
    field = torch.randn(images.shape, generator=generator)
    field = torch.where(grey.cpu().reshape(-1, 1, 1, 1), field[:, :1], field)
    field = field * (sigma.to(field).reshape(-1, 1, 1, 1) / 255.0)
    return images + field.to(images)


def add_poisson_noise(images: Tensor, scale: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Add shot noise ``scale (Poisson(v x) / v - x)``; the sum is not clamped.

    x is the image rounded to 8 bit and v the number of its different values rounded up to a power of two, so
    that images with few values are noisier. Grey noise is drawn for the luma and shared by the channels.

    Args:
        images: ``(B, 3, H, W)``, pixels [0, 1], floating.
        scale: factor of the noise, ``(B,)``.
        grey: where true the three channels share the noise of the luma, ``(B,)`` bool.
        generator: CPU generator; samples are drawn in order.

    Returns:
        Noisy images ``(B, 3, H, W)``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check(images, scale, grey)
    sources = images.detach().float().clamp(0.0, 1.0).cpu()
    fields = [
        _shot_noise(_to_luma(source) if is_grey else source, generator).expand_as(source) * factor
        for source, factor, is_grey in zip(sources, scale.tolist(), grey.tolist(), strict=True)
    ]
    return images + torch.stack(fields).to(images)


def _shot_noise(image: Tensor, generator: torch.Generator) -> Tensor:
    levels = (image * 255.0).round()
    different = int(torch.bincount(levels.long().flatten()).count_nonzero())
    values = 2 ** (different - 1).bit_length()
    rounded = levels / 255.0
    noisy: Tensor = torch.poisson(rounded * values, generator=generator) / values
    return noisy - rounded


def _to_luma(image: Tensor) -> Tensor:
    """Luma ``(1, H, W)`` of an RGB image ``(3, H, W)``."""
    weights = torch.tensor(_LUMA).reshape(3, 1, 1)
    return (weights * image).sum(dim=0, keepdim=True)


def _check(images: Tensor, strength: Tensor, grey: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected floating RGB images (B, 3, H, W), got {images.dtype} {tuple(images.shape)};"
            " convert to float pixels [0, 1] with a batch axis"
        )
    batch = (images.shape[0],)
    if strength.shape != batch or grey.shape != batch or grey.dtype != torch.bool:
        raise ValueError(
            f"expected strength and grey of shape {batch}, grey boolean, got {tuple(strength.shape)} and"
            f" {grey.dtype} {tuple(grey.shape)}; give one of each for every image"
        )
