"""What ``sr-bench paper`` prints or writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sr_bench.paper.differences import differences, summary
from sr_bench.paper.formats import FORMATS, Page
from sr_bench.paper.tables import paper_table, paper_tables
from sr_bench.paper.view import View, select

OURS = (
    "Rows of ours compare with published ones as far as they were measured on the same images; the number of ours "
    "stands in the row. They take no part in best and second best."
)
OTHER_HARDWARE = (
    "Seconds of ours are those of encoder, network and decoder for one picture; times and memory belong to their "
    "hardware, so rows of ours take no part in best and second best."
)


def list_tables() -> None:
    """Print which tables there are."""
    table = Table(box=None, pad_edge=False)
    for title in ("Table", "About", "Datasets", "Rows", "Protocol"):
        table.add_column(title, justify="right" if title == "Rows" else "left")
    for one in paper_tables().values():
        where = ", ".join(one.datasets) or "-"
        table.add_row(one.name, one.title, where, str(len(one.rows)), one.protocol or "-")
    console = Console()
    console.print(table)
    console.print("\nShow one with `sr-bench paper NAME`.", highlight=False)


def show_table(
    name: str,
    *,
    dataset: str | None,
    results: tuple[Path, ...],
    other_protocol: bool,
    format_: str | None,
    all_differences: bool,
    out: Path | None,
) -> None:
    """Print a table or write it to a file.

    Args:
        name: of the table.
        dataset: only this one; None: all.
        results: of ours, to be appended.
        other_protocol: whether results of another protocol are shown.
        format_: of :data:`sr_bench.paper.formats.FORMATS`; None: by the suffix of ``out``, otherwise a table.
        all_differences: list every figure that other tables print differently, instead of a sentence for each table.
        out: file; None: standard output.

    Raises:
        ValueError, FileNotFoundError: no such table, dataset or format, or a result that does not suit the table.
    """
    chosen = _format(format_, out)
    table = paper_table(name)
    view = select(table, dataset)
    if results:
        from sr_bench.paper.join import join

        view = join(table, results, dataset=dataset, other_protocol=other_protocol)
    found = differences(table, dataset)
    told = tuple(f"{one}." for one in found) if all_differences else summary(table, found, dataset)
    view = replace(view, notes=(*_about_ours(view), *told))
    text = FORMATS[chosen](Page(view, found))
    if out is None:
        print(text, end="")
        return
    from distill.folder import write_text

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)


def _format(format_: str | None, out: Path | None) -> str:
    chosen = format_ or (out.suffix.removeprefix(".").lower() if out else "table")
    if chosen not in FORMATS:
        asked = f"--format {format_}" if format_ else f"--out {out}"
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {asked}; name one with --format")
    return chosen


def _about_ours(view: View) -> tuple[str, ...]:
    if not view.has_ours:
        return ()
    if view.table.protocol is None:
        return (OTHER_HARDWARE,)
    return (OURS,)
