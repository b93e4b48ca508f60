"""Miniature ablations: train variants of one run over several seeds at equal compute, and measure them alike.

Every (variant, seed) is a job with a result file of its own; what is there already is not computed again. Equal compute
means equal floating-point operations: the operations of one step are counted for each variant, and a variant whose step
costs more gets fewer steps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.config import RSDRun, parse_assignment, resolve
from distill.folder import write_text
from distill.presets import preset


@dataclass(frozen=True)
class Variant:
    """A row of a table: its name, what it changes in the base run, and the paper's row."""

    name: str
    changes: tuple[str, ...]
    published: tuple[str, ...]


@dataclass(frozen=True)
class AblationTable:
    """A table of the paper in miniature."""

    title: str
    variants: tuple[Variant, ...]


PUBLISHED = ("PSNR", "SSIM", "LPIPS", "CLIPIQA", "MUSIQ")
LPIPS = "terms.lpips=2"
GAN = "terms.gan=3e-3"
STEPS = AblationTable(
    "Number of student timesteps N (RSD Table 5)",
    (
        Variant("N = 1", ("student_timesteps=1",), ("24.82", "0.6730", "0.4052", "0.7444", "64.290")),
        Variant("N = 2", ("student_timesteps=2",), ("24.77", "0.6790", "0.3772", "0.7523", "65.760")),
        Variant("N = 4", (), ("24.92", "0.6956", "0.3552", "0.7518", "66.430")),
        Variant("N = 8", ("student_timesteps=8",), ("25.63", "0.7268", "0.3199", "0.7286", "66.445")),
        Variant("N = 15", ("student_timesteps=15",), ("25.91", "0.7435", "0.2940", "0.6857", "65.689")),
    ),
)
LOSSES = AblationTable(
    "Supervised losses (RSD Table 6)",
    (
        Variant("distill only", (), ("24.92", "0.6956", "0.3552", "0.7518", "66.430")),
        Variant("+ LPIPS", (LPIPS,), ("26.01", "0.7531", "0.2708", "0.7089", "65.178")),
        Variant("+ GAN", (GAN,), ("24.98", "0.7241", "0.3064", "0.6970", "67.615")),
        Variant("all", (LPIPS, GAN), ("25.91", "0.7538", "0.2726", "0.7060", "65.860")),
    ),
)
TABLES = (STEPS, LOSSES)


@dataclass(frozen=True)
class Job:
    """One training and its measurement."""

    config: RSDRun
    variant: str
    lr_folder: Path | None
    hr_folder: Path | None
    images: int
    threads: int


def run_ablation(
    out: Path,
    *,
    updates: int,
    seeds: int,
    settings: Sequence[str],
    lr_folder: Path | None,
    hr_folder: Path | None,
    images: int,
    jobs: int,
    command: str,
) -> Path:
    """Train and measure all rows of both tables, and write ``table.md`` and ``result.json``.

    Args:
        out: folder of the results; what it holds is not computed again.
        updates: of the student in the base run (N = 4, distill only); the others get as many operations.
        seeds: how many, 0, 1, ...
        settings: ``key=value`` for all runs, such as ``lpips.backbone=random``.
        lr_folder: photographs to measure on besides the generated validation images; None: none.
        hr_folder: their HR versions.
        images: measure this many of them, evenly spread.
        jobs: trainings at the same time.
        command: for the record.

    Returns:
        The table's file.
    """
    base = preset("rsd", "tiny")
    assert isinstance(base, RSDRun)
    shared = [parse_assignment(text) for text in (*settings, "tracker=none", "device=cpu")]
    variants = {variant.changes: variant for table in reversed(TABLES) for variant in table.variants}
    configs = {changes: resolve(base, [*shared, *(parse_assignment(text) for text in changes)]) for changes in variants}
    console = Console()
    console.print("counting the operations of one step ...")
    out.mkdir(parents=True, exist_ok=True)
    flops = {changes: _cached_flops(out, config) for changes, config in configs.items()}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    todo: list[tuple[Path, Job]] = []
    for changes, config in configs.items():
        steps = max(1, round(updates * flops[()] / flops[changes]))
        for seed in range(seeds):
            chosen = config.model_copy(update={"seed": seed, "steps": steps})
            job = Job(chosen, variants[changes].name, lr_folder, hr_folder, images, threads)
            todo.append((_file(out, changes, seed), job))
    _work(todo, jobs, console)
    results = {path.relative_to(out).as_posix(): json.loads(path.read_text()) for path, _ in todo}
    text = _page(out, results, flops, seeds, command)
    write_text(out / "result.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "table.md", text)
    console.print(text, highlight=False)
    return out / "table.md"


def _file(out: Path, changes: tuple[str, ...], seed: int) -> Path:
    name = "_".join(changes).replace("=", "-") or "base"
    return out / "runs" / name / f"seed-{seed}.json"


def _work(todo: Sequence[tuple[Path, Job]], jobs: int, console: Console) -> None:
    """Carry out what has no result yet, several at a time."""
    open_jobs = [(path, job) for path, job in todo if not _is_done(path, job)]
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
            progress.update(bar, advance=1, description=f"{job.variant}, seed {job.config.seed}")
            if not console.is_terminal:
                console.print(f"done: {job.variant}, seed {job.config.seed}")


def _results(todo: Sequence[tuple[Path, Job]], jobs: int) -> Iterator[tuple[Path, Job, dict[str, Any]]]:
    """Yield results as they come, from this process for one job at a time, otherwise from others."""
    if jobs == 1:
        yield from ((path, job, train_and_measure(job)) for path, job in todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(train_and_measure, job): (path, job) for path, job in todo}
        for done in as_completed(running):
            yield *running[done], done.result()


def _is_done(path: Path, job: Job) -> bool:
    """Whether a result is there, of this very configuration and measurement."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    return bool(found["config"] == job.config.model_dump(mode="json") and found["measured_on"] == _measured_on(job))


def _measured_on(job: Job) -> str:
    if job.lr_folder is None:
        return "generated images"
    return f"generated images, {job.images} photographs of {job.lr_folder} and {job.hr_folder}"


def train_and_measure(job: Job) -> dict[str, Any]:
    """Train one run without a run folder and measure its averaged student."""
    import torch

    from distill.tasks import build_task

    torch.set_num_threads(job.threads)
    task = build_task(job.config)
    before = task.evaluate()
    window: dict[str, float] = {}
    for _ in range(job.config.steps):
        window = task.trainer.run_step().means()
    after = task.evaluate()
    result: dict[str, Any] = {
        "config": job.config.model_dump(mode="json"),
        "steps": job.config.steps,
        "images_seen": task.trainer.images_seen,
        "notes": dict(task.notes),
        "last_step": window,
        "measured_on": _measured_on(job),
        "generated": {name: dict(row) for name, row in {**before.rows, **after.rows}.items()},
    }
    if job.lr_folder is not None and job.hr_folder is not None:
        with tempfile.TemporaryDirectory() as folder:
            task.save(Path(folder) / "model", {})
            result["photographs"] = _measure(Path(folder) / "model", job)
    return result


def _measure(model: Path, job: Job) -> dict[str, float]:
    """Means of the weight-free metrics over photographs, evenly spread over the folder."""
    import numpy as np
    import pyiqa

    from sr_bench.quality import METRICS, match, restorer, score
    from sr_data.images import read_image

    assert job.lr_folder is not None
    assert job.hr_folder is not None
    pairs = match(job.lr_folder, job.hr_folder)
    chosen = [pairs[index * len(pairs) // job.images] for index in range(min(job.images, len(pairs)))]
    measures = {metric.title: pyiqa.create_metric(metric.name, **metric.arguments) for metric in METRICS}
    restore = restorer(str(model), seed=0, device="cpu")
    values: dict[str, list[float]] = {metric.title: [] for metric in METRICS}
    for lr_path, hr_path in chosen:
        lr, hr = read_image(lr_path), read_image(hr_path)
        restored = restore(lr, hr)
        for title, measure in measures.items():
            values[title].append(score(measure, restored, hr))
    return {title: float(np.mean(found)) for title, found in values.items()}


def _cached_flops(out: Path, config: RSDRun) -> int:
    """Operations of one step, counted once for each configuration of a result folder."""
    path = out / "flops.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    key = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    if key not in known:
        known[key] = count_flops(config)
        write_text(path, json.dumps(known, indent=1) + "\n")
    found: int = known[key]
    return found


def count_flops(config: RSDRun) -> int:
    """Floating-point operations of one training step (all players' turns): convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    from distill.tasks import build_task

    trainer = build_task(config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})).trainer
    with FlopCounterMode(display=False) as counter:
        trainer.run_step()
    total: int = counter.get_total_flops()
    return total


def _page(out: Path, results: Mapping[str, Any], flops: Mapping[tuple[str, ...], int], seeds: int, command: str) -> str:
    """Both tables as Markdown: mean and standard deviation over the seeds, the paper's row beside them."""
    lines = [f"`{command}`", ""]
    notes = sorted({note for result in results.values() for note in result["notes"].values()})
    lines += [*(f"Perceptual loss: {note}." for note in notes), ""]
    first = next(iter(results.values()))
    columns = [("generated", name) for name in ("PSNR-Y", "SSIM-Y", "sharpness")]
    columns += [("photographs", name) for name in first.get("photographs", {})]
    for table in TABLES:
        lines += [f"## {table.title}", ""]
        titles = ["", "GFLOP/step", "steps", *(f"{name} ({where})" for where, name in columns)]
        titles += [f"paper: {name}" for name in PUBLISHED]
        lines += ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
        for variant in table.variants:
            rows = [results[_file(out, variant.changes, seed).relative_to(out).as_posix()] for seed in range(seeds)]
            cells = [variant.name, f"{flops[variant.changes] / 1e9:.0f}", str(rows[0]["steps"])]
            for where, name in columns:
                cells.append(_mean_and_spread([_value(row, where, name) for row in rows]))
            lines.append("| " + " | ".join([*cells, *variant.published]) + " |")
        lines.append("")
    return "\n".join(lines)


def _value(result: Mapping[str, Any], where: str, name: str) -> float:
    found: float = result["generated"]["student 1 step"][name] if where == "generated" else result[where][name]
    return found


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; the mean's digits follow the spread."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    spread = statistics.stdev(values)
    digits = 2 if abs(mean) >= 10 else 4
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
