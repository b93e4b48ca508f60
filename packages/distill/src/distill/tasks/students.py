"""What all distillations share: a teacher and its copy, latents and pixels, measurements, and what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config import DistillationRun
from distill.data import open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.objectives.output import Latents
from distill.perceptual import Perceptual
from distill.tasks.common import (
    Task,
    averaged,
    compare,
    latents_of,
    make_trainer,
    notes_on,
    place,
    restore,
    set_up,
    working_copy,
)
from distill.trainer import Player
from resshift_core import ResShiftSchedule
from sr_models import Denoiser, SRModel, SwinUNet, VQAutoencoder, make_student
from sr_models.presets import x4
from sr_models.store import load_model, save_model


@dataclass(frozen=True)
class Networks:
    """Networks of a distillation, on their device.

    Args:
        model: the teacher as it was loaded.
        teacher: frozen.
        student: starts as the teacher's copy.
        autoencoder: that training computes with.
    """

    model: SRModel
    teacher: Denoiser
    student: Denoiser
    autoencoder: VQAutoencoder

    @property
    def schedule(self) -> ResShiftSchedule:
        """The schedule of all of them."""
        return self.teacher.schedule


def load_networks(
    config: DistillationRun, device: torch.device, model: SRModel | None, noise_channels: int
) -> Networks:
    """Load the teacher and copy it.

    Args:
        config: of the run.
        device: of this process.
        model: the teacher; None: the one that the configuration names.
        noise_channels: of the student.
    """
    model = model or _load_teacher(config.teacher)
    schedule = model.config.schedule.build()
    teacher = set_up(place(model.unet, device), config)
    student = set_up(place(make_student(model.unet, noise_channels), device), config)
    working = working_copy(place(model.autoencoder, device), config)
    return Networks(model, Denoiser(teacher, schedule), Denoiser(student, schedule), working)


def student_task(
    config: DistillationRun,
    accelerator: Accelerator,
    networks: Networks,
    players: list[Player],
    perceptual: Perceptual | None,
    timesteps: tuple[int, ...] = (),
) -> Task:
    """Put players, data and measurements together; the last player trains the student.

    ``timesteps`` are the student's t_1 < ... < t_N = T; with more than one it can restore in N steps, too.
    """
    model, device = networks.model, accelerator.device
    times = timesteps if len(timesteps) > 1 else None
    student_config = model.config.model_copy(
        update={"unet": networks.student.network.config, "student_timesteps": times}
    )

    def current() -> SRModel:
        return SRModel("student", student_config, averaged(players[-1]), model.autoencoder)

    lr, hr = validation_pairs(config, model.config.scale)
    data = open_pairs(config, model.config.scale)
    steps = networks.schedule.num_steps
    fixed: dict[str, Tensor] = {}  # methods that training does not change, measured once

    def evaluate() -> Evaluation:
        student_now = restore(current(), lr, device)
        if not fixed:
            fixed["bicubic"] = bicubic(lr, model.config.scale)
            fixed[f"teacher {steps} steps"] = restore(model, lr, device)
            fixed["student 1 step, before"] = student_now
            return compare(lr, hr, fixed)
        return compare(lr, hr, {**fixed, "student 1 step": student_now})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        save_model(current(), folder, dtype=getattr(torch, config.save_dtype), about=about)

    def prepare(batch: Any, indexes: range) -> Latents:
        return latents_of(networks.autoencoder, *data.pairs(batch, indexes), model.config.scale)

    trainer = make_trainer(players, data, prepare, config, accelerator, steps)
    return Task(trainer, evaluate, save, notes_on(perceptual))


def teacher_or_stand_in(config: DistillationRun) -> tuple[SRModel, str]:
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
