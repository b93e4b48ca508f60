"""``sr-bench paper``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def paper(
    name: Annotated[
        str | None, typer.Argument(help="such as rsd-3; without it: what there is", show_default=False)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="only this one; rows of --join belong to it")] = None,
    join: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULT",
            help="append our rows: result.json of `quality`, or complexity.json of `complexity`; repeatable",
        ),
    ] = None,
    other_protocol: Annotated[
        bool, typer.Option("--other-protocol", help="show a result of another protocol all the same")
    ] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="table, md, csv, json or html; default: by the suffix of --out")
    ] = None,
    differences: Annotated[
        bool, typer.Option("--differences", help="list the figures that other tables print differently")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="file to write")] = None,
) -> None:
    """Show a table of the RSD or TSD-SR paper, with results of ours as further rows.

    Best and second best of the published rows are marked. A result has to be measured by the table's protocol.
    """
    from sr_bench.paper.show import list_tables, show_table

    if name is None:
        if dataset or join or other_protocol or format_ or differences or out:
            raise ValueError("expected the name of a table with options, got none; `sr-bench paper` lists the tables")
        list_tables()
        return
    show_table(
        name,
        dataset=dataset,
        results=tuple(join or ()),
        other_protocol=other_protocol,
        format_=format_,
        all_differences=differences,
        out=out,
    )
