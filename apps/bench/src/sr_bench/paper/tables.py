"""The tables of the two papers, as they are printed; ``data/`` holds one file for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from sr_bench.quality.metrics import METRICS

MISSING = "-"
"""In the data files: a value that a table does not have, or a table without datasets."""

OTHERS: Mapping[str, tuple[str, bool | None]] = {
    "nfe": ("NFE", None),
    "n": ("N", None),
    "s": ("s", None),
    "base": ("Base model", None),
    "seconds": ("Seconds", False),
    "parameters_m": ("Parameters (M)", False),
    "memory_mb": ("GPU memory (MB)", False),
}
"""Columns that are no metrics: title, and whether higher is better (None: a setting)."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        dataset: whose figures these are, where columns differ in it; None: the row says it.
        metric: key of :data:`sr_bench.quality.metrics.METRICS` or of :data:`OTHERS`.
        title: without dataset.
        higher_is_better: which way; None: a setting, of which none is best.
    """

    dataset: str | None
    metric: str
    title: str
    higher_is_better: bool | None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        method: without number of the citation; the paper's own method by its name instead of "Ours".
        dataset: whose figures these are, where rows differ in it or the table has one; None: the columns say it.
        values: as printed, trailing zeros kept, one for each column; None: not given.
    """

    method: str
    dataset: str | None
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """A published table.

    Args:
        name: such as ``rsd-3``.
        paper: RSD or TSD-SR.
        number: in the paper.
        title: what it compares.
        source: paper and number of the table, for the record.
        protocol: of :mod:`sr_bench.quality.protocols` that gives comparable figures; None: not about quality.
        hardware: that times and memory were measured on.
        columns: in the paper's order.
        rows: likewise.
    """

    name: str
    paper: str
    number: int
    title: str
    source: str
    protocol: str | None
    hardware: str | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """All datasets of rows and columns, in their order; empty: the table has none."""
        found = [row.dataset for row in self.rows] + [column.dataset for column in self.columns]
        return tuple(dict.fromkeys(dataset for dataset in found if dataset))

    def value(self, method: str, metric: str, dataset: str | None = None) -> str:
        """One printed figure.

        Args:
            method: as in :attr:`Row.method`.
            metric: as in :attr:`Column.metric`.
            dataset: needed where the table has several.

        Raises:
            ValueError: no such cell, or more than one.
        """
        found = [
            cell.value
            for cell in self.cells()
            if (cell.method, cell.metric) == (method, metric) and dataset in (None, cell.dataset)
        ]
        if len(found) != 1:
            asked = " ".join(filter(None, (method, dataset, metric)))
            raise ValueError(f"expected one figure of {asked!r} in {self.source}, got {len(found)}; name another")
        return found[0]

    def cells(self) -> Iterator[Cell]:
        """All printed figures of metrics and complexity, without settings."""
        for row in self.rows:
            for column, value in zip(self.columns, row.values, strict=True):
                if value is not None and column.higher_is_better is not None:
                    yield Cell(row.method, column.dataset or row.dataset, column.metric, value)


@dataclass(frozen=True)
class Cell:
    """One printed figure: whose, on what, of which metric."""

    method: str
    dataset: str | None
    metric: str
    value: str


class _File(BaseModel):
    """A data file: columns are ``metric`` or ``dataset/metric``; rows are dataset -> method -> values with spaces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    paper: str
    number: int
    title: str
    source: str
    protocol: str | None
    hardware: str | None
    columns: tuple[str, ...] = Field(min_length=1)
    rows: Mapping[str, Mapping[str, str]]


@cache
def paper_tables() -> Mapping[str, PaperTable]:
    """All tables by name, RSD's first, in the papers' order."""
    folder = files("sr_bench.paper") / "data"
    tables = [_table(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {table.name: table for table in sorted(tables, key=lambda table: (table.paper, table.number))}


def paper_table(name: str) -> PaperTable:
    """One table.

    Raises:
        ValueError: no such table; the message names those that there are.
    """
    tables = paper_tables()
    if name not in tables:
        raise ValueError(f"expected a table of {', '.join(tables)}, got {name!r}; choose one of them")
    return tables[name]


def _table(text: str) -> PaperTable:
    file = _File.model_validate(yaml.safe_load(text))
    columns = tuple(_column(text) for text in file.columns)
    rows = tuple(
        Row(method, _known(dataset), tuple(_known(value) for value in values.split()))
        for dataset, methods in file.rows.items()
        for method, values in methods.items()
    )
    wrong = [row.method for row in rows if len(row.values) != len(columns)]
    if wrong:
        raise ValueError(f"expected {len(columns)} values per row in {file.name}, got others for {wrong}; see its file")
    return PaperTable(**file.model_dump(exclude={"columns", "rows"}), columns=columns, rows=rows)


def _column(text: str) -> Column:
    dataset, _, metric = text.rpartition("/")
    if metric in METRICS:
        known = METRICS[metric]
        return Column(dataset or None, metric, known.title, known.higher_is_better)
    if metric not in OTHERS:
        known_names = ", ".join((*METRICS, *OTHERS))
        raise ValueError(f"expected a metric of {known_names}, got {metric!r}; name one of them")
    return Column(dataset or None, metric, *OTHERS[metric])


def _known(text: str) -> str | None:
    return None if text == MISSING else text
