"""The ResShift teacher: predict z_0 from z_t at a random time (RSD Eq. 5 with w_t = 1, as published)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import Latents, ObjectiveOutput, Predictor, combine, widen
from resshift_core import ResShiftSchedule, fake_objective


class ResShiftDraws(NamedTuple):
    """Random numbers of one teacher loss: ``t`` (B,) in 1..T and ``noise`` N(0, 1) of the shape of z_0."""

    t: Tensor
    noise: Tensor


def draw(schedule: ResShiftSchedule, latents: Latents, noise: SampleNoise) -> ResShiftDraws:
    """Draw t uniformly from 1..T and the noise of z_t."""
    return ResShiftDraws(noise.integers(1, schedule.num_steps), noise.normal(latents.z_0.shape[1:]))


def teacher_loss(network: Predictor, latents: Latents, draws: ResShiftDraws) -> ObjectiveOutput:
    """Mean squared error of the z_0 prediction, per sample.

    Source: RSD Eq. 5
    """
    z_t = network.schedule.marginal(latents.z_0, latents.z_y, draws.t).sample(draws.noise)
    prediction = network(z_t, latents.lr, draws.t)
    values = fake_objective(widen(prediction), latents.z_0)
    return combine({"z_0": values}, {"z_0": 1.0}, times=draws.t)
