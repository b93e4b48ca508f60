"""Train a ResShift teacher in the latent space of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distill.config import TeacherRun
from distill.data import open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.noise import SampleNoise
from distill.objectives import resshift
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.tasks.common import (
    Task,
    averaged,
    compare,
    decode,
    latents_of,
    load_perceptual,
    make_player,
    make_trainer,
    notes_on,
    one_step_terms,
    place,
    restore,
    set_up,
    weighted_terms,
    working_copy,
)
from sr_models import Denoiser, SRModel, SwinUNet
from sr_models.store import load_autoencoder, save_model


def teacher_task(config: TeacherRun, accelerator: Accelerator) -> Task:
    """Build the run of a fresh teacher."""
    device = accelerator.device
    autoencoder = place(load_autoencoder(config.autoencoder), device)
    wanted = config.model.autoencoder.model_copy(update={"latent_scale": autoencoder.config.latent_scale})
    if autoencoder.config != wanted:
        found, asked = autoencoder.config.model_dump(), wanted.model_dump()
        different = [f"{name}={found[name]}" for name in found if found[name] != asked[name]]
        raise ValueError(
            f"expected the autoencoder that the configuration describes, got another in {config.autoencoder!r}, with "
            f"{', '.join(different)}; set model.autoencoder (and the channels of model.unet) to it"
        )
    model = config.model.model_copy(update={"autoencoder": autoencoder.config})
    torch.manual_seed(config.seed)
    denoiser = Denoiser(set_up(place(SwinUNet(model.unet), device), config), model.schedule.build())

    working = working_copy(autoencoder, config)
    perceptual = load_perceptual(config, device)
    weights = resshift.kl_weights(denoiser.schedule) if config.weighting == "kl" else None
    known: Mapping[str, Any] = {"z_0": resshift.Denoising(weights), **one_step_terms(perceptual)}
    terms: list[WeightedTerm[resshift.TeacherPass]] = weighted_terms(config.weights, known)

    def loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws = resshift.draw(denoiser.schedule, latents, noise)
        return weighted_sum(resshift.TeacherPass(denoiser, latents, draws, partial(decode, working)), terms)

    player = make_player("teacher", denoiser.network, config, loss)

    def current() -> SRModel:
        return SRModel("teacher", model, averaged(player), autoencoder)

    lr, hr = validation_pairs(config, model.scale)
    data = open_pairs(config, model.scale)
    steps = model.schedule.num_steps

    def evaluate() -> Evaluation:
        methods = {
            "bicubic": bicubic(lr, model.scale),
            "teacher 1 step": restore(current(), lr, device, steps=1),
            f"teacher {steps} steps": restore(current(), lr, device, steps=steps),
        }
        return compare(lr, hr, methods)

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        save_model(current(), folder, dtype=getattr(torch, config.save_dtype), about=about)

    def prepare(batch: Any, indexes: range) -> Latents:
        return latents_of(working, *data.pairs(batch, indexes), model.scale)

    trainer = make_trainer([player], data, prepare, config, accelerator, steps)
    return Task(trainer, evaluate, save, notes_on(perceptual))
