"""Distil a teacher into a one-step student by RSD."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import RSDRun
from distill.data import open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.noise import SampleNoise
from distill.objectives import rsd, terms
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.perceptual import Perceptual, load_lpips
from distill.tasks.common import (
    Task,
    averaged,
    compare,
    in_dtype_of,
    latents_of,
    make_player,
    make_trainer,
    place,
    restore,
    set_up,
)
from resshift_core import student_timesteps
from sr_data.datasets import make_generator
from sr_models import Denoiser, SRModel, SwinUNet, VQAutoencoder, make_fake, make_student
from sr_models.discriminator import make_head
from sr_models.presets import x4
from sr_models.store import load_model, save_model

HEAD_STREAM, BACKBONE_STREAM = 3 << 32, 4 << 32
"""Added to the run's seed for the weights of the GAN head and of a random LPIPS backbone."""


def rsd_task(config: RSDRun, accelerator: Accelerator, model: SRModel | None = None) -> Task:
    """Build the run: the student and the fake model are copies of the teacher.

    Args:
        config: of the run.
        accelerator: of this process.
        model: the teacher; None: the one that the configuration names.
    """
    device = accelerator.device
    model = model or _load_teacher(config.teacher)
    schedule = model.config.schedule.build()
    autoencoder = place(model.autoencoder, device)
    teacher = Denoiser(set_up(place(model.unet, device), config), schedule)
    student = Denoiser(set_up(place(make_student(model.unet), device), config), schedule)
    fake = Denoiser(set_up(place(make_fake(model.unet), device), config), schedule)
    working = _working_copy(autoencoder, config)
    perceptual = _perceptual(config, device)
    head = place(make_head(model.config.unet, make_generator(config.seed + HEAD_STREAM, 0)), device)
    discriminator = terms.Discriminator(fake, head)
    student_terms = _student_terms(config, perceptual, discriminator)
    fake_terms = _fake_terms(config, discriminator)
    timesteps = student_timesteps(schedule.num_steps, config.student_timesteps)

    def draw(latents: Latents, noise: SampleNoise) -> rsd.RSDDraws:
        return rsd.draw(schedule, timesteps, latents, noise, student.network.config.noise_channels)

    def fake_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        return weighted_sum(rsd.FakePass(fake, student, latents, draw(latents, noise)), fake_terms)

    def student_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws, decode = draw(latents, noise), partial(_decode, working)
        return weighted_sum(rsd.StudentPass(student, fake, teacher, latents, draws, decode), student_terms)

    fake_networks = nn.ModuleDict({"unet": fake.network})
    if "gan" in config.terms:
        fake_networks["head"] = head
    fake_player = make_player("fake", fake_networks, config, fake_loss, updates=config.fake_updates, ema=False)
    student_player = make_player("student", student.network, config, student_loss)
    student_config = model.config.model_copy(update={"unet": student.network.config})

    def current() -> SRModel:
        return SRModel("student", student_config, averaged(student_player), autoencoder)

    lr, hr = validation_pairs(config, model.config.scale)
    data = open_pairs(config, model.config.scale)
    fixed: dict[str, Tensor] = {}  # methods that training does not change, measured once

    def evaluate() -> Evaluation:
        student_now = restore(current(), lr, device)
        if not fixed:
            fixed["bicubic"] = bicubic(lr, model.config.scale)
            fixed[f"teacher {schedule.num_steps} steps"] = restore(model, lr, device)
            fixed["student 1 step, before"] = student_now
            return compare(lr, hr, fixed)
        return compare(lr, hr, {**fixed, "student 1 step": student_now})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        save_model(current(), folder, dtype=getattr(torch, config.save_dtype), about=about)

    def prepare(batch: Any, indexes: range) -> Latents:
        return latents_of(working, *data.pairs(batch, indexes), model.config.scale)

    trainer = make_trainer([fake_player, student_player], data, prepare, config, accelerator, schedule.num_steps)
    notes = {"lpips": perceptual.description} if perceptual else {}
    return Task(trainer, evaluate, save, notes)


def teacher_or_stand_in(config: RSDRun) -> tuple[SRModel, str]:
    """Return the teacher, or networks of the published size with random weights, and which of the two it is.

    Memory, speed and parameter counts do not depend on the weights.
    """
    try:
        return _load_teacher(config.teacher), config.teacher
    except FileNotFoundError:
        size = x4()
        stand_in = SRModel("teacher", size, SwinUNet(size.unet), VQAutoencoder(size.autoencoder))
        stand_in.unet.requires_grad_(False).eval()
        stand_in.autoencoder.requires_grad_(False).eval()
        return stand_in, f"no {config.teacher!r} here: networks of the published size with random weights"


def _load_teacher(name: str) -> SRModel:
    model = load_model(name)
    if model.kind != "teacher":
        raise ValueError(f"expected a teacher to distil, got the {model.kind} {name!r}; give a teacher's folder")
    return model


def _student_terms(
    config: RSDRun, perceptual: Perceptual | None, discriminator: terms.Discriminator
) -> list[WeightedTerm[rsd.StudentPass]]:
    """The terms of Eq. 9 that the configuration weighs, distillation first."""

    known: dict[str, Any] = {"distillation": rsd.Distillation(config.normalize)}
    if perceptual is not None:
        known["lpips"] = terms.LPIPS(perceptual.network)
    known |= {
        "gan": terms.GeneratorGAN(discriminator),
        "latent_mse": terms.latent_mse,
        "pixel_mse": terms.pixel_mse,
    }
    return [WeightedTerm(name, config.terms[name], term) for name, term in known.items() if name in config.terms]


def _fake_terms(config: RSDRun, discriminator: terms.Discriminator) -> list[WeightedTerm[rsd.FakePass]]:
    """L_fake + lambda_2 L_GAN (Algorithm 1, line 29)."""
    found: list[WeightedTerm[rsd.FakePass]] = [WeightedTerm("z_0", 1.0, rsd.fake_mse)]
    if "gan" in config.terms:
        found.append(WeightedTerm("gan", config.terms["gan"], terms.DiscriminatorGAN(discriminator)))
    return found


def _perceptual(config: RSDRun, device: torch.device) -> Perceptual | None:
    if "lpips" not in config.terms:
        return None
    generator = make_generator(config.seed + BACKBONE_STREAM, 0)
    perceptual = load_lpips(config.lpips.net, config.lpips.backbone, generator)
    place(perceptual.network, device)
    return perceptual


def _working_copy(autoencoder: VQAutoencoder, config: RSDRun) -> VQAutoencoder:
    """The autoencoder that training computes with: in the dtype that was asked for, memory-saving decoder."""
    working = autoencoder
    if config.autoencoder_dtype is not None:
        working = copy.deepcopy(autoencoder).to(getattr(torch, config.autoencoder_dtype))
    # Its parameters are frozen, so what a block keeps serves the gradient of its input alone; the inputs of the blocks
    # are enough to get it again.
    working.decoder.checkpointing = True
    return working


def _decode(autoencoder: VQAutoencoder, z: Tensor) -> Tensor:
    """Scaled latent to pixels in the autoencoder's dtype, differentiable in ``z``."""
    with in_dtype_of(autoencoder):
        return autoencoder.decode(z.to(next(autoencoder.parameters()).dtype))
