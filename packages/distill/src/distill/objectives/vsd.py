"""ResShift-VSD (RSD, Algorithm 2): variational score distillation in the ResShift family.

Differs from :mod:`distill.objectives.rsd`, whose passes it takes over, in two things. The student has one time: it
starts from the prior around z_y at T, where RSD's starts from noised ground truth at one of N times (it also has no
noise input, but that is the network's matter). The gradient stops at teacher and fake model, so what is left of Eq. 7
is 2 (f_phi - f*) for z_0_hat: up to a factor that depends on t, the gradient of the divergence between the marginals
of student and teacher at t (Eq. 17). The random numbers are drawn as RSD's, with t_n = T; ``noise_n`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from distill.objectives import rsd


@dataclass(frozen=True)
class FakePass(rsd.FakePass):
    """As RSD's, on the student's one-step output."""

    @cached_property
    def sample(self) -> rsd.StudentSample:
        """One-step output of the student, detached, and its noisy version."""
        with torch.no_grad():
            z_0_hat = rsd.one_step_output(self.student, self.latents, self.draws)
            return rsd.noised(self.student.schedule, z_0_hat, self.latents, self.draws)


@dataclass(frozen=True)
class StudentPass(rsd.StudentPass):
    """As RSD's, with the one-step output as what is distilled."""

    @cached_property
    def sample(self) -> rsd.StudentSample:
        """One-step output of the student and its noisy version."""
        return rsd.noised(self.student.schedule, self.one_step, self.latents, self.draws)


@dataclass(frozen=True)
class Distillation(rsd.Distillation):
    """Eq. 7 with the gradient stopped at teacher and fake model.

    Source: RSD Eq. 17 and Algorithm 2, line 30
    """

    def predict(self, step: rsd.StudentPass) -> rsd.Predictions:
        """Return what teacher and fake model predict of the noisy output, as constants."""
        with torch.no_grad():
            return super().predict(step)
