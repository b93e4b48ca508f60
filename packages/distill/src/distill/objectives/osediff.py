"""OSEDiff: variational score distillation of a text-to-image teacher, normalised by the gap to the teacher.

Differs from :mod:`distill.objectives.tsd` in three things: it knows no HR latent (TSM) and no trajectory; differences
are of x_0, whose sign is opposite to that of noise or velocity, and are divided by mean |z_hat - x_0 of the teacher|;
only the teacher is guided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.objectives.output import TermValue
from distill.objectives.prompted import Guided, OneStep, OneTimeDraws, pulled
from resshift_core import x_0_normalized_vsd_direction
from sr_models.t2i.predictor import Predict, Predictor


@dataclass(frozen=True)
class StudentPass(OneStep):
    """What the terms of the student's loss read of one batch.

    Args:
        fake: the fake model, asked without guidance.
        teacher: the teacher.
        draws: random numbers.
        guidance: scale of the teacher's guidance.
    """

    fake: Predictor
    teacher: Predict
    draws: OneTimeDraws
    guidance: float


def distillation(step: StudentPass) -> TermValue:
    """VSD as a loss whose gradient with respect to z_hat is twice the normalised direction, per sample.

    Source: OSEDiff Eq. 6-8, with the normalisation of its published code
    """
    fake, draws, z_0_hat = step.fake, step.draws, step.one_step
    with torch.no_grad():
        z_t = fake.noised(z_0_hat.detach(), draws.noise, draws.time)
        of_teacher = Guided(step.teacher, step.latents, step.guidance)(z_t, draws.time)
        of_fake = Guided(fake, step.latents, 1.0)(z_t, draws.time)
        direction = x_0_normalized_vsd_direction(
            fake.x_0(of_fake, z_t, draws.time), fake.x_0(of_teacher, z_t, draws.time), z_0_hat.detach()
        )
    return TermValue(pulled(z_0_hat, direction, 2.0), {"direction": direction.square().mean().sqrt()})
