"""TSD-SR: target score distillation with distribution-aware sampling (TSD-SR, Algorithm 1).

Differs from variational score distillation (:mod:`distill.objectives.osediff`) in two things. Target score matching
(TSM, Eq. 4) compares the teacher at the student's noisy output with the teacher at the noisy HR latent, which gives a
direction to the real image where the fake model is still far off. Distribution-aware sampling (DASM) gathers directions
along N Euler steps from a noisy time to a cleaner one instead of at one time only.

The paper writes epsilon for the networks' prediction, which for SD3 is the velocity. In TSM the two are different
objectives; docs/errata.md derives what the velocity does to low frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.flow import time_bins
from distill.objectives.output import TermValue, squared_error, widen
from distill.objectives.prompted import FakePass, Guided, OneStep, PromptedPairs, pulled
from resshift_core import FlowMatchingSchedule, tsd_direction
from resshift_core.divergence import Parameterisation
from sr_models.t2i.predictor import Flow, Predict

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From z_t (B, C, H, W) and index (B,) to the guided velocity."""


@dataclass(frozen=True)
class Sampling:
    """Where along the path directions are gathered (DASM).

    Args:
        weights: of the directions, one for each of the N times; one alone is plain TSD.
        stride: s, index steps between two times.
    """

    weights: tuple[float, ...] = (1.0,)
    stride: int = 50


class TSDDraws(NamedTuple):
    """Random numbers of one student loss.

    Args:
        posterior: N(0, 1), the noise of z_L.
        first: (B,) index of the first, noisiest time.
        bias: (B,) added to the index of the last time.
        noise: N(0, 1), shared by the student's output and the HR latent.
    """

    posterior: Tensor
    first: Tensor
    bias: Tensor
    noise: Tensor


def draw(batch: PromptedPairs, noise: SampleNoise, low: int, high: int, bias: int) -> TSDDraws:
    """Draw for the student; the index is uniform in ``low..high``, the bias in ``-bias..bias``, ends included.

    The paper's t in 50..950 is an index of the shifted table in the published code.
    """
    shape = batch.z_0.shape[1:]
    return TSDDraws(noise.normal(shape), noise.integers(low, high), noise.integers(-bias, bias), noise.normal(shape))


def indexes(schedule: FlowMatchingSchedule, first: Tensor, sampling: Sampling, bias: Tensor) -> list[Tensor]:
    """The N + 1 indexes (B,) of a trajectory, each sample's own.

    Evenly spaced whole numbers from ``first`` to first + N s + bias; where that is beyond the table's end, to the end,
    in smaller steps.

    Source: TSD-SR Algorithm 1, lines 12-13, and its published code for what the paper leaves open
    """
    steps = len(sampling.weights)
    last = (first + steps * sampling.stride + bias).clamp(max=schedule.num_steps - 1)
    last = torch.maximum(last, first)
    return [first + (last - first) * k // steps for k in range(steps + 1)]


def gather_direction(
    teacher: Velocity,
    fake: Velocity,
    schedule: FlowMatchingSchedule,
    z_hat_t: Tensor,
    z_t: Tensor,
    path: Sequence[Tensor],
    weights: Sequence[float],
    vsd_weight: float,
    parameterisation: Parameterisation,
) -> Tensor:
    """Sum of weight * sigma^2 * TSD direction over the times of ``path``, (B, C, H, W).

    Between two times the student's noisy output moves by the fake model's velocity, the HR latent by the teacher's.
    The factor sigma^2 is w(t) of the published code; the paper names none.

    Args:
        teacher: guided velocity of the teacher.
        fake: guided velocity of the fake model.
        schedule: of both.
        z_hat_t: the student's output, noised to the first time.
        z_t: the HR latent, noised to the same time with the same noise.
        path: N + 1 indexes; the last is not evaluated.
        weights: N weights.
        vsd_weight: lambda.
        parameterisation: what stands for the paper's epsilon.

    Source: TSD-SR Eq. 5, Eq. 6 and Algorithm 1, lines 10-17
    """
    total = torch.zeros_like(z_hat_t)
    for k, weight in enumerate(weights):
        index = path[k]
        sigma = schedule.sigma(index, z_t)
        v_hat, v, v_fake = teacher(z_hat_t, index), teacher(z_t, index), fake(z_hat_t, index)
        direction = tsd_direction(v_hat, v, v_fake, z_hat_t, z_t, sigma, vsd_weight, parameterisation)
        total = total + weight * sigma**2 * direction
        if k + 1 < len(weights):
            z_hat_t = schedule.euler_step(z_hat_t, v_fake, index, path[k + 1])
            z_t = schedule.euler_step(z_t, v, index, path[k + 1])
    return total


@dataclass(frozen=True)
class StudentPass(OneStep):
    """What the terms of the student's loss read of one batch.

    Args:
        fake: the fake model.
        teacher: the teacher.
        draws: random numbers.
        sampling: where directions are gathered.
        guidance: scale of both networks' guidance.
    """

    fake: Flow
    teacher: Predict
    draws: TSDDraws
    sampling: Sampling
    guidance: float


@dataclass(frozen=True)
class Distillation:
    """TSD along the trajectory, as a loss whose gradient with respect to z_hat is the direction.

    Args:
        vsd_weight: lambda, the share of VSD; the rest is TSM.
        parameterisation: what stands for the paper's epsilon.

    Source: TSD-SR Eq. 5 and Algorithm 1
    """

    vsd_weight: float
    parameterisation: Parameterisation = "noise"

    def __call__(self, step: StudentPass) -> TermValue:
        """Return the loss of each sample and how long the direction is."""
        batch, draws, schedule = step.latents, step.draws, step.fake.schedule
        z_0_hat = step.one_step
        with torch.no_grad():
            z_hat_t, z_t = (
                schedule.interpolate(clean, draws.noise, draws.first) for clean in (z_0_hat.detach(), widen(batch.z_0))
            )
            direction = gather_direction(
                Guided(step.teacher, batch, step.guidance),
                Guided(step.fake, batch, step.guidance),
                schedule,
                z_hat_t,
                z_t,
                indexes(schedule, draws.first, step.sampling, draws.bias),
                step.sampling.weights,
                self.vsd_weight,
                self.parameterisation,
            )
        length = direction.square().mean().sqrt()
        return TermValue(
            pulled(z_0_hat, direction, 1.0), {"direction": length}, times=time_bins(step.fake, draws.first)
        )


def fake_error(step: FakePass) -> TermValue:
    """Squared error of the fake model's x_0, which is sigma^2 times that of its velocity, per sample.

    The published code multiplies by half a random weight that does not depend on sigma; here it is 1.

    Source: TSD-SR Eq. 9
    """
    fake, draws = step.fake, step.draws
    z_t = fake.noised(step.z_0_hat, draws.noise, draws.time)
    z_0 = fake.x_0(widen(fake(z_t, draws.time, step.batch.own)), z_t, draws.time)
    return TermValue(squared_error(z_0, step.z_0_hat))
