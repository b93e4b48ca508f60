"""``sr-bench complexity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def complexity(
    model: Annotated[
        list[str] | None,
        typer.Option(help="shipped model, model folder, x4, x4-teacher, sd3-student or sd21-student; repeatable"),
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; repeatable")] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="fp32, bf16 or fp16; repeatable; default: fp32, and bf16 where the device is fast in it"),
    ] = None,
    size: Annotated[list[int] | None, typer.Option(min=1, help="LR pixels along one side; repeatable")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="pictures at once; repeatable")] = None,
    paths: Annotated[
        Literal["best", "all"], typer.Option(help="all: plain fp32 and every other path of the device")
    ] = "best",
    compiled: Annotated[bool, typer.Option("--compile", help="every path compiled, too")] = False,
    real: Annotated[
        bool, typer.Option("--real", help="time sd3-student and sd21-student, with random weights")
    ] = False,
    count: Annotated[bool, typer.Option("--count", help="parameters and MACs only, nothing is timed")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="repeat for this long, 3 to 20 times")] = 5.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="repeat this often instead")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for complexity.json, .csv, .md and .html")] = None,
) -> None:
    """Count parameters and MACs, time a restoration by part, against the machine's ceiling, beside the papers' rows.

    Without options: all models that need no files, in less than three minutes on two CPU cores.
    """
    from sr_bench.complexity.run import Wanted, measure_complexity
    from sr_bench.record import command_line

    wanted = Wanted(
        models=tuple(model or ()),
        devices=tuple(device or ()),
        dtypes=tuple(dtype or ()),
        sizes=tuple(size or (64,)),
        batches=tuple(batch or (1,)),
        paths=paths,
        compiled=compiled,
        real=real,
        count=count,
        seconds=seconds,
        rounds=rounds,
    )
    measure_complexity(wanted, out=out, command=command_line(out))
