"""Settings of the second-order degradation; every published number is a named field."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

ResizeMode = Literal["area", "bilinear", "bicubic"]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"expected an ordered range (low, high), got {value}; swap the two numbers")
    return value


def _odd(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1] or value[0] % 2 == 0 or value[1] % 2 == 0:
        raise ValueError(f"expected an ordered range of odd sizes, got {value}; use for example (7, 21)")
    return value


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Cutoff = Annotated[float, Field(gt=0, le=math.pi)]
_Quality = Annotated[float, Field(gt=0, le=100)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveRange = Annotated[tuple[_Positive, _Positive], AfterValidator(_ordered)]
StrengthRange = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_ordered)]
CutoffRange = Annotated[tuple[_Cutoff, _Cutoff], AfterValidator(_ordered)]
QualityRange = Annotated[tuple[_Quality, _Quality], AfterValidator(_ordered)]
KernelSizeRange = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_odd)]
Modes = Annotated[tuple[ResizeMode, ...], Field(min_length=1)]


def _check_sum(what: str, *probabilities: float) -> None:
    if not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
        raise ValueError(f"expected {what} that sum to 1, got {sum(probabilities):g}; adjust one of them")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KernelProbabilities(_Settings):
    """How often each family of blur kernels is drawn, given that it is not a sinc; they sum to 1."""

    isotropic: Probability
    anisotropic: Probability
    generalized_isotropic: Probability
    generalized_anisotropic: Probability
    plateau_isotropic: Probability
    plateau_anisotropic: Probability

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        _check_sum("kernel probabilities", *self.model_dump().values())
        return self


class BlurConfig(_Settings):
    """Random blur kernels.

    The shape beta is drawn below 1 and above 1 with equal probability, each uniform in its part of the range.
    """

    probability: Probability = Field(description="of blurring at all")
    kernel_size: KernelSizeRange = Field(description="smallest and largest side in pixels, odd sizes uniform")
    kinds: KernelProbabilities
    sigma: PositiveRange = Field(description="standard deviation in pixels, uniform, for each axis")
    generalized_beta: PositiveRange = Field(description="shape of the generalized Gaussian kernels")
    plateau_beta: PositiveRange = Field(description="shape of the plateau kernels")
    sinc_probability: Probability = Field(description="of a sinc instead of one of the kinds")
    small_kernel_cutoff: CutoffRange = Field(description="cutoff of sinc kernels with less than 13 pixels")
    large_kernel_cutoff: CutoffRange = Field(description="cutoff of sinc kernels with 13 pixels or more")


class ResizeConfig(_Settings):
    """Random resizing: up in [1, high], down in [low, 1], or kept; the three probabilities sum to 1."""

    up_probability: Probability
    down_probability: Probability
    keep_probability: Probability
    scale: PositiveRange = Field(description="smallest and largest factor, 1 lies between them")
    modes: Modes = Field(description="interpolations, drawn uniformly, none of them antialiased")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_sum("resize probabilities", self.up_probability, self.down_probability, self.keep_probability)
        if not self.scale[0] <= 1.0 <= self.scale[1]:
            raise ValueError(f"expected a scale range around 1, got {self.scale}; include 1")
        return self


class NoiseConfig(_Settings):
    """Gaussian noise with a probability, Poisson noise otherwise."""

    gaussian_probability: Probability
    gaussian_sigma: StrengthRange = Field(description="standard deviation in 8-bit levels, uniform")
    poisson_scale: StrengthRange = Field(description="factor of the shot noise, uniform")
    grey_probability: Probability = Field(description="of one noise field for all three channels")


class FirstStage(_Settings):
    """Blur, resize relative to the HR size, noise, JPEG."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    jpeg_quality: QualityRange


class SecondStage(_Settings):
    """With a probability: blur, resize relative to the LR size, noise."""

    probability: Probability
    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig


class FinalStage(_Settings):
    """Resize to the LR size with a sinc filter, and JPEG, in either order."""

    sinc_probability: Probability
    sinc_kernel_size: KernelSizeRange
    sinc_cutoff: CutoffRange
    modes: Modes
    jpeg_quality: QualityRange
    jpeg_last_probability: Probability


class DegradationConfig(_Settings):
    """Settings of the whole second-order degradation."""

    first: FirstStage
    second: SecondStage
    final: FinalStage

    @classmethod
    def real_esrgan(cls) -> DegradationConfig:
        """The second-order degradation as published with RSD (Real-ESRGAN with a lighter second stage)."""
        modes: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
        first_blur = BlurConfig(
            probability=1.0,
            kernel_size=(7, 21),
            kinds=KernelProbabilities(
                isotropic=0.45,
                anisotropic=0.25,
                generalized_isotropic=0.12,
                generalized_anisotropic=0.03,
                plateau_isotropic=0.12,
                plateau_anisotropic=0.03,
            ),
            sigma=(0.2, 3.0),
            generalized_beta=(0.5, 4.0),
            plateau_beta=(1.0, 2.0),
            sinc_probability=0.1,
            small_kernel_cutoff=(math.pi / 3, math.pi),
            large_kernel_cutoff=(math.pi / 5, math.pi),
        )
        return cls(
            first=FirstStage(
                blur=first_blur,
                resize=ResizeConfig(
                    up_probability=0.2,
                    down_probability=0.7,
                    keep_probability=0.1,
                    scale=(0.15, 1.5),
                    modes=modes,
                ),
                noise=NoiseConfig(
                    gaussian_probability=0.5,
                    gaussian_sigma=(1.0, 30.0),
                    poisson_scale=(0.05, 3.0),
                    grey_probability=0.4,
                ),
                jpeg_quality=(30.0, 95.0),
            ),
            second=SecondStage(
                probability=0.5,
                blur=first_blur.model_copy(update={"probability": 0.8, "kernel_size": (7, 15), "sigma": (0.2, 1.5)}),
                resize=ResizeConfig(
                    up_probability=0.3,
                    down_probability=0.4,
                    keep_probability=0.3,
                    scale=(0.3, 1.2),
                    modes=modes,
                ),
                noise=NoiseConfig(
                    gaussian_probability=0.5,
                    gaussian_sigma=(1.0, 25.0),
                    poisson_scale=(0.05, 2.5),
                    grey_probability=0.4,
                ),
            ),
            final=FinalStage(
                sinc_probability=0.8,
                sinc_kernel_size=(7, 21),
                sinc_cutoff=(math.pi / 3, math.pi),
                modes=modes,
                jpeg_quality=(30.0, 95.0),
                jpeg_last_probability=0.5,
            ),
        )
