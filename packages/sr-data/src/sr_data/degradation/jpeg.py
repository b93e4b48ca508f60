"""Simulated JPEG compression on tensors: the loss of the codec without its bit stream."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Tables of ITU-T T.81 Annex K. Rows count the vertical frequency in the standard; the luminance table is used
# transposed here, as the published Real-ESRGAN degradation does (the chrominance table is symmetric).
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Luma and the two colour differences, JFIF full range, without the offset of 128.
_RGB_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
_YCBCR_TO_RGB = (
    (1.0, 0.0, 1.402),
    (1.0, -0.344136, -0.714136),
    (1.0, 1.772, 0.0),
)
_MACROBLOCK = 16


def jpeg(images: Tensor, quality: float | Tensor) -> Tensor:
    """Compress and decompress images as JPEG with 4:2:0 chroma does, without rounding pixels to 8 bit.

    YCbCr, chroma averaged 2x2, 8x8 cosine transform, coefficients rounded to multiples of the standard tables
    times ``50 / q`` (q < 50) or ``2 - q / 50``, transformed back, chroma repeated 2x2, RGB. Images whose
    sides are no multiple of 16 are padded with black and cropped, as the published degradation does.

    Args:
        images: ``(B, 3, H, W)``, pixels [0, 1], floating.
        quality: JPEG quality in (0, 100], a number or one for each sample ``(B,)``.

    Returns:
        Images of the same shape, dtype and device, pixels [0, 1].

    Raises:
        ValueError: if the images are not floating RGB, or the quality is out of range or of another length.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected floating RGB images (B, 3, H, W), got {images.dtype} {tuple(images.shape)};"
            " convert to float pixels [0, 1] with a batch axis"
        )
    steps = _quality_factor(quality, images.shape[0])
    device = images.device
    # Double precision keeps reduced-precision matrix products (TF32, autocast) out; MPS lacks it.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    height, width = images.shape[-2:]
    pixels = images.to(dtype) * 255.0
    pixels = F.pad(pixels, (0, -width % _MACROBLOCK, 0, -height % _MACROBLOCK))

    ycbcr = torch.einsum("ij,bjhw->bihw", _constant(_RGB_TO_YCBCR, dtype, device), pixels)
    luma = _quantise_blocks(ycbcr[:, :1] - 128.0, _LUMINANCE, steps)
    chroma = _quantise_blocks(F.avg_pool2d(ycbcr[:, 1:], 2), _CHROMINANCE, steps)
    chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
    ycbcr = torch.cat([luma + 128.0, chroma], dim=1)
    rgb = torch.einsum("ij,bjhw->bihw", _constant(_YCBCR_TO_RGB, dtype, device), ycbcr)
    return (rgb[..., :height, :width].clamp(0.0, 255.0) / 255.0).to(images.dtype)


def _quality_factor(quality: float | Tensor, batch: int) -> Tensor:
    """Multiple of the standard tables, float64 ``(B or 1,)``, on the CPU."""
    values = torch.as_tensor(quality, dtype=torch.float64, device="cpu").reshape(-1)
    if values.numel() not in (1, batch) or not bool(((values > 0) & (values <= 100)).all()):
        raise ValueError(
            f"expected quality in (0, 100], one number or one for each of {batch} images, got {quality};"
            " give a valid quality"
        )
    factor = torch.where(values < 50, 50.0 / values, 2.0 - values / 50.0)
    # Quality 100 would divide by zero; a step this small leaves only the loss of the chroma averaging.
    return factor.clamp(min=1e-6)


def _quantise_blocks(planes: Tensor, table: tuple[tuple[int, ...], ...], factor: Tensor) -> Tensor:
    """Round the 8x8 cosine coefficients of centred planes ``(B, C, H, W)`` to multiples of the table."""
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(-3, -2)
    basis = _block_transform(planes.dtype, planes.device)
    steps = _constant(table, planes.dtype, planes.device).T.reshape(64)
    steps = steps * factor.to(planes).reshape(-1, 1, 1)
    coefficients = blocks.reshape(batch, -1, 64) @ basis.T
    coefficients = torch.round(coefficients / steps) * steps
    blocks = (coefficients @ basis).reshape(batch, channels, height // 8, width // 8, 8, 8)
    return blocks.transpose(-3, -2).reshape(batch, channels, height, width)


@lru_cache(maxsize=16)
def _block_transform(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal 2-D DCT-II of a flattened 8x8 block as one 64x64 matrix: an image is one product."""
    # A cached constant outlives the inference mode it may be made in.
    with torch.inference_mode(False):
        n = torch.arange(8, dtype=torch.float64)
        cosines = torch.cos((2.0 * n + 1.0) * n[:, None] * (math.pi / 16.0)) / 2.0
        cosines[0] /= math.sqrt(2.0)
        return torch.kron(cosines, cosines).to(dtype).to(device)


@lru_cache(maxsize=32)
def _constant(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype, device=device)
