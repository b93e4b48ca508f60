"""Distil a teacher into a one-step student with a fake model: RSD (Algorithm 1) and ResShift-VSD (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from distill.config import FakeModelRun, RSDRun, VSDRun
from distill.noise import SampleNoise
from distill.objectives import rsd, terms, vsd
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.tasks.common import (
    Task,
    decode,
    load_perceptual,
    make_player,
    one_step_terms,
    place,
    set_up,
    weighted_terms,
)
from distill.tasks.students import load_networks, student_task
from resshift_core import student_timesteps
from sr_data.datasets import make_generator
from sr_models import Denoiser, SRModel, make_fake
from sr_models.discriminator import make_head
from sr_models.student import NOISE_CHANNELS

HEAD_STREAM = 3 << 32
"""Added to the run's seed for the weights of the GAN head."""


@dataclass(frozen=True)
class _Method:
    """Where the two differ: the student's noise input and number of times, and the parts of the objective."""

    noise_channels: int
    student_timesteps: int
    fake_pass: type[rsd.FakePass]
    student_pass: type[rsd.StudentPass]
    distillation: type[rsd.Distillation]


def _method(config: FakeModelRun) -> _Method:
    match config:
        case RSDRun():
            return _Method(NOISE_CHANNELS, config.student_timesteps, rsd.FakePass, rsd.StudentPass, rsd.Distillation)
        case VSDRun():
            return _Method(0, 1, vsd.FakePass, vsd.StudentPass, vsd.Distillation)
        case _:
            raise TypeError(f"expected the configuration of a run with a fake model, got {type(config).__name__}")


def fake_model_task(config: FakeModelRun, accelerator: Accelerator, model: SRModel | None = None) -> Task:
    """Build the run: the student and the fake model are copies of the teacher.

    Args:
        config: of the run.
        accelerator: of this process.
        model: the teacher; None: the one that the configuration names.
    """
    device, method = accelerator.device, _method(config)
    networks = load_networks(config, device, model, method.noise_channels)
    teacher, student, schedule = networks.teacher, networks.student, networks.schedule
    fake = Denoiser(set_up(place(make_fake(teacher.network), device), config), schedule)
    perceptual = load_perceptual(config, device)
    head = place(make_head(fake.network.config, make_generator(config.seed + HEAD_STREAM, 0)), device)
    discriminator = terms.Discriminator(fake, head)
    known: Mapping[str, Any] = {
        "distillation": method.distillation(config.normalize),
        **one_step_terms(perceptual),
        "gan": terms.GeneratorGAN(discriminator),
    }
    student_terms: list[WeightedTerm[rsd.StudentPass]] = weighted_terms(config.weights, known)
    # L_fake + lambda_2 L_GAN (Algorithm 1, line 29)
    fake_terms: list[WeightedTerm[rsd.FakePass]] = [WeightedTerm("z_0", 1.0, rsd.fake_mse)]
    fake_networks = nn.ModuleDict({"unet": fake.network})
    if "gan" in config.terms:
        fake_terms.append(WeightedTerm("gan", config.terms["gan"], terms.DiscriminatorGAN(discriminator)))
        fake_networks["head"] = head
    timesteps = student_timesteps(schedule.num_steps, method.student_timesteps)

    def draw(latents: Latents, noise: SampleNoise) -> rsd.RSDDraws:
        return rsd.draw(schedule, timesteps, latents, noise, method.noise_channels)

    def fake_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        return weighted_sum(method.fake_pass(fake, student, latents, draw(latents, noise)), fake_terms)

    def student_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        to_pixels = partial(decode, networks.autoencoder)
        step = method.student_pass(student, fake, teacher, latents, draw(latents, noise), to_pixels)
        return weighted_sum(step, student_terms)

    players = [
        make_player("fake", fake_networks, config, fake_loss, updates=config.fake_updates, ema=False),
        make_player("student", student.network, config, student_loss),
    ]
    return student_task(config, accelerator, networks, players, perceptual, timesteps)
