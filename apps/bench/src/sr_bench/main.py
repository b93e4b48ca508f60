"""``sr-bench``: measurements of restored photographs that can be repeated."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure super-resolution models.",
)


@app.command()
def quality(
    lr: Annotated[Path, typer.Option(help="folder of LR photographs", show_default=False)],
    hr: Annotated[
        Path,
        typer.Option(help="folder of HR photographs of the same names, 4 times as large", show_default=False),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="bicubic, autoencoder (HR through the latent and back), a shipped model or a model folder; "
            "a model with options: tiny-student,fidelity=0.5 (seed, steps, tile, color, fidelity); repeatable"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to create for result.json, table.md and the restored pictures")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the models' noise")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="measure the first N photographs only")] = None,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
) -> None:
    """Restore a folder with several methods and measure PSNR-Y, SSIM-Y, GMSD, NLPD, PIQE and LR-consistency.

    Full-reference metrics compare with the HR photograph, without cropping a border; PIQE looks at the result alone.
    Pictures are rounded to 8 bit first. All metrics are pyiqa's and need no weights.
    """
    from sr_bench.quality import DEFAULT_METHODS, measure_folder

    measure_folder(
        lr,
        hr,
        method or list(DEFAULT_METHODS),
        out=out,
        seed=seed,
        limit=limit,
        device=device,
        # Without the place of the output: it does not change what was measured.
        command=shlex.join(["sr-bench", *(part for part in sys.argv[1:] if part not in ("--out", str(out)))]),
    )


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
    from sr_bench.training import measure_training

    measure_training(
        preset,
        set_ or [],
        data=data,
        steps=steps,
        real=real,
        out=out,
        command=shlex.join(["sr-bench", *(part for part in sys.argv[1:] if part not in ("--out", str(out)))]),
    )


@app.command()
def inference(
    preset: Annotated[str, typer.Option(help="sizes of the student: x4 (as published) or tiny")] = "x4",
    size: Annotated[int, typer.Option(min=1, help="LR pixels along one side")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every path, after one that is not counted")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")] = "auto",
    dtype: Annotated[str, typer.Option(help="compare with this one only: fp32, bf16 or fp16; auto: with all")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="compare with compiled networks, too")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    """Time encoder, network and decoder on every compute path, against the machine's ceiling.

    Paths take turns in the same run, and the ceiling (a large matrix product or convolution) is measured in between.
    """
    from sr_bench.inference import measure_inference

    measure_inference(
        preset,
        size=size,
        rounds=rounds,
        device=device,
        dtype=dtype,
        compiled=compiled,
        out=out,
        command=shlex.join(["sr-bench", *(part for part in sys.argv[1:] if part not in ("--out", str(out)))]),
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
    from sr_bench.tiles import measure_tiles

    measure_tiles(
        images,
        weights,
        tile or [128, 192, 256],
        limit=limit,
        out=out,
        command=shlex.join(["sr-bench", *(part for part in sys.argv[1:] if part not in ("--out", str(out)))]),
    )


@app.command()
def ablation(
    name: Annotated[
        str,
        typer.Argument(
            help="in miniature: rsd: RSD's Tables 5 and 6; objectives: its Tables 1 and 2; tsd: TSD-SR's Table 4",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the results; continued if it exists", show_default=False)],
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
    jobs: Annotated[int, typer.Option(min=1, help="trainings at the same time")] = 2,
) -> None:
    """Train the rows of a table over several seeds at equal cost, and measure them.

    `rsd` spends the same floating-point operations on every row, `objectives` the same number of network evaluations,
    `tsd` the same number of updates.
    All rows start from the same teacher and take their pictures from the same stream.
    """
    from sr_bench.ablation import Photographs, run_ablation

    if (lr is None) != (hr is None):
        raise ValueError("expected both --lr and --hr, or neither; give the other folder")
    run_ablation(
        name,
        out,
        updates=updates,
        seeds=seeds,
        settings=set_ or [],
        photographs=Photographs(lr, hr, images) if lr and hr else None,
        jobs=jobs,
        command=shlex.join(["sr-bench", *(part for part in sys.argv[1:] if part not in ("--out", str(out)))]),
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
