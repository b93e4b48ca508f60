"""Residual Shifting Distillation (RSD, Algorithm 1).

The student is trained to produce such data that a fake ResShift model trained on them coincides with the teacher. This
differs from :mod:`distill.objectives.resshift` in what is trained on: the fake model fits the student's own output, and
the student minimises what the fake model's training gains over the teacher (Eq. 7), with gradients through both. The
supervised terms of Eq. 9 (LPIPS, GAN) are added beside ``student_loss``; they need nothing of it but ``StudentSample``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distill.objectives.output import Latents, ObjectiveOutput, Predictor, mean_output
from distill.objectives.resshift import randn
from resshift_core import ResShiftSchedule, distillation_normalizer, fake_objective, rsd_objective


class RSDDraws(NamedTuple):
    """Random numbers of one pass of SampleEverything (Algorithm 1).

    Args:
        t_n: (B,) the student's time, one of its N timesteps.
        noise_n: N(0, 1), the noise of z_{t_n}.
        epsilon: N(0, 1), (B, 1, H, W), the student's own noise.
        t: (B,) in 1..T, the time at which teacher and fake are compared.
        noise_t: N(0, 1), the noise of z_t.
    """

    t_n: Tensor
    noise_n: Tensor
    epsilon: Tensor
    t: Tensor
    noise_t: Tensor


class StudentSample(NamedTuple):
    """The student's output ``z_0_hat`` and its noisy version ``z_t``, (B, C, H, W), differentiable in the student."""

    z_0_hat: Tensor
    z_t: Tensor


def draw(
    schedule: ResShiftSchedule,
    timesteps: Sequence[int],
    latents: Latents,
    generator: torch.Generator,
    noise_channels: int = 1,
) -> RSDDraws:
    """Draw everything that is random in one loss.

    The paper writes t ~ U{0..T}; q(z_0 | z_0_hat) is a point and the networks know no time 0, so t runs over 1..T.

    Args:
        schedule: gives T.
        timesteps: the student's N timesteps t_1 < ... < t_N = T.
        latents: batch, for its shape.
        generator: CPU generator.
        noise_channels: of the student.
    """
    z_0 = latents.z_0
    batch = z_0.shape[0]
    choice = torch.randint(len(timesteps), (batch,), generator=generator)
    return RSDDraws(
        t_n=torch.tensor(timesteps, dtype=torch.int64)[choice].to(z_0.device),
        noise_n=randn(z_0.shape, generator, z_0),
        epsilon=randn((batch, noise_channels, *z_0.shape[2:]), generator, z_0),
        t=torch.randint(1, schedule.num_steps + 1, (batch,), generator=generator).to(z_0.device),
        noise_t=randn(z_0.shape, generator, z_0),
    )


def sample_student(student: Predictor, latents: Latents, draws: RSDDraws) -> StudentSample:
    """Run the student at t_n on ground truth noised to t_n, then noise its output to t.

    Source: RSD Algorithm 1, SampleEverything; Sec. 3.3
    """
    schedule = student.schedule
    z_tn = schedule.marginal(latents.z_0, latents.z_y, draws.t_n).sample(draws.noise_n)
    z_0_hat = student(z_tn, latents.lr, draws.t_n, draws.epsilon).float()
    z_t = schedule.marginal(z_0_hat, latents.z_y, draws.t).sample(draws.noise_t)
    return StudentSample(z_0_hat, z_t)


def fake_loss(fake: Predictor, student: Predictor, latents: Latents, draws: RSDDraws) -> ObjectiveOutput:
    """Train the fake model as a ResShift model of the student's data: mean squared error of z_0_hat, per sample.

    Source: RSD Eq. 5 and Algorithm 1 (w_t = 1)
    """
    with torch.no_grad():
        sample = sample_student(student, latents, draws)
    prediction = fake(sample.z_t, latents.lr, draws.t).float()
    return mean_output(fake_objective(prediction, sample.z_0_hat))


def student_loss(
    student: Predictor,
    fake: Predictor,
    teacher: Predictor,
    latents: Latents,
    draws: RSDDraws,
    *,
    normalize: bool = True,
) -> ObjectiveOutput:
    """Distillation loss of the student, per sample; gradients flow through z_t into teacher and fake.

    Args:
        student: trained; the others are frozen but differentiable in their input.
        fake: f_phi.
        teacher: f*.
        latents: batch.
        draws: random numbers.
        normalize: divide each sample's loss by mean |f* - z_0_hat|, detached (score identity distillation).

    Source: RSD Eq. 7 and Appendix C
    """
    sample = sample_student(student, latents, draws)
    f_teacher = teacher(sample.z_t, latents.lr, draws.t).float()
    f_fake = fake(sample.z_t, latents.lr, draws.t).float()
    per_sample: Tensor = rsd_objective(f_teacher, f_fake, sample.z_0_hat)
    scale = distillation_normalizer(f_teacher.detach(), sample.z_0_hat.detach())
    if normalize:
        per_sample = per_sample / scale
    return mean_output(
        per_sample,
        teacher_gap=scale.mean(),
        fake_gap=(f_fake - f_teacher).detach().square().mean(),
    )
