"""Figures that the published tables give differently for the same method, dataset, metric and protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sr_bench.paper.tables import Cell, PaperTable, paper_tables
from sr_bench.quality.metrics import METRICS


@dataclass(frozen=True)
class Difference:
    """One figure that another table has differently.

    Args:
        cell: here.
        other: name of the other table.
        value: there.
    """

    cell: Cell
    other: str
    value: str

    @property
    def relative(self) -> float:
        """Size of the difference as a part of the other figure."""
        there = Decimal(self.value)
        return float(abs(Decimal(self.cell.value) - there) / abs(there)) if there else 0.0

    def __str__(self) -> str:
        """In one line."""
        subject = ", ".join(filter(None, (self.cell.method, self.cell.dataset, METRICS[self.cell.metric].title)))
        return f"{subject}: {self.cell.value} here, {self.value} in {self.other}"


def differences(table: PaperTable, dataset: str | None = None) -> tuple[Difference, ...]:
    """Figures of a table that other tables of the same protocol give differently.

    A figure that is the other one rounded does not count.

    Args:
        table: to be compared with all others.
        dataset: only this one; None: all.
    """
    here = [cell for cell in table.cells() if dataset in (None, cell.dataset)]
    found = []
    for other in _comparable(table):
        there = {(cell.method, cell.dataset, cell.metric): cell.value for cell in other.cells()}
        for cell in here:
            value = there.get((cell.method, cell.dataset, cell.metric))
            if value is not None and not _same(cell.value, value):
                found.append(Difference(cell, other.name, value))
    return tuple(found)


def summary(table: PaperTable, found: Sequence[Difference], dataset: str | None = None) -> tuple[str, ...]:
    """A sentence for each table that differs: how many figures, and which one most."""
    here = {(cell.method, cell.dataset, cell.metric) for cell in table.cells() if dataset in (None, cell.dataset)}
    counts = Counter(difference.other for difference in found)
    notes = []
    for other in _comparable(table):
        if count := counts[other.name]:
            shared = sum((cell.method, cell.dataset, cell.metric) in here for cell in other.cells())
            most = max((one for one in found if one.other == other.name), key=lambda one: one.relative)
            notes.append(
                f"{other.name} has another value for {count} of {shared} figures that both print; most: {most}."
            )
    return tuple(notes)


def _comparable(table: PaperTable) -> list[PaperTable]:
    if table.protocol is None:  # times belong to their hardware
        return []
    return [other for other in paper_tables().values() if other.protocol == table.protocol and other.name != table.name]


def _same(one: str, other: str) -> bool:
    """Whether two printed figures may be one, rounded to different numbers of digits."""
    half = Decimal(5).scaleb(-1 - min(digits(one), digits(other)))
    return abs(Decimal(one) - Decimal(other)) <= half


def digits(value: str) -> int:
    """Digits after the point."""
    return len(value.partition(".")[2])
