"""``sr-bench quality``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quality(
    pred: Annotated[
        list[str] | None,
        typer.Option(metavar="[LABEL=]DIR", help="folder of restored pictures, made by any tool; repeatable"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]NAME",
            help="bicubic, lanczos, autoencoder, a shipped model, a model folder, a checkpoint file of another network "
            "(.pth .pt .ckpt .safetensors), each with options such as tiny-student,fidelity=0.5; repeatable",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder with lr/ and hr/ or gt/, instead of --lr and --gt")] = None,
    lr: Annotated[Path | None, typer.Option(help="folder of the LR pictures")] = None,
    gt: Annotated[
        Path | None, typer.Option(help="folder of the ground truth; without: metrics that read the picture alone")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.yaml", help="weight-free, sinsr-fullsize, osediff-crops512, imagenet-test, or a file"
        ),
    ] = "weight-free",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="measure this one instead of those of the protocol; repeatable"),
    ] = None,
    skip_metric: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="leave this one out, such as mad; repeatable")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write; the same command goes on where it was interrupted")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="compare the others with this method; without: the first, folders of --pred before any --model",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the noise of models")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="take the first N pictures only")] = None,
    device: Annotated[str, typer.Option(help="of models and metrics: cpu, cuda, cuda:N or mps")] = "cpu",
    download: Annotated[bool, typer.Option("--download", help="let pyiqa fetch weights that are not there")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="processes that measure; the values are the same; without: one for each core, 1 on a GPU"
        ),
    ] = None,
) -> None:
    """Measure restored pictures by a named protocol.

    The weight-free metrics are always measured; those whose weights are not on this machine are named, and the rest
    is measured.
    """
    from sr_bench.quality import methods
    from sr_bench.quality.protocols import read_protocol
    from sr_bench.quality.request import Request, data_folders, default_jobs, read_pred
    from sr_bench.quality.run import measure
    from sr_bench.record import command_line

    if data is not None:
        if lr is not None or gt is not None:
            raise ValueError("expected --data, or --lr and --gt, got both; give one of them")
        lr, gt = data_folders(data)
    request = Request(
        protocol=read_protocol(protocol),
        preds=[read_pred(text) for text in pred or []],
        models=[methods.parse(text) for text in model or []],
        lr=lr,
        gt=gt,
        metrics=tuple(metric or ()),
        skipped=tuple(skip_metric or ()),
        out=out,
        reference=reference,
        seed=seed,
        limit=limit,
        device=device,
        download=download,
        jobs=default_jobs(device) if jobs is None else jobs,
        command=command_line(out),
    )
    try:
        measure(request)
    except KeyboardInterrupt:
        how = "repeat the command to continue" if out else "nothing is kept without --out"
        typer.echo(f"stopped; {how}", err=True)
        raise typer.Exit(130) from None
