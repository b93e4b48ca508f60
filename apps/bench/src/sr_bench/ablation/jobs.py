"""One training of an ablation and its measurements, and many of them side by side."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.config import AnyRun
from sr_bench.ablation.kept import Origin, Point, RunRecord, read_record
from sr_bench.ablation.photographs import Photographs, measure_photographs
from sr_bench.pool import processes
from sr_bench.record import write_json


@dataclass(frozen=True)
class Job:
    """One training and its measurements.

    Args:
        config: of the run; its ``steps`` are the length of the training, 0 is allowed: nothing but measurements.
        weights: what it starts from, see :func:`sr_bench.ablation.kept.weights_of`.
        made_by: this code.
        name: row of the table.
        photographs: to measure on besides the validation images; None: none.
        points: how often it is measured, evenly over its length, the last time at the end.
        threads: of this training.
    """

    config: AnyRun
    weights: Mapping[str, str]
    made_by: Origin
    name: str
    photographs: Photographs | None
    points: int
    threads: int

    @property
    def measured_on(self) -> str:
        """What the figures belong to, for the record."""
        if self.photographs is None:
            return "generated images"
        return f"generated images, {self.photographs.about}"

    @property
    def measured_at(self) -> list[int]:
        """Steps after which it is measured."""
        return sorted({max(1, round(self.config.steps * point / self.points)) for point in range(1, self.points + 1)})


def work(todo: Sequence[tuple[Path, Job]], jobs: int, console: Console) -> None:
    """Carry out what has no result yet, several at a time; every result is a file that appears whole."""
    open_jobs = [(path, job) for path, job in todo if not is_done(path, job)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(todo), completed=len(todo) - len(open_jobs))
        for path, job, result in _results(open_jobs, jobs):
            write_json(path, result)
            progress.update(bar, advance=1, description=f"{job.name}, seed {job.config.seed}")
            if not console.is_terminal:
                console.print(f"done: {job.name}, seed {job.config.seed}")


def _results(todo: Sequence[tuple[Path, Job]], jobs: int) -> Iterator[tuple[Path, Job, RunRecord]]:
    """Yield results as they come, from this process for one job at a time, otherwise from others."""
    if jobs == 1:
        yield from ((path, job, train_and_measure(job)) for path, job in todo)
        return
    with processes(jobs) as pool:
        running = {pool.submit(train_and_measure, job): (path, job) for path, job in todo}
        try:
            for done in as_completed(running):
                yield *running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun does not begin any more
            raise


def is_done(path: Path, job: Job) -> bool:
    """Whether a result is there, of this very configuration, weights and measurement; the code may be another."""
    found = read_record(path, RunRecord)
    return found is not None and (
        found.config == job.config.model_dump(mode="json")
        and found.weights == job.weights
        and found.measured_on == job.measured_on
        and [point.step for point in found.curve] == job.measured_at
    )


def train_and_measure(job: Job) -> RunRecord:
    """Train one run without a run folder and measure its averaged student on the way.

    Raises:
        ValueError: a figure that is not a finite number.
    """
    import torch

    from distill.tasks import build_task

    torch.set_num_threads(job.threads)
    task = build_task(job.config)

    def measure(step: int) -> Point:
        generated = dict(task.evaluate().rows["student 1 step"])
        photographs = _on_photographs(task, job.photographs)
        for metric, value in (generated | photographs).items():
            if not math.isfinite(value):
                raise ValueError(
                    f"expected finite figures, got {metric} = {value} of {job.name}, seed {job.config.seed}, after "
                    f"{step} updates; set a lower optimizer.lr for all rows"
                )
        return Point(step=step, generated=generated, photographs=photographs)

    references: Mapping[str, Mapping[str, float]] = task.evaluate().rows  # the first call measures these
    window: dict[str, float] = {}
    curve = []
    for step in range(1, job.config.steps + 1):
        window = task.trainer.run_step().means()
        if step in job.measured_at:
            curve.append(measure(step))
    return RunRecord(
        config=job.config.model_dump(mode="json"),
        weights=dict(job.weights),
        measured_on=job.measured_on,
        steps=job.config.steps,
        images_seen=task.trainer.images_seen,
        notes=dict(task.notes),
        last_step=window,
        references={name: dict(row) for name, row in references.items()},
        curve=tuple(curve),
        made_by=job.made_by,
    )


def _on_photographs(task: Any, photographs: Photographs | None) -> dict[str, float]:
    if photographs is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder) / "model", {})
        return measure_photographs(str(Path(folder) / "model"), photographs)
