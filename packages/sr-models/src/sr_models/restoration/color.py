"""Colour corrections: the restored image gets the LR image's colours, by statistics or at low frequencies.

All take and give pixels [-1, 1], (B, 3, H, W), the LR image enlarged to the size of the restored one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
"""Of the wavelet decomposition: blurs of radius 1, 2, 4, 8 and 16, as the published one-step models use it."""
EPSILON = 1e-5
"""Added to variances, as the published one-step models do."""
WHITE = (0.95047, 1.0, 1.08883)
"""D65 in CIE XYZ."""
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB to CIE XYZ (IEC 61966-2-1)."""


class ColorStatistics:
    """Mean and deviation of every channel, of a restored picture and of its LR picture, from parts of both."""

    def __init__(self) -> None:
        self._sums: list[Tensor] | None = None
        self._count = 0

    def add(self, sr: Tensor, lr: Tensor) -> None:
        """Take in parts of equal size, (B, 3, H, W)."""
        sums = [value.double().pow(power).sum((0, 2, 3)) for value in (sr, lr) for power in (1, 2)]
        self._sums = sums if self._sums is None else [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._count += sr[:, 0].numel()

    def finite(self) -> bool:
        """Whether all of them are."""
        return self._sums is not None and all(bool(torch.isfinite(value).all()) for value in self._sums)

    def moments(self) -> list[Tensor]:
        """Mean and deviation of the restored picture, then those of the LR picture, (1, 3, 1, 1) each."""
        assert self._sums is not None
        means = [value / self._count for value in self._sums]
        pairs = [(means[0], means[1] - means[0] ** 2), (means[2], means[3] - means[2] ** 2)]
        wide = [value for mean, variance in pairs for value in (mean, (variance.clamp(min=0) + EPSILON).sqrt())]
        return [value.float()[None, :, None, None] for value in wide]


def correct(sr: Tensor, lr: Tensor, color: str, statistics: ColorStatistics | None = None) -> Tensor:
    """Apply a correction by name, :data:`sr_models.options.COLORS`.

    Args:
        sr: restored.
        lr: enlarged to its size.
        color: name.
        statistics: of the whole picture, where these are parts of it; None: these are the whole.
    """
    if color == "adain":
        return adain(sr, lr, statistics)
    return _CORRECTIONS[color](sr, lr)


def adain(sr: Tensor, lr: Tensor, statistics: ColorStatistics | None = None) -> Tensor:
    """Give every channel of an image the LR image's mean and standard deviation."""
    if statistics is None:
        mean, std = _moments(sr)
        wanted_mean, wanted_std = _moments(lr)
    else:
        mean, std, wanted_mean, wanted_std = statistics.moments()
    return (sr - mean) / std * wanted_std + wanted_mean


def wavelet(sr: Tensor, lr: Tensor) -> Tensor:
    """Keep the fine detail of the restored image and take everything coarser from the LR image."""
    return sr + low_frequencies(lr - sr)


def lab(sr: Tensor, lr: Tensor) -> Tensor:
    """Keep lightness and fine chroma of the restored image, take coarse chroma from the LR image, in CIELAB."""
    ours = to_lab(sr)
    ours[:, 1:] += low_frequencies((to_lab(lr) - ours)[:, 1:])
    return from_lab(ours)


def low_frequencies(image: Tensor) -> Tensor:
    """Blur (B, C, H, W) by the binomial kernel with holes of 1, 2, 4, 8 and 16 positions; borders are repeated."""
    kernel = torch.tensor([1.0, 2.0, 1.0], device=image.device, dtype=image.dtype) / 4
    channels = image.shape[1]
    across = kernel.view(1, 1, 1, 3).repeat(channels, 1, 1, 1)
    for level in range(LEVELS):
        radius = 2**level
        padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
        rows = F.conv2d(padded, across, dilation=(1, radius), groups=channels)
        image = F.conv2d(rows, across.transpose(2, 3), dilation=(radius, 1), groups=channels)
    return image


def to_lab(image: Tensor) -> Tensor:
    """sRGB pixels [-1, 1] to CIELAB under D65: L 0..100, a and b about -100..100."""
    value = image.add(1).div(2)
    linear = torch.where(value <= 0.04045, value / 12.92, ((value.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    ratio = torch.einsum("ij,bjhw->bihw", linear.new_tensor(TO_XYZ), linear) / _white(linear)
    f = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=1e-6) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def from_lab(image: Tensor) -> Tensor:
    """CIELAB to sRGB pixels, [-1, 1] within the gamut."""
    lightness, a, b = image.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], 1)
    ratio = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    to_rgb = torch.linalg.inv(torch.tensor(TO_XYZ, dtype=torch.float64)).to(ratio)
    linear = torch.einsum("ij,bjhw->bihw", to_rgb, ratio * _white(ratio))
    value = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
    return value.mul(2).sub(1)


def _white(like: Tensor) -> Tensor:
    return like.new_tensor(WHITE).view(1, 3, 1, 1)


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    flat = image.flatten(2)
    std = (flat.var(-1) + EPSILON).sqrt() if flat.shape[-1] > 1 else torch.ones_like(flat[..., 0])
    return flat.mean(-1)[..., None, None], std[..., None, None]


_CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda sr, lr: sr,
    "wavelet": wavelet,
    "lab": lab,
}
