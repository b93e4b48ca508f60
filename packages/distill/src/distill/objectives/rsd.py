"""Residual Shifting Distillation (RSD, Algorithm 1).

The student is trained to produce such data that a fake ResShift model trained on them coincides with the teacher. This
differs from :mod:`distill.objectives.resshift` in what is trained on: the fake model fits the student's own output, and
the student minimises what the fake model's training gains over the teacher (Eq. 7), with gradients through both. The
supervised terms of Eq. 9 are in :mod:`distill.objectives.terms`; they read the same :class:`StudentPass`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import Latents, Predictor, TermValue, squared_error, widen
from resshift_core import ResShiftSchedule, distillation_normalizer, fake_objective, rsd_objective


class RSDDraws(NamedTuple):
    """Random numbers of one pass of SampleEverything (Algorithm 1).

    Args:
        t_n: (B,) the student's time, one of its N timesteps.
        noise_n: N(0, 1), the noise of z_{t_n}.
        epsilon: N(0, 1), (B, 1, H, W), the student's own noise; None for a student without noise input.
        t: (B,) in 1..T, the time at which teacher and fake are compared.
        noise_t: N(0, 1), the noise of z_t.
        noise_T: N(0, 1), the noise of z_T, from which the one-step output is made.
    """

    t_n: Tensor
    noise_n: Tensor
    epsilon: Tensor | None
    t: Tensor
    noise_t: Tensor
    noise_T: Tensor


class StudentSample(NamedTuple):
    """The student's output ``z_0_hat`` and its noisy version ``z_t``, (B, C, H, W), differentiable in the student."""

    z_0_hat: Tensor
    z_t: Tensor


class Predictions(NamedTuple):
    """Predictions of z_0 by the teacher (f*) and by the fake model (f_phi), (B, C, H, W)."""

    teacher: Tensor
    fake: Tensor


def draw(
    schedule: ResShiftSchedule,
    timesteps: Sequence[int],
    latents: Latents,
    noise: SampleNoise,
    noise_channels: int = 1,
) -> RSDDraws:
    """Draw everything that is random in one loss.

    The paper writes t ~ U{0..T}; q(z_0 | z_0_hat) is a point and the networks know no time 0, so t runs over 1..T.

    Args:
        schedule: gives T.
        timesteps: the student's N timesteps t_1 < ... < t_N = T.
        latents: batch, for its shape.
        noise: where the numbers come from.
        noise_channels: of the student; 0: it takes no noise.
    """
    shape = latents.z_0.shape[1:]
    choice = noise.integers(0, len(timesteps) - 1)
    return RSDDraws(
        t_n=torch.tensor(timesteps, dtype=torch.int64, device=choice.device)[choice],
        noise_n=noise.normal(shape),
        epsilon=noise.normal((noise_channels, *shape[1:])) if noise_channels else None,
        t=noise.integers(1, schedule.num_steps),
        noise_t=noise.normal(shape),
        noise_T=noise.normal(shape),
    )


def sample_student(student: Predictor, latents: Latents, draws: RSDDraws) -> StudentSample:
    """Run the student at t_n on ground truth noised to t_n, then noise its output to t.

    Source: RSD Algorithm 1, SampleEverything; Sec. 3.3
    """
    schedule = student.schedule
    z_tn = schedule.marginal(latents.z_0, latents.z_y, draws.t_n).sample(draws.noise_n)
    return noised(schedule, widen(student(z_tn, latents.lr, draws.t_n, draws.epsilon)), latents, draws)


def one_step_output(student: Predictor, latents: Latents, draws: RSDDraws) -> Tensor:
    """Output of one-step inference, (B, C, H, W): the student at T on the prior around z_y.

    With the same epsilon as at t_n, as Algorithm 1 has it (lines 42-44).
    """
    z_T = student.schedule.prior(latents.z_y).sample(draws.noise_T)
    t = torch.full_like(draws.t, student.schedule.num_steps)
    return widen(student(z_T, latents.lr, t, draws.epsilon))


def noised(schedule: ResShiftSchedule, z_0_hat: Tensor, latents: Latents, draws: RSDDraws) -> StudentSample:
    """Noise the student's output to t.

    Source: RSD Eq. 20
    """
    return StudentSample(z_0_hat, schedule.marginal(z_0_hat, latents.z_y, draws.t).sample(draws.noise_t))


@dataclass(frozen=True)
class FakePass:
    """What the terms of the fake model's loss read of one batch; the student's output carries no gradient."""

    fake: Predictor
    student: Predictor
    latents: Latents
    draws: RSDDraws

    @cached_property
    def sample(self) -> StudentSample:
        """Output of the student at t_n, detached, and its noisy version."""
        with torch.no_grad():
            return sample_student(self.student, self.latents, self.draws)


@dataclass(frozen=True)
class StudentPass:
    """What the terms of the student's loss read of one batch; each part is computed when a term first asks for it.

    Args:
        student: trained; the others are frozen but differentiable in their input.
        fake: f_phi.
        teacher: f*.
        latents: batch.
        draws: random numbers.
        decode: from a scaled latent to pixels, differentiable; needed by terms on pixels only.
    """

    student: Predictor
    fake: Predictor
    teacher: Predictor
    latents: Latents
    draws: RSDDraws
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def sample(self) -> StudentSample:
        """Output of the student at t_n and its noisy version."""
        return sample_student(self.student, self.latents, self.draws)

    @cached_property
    def one_step(self) -> Tensor:
        """Output of one-step inference, (B, C, H, W)."""
        return one_step_output(self.student, self.latents, self.draws)

    @cached_property
    def pixels(self) -> Tensor:
        """One-step output in pixels, nominally [-1, 1], not clamped: clamping would stop the gradient."""
        return widen(self.decode(self.one_step))


def fake_mse(step: FakePass) -> TermValue:
    """Train the fake model as a ResShift model of the student's data: mean squared error of z_0_hat, per sample.

    Source: RSD Eq. 5 and Algorithm 1 (w_t = 1)
    """
    prediction = widen(step.fake(step.sample.z_t, step.latents.lr, step.draws.t))
    return TermValue(fake_objective(prediction, step.sample.z_0_hat), times=step.draws.t)


@dataclass(frozen=True)
class Distillation:
    """Distillation term of the student, per sample; gradients flow through z_t into teacher and fake.

    Per sample its value is mean (f* - z_0_hat)^2 - mean (f_phi - z_0_hat)^2: what the fake model predicts of the
    student's output better than the teacher. A negative mean says that the fake model does not keep up with the
    student. ``fake_lag`` is the ratio of the two; it should stay below 1.

    Args:
        normalize: divide each sample's loss by mean |f* - z_0_hat|, detached (score identity distillation).

    Source: RSD Eq. 7 and Appendix C
    """

    normalize: bool = True

    def __call__(self, step: StudentPass) -> TermValue:
        """Return the loss of Eq. 7 for each sample."""
        sample, t = step.sample, step.draws.t
        f_teacher, f_fake = self.predict(step)
        values: Tensor = rsd_objective(f_teacher, f_fake, sample.z_0_hat)
        scale = distillation_normalizer(f_teacher.detach(), sample.z_0_hat.detach())
        if self.normalize:
            values = values / scale
        with torch.no_grad():
            metrics = {
                "teacher_gap": scale.mean(),
                "fake_gap": (f_fake - f_teacher).square().mean(),
                "fake_lag": squared_error(f_fake, sample.z_0_hat).mean()
                / squared_error(f_teacher, sample.z_0_hat).mean(),
            }
        return TermValue(values, metrics, t)

    def predict(self, step: StudentPass) -> Predictions:
        """Return what teacher and fake model predict of the noisy output, differentiable in it."""
        z_t, lr, t = step.sample.z_t, step.latents.lr, step.draws.t
        return Predictions(widen(step.teacher(z_t, lr, t)), widen(step.fake(z_t, lr, t)))
