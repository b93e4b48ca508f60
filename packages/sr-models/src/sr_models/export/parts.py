"""A model cut into the pieces that are traced: whole for a student or one step, in three for a teacher's chain.

The schedule's coefficients become constant tables. They are read off the schedule's own functions, which are linear
in their arrays, so that no formula stands here a second time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_models.geometry import upsample
from sr_models.model import SRModel


class Part(nn.Module):
    """Networks and coefficient tables, index t - 1 of the paper's t."""

    input_scale: Tensor
    keep: Tensor
    take: Tensor
    spread: Tensor
    prior_spread: Tensor

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.scale = model.unet, model.autoencoder, model.scale
        self.channels = model.config.unet.latent_channels
        schedule = model.config.schedule.build()
        self.num_steps = schedule.num_steps
        t = torch.arange(1, self.num_steps + 1)
        one, zero = torch.ones(self.num_steps, 1, 1, 1), torch.zeros(self.num_steps, 1, 1, 1)
        tables = {
            "input_scale": schedule.scale_input(one, t),
            "keep": schedule.posterior(one, zero, t).mean,
            "take": schedule.posterior(zero, one, t).mean,
            "spread": schedule.posterior(one, one, t).variance.sqrt(),
            "prior_spread": schedule.prior(one[:1]).variance.sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def start(self, lr: Tensor, noise: Tensor) -> Tensor:
        """z_T from the prior around the latent of the upsampled LR image."""
        z_y: Tensor = self.autoencoder.encode(upsample(lr, self.scale))
        return z_y + self.prior_spread * noise

    def predict(self, z_t: Tensor, lr: Tensor, index: Tensor, epsilon: Tensor | None = None) -> Tensor:
        """Prediction of z_0 at the time index (1,) int64."""
        scaled = z_t * self.input_scale.index_select(0, index)
        out: Tensor = self.unet(scaled, index.expand(z_t.shape[0]), lr, epsilon)
        return out


class OneStep(Part):
    """The whole model with one network evaluation at t = T."""

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, h, w), noise (1, B, C, H, W) -> SR images, not clamped."""
        epsilon = noise[0, :, self.channels :] if self.unet.config.noise_channels else None
        last = torch.tensor([self.num_steps - 1], device=lr.device)
        z_0 = self.predict(self.start(lr, noise[0, :, : self.channels]), lr, last, epsilon)
        pixels: Tensor = self.autoencoder.decode(z_0)
        return pixels


class FewSteps(Part):
    """The whole model of a student with all its timesteps, one after the other; the weights are shared."""

    clean: Tensor
    prior: Tensor
    marginal_spread: Tensor

    def __init__(self, model: SRModel) -> None:
        super().__init__(model)
        assert model.config.student_timesteps is not None
        self.timesteps = model.config.student_timesteps
        schedule = model.config.schedule.build()
        t = torch.tensor(self.timesteps)
        one, zero = torch.ones(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1)
        tables = {
            "clean": schedule.marginal(one, zero, t).mean,
            "prior": schedule.marginal(zero, one, t).mean,
            "marginal_spread": schedule.marginal(one, one, t).variance.sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, h, w), noise (N, B, C, H, W) in the order of use -> SR images, not clamped."""
        z_y: Tensor = self.autoencoder.encode(upsample(lr, self.scale))
        z_t = z_y + self.prior_spread * noise[0, :, : self.channels]
        z_0 = self._predict_at(len(self.timesteps) - 1, z_t, lr, noise[0])
        for use, place in enumerate(reversed(range(len(self.timesteps) - 1)), start=1):
            mean = self.clean[place] * z_0 + self.prior[place] * z_y
            z_t = mean + self.marginal_spread[place] * noise[use, :, : self.channels]
            z_0 = self._predict_at(place, z_t, lr, noise[use])
        pixels: Tensor = self.autoencoder.decode(z_0)
        return pixels

    def _predict_at(self, place: int, z_t: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
        """Prediction of z_0 at a place in the student's timesteps; noise (B, C, H, W)."""
        epsilon = noise[:, self.channels :] if self.unet.config.noise_channels else None
        return self.predict(z_t, lr, torch.tensor([self.timesteps[place] - 1], device=lr.device), epsilon)


class Start(Part):
    """First piece of the chain: z_T."""

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, h, w), noise (T + 1, B, C, H, W) -> (B, C, H, W)."""
        return self.start(lr, noise[self.num_steps])


class Step(Part):
    """Repeated piece of the chain: one draw from the posterior."""

    def forward(self, lr: Tensor, noise: Tensor, z_t: Tensor, iteration: Tensor) -> Tensor:
        """Iteration 0..T-1 goes from t = T - iteration to t - 1; z_t (B, C, H, W) -> the same shape."""
        index = (self.num_steps - 1 - iteration).reshape(1)
        z_0 = self.predict(z_t, lr, index)
        keep, take, spread = (table.index_select(0, index) for table in (self.keep, self.take, self.spread))
        return keep * z_t + take * z_0 + spread * noise.index_select(0, index).squeeze(0)


class Decode(Part):
    """Last piece of the chain: pixels."""

    def forward(self, z_0: Tensor) -> Tensor:
        """(B, C, H, W) -> SR images, not clamped."""
        pixels: Tensor = self.autoencoder.decode(z_0)
        return pixels
