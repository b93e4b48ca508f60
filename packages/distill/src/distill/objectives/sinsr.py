"""SinSR: the student repeats the whole deterministic chain of the teacher in one step.

Differs from :mod:`distill.objectives.rsd` in what is matched: not a distribution, by way of a fake model, but pairs.
The teacher's deterministic sampler maps every z_T to one F(z_T, y_0), and the student regresses on it; as nothing is
estimated on the way, the student is the only player. Two more terms train the same network at the time of clean latents
(the paper's t = 1, index 0): back from F to z_T, and from the ground truth to a noise that gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import Latents, Predictor, TermValue, squared_error, widen


class Teacher(Predictor, Protocol):
    """A predictor that can run its deterministic chain, as :class:`sr_models.Denoiser`."""

    def deterministic_sample(self, z_T: Tensor, z_y: Tensor, lr: Tensor) -> Tensor:
        """Return z_0 at the end of the chain T..1 from ``z_T``, (B, C, H, W)."""
        ...


class SinSRDraws(NamedTuple):
    """Random numbers of one loss: ``noise_T`` N(0, 1) of the shape of z_0, the noise of z_T."""

    noise_T: Tensor


def draw(latents: Latents, noise: SampleNoise) -> SinSRDraws:
    """Draw the noise of z_T."""
    return SinSRDraws(noise.normal(latents.z_0.shape[1:]))


@dataclass(frozen=True)
class SinSRPass:
    """What the terms read of one batch; each part is computed when a term first asks for it.

    Args:
        student: trained.
        teacher: frozen.
        latents: batch.
        draws: random numbers.
        decode: from a scaled latent to pixels, differentiable; needed by terms on pixels only.
    """

    student: Predictor
    teacher: Teacher
    latents: Latents
    draws: SinSRDraws
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def z_T(self) -> Tensor:
        """Start of the chain, from the prior around z_y."""
        z_T: Tensor = self.student.schedule.prior(self.latents.z_y).sample(self.draws.noise_T)
        return z_T

    @cached_property
    def target(self) -> Tensor:
        """F(z_T, y_0): end of the teacher's deterministic chain, a constant."""
        with torch.no_grad():
            return widen(self.teacher.deterministic_sample(self.z_T, self.latents.z_y, self.latents.lr))

    @cached_property
    def one_step(self) -> Tensor:
        """Output of one-step inference, (B, C, H, W)."""
        return self.at_end(self.z_T)

    @cached_property
    def pixels(self) -> Tensor:
        """One-step output in pixels, nominally [-1, 1], not clamped: clamping would stop the gradient."""
        return widen(self.decode(self.one_step))

    def at_end(self, z_T: Tensor) -> Tensor:
        """f(z_T, y_0, T): restore."""
        return self._predict(z_T, self.student.schedule.num_steps)

    def at_start(self, z_0: Tensor) -> Tensor:
        """f(z_0, y_0, 0) in the published networks' index: the noisy latent that belongs to a clean one."""
        return self._predict(z_0, 1)

    def _predict(self, z: Tensor, t: int) -> Tensor:
        times = torch.full((z.shape[0],), t, dtype=torch.int64, device=z.device)
        return widen(self.student(z, self.latents.lr, times))


def distillation(step: SinSRPass) -> TermValue:
    """||f(z_T, y_0, T) - F||^2, per sample: restore as the teacher's chain does."""
    return TermValue(squared_error(step.one_step, step.target))


def inverse(step: SinSRPass) -> TermValue:
    """||f(F, y_0, 0) - z_T||^2, per sample: find the noise that the teacher's chain came from."""
    return TermValue(squared_error(step.at_start(step.target), step.z_T))


def consistency(step: SinSRPass) -> TermValue:
    """||f(stopgrad f(z_0, y_0, 0), y_0, T) - z_0||^2, per sample: what is found for the ground truth restores it."""
    # Detached instead of computed under no_grad: then some versions of torch keep weights that autocast has cast,
    # without gradients, for the next evaluation. The memory at the peak is the same.
    found = step.at_start(step.latents.z_0).detach()
    return TermValue(squared_error(step.at_end(found), step.latents.z_0))
