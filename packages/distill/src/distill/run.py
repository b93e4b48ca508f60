"""A run from its configuration to its folder: train, measure before and after, write everything down.

The folder holds ``config.yaml``, ``metrics.jsonl``, TensorBoard logs, ``grid.png``, ``summary.json``,
``report.html`` and ``model/``. It is new for every run; nothing that exists is overwritten.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.card import write_card
from distill.config import AnyRun, to_yaml
from distill.evaluation import Evaluation
from distill.pictures import save_grid
from distill.progress import Progress
from distill.report import write_report
from distill.tasks import Task, build_task
from sr_models.layers import count_parameters
from sr_models.store import read_about

MODEL = "model"


@dataclass(frozen=True)
class RunResult:
    """Where a finished run is and what it measured."""

    folder: Path
    model: Path
    before: Evaluation
    after: Evaluation
    summary: Mapping[str, Any]


def train(config: AnyRun, *, out: Path | None = None, command: str = "", quiet: bool = False) -> RunResult:
    """Carry out a run.

    Args:
        config: complete configuration.
        out: folder to create; None: ``runs/TASK-PRESET-NNN`` with the next free number.
        command: how the run was started, for the record.
        quiet: no progress display.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError, ValueError: bad input; raised before the folder is created.
    """
    if out is not None and out.exists():
        raise FileExistsError(f"expected a new folder, got {out}, which exists; choose another --out")
    started = time.perf_counter()
    task = build_task(config)
    folder = create_folder(out, f"{config.task}-{config.preset}")
    (folder / "config.yaml").write_text(to_yaml(config))
    with Progress(config.task, config.steps, quiet=quiet) as progress:
        progress.say(f"run folder: {folder}")
        progress.say("measuring before training ...")
        before = task.evaluate()
        loop_seconds = _loop(task, config, folder, progress)
        progress.say("measuring after training ...")
        after = task.evaluate()
    summary = {
        "task": config.task,
        "preset": config.preset,
        "command": command,
        "seed": config.seed,
        "steps": config.steps,
        "images_seen": task.trainer.images_seen,
        "seconds": round(time.perf_counter() - started, 1),
        "updates_per_second": round(config.steps / loop_seconds, 3),
        "images_per_second": round(task.trainer.images_seen / loop_seconds, 2),
        "peak_memory_mb": peak_memory_mb(task.trainer.device),
        "parameters": {player.name: count_parameters(player.network) for player in task.trainer.players},
        "data": config.data.source,
        "machine": machine(task.trainer.device),
        "before": before.rows,
        "after": after.rows,
    }
    task.save(folder / MODEL, {key: value for key, value in summary.items() if key not in ("before", "after")})
    write_card(folder / MODEL, summary, read_about(folder / MODEL)["sha256"])
    save_grid(folder / "grid.png", after.pictures)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(folder, summary, (folder / "config.yaml").read_text())
    return RunResult(folder, folder / MODEL, before, after, summary)


def _loop(task: Task, config: AnyRun, folder: Path, progress: Progress) -> float:
    from torch.utils.tensorboard import SummaryWriter

    trainer = task.trainer
    begin = time.perf_counter()
    with SummaryWriter(str(folder / "tensorboard")) as board, (folder / "metrics.jsonl").open("w") as log:
        while trainer.step < config.steps:
            metrics = trainer.run_step()
            seconds = time.perf_counter() - begin
            progress.update(trainer.step, metrics, trainer.images_seen / seconds)
            if trainer.step % config.log_every and trainer.step != config.steps:
                continue
            record = {
                "step": trainer.step,
                "images": trainer.images_seen,
                "seconds": round(seconds, 3),
                **metrics,
            }
            log.write(json.dumps(record) + "\n")
            log.flush()
            for name, value in metrics.items():
                board.add_scalar(name, value, trainer.step)
    return time.perf_counter() - begin


def create_folder(out: Path | None, stem: str) -> Path:
    """Create the run folder: ``out``, or the next free ``runs/STEM-NNN``."""
    if out is not None:
        out.mkdir(parents=True)
        return out
    number = 1
    while True:
        folder = Path("runs") / f"{stem}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def machine(device: torch.device) -> str:
    """The machine in a few words, without its name."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {where}, {versions}"
