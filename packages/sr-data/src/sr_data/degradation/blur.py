"""Blur kernels of the second-order degradation and the per-sample filter that applies them.

All kernels are float64, odd and square, sum to one, and are vectorised: every parameter is a number or a
tensor ``(B,)``, and the kernels come back as ``(B, size, size)``. With ``q = xᵀ Σ⁻¹ x``, where Σ has the
standard deviations ``sigma_x`` and ``sigma_y`` along axes turned by ``angle``:

* Gaussian ``exp(-q / 2)``; isotropic when ``sigma_x = sigma_y``,
* generalized Gaussian ``exp(-q^beta / 2)``,
* plateau ``1 / (q^beta + 1)``,
* sinc, the ideal circular low-pass filter ``cutoff J1(cutoff r) / (2 π r)``, which rings.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Parameter = float | Tensor


def gaussian_kernel(size: int, sigma_x: Parameter, sigma_y: Parameter, angle: Parameter = 0.0) -> Tensor:
    """Gaussian kernels, ``exp(-q / 2)`` normalised to sum one.

    Args:
        size: side of the kernel in pixels, odd.
        sigma_x: standard deviation in pixels along the first axis, > 0.
        sigma_y: standard deviation in pixels along the second axis, > 0.
        angle: turn of the axes in radians, from x (right) towards y (down).

    Returns:
        Kernels ``(B, size, size)``, float64; B = 1 when every parameter is a number.

    Raises:
        ValueError: if the size is even or a standard deviation is not positive.
    """
    return _normalise(torch.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, angle)))


def generalized_gaussian_kernel(
    size: int, sigma_x: Parameter, sigma_y: Parameter, angle: Parameter, beta: Parameter
) -> Tensor:
    """Generalized Gaussian kernels, ``exp(-q^beta / 2)``: heavy tails for beta < 1, flat tops for beta > 1.

    Args:
        size: side of the kernel in pixels, odd.
        sigma_x: standard deviation in pixels along the first axis, > 0.
        sigma_y: standard deviation in pixels along the second axis, > 0.
        angle: turn of the axes in radians, from x (right) towards y (down).
        beta: shape, > 0; 1 is the Gaussian.

    Returns:
        Kernels ``(B, size, size)``, float64.

    Raises:
        ValueError: if the size is even, or a standard deviation or beta is not positive.
    """
    form = _quadratic_form(size, sigma_x, sigma_y, angle)
    return _normalise(torch.exp(-0.5 * form ** _positive("beta", beta)))


def plateau_kernel(size: int, sigma_x: Parameter, sigma_y: Parameter, angle: Parameter, beta: Parameter) -> Tensor:
    """Plateau-shaped kernels, ``1 / (q^beta + 1)``.

    Args:
        size: side of the kernel in pixels, odd.
        sigma_x: half width in pixels along the first axis, > 0.
        sigma_y: half width in pixels along the second axis, > 0.
        angle: turn of the axes in radians, from x (right) towards y (down).
        beta: shape, > 0; the larger, the steeper the edge of the plateau.

    Returns:
        Kernels ``(B, size, size)``, float64.

    Raises:
        ValueError: if the size is even, or a standard deviation or beta is not positive.
    """
    form = _quadratic_form(size, sigma_x, sigma_y, angle)
    return _normalise(1.0 / (form ** _positive("beta", beta) + 1.0))


def sinc_kernel(size: int, cutoff: Parameter) -> Tensor:
    """Circular low-pass kernels, ``cutoff J1(cutoff r) / (2 π r)`` with centre ``cutoff² / (4 π)``.

    Args:
        size: side of the kernel in pixels, odd.
        cutoff: cutoff in radians a pixel, in (0, π]; π keeps nearly everything.

    Returns:
        Kernels ``(B, size, size)``, float64.

    Raises:
        ValueError: if the size is even or the cutoff is not positive.
    """
    centre = size // 2
    x, y = _grid(size)
    # Symmetric: one quadrant holds every radius.
    r = torch.hypot(x, y)[centre:, centre:]
    cutoff = _positive("cutoff", cutoff)
    # The filter is proportional to J1(z) / z, which is 1/2 at z = 0; the centre is the only such point.
    z = (cutoff * r).where(r > 0, 1.0)
    quadrant = (_bessel_j1(z) / z).where(r > 0, 0.5)
    return _normalise(quadrant[:, y.abs().long(), x.abs().long()])


def filter2d(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate every image with its own kernel; the border is reflected, so the size stays.

    The product is taken in the Fourier domain: its cost hardly depends on the kernel size, and it keeps full
    float32 precision on accelerators, where convolutions may silently use fewer bits. Images smaller than
    half the kernel are reflected several times.

    Args:
        images: ``(B, C, H, W)``, floating.
        kernels: ``(B, k, k)``, floating, k odd.

    Returns:
        Filtered images ``(B, C, H, W)``, dtype and device of ``images``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"expected floating images (B, C, H, W), got {images.dtype} {tuple(images.shape)};"
            " convert to float with a batch axis"
        )
    size = kernels.shape[-1]
    if kernels.shape != (images.shape[0], size, size) or size % 2 == 0:
        raise ValueError(
            f"expected {images.shape[0]} odd square kernels (B, k, k), got {tuple(kernels.shape)};"
            " give one kernel for each image"
        )
    height, width = images.shape[-2:]
    # Fourier transforms take neither 16-bit type.
    working = images if images.dtype == torch.float64 else images.float()
    padded = _pad_reflected(working, size // 2)
    shape = (_fast_length(padded.shape[-2]), _fast_length(padded.shape[-1]))
    spectrum = torch.fft.rfft2(padded, s=shape)
    # The conjugate turns convolution into correlation; circular wrap only reaches what is cropped away.
    response = torch.fft.rfft2(kernels.to(working), s=shape).conj()
    filtered: Tensor = torch.fft.irfft2(spectrum * response[:, None], s=shape)
    return filtered[..., :height, :width].to(images.dtype)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates ``(size, size)`` of a centred kernel: x to the right, y downwards."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"expected an odd kernel size, got {size}; use {size + 1}")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis.expand(size, size), axis[:, None].expand(size, size)


def _quadratic_form(size: int, sigma_x: Parameter, sigma_y: Parameter, angle: Parameter) -> Tensor:
    """``xᵀ Σ⁻¹ x`` on the grid, ``(B, size, size)``."""
    x, y = _grid(size)
    angle = _batch(angle)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    along = (x * cosine + y * sine) / _positive("sigma_x", sigma_x)
    across = (y * cosine - x * sine) / _positive("sigma_y", sigma_y)
    return along**2 + across**2


def _batch(value: Parameter) -> Tensor:
    """A parameter as float64 ``(B, 1, 1)`` on the CPU."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1, 1, 1)


def _positive(name: str, value: Parameter) -> Tensor:
    batch = _batch(value)
    if not bool((batch > 0).all()):
        raise ValueError(f"expected {name} > 0, got {value}; give a positive number")
    return batch


def _normalise(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum(dim=(-2, -1), keepdim=True)


def _bessel_j1(z: Tensor) -> Tensor:
    """Bessel function J1, from ``1/π ∫_0^π cos(τ - z sin τ) dτ`` by the midpoint rule.

    The integrand is periodic, so the rule converges exponentially: 64 nodes are exact to 1e-15 for z below 90
    (kernels up to 41 pixels). ``torch.special.bessel_j1`` is only good to about 1e-8 in float64.
    """
    nodes = max(64, math.ceil(0.75 * float(z.max())))
    tau = (torch.arange(nodes, dtype=torch.float64) + 0.5) * (math.pi / nodes)
    return torch.cos(tau - z[..., None] * torch.sin(tau)).mean(dim=-1)


def _pad_reflected(images: Tensor, padding: int) -> Tensor:
    """Pad by reflection about the edge pixels, back and forth where the image is smaller than the padding."""
    height, width = images.shape[-2:]
    if padding < min(height, width):
        return F.pad(images, (padding,) * 4, mode="reflect")
    rows = _reflected_indices(height, padding).to(images.device)
    columns = _reflected_indices(width, padding).to(images.device)
    return images[..., rows[:, None], columns]


def _reflected_indices(length: int, padding: int) -> Tensor:
    """Source index of every padded position: a triangle wave of period ``2 (length - 1)``."""
    period = max(2 * (length - 1), 1)
    indices = torch.arange(-padding, length + padding).remainder(period)
    return torch.minimum(indices, (period - indices).remainder(period))


@lru_cache(maxsize=4096)
def _fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5, where Fourier transforms are quick."""
    rest = length
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return length if rest == 1 else _fast_length(length + 1)
