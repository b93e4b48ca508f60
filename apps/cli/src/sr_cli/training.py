"""What ``sr-distill train`` says when a run is over."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distill.config import AnyRun, DistillationRun, T2IRun
from distill.evaluation import METRICS, Evaluation
from distill.ranks import leave_group
from distill.run import Stopped, train


def run_and_tell(config: AnyRun, out: Path | None, *, command: str) -> None:
    """Carry out a run, print its table, where it is and what to do with it."""
    try:
        result = train(config, out=out, command=command)
    except Stopped as stopped:
        print(stopped)
        raise SystemExit(130) from None
    leave_group()
    if int(os.environ.get("RANK", "0")) > 0:  # another process tells
        return
    console = Console()
    console.print(_table(result.before, result.after))
    summary = result.summary
    if result.was_finished:
        print(f"already finished: {result.folder}  (another --out trains again)")
        return
    console.print(
        f"{summary['steps']} updates, {summary['images_seen']} images in {summary['seconds']:.0f} s "
        f"({summary['updates_per_second']} updates/s, peak memory {summary['peak_memory_mb']:.0f} MB)",
        highlight=False,
        soft_wrap=True,
    )
    print(f"run: {result.folder}  (open {result.folder / 'report.html'})")
    if isinstance(config, DistillationRun | T2IRun):
        print("restore a photograph with it:")
        print(f"  uv run sr-distill upscale photo.jpg -o out.png --weights {shlex.quote(str(result.model))}")
    else:
        print(f"model: {result.model}")


def _table(before: Evaluation, after: Evaluation) -> Table:
    table = Table("validation images", *METRICS)
    for name, values in before.rows.items():
        if name not in after.rows or after.rows[name] != values:
            table.add_row(f"{name} (before)", *(f"{values[metric]:.3f}" for metric in METRICS))
    for name, values in after.rows.items():
        table.add_row(name, *(f"{values[metric]:.3f}" for metric in METRICS))
    return table
