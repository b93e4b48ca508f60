"""What the objectives of text-to-image teachers share: batch, the student's one step, the fake model's loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import TermValue, squared_error, widen
from sr_models.t2i.predictor import Predict, Predictor, guided
from sr_models.t2i.prompts import Prompt


class PromptedPairs(NamedTuple):
    """A training batch.

    Args:
        lr: LR image, pixels [-1, 1], (B, 3, h, w).
        hr: HR image x_H, pixels [-1, 1], (B, 3, h s, w s).
        lr_up: LR image x_L at the size of HR, pixels [-1, 1].
        z_0: scaled latent z_H of the HR image by the plain encoder, (B, C, H, W).
        own: each image's prompt, for teacher and fake model.
        null: the empty prompt, B times.
        student: what the student gets, B times.
    """

    lr: Tensor
    hr: Tensor
    lr_up: Tensor
    z_0: Tensor
    own: Prompt
    null: Prompt
    student: Prompt


class Student(Protocol):
    """Anything that restores in one step as :class:`sr_models.t2i.student.T2IStudent` does."""

    def __call__(self, pixels: Tensor, noise: Tensor, prompt: Prompt | None = None) -> Tensor:
        """Scaled latent of enlarged LR pixels; ``noise`` is that of the posterior."""
        ...


@dataclass(frozen=True)
class Guided:
    """A network with its prompts and guidance, as the distillation losses ask it: without gradients.

    Args:
        predict: asks the network.
        batch: has the prompts.
        scale: of the guidance; 1: none.
    """

    predict: Predict
    batch: PromptedPairs
    scale: float

    def __call__(self, z_t: Tensor, index: Tensor) -> Tensor:
        """Prediction at z_t (B, C, H, W), index (B,), in float32."""
        with torch.no_grad():
            return widen(guided(self.predict, z_t, index, self.batch.own, self.batch.null, self.scale))


class OneTimeDraws(NamedTuple):
    """Random numbers of a loss that noises the student's output to one time.

    Args:
        posterior: N(0, 1), the noise of z_L.
        time: (B,) index of the schedule's table.
        noise: N(0, 1), the noise of the student's output.
    """

    posterior: Tensor
    time: Tensor
    noise: Tensor


def draw(batch: PromptedPairs, noise: SampleNoise, low: int, high: int) -> OneTimeDraws:
    """Draw them; the index is uniform in ``low..high``, both ends included."""
    shape = batch.z_0.shape[1:]
    return OneTimeDraws(noise.normal(shape), noise.integers(low, high), noise.normal(shape))


@dataclass(frozen=True)
class FakePass:
    """What the fake model's loss reads: it denoises the student's own output, with its prompt and without guidance.

    Args:
        fake: trained.
        student: asked without gradients.
        batch: images and prompts.
        draws: random numbers.
    """

    fake: Predictor
    student: Student
    batch: PromptedPairs
    draws: OneTimeDraws

    @cached_property
    def z_0_hat(self) -> Tensor:
        """The student's output, without gradient."""
        with torch.no_grad():
            return widen(self.student(self.batch.lr_up, self.draws.posterior, self.batch.student))


def fake_error(step: FakePass) -> TermValue:
    """Mean squared error of the fake model's prediction, per sample.

    Its target is made of the student's own output, noise - z_hat for flow matching, and not of the HR image as the
    wording of the paper has it: it has to become the ideal network of the student's distribution.

    Source: TSD-SR Eq. 9
    """
    fake, draws = step.fake, step.draws
    z_t = fake.noised(step.z_0_hat, draws.noise, draws.time)
    prediction = widen(fake(z_t, draws.time, step.batch.own))
    return TermValue(squared_error(prediction, fake.target(step.z_0_hat, draws.noise)))


@dataclass(frozen=True)
class OneStep:
    """The student's side of a pass: what terms on latents and pixels read.

    Args:
        student: trained.
        latents: batch.
        posterior: N(0, 1), the noise of z_L.
        decode: from a scaled latent to pixels, differentiable.
    """

    student: Student
    latents: PromptedPairs
    posterior: Tensor
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def one_step(self) -> Tensor:
        """The student's output z_hat, scaled latent (B, C, H, W), differentiable."""
        return widen(self.student(self.latents.lr_up, self.posterior, self.latents.student))

    @cached_property
    def pixels(self) -> Tensor:
        """The output in pixels, nominally [-1, 1], not clamped: clamping would stop the gradient."""
        return widen(self.decode(self.one_step))


def pulled(z_0_hat: Tensor, direction: Tensor, factor: float) -> Tensor:
    """Loss of each sample (B,) whose gradient with respect to z_hat is factor * direction / number of its elements.

    factor / 2 times the squared distance to where the direction leads, as a constant.

    Args:
        z_0_hat: (B, C, H, W), differentiable.
        direction: the same shape; no gradient flows through it.
        factor: 1 in TSD-SR, 2 in OSEDiff.
    """
    return factor / 2 * squared_error(z_0_hat, (z_0_hat - direction).detach())


@dataclass(frozen=True)
class Switched:
    """A network whose adapters are switched for the question: the teacher on the base that the fake model lives on.

    Args:
        predict: asks a network that has the fake model's adapter active.
        adapters: from nothing to a context in which the teacher's adapters are active instead.
    """

    predict: Predict
    adapters: Callable[[], AbstractContextManager[None]]

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Predict with the teacher's adapters, without gradients."""
        with torch.no_grad(), self.adapters():
            return self.predict(z_t, index, prompt)
