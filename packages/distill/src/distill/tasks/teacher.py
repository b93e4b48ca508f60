"""Train a ResShift teacher in the latent space of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distill.config import TeacherRun
from distill.data import open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.noise import SampleNoise
from distill.objectives import resshift
from distill.objectives.output import Latents, ObjectiveOutput
from distill.tasks.common import (
    Task,
    averaged,
    compare,
    latents_of,
    make_player,
    make_trainer,
    place,
    restore,
    set_up,
)
from sr_models import Denoiser, SRModel, SwinUNet
from sr_models.store import load_autoencoder, save_model


def teacher_task(config: TeacherRun, accelerator: Accelerator) -> Task:
    """Build the run of a fresh teacher."""
    device = accelerator.device
    autoencoder = place(load_autoencoder(config.autoencoder), device)
    wanted = config.model.autoencoder.model_copy(update={"latent_scale": autoencoder.config.latent_scale})
    if autoencoder.config != wanted:
        raise ValueError(
            f"expected the autoencoder that the configuration describes, got another in {config.autoencoder!r}"
        )
    model = config.model.model_copy(update={"autoencoder": autoencoder.config})
    torch.manual_seed(config.seed)
    denoiser = Denoiser(set_up(place(SwinUNet(model.unet), device), config), model.schedule.build())

    def loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        return resshift.teacher_loss(denoiser, latents, resshift.draw(denoiser.schedule, latents, noise))

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
        return latents_of(autoencoder, *data.pairs(batch, indexes), model.scale)

    trainer = make_trainer([player], data, prepare, config, accelerator, steps)
    return Task(trainer, evaluate, save)
