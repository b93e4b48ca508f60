"""``sr-bench ablation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ablation(
    name: Annotated[
        str | None,
        typer.Argument(
            help="rsd, objectives, tsd or dasm, or a paper's table such as rsd-5; without it: what there is, and what "
            "it costs",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; continued if it exists", show_default=False)
    ] = None,
    updates: Annotated[
        int,
        typer.Option(
            min=1,
            help="student updates of the base row (RSD: distill only, N = 4); others get as many as cost the same",
        ),
    ] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each row")] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="for all runs, such as lpips.backbone=random; repeatable"),
    ] = None,
    lr: Annotated[Path | None, typer.Option(help="folder of LR photographs to measure on as well")] = None,
    hr: Annotated[Path | None, typer.Option(help="folder of their HR versions, 4 times as large")] = None,
    images: Annotated[int, typer.Option(min=1, help="measure this many of them, evenly spread")] = 12,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="trainings at the same time; default: as many as cores and free memory allow"),
    ] = None,
) -> None:
    """Train the rows of a table over several seeds at equal cost, and measure them.

    `rsd` spends the same floating-point operations on every row, `objectives` the same number of network evaluations,
    `tsd` and `dasm` the same number of updates.
    All rows start from the same teacher and take their pictures from the same stream.
    """
    if name is None:
        from sr_bench.ablation.listing import list_ablations

        list_ablations(updates, seeds)
        return
    if out is None:
        raise ValueError("expected a folder for the results, got none; name one with --out")
    from sr_bench.ablation.photographs import choose_photographs
    from sr_bench.ablation.run import run_ablation
    from sr_bench.record import command_line

    if (lr is None) != (hr is None):
        raise ValueError("expected both --lr and --hr, or neither; give the other folder")
    run_ablation(
        name,
        out,
        updates=updates,
        seeds=seeds,
        settings=set_ or [],
        photographs=choose_photographs(lr, hr, images) if lr and hr else None,
        jobs=jobs,
        command=command_line(out),
    )
