"""The ResShift teacher: predict z_0 from z_t at a random time (RSD Eq. 5 with w_t = 1, as published)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distill.objectives.output import Latents, ObjectiveOutput, Predictor, mean_output
from resshift_core import ResShiftSchedule, fake_objective


class ResShiftDraws(NamedTuple):
    """Random numbers of one teacher loss: ``t`` (B,) in 1..T and ``noise`` N(0, 1) of the shape of z_0."""

    t: Tensor
    noise: Tensor


def draw(schedule: ResShiftSchedule, latents: Latents, generator: torch.Generator) -> ResShiftDraws:
    """Draw t uniformly from 1..T and the noise of z_t."""
    t = torch.randint(1, schedule.num_steps + 1, (latents.z_0.shape[0],), generator=generator)
    return ResShiftDraws(t.to(latents.z_0.device), randn(latents.z_0.shape, generator, latents.z_0))


def teacher_loss(network: Predictor, latents: Latents, draws: ResShiftDraws) -> ObjectiveOutput:
    """Mean squared error of the z_0 prediction, per sample.

    Source: RSD Eq. 5
    """
    z_t = network.schedule.marginal(latents.z_0, latents.z_y, draws.t).sample(draws.noise)
    prediction = network(z_t, latents.lr, draws.t)
    return mean_output(fake_objective(prediction.float(), latents.z_0))


def randn(shape: torch.Size | tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """N(0, 1) from a CPU generator, on the device of ``like``: the same numbers on every device."""
    return torch.randn(shape, generator=generator).to(like.device)
