"""The ResShift teacher: predict z_0 from z_t at a random time (RSD Eq. 5).

Differs from the fake model of :mod:`distill.objectives.rsd`, which is a ResShift model too, in its data: z_0 are
latents of photographs, not a student's output. Published training leaves the weights w_t of the KL divergence out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import Latents, Predictor, TermValue, widen
from resshift_core import ResShiftSchedule, fake_objective


class ResShiftDraws(NamedTuple):
    """Random numbers of one teacher loss: ``t`` (B,) in 1..T and ``noise`` N(0, 1) of the shape of z_0."""

    t: Tensor
    noise: Tensor


def draw(schedule: ResShiftSchedule, latents: Latents, noise: SampleNoise) -> ResShiftDraws:
    """Draw t uniformly from 1..T and the noise of z_t."""
    return ResShiftDraws(noise.integers(1, schedule.num_steps), noise.normal(latents.z_0.shape[1:]))


@dataclass(frozen=True)
class TeacherPass:
    """What the terms of the teacher's loss read of one batch.

    Args:
        network: trained.
        latents: batch.
        draws: random numbers.
        decode: from a scaled latent to pixels, differentiable; needed by terms on pixels only.
    """

    network: Predictor
    latents: Latents
    draws: ResShiftDraws
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def one_step(self) -> Tensor:
        """Prediction of z_0 from z_t, (B, C, H, W)."""
        z_t = self.network.schedule.marginal(self.latents.z_0, self.latents.z_y, self.draws.t).sample(self.draws.noise)
        return widen(self.network(z_t, self.latents.lr, self.draws.t))

    @cached_property
    def pixels(self) -> Tensor:
        """The prediction in pixels, nominally [-1, 1], not clamped: clamping would stop the gradient."""
        return widen(self.decode(self.one_step))


@dataclass(frozen=True)
class Denoising:
    """Mean squared error of the prediction of z_0, per sample.

    Args:
        weights: w_t at index t, float64 (T+1,), as :func:`kl_weights`; None: w_t = 1, as published.

    Source: RSD Eq. 5
    """

    weights: NDArray[np.float64] | None = None

    def __call__(self, step: TeacherPass) -> TermValue:
        """Return the error of each sample."""
        t = step.draws.t
        values: Tensor = fake_objective(step.one_step, step.latents.z_0)
        if self.weights is not None:
            values = values * values.new_tensor(self.weights)[t]
        return TermValue(values, times=t)


def kl_weights(schedule: ResShiftSchedule) -> NDArray[np.float64]:
    """Return the w_t of Eq. 27 relative to their mean over 1..T.

    w_1 is infinite; it gets the weight that the variance of the second step would give it. With the published schedule
    the first two times then have 99 % of the weight, and t = T, where a student starts, 0.004 %.
    """
    weights = schedule.kl_weights(clipped=True)
    relative: NDArray[np.float64] = weights / weights[1:].mean()
    return relative
