"""Miniature ablations: train the rows of a table over several seeds at equal cost, and measure them alike.

Every (row, seed) is a job with a result file of its own; what is there already is not computed again. The cost of one
step is counted for each row, and a row whose step costs more gets fewer steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.config import DistillationRun, T2IRun, TSDRun, parse_assignment, resolve
from distill.folder import write_text
from distill.presets import preset
from sr_bench.ablation.costs import StudentRun, counted_cost, equal_steps
from sr_bench.ablation.jobs import Job, is_done, work
from sr_bench.ablation.kept import (
    Origin,
    ReferenceRecord,
    RunRecord,
    differences,
    digest_of,
    distinct,
    lock_folder,
    read_record,
    weights_of,
)
from sr_bench.ablation.machine import core_count, fitting_jobs
from sr_bench.ablation.page import Figures, Results, draw_figure, write_page
from sr_bench.ablation.photographs import Photographs, measure_photographs
from sr_bench.ablation.tables import Ablation, Variant, find_ablation
from sr_bench.record import provenance, write_json
from sr_models.compute import choose_device

OWN_KEYS = ("terms", "steps", "seed", "ema_decay", "student_timesteps")
"""What the ablation and its rows set themselves."""


def run_ablation(
    name: str,
    out: Path,
    *,
    updates: int,
    seeds: int,
    settings: Sequence[str],
    photographs: Photographs | None,
    jobs: int | None,
    command: str,
) -> Path:
    """Train and measure all rows, and write ``table.md``, ``result.json`` and, where there is one, ``figure.png``.

    Args:
        name: of the ablation, or of a paper's table that it repeats.
        out: folder of the results; what it holds of the same weights and photographs is not computed again.
        updates: of the student in the base row; the others get as many as cost the same.
        seeds: how many, 0, 1, ...
        settings: ``key=value`` for all runs, such as ``lpips.backbone=random``.
        photographs: to measure on besides the generated validation images.
        jobs: trainings at the same time; None: as many as the machine can hold.
        command: for the record.

    Returns:
        The table's file.

    Raises:
        ValueError: no such ablation, or settings that a row does not have.
        FileExistsError: another command works in the folder.
    """
    ablation = find_ablation(name)
    configs = {key: _config(variant, settings) for key, variant in ablation.variants.items()}
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        return _make(ablation, configs, out, updates, seeds, photographs, jobs, command)


def _make(
    ablation: Ablation,
    configs: Mapping[str, StudentRun],
    out: Path,
    updates: int,
    seeds: int,
    photographs: Photographs | None,
    jobs: int | None,
    command: str,
) -> Path:
    console = Console()
    described = provenance(command, choose_device(configs[ablation.base.key].device))
    made_by = Origin.of(described)
    weights = dict(zip(configs, weights_of(list(configs.values())), strict=True))
    console.print("counting the cost of one step ...")
    counted = {key: counted_cost(out, config, weights[key], made_by) for key, config in configs.items()}
    costs = {key: found.cost for key, found in counted.items()}
    todo: dict[str, list[tuple[Path, Job]]] = {}
    for key, steps in equal_steps(updates, costs, ablation.base.key, ablation.cost).items():
        todo[key] = [
            (
                out / "runs" / key / f"seed-{seed}.json",
                Job(
                    config=_for(configs[key], seed, steps, updates),
                    weights=weights[key],
                    made_by=made_by,
                    name=ablation.variants[key].name,
                    photographs=photographs,
                    points=ablation.points,
                    threads=1,
                ),
            )
            for seed in range(seeds)
        ]
    ordered = _seed_by_seed(todo, seeds)
    if jobs is None:
        largest = max(costs, key=lambda key: costs[key]["flops"])
        jobs = fitting_jobs(configs[largest], sum(not is_done(path, job) for path, job in ordered))
        console.print(f"trainings at the same time: {jobs}")
    threads = max(1, core_count() // jobs)
    work([(path, replace(job, threads=threads)) for path, job in ordered], jobs, console)
    runs = {key: [_read_run(path) for path, _ in found] for key, found in todo.items()}
    first = runs[ablation.base.key][0]
    references, measured = _references(out, ablation, configs[ablation.base.key], first, photographs, made_by)
    origins = distinct(
        [one.made_by for found in runs.values() for one in found]
        + [one.made_by for one in counted.values()]
        + [one.made_by for one in measured]
    )
    plain = {key: [run.model_dump(mode="json") for run in found] for key, found in runs.items()}
    results = Results(plain, costs, references, command, differences(origins))
    write_json(
        out / "result.json",
        {
            "provenance": described.model_dump(mode="json", exclude=set(Origin.model_fields)),
            "made_by": [origin.model_dump(mode="json") for origin in origins],
            "references": references,
            "costs": costs,
            "runs": plain,
        },
    )
    if ablation.points > 1:
        draw_figure(out / "figure.png", ablation, results)
    text = write_page(ablation, results)
    write_text(out / "table.md", text)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return out / "table.md"


def _read_run(path: Path) -> RunRecord:
    found = read_record(path, RunRecord)
    assert found is not None  # just written, or found to be done
    return found


def _config(variant: Variant, settings: Sequence[str]) -> StudentRun:
    base = preset(variant.task, "tiny")
    assert isinstance(base, DistillationRun | T2IRun)
    for text in settings:
        if text.partition("=")[0].partition(".")[0] in OWN_KEYS:
            raise ValueError(f"expected settings that leave {', '.join(OWN_KEYS)} to the rows, got {text!r}; drop it")
    layers = [parse_assignment(text) for text in ("tracker=none", "device=cpu", *settings, *variant.changes)]
    try:
        return resolve(base, layers)
    except ValueError as error:
        raise ValueError(
            f"row {variant.name!r} (train {variant.task}): {error}; set only what all rows have"
        ) from error


def _for(config: StudentRun, seed: int, steps: int, base_steps: int) -> Any:
    """The run of one row and seed.

    The moving average reaches back over the same part of every run: with one decay for all, a row of few steps would be
    measured closer to where it started. A phase that would begin after the end begins at the same part of the run.
    """
    decay = config.ema_decay ** (base_steps / steps)
    changes: dict[str, Any] = {"seed": seed, "steps": steps, "ema_decay": decay}
    if isinstance(config, TSDRun):
        phases = {key: getattr(config.schedule, key) for key in ("latent_mse_until", "dasm_from")}
        late = {key: step * steps // config.steps for key, step in phases.items() if step and step >= steps}
        changes["schedule"] = config.schedule.model_copy(update=late)
    return config.model_copy(update=changes)


def _seed_by_seed(todo: Mapping[str, Sequence[tuple[Path, Job]]], seeds: int) -> list[tuple[Path, Job]]:
    """All rows of the first seed first: what is interrupted can be looked at."""
    return [found[seed] for seed in range(seeds) for found in todo.values()]


def _references(
    out: Path,
    ablation: Ablation,
    config: StudentRun,
    run: RunRecord,
    photographs: Photographs | None,
    made_by: Origin,
) -> tuple[dict[str, Figures], list[ReferenceRecord]]:
    """Figures of what no row changes: bicubic, the teacher, and what students are before their training."""
    found, measured = {}, []
    for title, rows in run.references.items():
        at_start = title.startswith("student")
        name = ablation.start if at_start else title
        method, steps = _method_of(title, config, at_start)
        values = {}
        if method and photographs is not None:
            path = out / "runs" / "references" / f"{name.replace(' ', '-')}.json"
            record = measured_reference(path, method, steps, photographs, made_by)
            values = record.values
            measured.append(record)
        found[name] = Figures(generated=rows, photographs=values)
    return found, measured


def _method_of(title: str, config: StudentRun, at_start: bool) -> tuple[str | None, int | None]:
    """What to restore photographs with, and in how many steps; None: nothing does that."""
    if title == "bicubic":
        return "bicubic", None
    if isinstance(config, DistillationRun):
        return config.teacher, 1 if at_start else None  # before training a student is a copy of the teacher
    return (str(config.start) if at_start and config.start else None), None


def measured_reference(
    path: Path, method: str, steps: int | None, photographs: Photographs, made_by: Origin
) -> ReferenceRecord:
    """Figures on photographs of a method, measured once for the same weights and photographs."""
    weights = None if method == "bicubic" else digest_of(method)
    asked = {"method": method, "weights": weights, "steps": steps, "on": photographs.about}
    known = read_record(path, ReferenceRecord)
    if known is not None and known.asked == asked:
        return known
    made = ReferenceRecord(asked=asked, values=measure_photographs(method, photographs, steps), made_by=made_by)
    write_json(path, made)
    return made
