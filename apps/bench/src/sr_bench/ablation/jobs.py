"""One training of an ablation and its measurements, and many of them side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.config import AnyRun
from distill.folder import write_text
from sr_bench.pool import processes


@dataclass(frozen=True)
class Photographs:
    """Photographs to measure on: LR and HR folders of the same names, and how many, evenly spread."""

    lr_folder: Path
    hr_folder: Path
    images: int

    def __str__(self) -> str:
        """For the record: names, not places."""
        return f"{self.images} photographs of {self.lr_folder.name} and {self.hr_folder.name}"


@dataclass(frozen=True)
class Job:
    """One training and its measurements.

    Args:
        config: of the run; its ``steps`` are the length of the training, 0 is allowed: nothing but measurements.
        name: row of the table.
        photographs: to measure on besides the validation images; None: none.
        points: how often it is measured, evenly over its length, the last time at the end.
        threads: of this training.
    """

    config: AnyRun
    name: str
    photographs: Photographs | None
    points: int
    threads: int

    @property
    def measured_on(self) -> str:
        """What the figures belong to, for the record."""
        if self.photographs is None:
            return "generated images"
        return f"generated images, {self.photographs}"

    @property
    def measured_at(self) -> list[int]:
        """Steps after which it is measured."""
        return sorted({max(1, round(self.config.steps * point / self.points)) for point in range(1, self.points + 1)})


class Figures(TypedDict):
    """Metric -> value, on the validation images and on photographs (empty without)."""

    generated: dict[str, float]
    photographs: dict[str, float]


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
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(result, indent=1) + "\n")
            progress.update(bar, advance=1, description=f"{job.name}, seed {job.config.seed}")
            if not console.is_terminal:
                console.print(f"done: {job.name}, seed {job.config.seed}")


def _results(todo: Sequence[tuple[Path, Job]], jobs: int) -> Iterator[tuple[Path, Job, dict[str, Any]]]:
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
    """Whether a result is there, of this very configuration and measurement."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    return bool(
        found["config"] == job.config.model_dump(mode="json")
        and found["measured_on"] == job.measured_on
        and [point["step"] for point in found["curve"]] == job.measured_at
    )


def train_and_measure(job: Job) -> dict[str, Any]:
    """Train one run without a run folder and measure its averaged student on the way."""
    import torch

    from distill.tasks import build_task

    torch.set_num_threads(job.threads)
    task = build_task(job.config)

    def measure() -> Figures:
        rows = task.evaluate().rows
        return Figures(generated=dict(rows["student 1 step"]), photographs=_on_photographs(task, job.photographs))

    references: Mapping[str, Mapping[str, float]] = task.evaluate().rows  # the first call measures these
    window: dict[str, float] = {}
    curve = []
    for step in range(1, job.config.steps + 1):
        window = task.trainer.run_step().means()
        if step in job.measured_at:
            curve.append({"step": step, **measure()})
    return {
        "config": job.config.model_dump(mode="json"),
        "measured_on": job.measured_on,
        "steps": job.config.steps,
        "images_seen": task.trainer.images_seen,
        "notes": dict(task.notes),
        "last_step": window,
        "references": {name: dict(row) for name, row in references.items()},
        "curve": curve,
    }


def _on_photographs(task: Any, photographs: Photographs | None) -> dict[str, float]:
    if photographs is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder) / "model", {})
        return measure_photographs(str(Path(folder) / "model"), photographs)


MEASURED = ("psnr", "ssim", "gmsd", "nlpd", "piqe")
"""Metrics of photographs: quick ones, without weights."""


def measure_photographs(method: str, photographs: Photographs, steps: int | None = None) -> dict[str, float]:
    """Means of the weight-free metrics of a method: ``bicubic``, a shipped model or a model folder, in some steps."""
    import numpy as np

    from sr_bench.quality.folders import check_sources, pair
    from sr_bench.quality.measuring import create, score
    from sr_bench.quality.methods import Asked, load
    from sr_bench.quality.metrics import METRICS
    from sr_bench.quality.protocols import PROTOCOLS
    from sr_data.images import read_image

    pictures, protocol = pair(photographs.lr_folder, photographs.hr_folder, ()), PROTOCOLS["weight-free"]
    check_sources(pictures, protocol)
    assert pictures.lr is not None
    assert pictures.gt is not None
    metrics = [METRICS[key] for key in MEASURED]
    measures = [create(metric, protocol.color, "cpu") for metric in metrics]
    restore = load(Asked(method, method), scale=protocol.scale, seed=0, device="cpu", steps=steps).restore
    values: dict[str, list[float]] = {metric.title_on(protocol.color): [] for metric in metrics}
    count = min(photographs.images, len(pictures.names))
    for name in (pictures.names[index * len(pictures.names) // count] for index in range(count)):
        lr, hr = read_image(pictures.lr[name]), read_image(pictures.gt[name])
        restored = restore(lr, hr)
        for title, metric, measure in zip(values, metrics, measures, strict=True):
            values[title].append(score(measure, restored, hr if metric.reads == "gt" else None))
    return {title: float(np.mean(found)) for title, found in values.items()}
