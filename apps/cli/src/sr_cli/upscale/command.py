"""The options of ``sr-distill upscale``; nothing heavy is imported before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sr_cli.offline import Offline, go_offline

OUTPUT = "What is written"
RESTORE = "How it is restored"
COMPUTE = "How it is computed"
RUN = "The run"


def upscale(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="pictures and folders of pictures; - reads one from stdin"),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            rich_help_panel=OUTPUT,
            help="for one picture a file such as out.png, else a folder; - writes to stdout "
            "\\[default: NAME_x4.png beside the picture, FOLDER_x4 beside the folder]",
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            rich_help_panel=OUTPUT,
            help="png, webp, tiff, bmp (lossless); jpg, avif (lossy); same: the format of each input "
            "\\[default: by the name after -o, else png]",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(rich_help_panel=OUTPUT, help="1 to 100, for jpg, avif and webp; makes webp lossy"),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel=OUTPUT, help="make outputs again that exist; without it they stay"),
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            rich_help_panel=RESTORE,
            help="model folder, name of a shipped model, owner/name on the hub, or an .onnx file",
        ),
    ] = "tiny-student",
    scale: Annotated[
        float | None,
        typer.Option(rich_help_panel=RESTORE, help="enlargement, any positive number \\[default: the model's own, 4]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            rich_help_panel=RESTORE,
            help="exact size of the output; 1920x or x1080: the other side follows",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=RESTORE,
            help="1, or the other number that the model knows (a teacher's chain; a student's N) "
            "\\[default: 1 for a student]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=RESTORE, help="same seed, same picture")] = 0,
    color: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESTORE,
            help="none, adain, wavelet or lab: take the colours of the input \\[default: the model's]",
        ),
    ] = None,
    fidelity: Annotated[
        float, typer.Option(rich_help_panel=RESTORE, help="0 to 1: how closely the output has to agree with the input")
    ] = 0.0,
    base: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESTORE,
            help="base of a text-to-image student, where it is not at the place of its training",
        ),
    ] = None,
    device: Annotated[str, typer.Option(rich_help_panel=COMPUTE, help="auto, cpu, cuda or mps")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(rich_help_panel=COMPUTE, help="auto (measured once, then remembered), fp32, bf16 or fp16"),
    ] = "auto",
    tile: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMPUTE,
            help="side of the tiles in input pixels, 0 for none; auto: what fits, smaller where memory runs out",
        ),
    ] = "auto",
    batch: Annotated[int, typer.Option(rich_help_panel=COMPUTE, help="tiles computed at once")] = 1,
    backend: Annotated[str, typer.Option(rich_help_panel=COMPUTE, help="auto, torch or onnx")] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", rich_help_panel=COMPUTE, help="compile the networks first: minutes, once")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RUN,
            help="largest input in pixels, width x height, such as 200000000; more is taken for a file that was made "
            "to fill the memory \\[default: 89478485]",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(rich_help_panel=RUN, metavar="FILE.json", help="write what was done with each picture"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", rich_help_panel=RUN, help="print errors only")] = False,
    offline: Offline = False,
) -> None:
    """Restore photographs and enlarge them, by 4 or to any size, keeping 16 bit, alpha, profile and EXIF.

    One picture:     sr-distill upscale photo.jpg -o large.png

    A folder:        sr-distill upscale photos/ -o large/ --report run.json

    To a size:       sr-distill upscale photo.jpg --size 3840x

    In a pipe:       cat photo.jpg | sr-distill upscale - -o - > large.png

    Folders are read with their subfolders and mirrored. The same command again continues an interrupted run. A picture
    that cannot be restored does not stop the others. Exit code: 0 all good, 1 some pictures failed, 2 nothing could be
    started, 130 interrupted.
    """
    if offline:
        go_offline()
    from sr_cli.upscale.request import Request
    from sr_cli.upscale.run import run
    from sr_cli.upscale.settings import Settings

    settings = Settings(
        weights=weights,
        scale=scale,
        size=size,
        steps=steps,
        seed=seed,
        color=color,
        fidelity=fidelity,
        base=base,
        device=device,
        dtype=dtype,
        tile=tile,
        batch=batch,
        backend=backend,
        compile=compile_,
        format=format_,
        quality=quality,
    )
    code = run(
        Request(
            tuple(paths),
            output,
            settings,
            overwrite=overwrite,
            report=report,
            quiet=quiet,
            max_pixels=max_pixels,
        )
    )
    if code:
        raise typer.Exit(code)
