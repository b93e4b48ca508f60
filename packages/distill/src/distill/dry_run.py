"""What a run would do, without doing it: parameters, updates, memory, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from distill.config import AnyRun, DataConfig, DistillationRun, FlowTeacherRun, Run, T2IRun, TeacherRun, TermsRun
from distill.data import open_images, open_pairs
from distill.memory import Forecast, forecast_trainer, library_bytes
from distill.perceptual import BACKBONES, RANDOM
from distill.ranks import make_accelerator
from distill.tasks import build_distillation, build_task
from distill.tasks.common import Task
from distill.tasks.students import teacher_or_stand_in
from sr_models.layers import count_parameters

Terms = TypeVar("Terms", bound=TermsRun)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Args:
        parameters: trained network -> number of parameters.
        updates: player -> optimizer steps.
        images: samples that the run sees.
        accumulate: micro-batches of one process in one update.
        processes: that share an update, as this command was started.
        device: where it would compute.
        memory: forecast for one process.
        missing: what has to be there before the run can start, one line each.
    """

    parameters: Mapping[str, int]
    updates: Mapping[str, int]
    images: int
    accumulate: int
    processes: int
    device: torch.device
    memory: Forecast
    missing: tuple[str, ...]


def plan(config: AnyRun) -> Plan:
    """Build a run, and simulate its training on tensors without content.

    A teacher or a perceptual backbone that is not there is noted under ``missing``; networks of the published size and
    a random backbone of the same size stand in.

    Raises:
        FileNotFoundError, ValueError: other bad input, as :func:`distill.tasks.build_task`.
    """
    accelerator = make_accelerator(config.device, config.precision)
    heavy = ("sr_models.t2i", "diffusers.models", "peft") if isinstance(config, T2IRun | FlowTeacherRun) else ()
    baseline = library_bytes(heavy) if accelerator.device.type == "cpu" else 0
    missing: list[str] = []
    frozen: list[nn.Module] = []
    mode: Any = None
    if isinstance(config, TermsRun):
        config = _with_backbone(config, missing)
    if isinstance(config, DistillationRun):
        model, description = teacher_or_stand_in(config)
        if description != config.teacher:
            missing.append(f"teacher: {description}")
        open_pairs(config, model.config.scale)
        task: Task = build_distillation(_on_generated(config), accelerator, model)
    elif isinstance(config, T2IRun):
        from distill.tasks.t2i import open_named_pairs
        from distill.tasks.t2i_dry_run import empty_task

        try:
            open_named_pairs(config)
        except ValueError as error:
            missing.append(f"data: {error}")
        empty = empty_task(_on_generated(config), accelerator, missing)
        task, frozen, mode = empty.task, empty.frozen, empty.mode
    else:
        open_pairs(config, config.model.scale) if isinstance(config, TeacherRun) else open_images(config)
        task = build_task(_on_generated(config), accelerator)
    trainer = task.trainer
    networks = {player.name: count_parameters(player.network) for player in trainer.players}
    updates = {player.name: player.updates * max(0, config.steps - player.first_step) for player in trainer.players}
    images, accumulate = sum(updates.values()) * config.batch_size, trainer.accumulate
    memory = forecast_trainer(trainer, baseline, frozen, mode)
    return Plan(
        networks,
        updates,
        images,
        accumulate,
        accelerator.num_processes,
        accelerator.device,
        memory,
        tuple(missing),
    )


def _on_generated(config: Run) -> Run:
    """The run on generated images: their source changes nothing about memory, and degrading needs real values."""
    size = config.data.hr_size
    data = DataConfig(hr_size=size, image_size=max(64, size), workers=0)
    return config.model_copy(update={"data": data})


def _with_backbone(config: Terms, missing: list[str]) -> Terms:
    """Replace a perceptual backbone that is not on this machine by a random one; a dry run downloads nothing."""
    if "lpips" not in config.weights or config.lpips.backbone is not None:
        return config
    known = BACKBONES[config.lpips.net]
    if known.path().is_file():
        return config
    missing.append(
        f"lpips: {known.file} ({known.megabytes} MB) is not at {known.path()}; it will be downloaded, or name a file "
        "with --set lpips.backbone=FILE"
    )
    return config.model_copy(update={"lpips": config.lpips.model_copy(update={"backbone": RANDOM})})
