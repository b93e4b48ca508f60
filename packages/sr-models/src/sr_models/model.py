"""A super-resolution model: U-Net, autoencoder, schedule and scale, which belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from resshift_core import ResShiftSchedule
from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.denoiser import Denoiser
from sr_models.geometry import upsample
from sr_models.restoration.tiles import MAPS_AT_ONCE
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
    student_timesteps: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="t_1 < ... < t_N = T that a student was trained at; null: T alone"
    )

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
        times = self.student_timesteps
        if times and (list(times) != sorted(set(times)) or times[0] < 1 or times[-1] != self.schedule.num_steps):
            raise ValueError(
                f"expected student_timesteps that rise from 1 or more to T={self.schedule.num_steps}, got {times}"
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

    @property
    def scale(self) -> int:
        """Enlargement."""
        return self.config.scale

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of network evaluations that it can restore in, the usual one first."""
        if self.kind == "teacher":
            return tuple(dict.fromkeys((self.config.schedule.num_steps, 1)))
        return tuple(dict.fromkeys((1, len(self.config.student_timesteps or ()) or 1)))

    @property
    def color(self) -> str:
        """ResShift and its students are published without a colour correction."""
        return "none"

    @property
    def bytes_per_pixel(self) -> int:
        """Memory for one LR pixel: the decoder's last level, measured (docs/restoring.md)."""
        return MAPS_AT_ONCE * 4 * self.config.autoencoder.base_channels * self.scale**2

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        """Networks whose norms all tiles can share."""
        return self.unet, self.autoencoder

    @property
    def lr_multiple(self) -> int:
        """LR height and width have to be multiples of this, so that latents fit the windows at every level."""
        pixels = self.config.unet.multiple * self.config.autoencoder.factor
        return pixels // math.gcd(pixels, self.scale)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        """Move the networks and put them in eval mode."""
        for network in (self.unet, self.autoencoder):
            network.to(device).to(memory_format=memory_format).eval()

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        """Shape of the noise for LR images of this size: (S, B, latent + noise channels, H, W).

        S is the number of draws: T + 1 for a chain, otherwise the number of steps.
        """
        channels = self.config.unet.latent_channels + self.config.unet.noise_channels
        latent = (edge * self.scale // self.config.autoencoder.factor for edge in (height, width))
        return (self._draws(steps), batch, channels, *latent)

    def _draws(self, steps: int) -> int:
        return steps + 1 if self.kind == "teacher" and steps > 1 else steps

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """LR images, pixels [-1, 1], (B, 3, h, w) of whole multiples, to SR images, not clamped.

        Args:
            lr: on the networks' device.
            noise: N(0, 1) of :meth:`noise_shape`.
            steps: one of :attr:`steps`.
        """
        z_y = self.autoencoder.encode(upsample(lr, self.scale))
        if self.kind == "teacher" and steps > 1:
            return self.autoencoder.decode(self.denoiser.sample(z_y, lr, noise))
        channels = z_y.shape[1]
        clean, second = noise[:, :, :channels], noise[:, :, channels:]
        epsilons = list(second) if second.shape[2] else [None] * len(clean)
        if steps == 1:
            return self.autoencoder.decode(self.denoiser.one_step(z_y, lr, clean[0], epsilons[0]))
        assert self.config.student_timesteps is not None
        return self.autoencoder.decode(
            self.denoiser.few_steps(z_y, lr, self.config.student_timesteps, list(clean), epsilons)
        )
