"""One row: count, restore once for the memory, measure the ceiling, restore again and again for the time."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_bench.complexity.probe import count_macs, count_parameters, restore_in_parts
from sr_bench.complexity.result import NETWORKS, PARTS, Ceiling, Memory, Row, Spread
from sr_bench.complexity.subjects import Subject, build
from sr_bench.machine import Clock, copy_rate, matrix_rates, synchronize
from sr_data.pictures import Picture, read_picture
from sr_data.writers import write_picture
from sr_models.compute import Compute, apply
from sr_models.compute.paths import NAMES
from sr_models.geometry import upsample
from sr_models.restoration.color import correct
from sr_models.restoration.rows import to_float, to_levels

LEAST_ROUNDS, MOST_ROUNDS = 3, 20
META = torch.device("meta")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Task:
    """What to measure for one row.

    Args:
        model: name, as :func:`sr_bench.complexity.subjects.build` takes it.
        compute: path; its device is ``meta`` where nothing is computed.
        size: LR pixels along one side.
        batch: pictures at once.
        seconds: restorations are repeated until this much time is used, 3 to 20 times.
        rounds: how often instead; None: by ``seconds``.
        threads: of torch on the CPU.
    """

    model: str
    compute: Compute
    size: int
    batch: int
    seconds: float
    rounds: int | None
    threads: int

    @property
    def meta(self) -> bool:
        """Whether it is counted alone."""
        return self.compute.device == META

    def row(self, **fields: Any) -> Row:
        """A row of this task."""
        return Row(
            model=self.model,
            device=str(self.compute.device),
            dtype="-" if self.meta else NAMES[self.compute.dtype],
            path="meta" if self.meta else self.compute.describe(),
            size=self.size,
            batch=self.batch,
            **fields,
        )


@dataclass(frozen=True)
class Measured:
    """A row without its shares, and the ceiling that was measured with it.

    Args:
        row: to be completed.
        ceiling: None on the meta device.
    """

    row: Row
    ceiling: Ceiling | None


def measure(task: Task, clock: Clock = time.perf_counter) -> Measured:
    """Measure one row in this process; its resident set counts, so give it a process of its own.

    Args:
        task: what.
        clock: seconds; for tests.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a size that the model cannot take, or no memory.
        RuntimeError: torch's errors, out of memory among them.
    """
    torch.set_num_threads(task.threads)
    device = task.compute.device
    subject = build(task.model, real=not task.meta, device=device)
    if task.size % subject.model.lr_multiple:
        raise ValueError(
            f"expected a size that divides by {subject.model.lr_multiple} for {task.model}, got {task.size}; "
            "give such a one"
        )
    parameters, adapters = count_parameters(subject)
    row = task.row(
        weights=subject.weights,
        scale=subject.model.scale,
        evaluations=subject.model.steps[0],
        color=subject.model.color,
        parameters=parameters,
        adapters=adapters,
    )
    timed, ceiling = ({}, None) if task.meta else _time(subject, task, clock)
    return Measured(row.model_copy(update={**timed, "macs": _macs(subject, task)}), ceiling)


def _time(subject: Subject, task: Task, clock: Clock) -> tuple[dict[str, Any], Ceiling]:
    """Rounds, seconds and memory of the row, and the ceiling."""
    device = task.compute.device
    apply(subject.model, task.compute)
    with tempfile.TemporaryDirectory() as folder:
        restoration = Restoration(subject, task, Path(folder), clock)
        loaded = _reset_peak(device)
        restoration.run()  # the warm-up
        peak = _peak(device)
        rates = matrix_rates(device, task.compute.dtype, clock)
        operation = max(rates, key=lambda name: rates[name])
        ceiling = Ceiling(
            device=str(device),
            dtype=NAMES[task.compute.dtype],
            operation=operation,
            matrix_gflops=rates[operation],
            copy_gbs=copy_rate(device, clock),
        )
        rounds = _repeat(restoration.run, task)
    kind: Literal["allocator", "resident"] = "allocator" if device.type == "cuda" else "resident"
    memory = None if loaded is None or peak is None else Memory(kind=kind, loaded=loaded, peak=peak)
    return {"rounds": len(rounds), "seconds": _spreads(rounds), "memory": memory}, ceiling


def _macs(subject: Subject, task: Task) -> dict[str, int]:
    """Counted on the meta device, where it takes no time; the model stays there."""
    apply(subject.model, Compute(META))
    steps = subject.model.steps[0]
    lr = torch.empty(task.batch, 3, task.size, task.size, device=META)
    noise = torch.empty(subject.model.noise_shape(task.batch, task.size, task.size, steps), device=META)
    return count_macs(subject, lr, noise, steps)


class Restoration:
    """The parts of a restoration, from PNG files to PNG files, each with the functions that it is done with.

    Args:
        subject: restores, on its device already.
        task: how.
        folder: for the files.
        clock: seconds.
    """

    def __init__(self, subject: Subject, task: Task, folder: Path, clock: Clock) -> None:
        self._subject, self._task, self._clock = subject, task, clock
        self._lr = [folder / f"lr-{index}.png" for index in range(task.batch)]
        self._sr = [folder / f"sr-{index}.png" for index in range(task.batch)]
        for index, path in enumerate(self._lr):
            write_picture(path, Picture(picture(task.size, index)))
        self._steps: int = subject.model.steps[0]
        shape = subject.model.noise_shape(task.batch, task.size, task.size, self._steps)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self._noise = noise.to(task.compute.device)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """LR pictures (B, 3, h, w), pixels [-1, 1], and noise."""
        pixels = [to_float(read_picture(path).pixels) for path in self._lr]
        lr = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy())
        return lr.to(self._task.compute.device), self._noise

    @torch.inference_mode()
    def run(self) -> dict[str, float]:
        """Seconds by part of one restoration."""
        model, compute = self._subject.model, self._task.compute
        begin = self._now()
        lr, noise = self.inputs()
        read = self._now()
        with compute.autocast():
            sr, seconds = restore_in_parts(self._subject, lr, noise, self._steps, self._now)
        decoded = self._now()
        sr = sr.float().clamp(-1, 1)
        if model.color != "none":
            sr = correct(sr, upsample(lr, model.scale), model.color).clamp(-1, 1)
        colored = self._now()
        for path, pixels in zip(self._sr, sr.cpu().permute(0, 2, 3, 1).numpy(), strict=True):
            write_picture(path, Picture(to_levels(pixels, np.dtype(np.uint8))))
        written = self._now()
        return {"read": read - begin, **seconds, "color": colored - decoded, "write": written - colored}

    def _now(self) -> float:
        synchronize(self._task.compute.device)
        return self._clock()


def picture(size: int, index: int) -> Any:
    """An LR picture (size, size, 3) of uint8: smooth with some grain, as photographs are; another for every index."""
    generator = torch.Generator().manual_seed(index)
    smooth = F.interpolate(torch.randn(1, 3, 8, 8, generator=generator), (size, size), mode="bicubic")
    pixels = 0.4 * smooth + 0.02 * torch.randn(1, 3, size, size, generator=generator)
    return to_levels(pixels[0].permute(1, 2, 0).numpy(), np.dtype(np.uint8))


def bytes_of_color(row: Row) -> int:
    """Bytes that a colour correction cannot but move, float32: it reads SR and the enlarged LR, and writes the result.

    Without a correction there is one reading and one writing left, to clamp.
    """
    pictures = 2 if row.color == "none" else 3
    return pictures * 4 * 3 * row.batch * (row.size * row.scale) ** 2


def complete(row: Row, ceiling: Ceiling | None) -> Row:
    """The row with its shares of the ceiling, by medians; 2 floating-point operations for each MAC."""
    if ceiling is None or not row.seconds:
        return row
    per_second = {part: 2 * row.macs[part] / max(row.seconds[part].median, 1e-9) / 1e9 for part in NETWORKS}
    shares = {part: rate / ceiling.matrix_gflops for part, rate in per_second.items()}
    networks = sum(row.seconds[part].median for part in NETWORKS)
    shares["networks"] = 2 * sum(row.macs.values()) / max(networks, 1e-9) / 1e9 / ceiling.matrix_gflops
    shares["color"] = bytes_of_color(row) / max(row.seconds["color"].median, 1e-9) / 1e9 / ceiling.copy_gbs
    return row.model_copy(update={"shares": shares})


def _repeat(run: Callable[[], dict[str, float]], task: Task) -> list[dict[str, float]]:
    rounds: list[dict[str, float]] = []
    used = 0.0
    while len(rounds) < (task.rounds or MOST_ROUNDS):
        if task.rounds is None and len(rounds) >= LEAST_ROUNDS and used >= task.seconds:
            break
        rounds.append(run())
        used += sum(rounds[-1].values())
    return rounds


def _spreads(rounds: list[dict[str, float]]) -> dict[str, Spread]:
    columns = {part: [turn[part] for turn in rounds] for part in PARTS}
    columns["total"] = [sum(turn.values()) for turn in rounds]
    spreads = {}
    for part, values in columns.items():
        p10 = np.percentile(values, 10, method="lower")  # a round's own value: few rounds have no deciles
        p90 = np.percentile(values, 90, method="higher")
        spreads[part] = Spread(median=float(np.median(values)), p10=float(p10), p90=float(p90))
    return spreads


def _reset_peak(device: torch.device) -> float | None:
    """MiB in use, from where the peak is to be measured; None: the peak cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    if device.type != "cpu":  # on MPS torch keeps no peak
        return None
    try:
        CLEAR.write_text("5")  # otherwise the peak may be that of building the model
    except OSError:
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _resident("VmHWM")


def _resident(field: str) -> float | None:
    """MiB of this process from Linux; None elsewhere.

    ``getrusage`` is no use: a new process starts with the peak of the one that started it.
    """
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
