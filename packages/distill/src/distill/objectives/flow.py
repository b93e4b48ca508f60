"""Flow matching: train a text-to-image teacher to predict the velocity from noise to image.

Differs from :mod:`distill.objectives.resshift` in the path, which runs from the image to pure noise and knows no LR
image, and in the condition, a prompt. Some samples get the null or the default prompt instead of their own, so that the
teacher can be guided (CFG) and knows the prompt that a student will use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import TermValue, squared_error, widen
from sr_models.t2i.predictor import Flow, FlowPredictor
from sr_models.t2i.prompts import Prompt

TIME_BINS = 10
"""Losses are logged for tenths of sigma: bin t holds sigma in ((t - 1) / 10, t / 10]."""


class PromptedImages(NamedTuple):
    """A training batch.

    Args:
        z_0: scaled latents of HR images, (B, C, H, W).
        own: each image's prompt.
        null: the empty prompt, B times.
        default: the default prompt, B times.
    """

    z_0: Tensor
    own: Prompt
    null: Prompt
    default: Prompt


class FlowDraws(NamedTuple):
    """Random numbers of one loss.

    Args:
        time: (B,) index of the schedule's table.
        noise: N(0, 1) of the shape of z_0.
        percent: (B,) in 0..99, which decides about the prompt.
    """

    time: Tensor
    noise: Tensor
    percent: Tensor


def draw(predictor: FlowPredictor, batch: PromptedImages, noise: SampleNoise) -> FlowDraws:
    """Draw the time uniformly from the table, the noise, and who gets which prompt."""
    time = noise.integers(0, predictor.num_steps - 1)
    return FlowDraws(time, noise.normal(batch.z_0.shape[1:]), noise.integers(0, 99))


@dataclass(frozen=True)
class FlowPass:
    """What the loss reads of one batch.

    Args:
        predictor: trained.
        batch: images and prompts.
        draws: random numbers.
        null_percent: of the samples get the null prompt.
        default_percent: of the samples get the default prompt.
    """

    predictor: FlowPredictor
    batch: PromptedImages
    draws: FlowDraws
    null_percent: int
    default_percent: int

    @property
    def prompt(self) -> Prompt:
        """The prompt that each sample is trained with."""
        without = self.draws.percent < self.null_percent
        general = self.draws.percent >= 100 - self.default_percent
        own = self.batch.own
        return _where(without, self.batch.null, _where(general, self.batch.default, own))


def velocity_error(step: FlowPass) -> TermValue:
    """Mean squared error of the velocity, per sample.

    Source: TSD-SR Sec. 3.1 (flow matching); Esser et al. 2024, Eq. 2, with uniform index of the shifted table
    """
    predictor, z_0, draws = step.predictor, step.batch.z_0, step.draws
    z_t = predictor.noised(z_0, draws.noise, draws.time)
    velocity = widen(predictor(z_t, draws.time, step.prompt))
    return TermValue(
        squared_error(velocity, predictor.target(z_0, draws.noise)), times=time_bins(predictor, draws.time)
    )


def time_bins(predictor: Flow, index: Tensor) -> Tensor:
    """Tenth of sigma (1..10) of each index, for the log."""
    sigma = predictor.schedule.t(index) / predictor.num_steps
    bins: Tensor = (sigma * TIME_BINS).ceil().long().clamp(1, TIME_BINS)
    return bins


def _where(mask: Tensor, chosen: Prompt, other: Prompt) -> Prompt:
    assert chosen.pooled is not None
    assert other.pooled is not None
    return Prompt(
        torch.where(mask[:, None, None], chosen.embeds, other.embeds),
        torch.where(mask[:, None], chosen.pooled, other.pooled),
    )
