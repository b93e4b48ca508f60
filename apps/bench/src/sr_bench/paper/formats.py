"""A table in the formats that it can be printed in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sr_bench.paper.differences import Difference
from sr_bench.paper.view import Line, Mark, View, marks

WIDE = 500
"""Characters of a line that nobody looks at: tables are not folded in files and pipes."""

SIGN: Mapping[Mark, str] = {"best": "*", "second": "+", "": " "}
STYLE: Mapping[Mark, str] = {"best": "bold", "second": "underline", "": ""}
MARKDOWN: Mapping[Mark, str] = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
SIGNS = "* best, + second best of the published rows of one dataset"


@dataclass(frozen=True)
class Page:
    """What is printed.

    Args:
        view: the table.
        differences: figures that other tables print differently.
    """

    view: View
    differences: Sequence[Difference] = ()


def as_text(page: Page) -> str:
    """For a terminal, without colour; best and second best carry a sign."""
    view = page.view
    table = Table(box=None, pad_edge=False, header_style="")
    for title in _heads(view):
        table.add_column(title, no_wrap=True)
    for title in view.titles:
        table.add_column(title + " ", justify="right", no_wrap=True)
    for line, signs in zip(view.lines, marks(view), strict=True):
        cells = [Text(f"{value or '-'}{SIGN[mark]}") for value, mark in zip(line.values, signs, strict=True)]
        table.add_row(*(Text(head) for head in _head_cells(view, line)), *cells)
    out = io.StringIO()
    Console(file=out, width=WIDE, color_system=None).print(table)
    printed = "\n".join(text.rstrip() for text in out.getvalue().splitlines())
    return "\n".join([f"{view.title} ({view.table.source})", *_about(view), "", printed, "", SIGNS, *view.notes]) + "\n"


def as_markdown(page: Page) -> str:
    """A Markdown page."""
    view = page.view
    heads = _heads(view)
    lines = [
        f"## {view.title}",
        "",
        " ".join([f"{view.table.source}.", *(f"{text}." for text in _about(view))]),
        "",
    ]
    lines += [_row([*heads, *view.titles]), "|" + " --- |" * len(heads) + " ---: |" * len(view.columns)]
    for line, signs in zip(view.lines, marks(view), strict=True):
        cells = [MARKDOWN[mark].format(value or "-") for value, mark in zip(line.values, signs, strict=True)]
        lines.append(_row([*(_escaped(head) for head in _head_cells(view, line)), *cells]))
    lines += ["", "**Best** and <u>second best</u> of the published rows of one dataset."]
    return "\n".join([*lines, *(text for note in view.notes for text in ("", _escaped(note)))]) + "\n"


def as_csv(page: Page) -> str:
    """Figures without marks; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    view = page.view
    keys = [f"{column.dataset}/{column.metric}" if column.dataset else column.metric for column in view.columns]
    writer.writerow(["dataset", "method", "ours", *keys])
    for line in view.lines:
        writer.writerow([line.dataset or "", line.method, line.ours or "", *(value or "" for value in line.values)])
    return out.getvalue()


def as_json(page: Page) -> str:
    """Everything; figures are strings, as they are printed, so that zeros at their ends are kept."""
    view, table = page.view, page.view.table
    content = {
        "name": table.name,
        "title": view.title,
        "source": table.source,
        "protocol": table.protocol,
        "hardware": table.hardware,
        "columns": [
            {"dataset": column.dataset, "metric": column.metric, "higher_is_better": column.higher_is_better}
            for column in view.columns
        ],
        "rows": [
            {"method": line.method, "dataset": line.dataset, "ours": line.ours, "values": line.values, "marks": signs}
            for line, signs in zip(view.lines, marks(view), strict=True)
        ],
        "differences": [
            {**vars(one.cell), "other_table": one.other, "other_value": one.value} for one in page.differences
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_html(page: Page) -> str:
    """A page of its own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sr_bench.paper", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    rows = list(zip(page.view.lines, marks(page.view), strict=True))
    return environment.get_template("page.html.j2").render(view=page.view, rows=rows, differences=page.differences)


FORMATS: Mapping[str, Callable[[Page], str]] = {
    "table": as_text,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
    "html": as_html,
}
"""By name, which is also the suffix of the file."""


def _about(view: View) -> list[str]:
    table = view.table
    protocol = [f"protocol: {table.protocol}"] if table.protocol else []
    return [*protocol, *([f"published figures: {table.hardware}"] if table.hardware else [])]


def _heads(view: View) -> list[str]:
    return [*(["Dataset"] if view.has_datasets else []), "Method", *(["Ours"] if view.has_ours else [])]


def _head_cells(view: View, line: Line) -> list[str]:
    dataset = [line.dataset or ""] if view.has_datasets else []
    return [*dataset, line.method, *([line.ours or ""] if view.has_ours else [])]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
