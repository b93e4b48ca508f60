"""``sr-bench``: measurements of restored photographs that can be repeated."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sr_bench.ablation.command import ablation
from sr_bench.compare.command import compare
from sr_bench.complexity.command import complexity
from sr_bench.paper.command import paper
from sr_bench.quality.command import quality
from sr_bench.study.command import study, study_results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure super-resolution models, next to the papers' tables.",
    epilog="First steps:  sr-bench complexity   then   sr-bench quality --model tiny-student --data photos/",
)
app.command()(complexity)
app.command()(quality)
app.command()(paper)
app.command()(ablation)
app.command()(compare)
app.command()(study)
app.command("study-results")(study_results)


@app.command()
def training(
    preset: Annotated[str, typer.Option(help="preset of `sr-distill train rsd`")] = "tiny",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change the run, such as micro_batch=1; repeatable"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder of photographs instead of generated images")] = None,
    steps: Annotated[int, typer.Option(min=1, help="timed steps, after one that is not timed")] = 3,
    real: Annotated[
        bool, typer.Option(help="time with data from its source too, not only with the same batch again")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with the configuration beside it")] = None,
) -> None:
    """Time a training step by part, with real and with cached data, and measure its memory."""
    from sr_bench.record import command_line
    from sr_bench.training import measure_training

    measure_training(
        preset,
        set_ or [],
        data=data,
        steps=steps,
        real=real,
        out=out,
        command=command_line(out),
    )


@app.command()
def tiles(
    images: Annotated[Path, typer.Option(help="folder of pictures, taken as LR, larger than the tiles")],
    weights: Annotated[str, typer.Option(help="a shipped model or a model folder")] = "tiny-student",
    tile: Annotated[list[int] | None, typer.Option(help="side of the tiles in LR pixels; repeatable")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take the first N pictures only")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    """Compare pictures restored in tiles with the same in one piece; look for jumps where tiles meet.

    Once as they are restored, with norms that all tiles share, and once with norms of their own.
    """
    from sr_bench.record import command_line
    from sr_bench.tiles import measure_tiles

    measure_tiles(
        images,
        weights,
        tile or [128, 192, 256],
        limit=limit,
        out=out,
        command=command_line(out),
    )


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("SR_DISTILL_DEBUG"):
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
