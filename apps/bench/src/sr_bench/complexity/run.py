"""All rows of a run: which there are, each in a process of its own, and what they are set beside."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr_bench.complexity.measure import META, Measured, Task, complete, measure
from sr_bench.complexity.pages import show, write
from sr_bench.complexity.result import Ceiling, Complexity, Published
from sr_bench.complexity.subjects import T2I
from sr_bench.pool import processes
from sr_bench.record import Provenance, provenance
from sr_models.compute import Compute, candidates, choose_device, parse_dtype

DEFAULTS = {
    "tiny-student": slice(1),
    "tiny-teacher": slice(1),
    "x4": slice(None),
    "x4-teacher": slice(-1, None),
    **dict.fromkeys(T2I, slice(None)),
}
"""Models without ``--model``, and which of the precisions without ``--dtype``: fp32, all, the last one."""
WIDTH = 140
"""Of tables that go into a file or a pipe."""
PUBLISHED = {"rsd-4": "RSD Table 4", "tsd-3": "TSD-SR Table 3"}


@dataclass(frozen=True)
class Wanted:
    """What is asked for; an empty tuple: the default.

    Args:
        models: names; default: :data:`DEFAULTS`.
        devices: auto, cpu, cuda, cuda:N, mps; default: auto.
        dtypes: fp32, bf16, fp16; default: fp32, and bf16 where the device is fast in it.
        sizes: LR pixels along one side.
        batches: pictures at once.
        paths: ``best``: for each precision the path that naming it gives; ``all``: plain fp32, and every other one.
        compiled: all paths compiled, besides.
        real: published text-to-image students with random weights, to be timed.
        count: parameters and MACs alone.
        seconds: for the rounds of a row.
        rounds: how many instead.
    """

    models: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (64,)
    batches: tuple[int, ...] = (1,)
    paths: Literal["best", "all"] = "best"
    compiled: bool = False
    real: bool = False
    count: bool = False
    seconds: float = 5.0
    rounds: int | None = None


def measure_complexity(
    wanted: Wanted,
    *,
    out: Path | None,
    command: str,
    worker: Callable[[Task], Measured] | None = None,
) -> Complexity:
    """Measure all rows, print tables, write files.

    Args:
        wanted: what.
        out: folder to write; None: nothing is written.
        command: for the record.
        worker: measures a row; None: :func:`measure` in a process of its own.

    Raises:
        ValueError: options that cannot be, or no row could be measured.
    """
    tasks = tasks_of(wanted)
    if out is not None:
        _check_writable(out)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    for name in dict.fromkeys(task.model for task in tasks if task.model in T2I and not task.meta):
        console.print(f"{name}: random weights of {4 * T2I[name].parameters / 1e9:.1f} GB in float32")
    about = provenance_of(command, [task.compute.device for task in tasks if not task.meta])
    published = published_rows()
    measured: list[Measured] = []
    for found in _each(tasks, worker or in_own_process, console):
        measured.append(found)
        result = _result(measured, published, about)
        if out is not None:
            write(result, out)  # after every row: whoever interrupts a long run keeps what there is
    show(result, console)
    if all(row.problem for row in result.rows):
        raise ValueError(f"expected at least one row that can be measured, got none: {result.rows[0].problem}")
    return result


def _result(measured: Sequence[Measured], published: tuple[Published, ...], about: Provenance) -> Complexity:
    """The rows so far, with shares of the best ceilings so far."""
    ceilings = best_ceilings(found.ceiling for found in measured if found.ceiling)
    rows = [complete(found.row, ceilings.get((found.row.device, found.row.dtype))) for found in measured]
    return Complexity(rows=tuple(rows), ceilings=tuple(ceilings.values()), published=published, provenance=about)


def provenance_of(command: str, devices: Iterable[torch.device]) -> Provenance:
    """Describe this process with all devices that are measured; none: the CPU."""
    found = tuple(dict.fromkeys(devices)) or (torch.device("cpu"),)
    about = [provenance(command, device, ("diffusers", "peft")) for device in found]
    return about[0].model_copy(update={"device": ", ".join(one.device for one in about)})


def _check_writable(folder: Path) -> None:
    """Make the folder and a file in it, before anything is measured.

    Raises:
        ValueError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ValueError(f"expected a folder to write into, got {folder} ({reason}); choose another --out") from error


def tasks_of(wanted: Wanted) -> list[Task]:
    """Every combination of what is asked for, model by model.

    Raises:
        ValueError: a device that is not there, a precision that it does not have, an option that cannot be.
    """
    devices = [choose_device(name) for name in wanted.devices or ("auto",)]
    dtypes = [parse_dtype(name) for name in wanted.dtypes]
    tasks = []
    for model in wanted.models or DEFAULTS:
        if wanted.count or (model in T2I and not wanted.real):
            paths = [Compute(META)]
        else:
            which = slice(None) if wanted.models or wanted.dtypes else DEFAULTS[model]
            paths = [path for device in devices for path in _paths(device, dtypes, wanted, which)]
        tasks += [
            Task(model, path, size, batch, wanted.seconds, wanted.rounds, torch.get_num_threads())
            for path in paths
            for size in wanted.sizes
            for batch in wanted.batches
        ]
    return list(dict.fromkeys(tasks))


def _paths(device: torch.device, asked: Sequence[torch.dtype | None], wanted: Wanted, which: slice) -> list[Compute]:
    """Paths on one device.

    Args:
        device: where.
        asked: precisions; None among them is what the device would be tried with; empty: those of the default.
        wanted: best or all paths, compiled or not.
        which: of the precisions.
    """
    every = candidates(device)
    fast = [dtype for dtype in dict.fromkeys(path.dtype for path in every) if dtype != torch.float16 or asked]
    dtypes = [dtype for one in asked or (None,) for dtype in (fast if one is None else [one])][which]
    paths = [path for dtype in dtypes for path in candidates(device, dtype)]
    if wanted.paths == "all":
        paths = [path for path in every if path.dtype in dtypes] + [path for path in paths if path not in every]
    if wanted.compiled:
        paths += [replace(path, compiled=True) for path in paths]
    return paths


def in_own_process(task: Task) -> Measured:
    """Measure a row in a new process: its memory is the row's alone, and its end is not the end of the run.

    Ctrl-C ends it at once, without a traceback of its own.
    """
    with processes(1) as pool:
        return pool.submit(_quietly, measure, task).result()


def _quietly(work: Callable[[Task], Measured], task: Task) -> Measured:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return work(task)


def _each(tasks: Sequence[Task], worker: Callable[[Task], Measured], console: Console) -> Iterator[Measured]:
    """Measure row by row, and show how far it is."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as progress:
        bar = progress.add_task("rows", total=len(tasks))
        for task in tasks:
            where = "counting" if task.meta else task.compute.describe()
            progress.update(bar, description=f"{task.model}, {where}, {task.size} px x {task.batch}")
            yield _one(task, worker)
            progress.advance(bar)


def _one(task: Task, worker: Callable[[Task], Measured]) -> Measured:
    """A row, or the line that says why there is none."""
    try:
        return worker(task)
    except BrokenProcessPool:
        problem = "its process was ended, most likely out of memory; give a smaller --size or --batch"
    except (ValueError, OSError, RuntimeError, NotImplementedError, MemoryError, ImportError) as error:
        problem = " ".join(str(error).split())[:300] or type(error).__name__
    return Measured(task.row(problem=problem), None)


def best_ceilings(found: Iterable[Ceiling]) -> dict[tuple[str, str], Ceiling]:
    """The best of every device and precision; copying is the same for all precisions of a device."""
    best: dict[tuple[str, str], Ceiling] = {}
    copies: dict[str, float] = {}
    for ceiling in found:
        key = ceiling.device, ceiling.dtype
        copies[ceiling.device] = max(copies.get(ceiling.device, 0.0), ceiling.copy_gbs)
        if key not in best or ceiling.matrix_gflops > best[key].matrix_gflops:
            best[key] = ceiling
    return {key: value.model_copy(update={"copy_gbs": copies[key[0]]}) for key, value in best.items()}


def published_rows() -> tuple[Published, ...]:
    """The rows of the papers' tables."""
    from sr_bench.paper.tables import paper_table

    rows = []
    for name, source in PUBLISHED.items():
        table = paper_table(name)
        for row in table.rows:
            pairs = zip((column.metric for column in table.columns), row.values, strict=True)
            values = {metric: value for metric, value in pairs if value is not None}
            rows.append(Published(table=name, source=source, hardware=table.hardware, method=row.method, values=values))
    return tuple(rows)
