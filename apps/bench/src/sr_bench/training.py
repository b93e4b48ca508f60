"""Speed and memory of training: seconds of a step by part, with real and with cached data, and peak memory."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from distill.config import RSDRun, parse_assignment, resolve, to_yaml
from distill.dry_run import plan
from distill.folder import write_text
from distill.presets import preset
from distill.ranks import make_accelerator
from distill.run import machine, peak_memory_mb
from distill.tasks import build_distillation
from distill.tasks.students import teacher_or_stand_in
from distill.trainer import Trainer
from sr_bench.machine import matrix_rate
from sr_models.compute import DTYPES


def measure_training(
    name: str,
    settings: list[str],
    *,
    data: Path | None,
    steps: int,
    real: bool,
    out: Path | None,
    command: str,
) -> dict[str, Any]:
    """Time steps of a preset of ``rsd`` and print a table.

    The teacher is the preset's if it is there; otherwise networks of the published size with random weights, which
    changes nothing about speed and memory, and the result says so.

    Args:
        name: preset.
        settings: ``key=value`` for the run.
        data: folder of photographs; None: generated images.
        steps: timed steps, after one that is not timed.
        real: with data from its source as well as with the same batch again and again.
        out: JSON file to write.
        command: for the record.
    """
    base = preset("rsd", name)
    assert isinstance(base, RSDRun)
    layers = [parse_assignment(text) for text in ("tracker=none", *settings)]
    if data is not None:
        layers.append({"data": {"source": "folder", "hr_folder": str(data)}})
    config = resolve(base, layers)
    console = Console()
    accelerator = make_accelerator(config.device, config.precision)
    model, teacher = teacher_or_stand_in(config)
    console.print(f"teacher: {teacher}")
    # In a process of its own: what it builds would count in this one's peak.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        expected = pool.submit(plan, config).result().memory
    trainer = build_distillation(config, accelerator, model).trainer
    result: dict[str, Any] = {
        "command": command,
        "config": config.model_dump(mode="json"),
        "teacher": teacher,
        "machine": machine(accelerator.device),
        "images_per_step": config.batch_size * (1 + config.fake_updates),
        "forecast_mb": round(expected.total_bytes / 2**20),
    }
    if real:
        result["real data"] = _time(trainer, steps, "real data", console)
    batch = next(trainer.batches(0))
    trainer.use_batches(lambda start: itertools.repeat(batch))
    result["cached data"] = _time(trainer, steps, "cached data", console)
    result["peak_memory_mb"] = peak_memory_mb(accelerator.device)
    result["flops_per_step"] = _flops(trainer)
    result["ceiling_gflops"] = matrix_rate(accelerator.device, DTYPES[config.precision])
    for kind in ("real data", "cached data"):
        if kind in result:
            rate = result["flops_per_step"] / result[kind]["step"] / 1e9
            result[kind]["gflops"], result[kind]["share_of_ceiling"] = rate, rate / result["ceiling_gflops"]
    console.print(_page(result), highlight=False)
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
        write_text(out.with_suffix(".yaml"), to_yaml(config))
    return result


def _time(trainer: Trainer, steps: int, title: str, console: Console) -> dict[str, float]:
    """Mean seconds of a step and of its parts."""
    trainer.run_step()
    begin = time.perf_counter()
    parts: dict[str, float] = {}
    for _ in track(range(steps), description=title, console=console):
        for key, value in trainer.run_step().means().items():
            if key.startswith("seconds/"):
                name = key.removeprefix("seconds/")
                parts[name] = parts.get(name, 0.0) + value / steps
    return {"step": (time.perf_counter() - begin) / steps, **parts}


def _flops(trainer: Trainer) -> int:
    with FlopCounterMode(display=False) as counter:
        trainer.run_step()
    total: int = counter.get_total_flops()
    return total


def _page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    parts = [key for key in result["cached data"] if key not in ("gflops", "share_of_ceiling")]
    lines = [
        f"{result['machine']}; teacher: {result['teacher']}; {result['images_per_step']} images a step; "
        f"{result['flops_per_step'] / 1e9:.0f} GFLOP a step",
        "",
        "| seconds | " + " | ".join(parts) + " | images/s | GFLOP/s | of the ceiling |",
        "| --- |" + " ---: |" * (len(parts) + 3),
    ]
    for kind in ("real data", "cached data"):
        if kind in result:
            row = result[kind]
            seconds = [f"{row[part]:.3f}" for part in parts]
            rates = [f"{result['images_per_step'] / row['step']:.2f}", f"{row['gflops']:.0f}"]
            lines.append(f"| {kind} | " + " | ".join([*seconds, *rates, f"{row['share_of_ceiling']:.0%}"]) + " |")
    lines += ["", f"peak memory {result['peak_memory_mb']:.0f} MB, forecast {result['forecast_mb']} MB"]
    return "\n".join(lines)
