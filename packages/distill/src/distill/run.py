"""A run from its configuration to its folder: train, measure before and after, write everything down.

The folder holds ``config.yaml``, ``metrics.jsonl``, TensorBoard logs, ``checkpoints/``, ``grid.png``, ``report.html``,
``model/`` and, when all is done, ``summary.json``. The same configuration again continues an unfinished run.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.card import write_card
from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.config import AnyRun, to_yaml
from distill.evaluation import Evaluation
from distill.folder import METRICS, SUMMARY, RunFolder, open_run, truncate_metrics, write_text
from distill.meters import StepMetrics
from distill.pictures import save_grid
from distill.progress import Progress
from distill.ranks import make_accelerator
from distill.report import write_report
from distill.stopping import StopSignal
from distill.tasks import Task, build_task
from distill.tracking import Tracker
from distill.trainer import Trainer
from sr_models.layers import count_parameters
from sr_models.store import read_about

MODEL = "model"


class Stopped(Exception):
    """A run was asked to stop and has written a checkpoint; the same command continues it."""


@dataclass(frozen=True)
class RunResult:
    """Where a finished run is and what it measured; ``was_finished``: before it was asked for, nothing was done."""

    folder: Path
    model: Path
    before: Evaluation
    after: Evaluation
    summary: Mapping[str, Any]
    was_finished: bool = False


def train(config: AnyRun, *, out: Path | None = None, command: str = "", quiet: bool = False) -> RunResult:
    """Carry out a run, or continue it.

    Started in several processes by ``accelerate launch``, all of them train and the first one writes.

    Args:
        config: complete configuration.
        out: folder to create or to continue; None: ``runs/TASK-PRESET-NNN``, the newest unfinished one of this
            configuration or the next free number.
        command: how the run was started, for the record.
        quiet: no progress display.

    Raises:
        FileExistsError: ``out`` is something else than this run.
        FileNotFoundError, ValueError: bad input; raised before the folder is created.
        NonFiniteError: a loss or gradient is not finite (and the configuration says abort).
        Stopped: a signal asked the run to stop.
    """
    accelerator = make_accelerator(config.device, config.precision, config.tracker)
    task = build_task(config, accelerator)
    folder = _open(config, out, accelerator)
    try:
        if folder.state == "finished":
            return _finished(folder.path)
        return _run(task, config, folder, command, quiet or not accelerator.is_main_process)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of memory on the device ({str(error).splitlines()[0]}); set a smaller micro_batch or "
            "checkpointing=true; --dry-run forecasts the memory"
        ) from error
    finally:
        folder.close()


def _run(task: Task, config: AnyRun, folder: RunFolder, command: str, quiet: bool) -> RunResult:
    path, trainer = folder.path, task.trainer
    main = trainer.accelerator.is_main_process
    with Progress(config.task, config.steps, quiet=quiet) as progress:
        progress.say(f"run folder: {path}")
        for name, note in task.notes.items():
            progress.say(f"{name}: {note}")
        progress.say("measuring before training ...")
        before = task.evaluate()
        if load_checkpoint(path, trainer, progress.say):
            progress.say(f"continuing at step {trainer.step} ({trainer.images_seen} images seen)")
        elif folder.state == "started":
            progress.say("the run was interrupted before its first checkpoint; starting again")
        _check_agreement(trainer)
        trainer.guard.folder, trainer.guard.say = path / "nonfinite", progress.say
        with Tracker(trainer.accelerator, path, trainer.step) as tracker:
            clock = _loop(task, config, path, progress, tracker)
            progress.say("measuring after training ...")
            after = task.evaluate()
            tracker.evaluation(after, trainer.step)
        summary = _summarize(task, config, command, before, after, clock)
        if main:
            _write(task, path, config, summary, after)
        trainer.accelerator.wait_for_everyone()
    return RunResult(path, path / MODEL, before, after, summary)


@dataclass
class _Clock:
    """Time and work of this process' share of the run: a continued run counts from where it was continued."""

    begin: float
    first_step: int
    first_images: int
    seconds: float = 0.0


def _loop(task: Task, config: AnyRun, folder: Path, progress: Progress, tracker: Tracker) -> _Clock:
    trainer, window = task.trainer, StepMetrics()
    main = trainer.accelerator.is_main_process
    if main:
        truncate_metrics(folder, trainer.step)
    clock = _Clock(time.perf_counter(), trainer.step, trainer.images_seen)
    log: AbstractContextManager[Any] = (folder / METRICS).open("a") if main else nullcontext()
    with log as file, StopSignal() as stop:
        while trainer.step < config.steps:
            try:
                metrics = trainer.run_step()
            except RuntimeError:
                if not stop.asked:
                    raise
                # A launcher that signals the whole group has ended the data workers within this step.
                raise Stopped(f"stopped within step {trainer.step}; the same command continues {folder}") from None
            window.merge(metrics)
            clock.seconds = time.perf_counter() - clock.begin
            speed = (trainer.images_seen - clock.first_images) / clock.seconds
            progress.update(trainer.step, metrics.means(), speed)
            last = trainer.step == config.steps
            if trainer.step % config.log_every == 0 or last:
                record = {
                    "step": trainer.step,
                    "images": trainer.images_seen,
                    "seconds": round(clock.seconds, 3),
                    "skipped": trainer.guard.skipped,
                    **window.means(),
                    **window.by_time(),
                }
                window = StepMetrics()
                if main:
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                tracker.scalars(record, trainer.step)
            every = config.validation.every
            if every and trainer.step % every == 0 and not last:
                if main:
                    tracker.evaluation(task.evaluate(), trainer.step)
                trainer.accelerator.wait_for_everyone()
            stopping = stop.requested(trainer.accelerator)
            kept = True
            if (trainer.step % config.checkpoint.every == 0 or stopping or last) and main:
                kept = _checkpoint(folder, task, config, progress)
            if stopping and not last:
                where = f"the same command continues {folder}" + ("" if kept else " from an earlier step")
                raise Stopped(f"stopped at step {trainer.step}; {where}")
    return clock


def _checkpoint(folder: Path, task: Task, config: AnyRun, progress: Progress) -> bool:
    try:
        save_checkpoint(folder, task.trainer, config.checkpoint.keep)
    except OSError as error:  # a full disk must not cost what is in memory; the next one may succeed
        progress.say(f"no checkpoint at step {task.trainer.step} ({error}); the one before is kept; free some space")
        return False
    return True


def _check_agreement(trainer: Trainer) -> None:
    """Refuse to train when the processes did not read the same checkpoint, as on a file system that lags."""
    steps = trainer.accelerator.gather(torch.tensor([trainer.step], device=trainer.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"expected one checkpoint in all processes, got steps {steps}; check that all see the same folder"
        )


def _open(config: AnyRun, out: Path | None, accelerator: Accelerator) -> RunFolder:
    """Let the first process choose the folder, and tell the others."""
    found: list[Any] = [None]
    folder = None
    if accelerator.is_main_process:
        try:
            folder = open_run(config, out)
            found = [(folder.path, folder.state)]
        except Exception as error:  # the others wait for an answer, whatever it is
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return folder or RunFolder(*found[0])


def _summarize(
    task: Task, config: AnyRun, command: str, before: Evaluation, after: Evaluation, clock: _Clock
) -> dict[str, Any]:
    trainer = task.trainer
    steps, images = trainer.step - clock.first_step, trainer.images_seen - clock.first_images
    return {
        "task": config.task,
        "preset": config.preset,
        "command": command,
        "seed": config.seed,
        "steps": config.steps,
        "images_seen": trainer.images_seen,
        "seconds": round(clock.seconds, 1),
        "updates_per_second": round(steps / clock.seconds, 3) if steps else 0.0,
        "images_per_second": round(images / clock.seconds, 2) if steps else 0.0,
        "continued_at": clock.first_step or None,
        "skipped_updates": trainer.guard.skipped,
        "processes": trainer.accelerator.num_processes,
        "peak_memory_mb": peak_memory_mb(trainer.device),
        "parameters": {player.name: count_parameters(player.network) for player in trainer.players},
        "data": config.data.source,
        "machine": machine(trainer.device),
        "notes": dict(task.notes),
        "before": before.rows,
        "after": after.rows,
    }


def _write(task: Task, folder: Path, config: AnyRun, summary: Mapping[str, Any], after: Evaluation) -> None:
    """Write the results; the summary comes last and says that the run is finished."""
    if (folder / MODEL).exists():  # of a process that was killed while it wrote the results
        shutil.rmtree(folder / MODEL)
    about = {key: value for key, value in summary.items() if key not in ("before", "after")}
    task.save(folder / MODEL, about)
    write_card(folder / MODEL, summary, read_about(folder / MODEL)["sha256"])
    save_grid(folder / "grid.png", after.pictures)
    write_report(folder, summary, to_yaml(config))
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def _finished(folder: Path) -> RunResult:
    """What a finished run measured, from its folder; the pictures are in its report."""
    summary = json.loads((folder / SUMMARY).read_text())
    return RunResult(
        folder, folder / MODEL, Evaluation(summary["before"], {}), Evaluation(summary["after"], {}), summary, True
    )


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
