"""What ``sr-bench ablation`` prints without a name."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sr_bench.ablation.tables import ABLATIONS


def list_ablations(updates: int, seeds: int) -> None:
    """Print which ablations there are, and what each costs.

    Args:
        updates: of the base row.
        seeds: runs of each row.
    """
    table = Table(box=None, pad_edge=False)
    for title in ("Name", "About", "Papers' tables", "Trainings", "Core-hours"):
        table.add_column(title, justify="right" if title in ("Trainings", "Core-hours") else "left")
    for name, ablation in ABLATIONS.items():
        trainings = len(ablation.variants) * seeds
        hours = trainings * updates * ablation.seconds / 3600
        table.add_row(name, ablation.about, ", ".join(ablation.papers), str(trainings), f"{hours:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"\nFor --updates {updates} and --seeds {seeds}; core-hours are about those of an x86 server without measuring "
        "photographs. Make one with `sr-bench ablation NAME --out FOLDER`; the same command continues it.",
        highlight=False,
    )
