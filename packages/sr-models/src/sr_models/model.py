"""A super-resolution model: U-Net, autoencoder, schedule and scale, which belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resshift_core import ResShiftSchedule
from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.denoiser import Denoiser
from sr_models.swin_unet import SwinUNet, SwinUNetConfig

Kind = Literal["teacher", "student"]


class ScheduleConfig(BaseModel):
    """Arguments of :meth:`resshift_core.ResShiftSchedule.exponential`; the defaults are the published setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(default=15, ge=1)
    kappa: float = Field(default=2.0, gt=0)
    power: float = Field(default=0.3, gt=0)
    min_noise_level: float = Field(default=0.04, gt=0)
    sqrt_eta_end: float = Field(default=0.99, gt=0, le=1)

    def build(self) -> ResShiftSchedule:
        """Return the schedule."""
        return ResShiftSchedule.exponential(**self.model_dump())


class ModelConfig(BaseModel):
    """Everything that is needed to build a model's networks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: int = Field(default=4, ge=1)
    schedule: ScheduleConfig = ScheduleConfig()
    unet: SwinUNetConfig = SwinUNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        latent = self.autoencoder.latent_channels
        if (self.unet.latent_channels, self.unet.out_channels) != (latent, latent):
            raise ValueError(
                f"expected unet.latent_channels and unet.out_channels equal to the autoencoder's {latent}, "
                f"got {self.unet.latent_channels} and {self.unet.out_channels}"
            )
        factor = self.autoencoder.factor
        if max(factor, self.scale) % min(factor, self.scale):
            raise ValueError(
                f"expected scale to divide the autoencoder's factor {factor} or the reverse, got {self.scale}"
            )
        # An LR image larger than the latent is pixel-unshuffled, a smaller one resized (SwinUNet.forward).
        expected = 3 * max(factor // self.scale, 1) ** 2
        if self.unet.condition_channels not in (0, expected):
            raise ValueError(
                f"expected unet.condition_channels={expected} for scale {self.scale} and factor {factor}, "
                f"got {self.unet.condition_channels}"
            )
        return self


@dataclass(frozen=True)
class SRModel:
    """Networks of one model.

    ``kind`` says how to run it: a teacher by its whole chain, a student in one step.
    """

    kind: Kind
    config: ModelConfig
    unet: SwinUNet
    autoencoder: VQAutoencoder

    @property
    def denoiser(self) -> Denoiser:
        """The U-Net with its schedule."""
        return Denoiser(self.unet, self.config.schedule.build())
