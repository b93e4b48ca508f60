"""The random parameters of one sample's degradation, drawn before any pixel is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sr_data.degradation.blur import (
    gaussian_kernel,
    generalized_gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
)
from sr_data.degradation.config import BlurConfig, DegradationConfig, NoiseConfig, ResizeConfig, ResizeMode

_T = TypeVar("_T")
_DRAWS = 40
# From this side on a sinc kernel is large enough to carry the longer ringing of a lower cutoff.
_LARGE_KERNEL = 13


@dataclass(frozen=True)
class Kernel:
    """One blur kernel; fields that its shape does not use are ignored."""

    shape: Literal["gaussian", "generalized", "plateau", "sinc"]
    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def weights(self) -> Tensor:
        """The kernel as float64 ``(1, size, size)``."""
        if self.shape == "sinc":
            return sinc_kernel(self.size, self.cutoff)
        if self.shape == "gaussian":
            return gaussian_kernel(self.size, self.sigma_x, self.sigma_y, self.angle)
        family = generalized_gaussian_kernel if self.shape == "generalized" else plateau_kernel
        return family(self.size, self.sigma_x, self.sigma_y, self.angle, self.beta)


@dataclass(frozen=True)
class Resize:
    """A factor and how to interpolate."""

    scale: float
    mode: ResizeMode


@dataclass(frozen=True)
class Noise:
    """A kind of noise and its strength: standard deviation in 8-bit levels, or factor of the shot noise."""

    kind: Literal["gaussian", "poisson"]
    strength: float
    grey: bool


@dataclass(frozen=True)
class Stage:
    """Blur (or None), resize and noise of the first or second stage."""

    kernel: Kernel | None
    resize: Resize
    noise: Noise


@dataclass(frozen=True)
class DegradationParameters:
    """All that is random about one sample's degradation, but the noise fields."""

    first: Stage
    first_quality: float
    second: Stage | None
    final_kernel: Kernel | None
    final_mode: ResizeMode
    final_quality: float
    jpeg_last: bool


def draw_parameters(config: DegradationConfig, generator: torch.Generator) -> DegradationParameters:
    """Draw the parameters of one sample.

    One call takes 40 uniform float64 numbers from the generator and uses them in the order of the fields: the
    first stage (16, then its JPEG quality), whether there is a second stage and its 16, the final stage (6).
    Every number has its place whether or not the branch that needs it is taken, so changing one setting never
    shifts the meaning of the numbers after it.

    Args:
        config: probabilities and ranges.
        generator: CPU generator.

    Returns:
        The parameters of one sample.
    """
    uniforms = _Uniforms(torch.rand(_DRAWS, dtype=torch.float64, generator=generator).tolist())
    first = _draw_stage(config.first.blur, config.first.resize, config.first.noise, uniforms)
    first_quality = uniforms.between(*config.first.jpeg_quality)
    has_second = uniforms.chance(config.second.probability)
    second = _draw_stage(config.second.blur, config.second.resize, config.second.noise, uniforms)
    final = config.final
    has_sinc = uniforms.chance(final.sinc_probability)
    sinc = Kernel("sinc", uniforms.odd(*final.sinc_kernel_size), cutoff=uniforms.between(*final.sinc_cutoff))
    parameters = DegradationParameters(
        first=first,
        first_quality=first_quality,
        second=second if has_second else None,
        final_kernel=sinc if has_sinc else None,
        final_mode=uniforms.choose(final.modes),
        final_quality=uniforms.between(*final.jpeg_quality),
        jpeg_last=uniforms.chance(final.jpeg_last_probability),
    )
    assert uniforms.used == _DRAWS
    return parameters


def _draw_stage(blur: BlurConfig, resize: ResizeConfig, noise: NoiseConfig, uniforms: _Uniforms) -> Stage:
    """Draw blur, resize and noise with 10 + 3 + 3 numbers."""
    has_blur = uniforms.chance(blur.probability)
    kernel = _draw_kernel(blur, uniforms)
    return Stage(
        kernel=kernel if has_blur else None,
        resize=_draw_resize(resize, uniforms),
        noise=_draw_noise(noise, uniforms),
    )


def _draw_kernel(config: BlurConfig, uniforms: _Uniforms) -> Kernel:
    """Draw a kernel with 9 numbers: sinc, kind, size, two sigmas, angle, side and value of beta, cutoff."""
    is_sinc = uniforms.chance(config.sinc_probability)
    kinds = config.kinds.model_dump()
    kind = uniforms.choose(tuple(kinds), tuple(kinds.values()))
    size = uniforms.odd(*config.kernel_size)
    sigma_x = uniforms.between(*config.sigma)
    sigma_y = uniforms.between(*config.sigma)
    angle = uniforms.between(-math.pi, math.pi)
    low, high = config.plateau_beta if kind.startswith("plateau") else config.generalized_beta
    middle = min(max(1.0, low), high)
    beta = uniforms.between(*((low, middle) if uniforms.chance(0.5) else (middle, high)))
    is_large = size >= _LARGE_KERNEL
    cutoff = uniforms.between(*(config.large_kernel_cutoff if is_large else config.small_kernel_cutoff))
    if is_sinc:
        return Kernel("sinc", size, cutoff=cutoff)
    shape: Literal["gaussian", "generalized", "plateau"] = "gaussian"
    if kind.startswith("generalized"):
        shape = "generalized"
    elif kind.startswith("plateau"):
        shape = "plateau"
    if kind.endswith("anisotropic"):
        return Kernel(shape, size, sigma_x, sigma_y, angle, beta)
    return Kernel(shape, size, sigma_x, sigma_x, 0.0, beta)


def _draw_resize(config: ResizeConfig, uniforms: _Uniforms) -> Resize:
    """Draw a factor and an interpolation with 3 numbers."""
    direction = uniforms.choose(
        ("up", "down", "keep"), (config.up_probability, config.down_probability, config.keep_probability)
    )
    low, high = {"up": (1.0, config.scale[1]), "down": (config.scale[0], 1.0), "keep": (1.0, 1.0)}[direction]
    return Resize(uniforms.between(low, high), uniforms.choose(config.modes))


def _draw_noise(config: NoiseConfig, uniforms: _Uniforms) -> Noise:
    """Draw kind, strength and greyness with 3 numbers."""
    if uniforms.chance(config.gaussian_probability):
        strength = uniforms.between(*config.gaussian_sigma)
        return Noise("gaussian", strength, uniforms.chance(config.grey_probability))
    strength = uniforms.between(*config.poisson_scale)
    return Noise("poisson", strength, uniforms.chance(config.grey_probability))


class _Uniforms:
    """Numbers in [0, 1) that are used up one by one."""

    def __init__(self, values: list[float]) -> None:
        self._values = values
        self.used = 0

    def _next(self) -> float:
        self.used += 1
        return self._values[self.used - 1]

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def odd(self, low: int, high: int) -> int:
        return low + 2 * int(self._next() * ((high - low) // 2 + 1))

    def choose(self, items: Sequence[_T], weights: Sequence[float] | None = None) -> _T:
        threshold = self._next() * (len(items) if weights is None else sum(weights))
        if weights is None:
            return items[int(threshold)]
        for item, weight in zip(items, weights, strict=True):
            threshold -= weight
            if threshold < 0 and weight > 0:
                return item
        # Rounding can leave a rest of 1e-17 at the very end of the interval.
        return max(zip(weights, items, strict=True), key=lambda pair: pair[0])[1]
