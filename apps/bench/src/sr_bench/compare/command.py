"""``sr-bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="folders of `sr-bench quality --out`, or their result.json", metavar="RESULT...", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="of the page", show_default=False)] = None,
    against: Annotated[
        str | None, typer.Option(help="method that the others are compared with first (default: the first one)")
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="pictures to show: worst, best, most different, then an even spread")
    ] = 12,
    metric: Annotated[
        str | None, typer.Option(help="metric that says which pictures are worst and best", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="method whose worst and best pictures are shown (default: the last one)")
    ] = None,
    crop: Annotated[
        int, typer.Option(min=16, help="longest side shown of larger pictures, where methods differ most")
    ] = 512,
    lossless: Annotated[bool, typer.Option("--lossless", help="embed PNG instead of JPEG of quality 90")] = False,
    gt: Annotated[Path | None, typer.Option(help="folder of the ground truth, if not where it was")] = None,
    lr: Annotated[Path | None, typer.Option(help="folder of the LR pictures, if not where they were")] = None,
    paper: Annotated[
        str | None, typer.Option(help="published table to draw beside, such as rsd-3; see `sr-bench paper`")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="of the published table, such as RealSR")] = None,
    other_protocol: Annotated[
        bool, typer.Option("--other-protocol", help="draw the published table although its protocol is another")
    ] = False,
) -> None:
    """Make one HTML page of results: scatter of two metrics, tables, and pictures side by side with a common zoom."""
    from sr_bench.compare.page import Options, write_page

    write_page(
        results,
        out,
        Options(
            title=title,
            against=against,
            images=images,
            metric=metric,
            method=method,
            crop=crop,
            lossless=lossless,
            gt=gt,
            lr=lr,
            paper=paper,
            dataset=dataset,
            other_protocol=other_protocol,
        ),
    )
