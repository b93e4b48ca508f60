"""What is shown of a table: one dataset or all, rows of ours, and which figures are best and second best."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from sr_bench.paper.tables import Column, PaperTable

Mark = Literal["best", "second", ""]


@dataclass(frozen=True)
class Line:
    """A row as it is shown.

    Args:
        method: name or label.
        dataset: None: the columns say it, or there is none.
        values: one for each column; None: not known.
        ours: how it was measured; None: published. Only published rows are ranked: ours were measured on another
            number of images or on other hardware, and may see the ground truth.
    """

    method: str
    dataset: str | None
    values: tuple[str | None, ...]
    ours: str | None = None


@dataclass(frozen=True)
class View:
    """A table as it is shown.

    Args:
        table: as published.
        columns: those that are shown.
        lines: published rows, then ours.
        notes: what a reader has to know, one sentence each.
    """

    table: PaperTable
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is compared, with the dataset if it is one."""
        return ", ".join(dict.fromkeys((self.table.title, *self.datasets[: len(self.datasets) == 1])))

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the columns, with the dataset where columns differ in it and the arrow of what is better."""
        arrows = {True: " ↑", False: " ↓", None: ""}
        several = len({column.dataset for column in self.columns if column.dataset}) > 1
        return tuple(
            " ".join(filter(None, (column.dataset if several else None, column.title)))
            + arrows[column.higher_is_better]
            for column in self.columns
        )

    @property
    def datasets(self) -> tuple[str, ...]:
        """That are shown."""
        found = [line.dataset for line in self.lines] + [column.dataset for column in self.columns]
        return tuple(dict.fromkeys(dataset for dataset in found if dataset))

    @property
    def has_datasets(self) -> bool:
        """Whether rows differ in their dataset."""
        return len({line.dataset for line in self.lines}) > 1

    @property
    def has_ours(self) -> bool:
        """Whether a row is ours."""
        return any(line.ours for line in self.lines)


def select(table: PaperTable, dataset: str | None = None) -> View:
    """The published rows and columns of one dataset, or of all.

    Raises:
        ValueError: the table has no such dataset.
    """
    if dataset is None:
        lines = tuple(Line(row.method, row.dataset, row.values) for row in table.rows)
        return View(table, table.columns, lines)
    if dataset not in table.datasets:
        known = ", ".join(table.datasets)
        remedy = f"choose --dataset of {known}" if known else "drop --dataset, this table has none"
        raise ValueError(f"expected a dataset of {table.name}, got {dataset!r}; {remedy}")
    shown = [index for index, column in enumerate(table.columns) if column.dataset in (None, dataset)]
    lines = tuple(
        Line(row.method, row.dataset, tuple(row.values[index] for index in shown))
        for row in table.rows
        if row.dataset in (None, dataset)
    )
    return View(table, tuple(table.columns[index] for index in shown), lines)


def marks(view: View) -> list[tuple[Mark, ...]]:
    """Which figures are best and second best in their column, among the published rows of the same dataset.

    Figures are compared as they are printed; equal ones share a mark, and second is the next different one.

    Returns:
        For each line, a mark for each column.
    """
    columns = [_column_marks(view, index) for index in range(len(view.columns))]
    return list(zip(*columns, strict=True))


def _column_marks(view: View, index: int) -> list[Mark]:
    higher = view.columns[index].higher_is_better
    places: dict[str | None, list[Decimal]] = {}
    for line in view.lines:
        if (value := line.values[index]) is not None and line.ours is None and higher is not None:
            places.setdefault(line.dataset, []).append(Decimal(value))
    first_two = {dataset: sorted(set(found), reverse=bool(higher))[:2] for dataset, found in places.items()}
    names: tuple[Mark, Mark] = ("best", "second")
    marked: list[Mark] = []
    for line in view.lines:
        value, ordered = line.values[index], first_two.get(line.dataset, [])
        known = line.ours is None and value is not None and Decimal(value) in ordered if ordered else False
        marked.append(names[ordered.index(Decimal(value))] if known and value is not None else "")
    return marked
