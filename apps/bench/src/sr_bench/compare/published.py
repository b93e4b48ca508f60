"""Rows of a published table that are drawn beside our own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sr_bench.quality.metrics import METRICS


@dataclass(frozen=True)
class Published:
    """A published table, of one dataset.

    Args:
        title: of the table with its paper and number.
        note: what the reader should know of it.
        rows: (method, metric key -> value as printed).
    """

    title: str
    note: str
    rows: tuple[tuple[str, Mapping[str, str]], ...]


def published(protocol: str, name: str | None, dataset: str | None, other_protocol: bool = False) -> Published | None:
    """The rows of a published table for one dataset; None without a name.

    Args:
        protocol: name of that of the results.
        name: of the table, such as ``rsd-3``.
        dataset: where the table has several.
        other_protocol: take the table although its protocol is another.

    Raises:
        ValueError: no such table or dataset, a dataset without a table, a table of another protocol.
    """
    if name is None:
        if dataset is not None:
            raise ValueError(f"expected a table for the dataset {dataset}, got none; add --paper, such as rsd-3")
        return None
    from sr_bench.paper.tables import paper_table

    table = paper_table(name)
    if table.protocol != protocol and not other_protocol:
        raise ValueError(
            f"expected results of {name}'s protocol {table.protocol or '(not named)'}, got {protocol}; measure with "
            f"--protocol {table.protocol}, or draw the table all the same with --other-protocol"
        )
    known = table.datasets
    if dataset is None and len(known) == 1:
        dataset = known[0]
    if known and dataset not in known:
        raise ValueError(f"expected a dataset of {name} ({', '.join(known)}), got {dataset}; change --dataset")
    rows = tuple(row for row in table.rows if row.dataset in (None, dataset))
    columns = [column for column in table.columns if column.dataset in (None, dataset)]
    names = Counter(row.method for row in rows)
    found = []
    for row in rows:
        printed = zip(table.columns, row.values, strict=True)
        values = [(column, value) for column, value in printed if column in columns and value is not None]
        settings = ", ".join(f"{column.title} {value}" for column, value in values if column.metric not in METRICS)
        metrics = {column.metric: value for column, value in values if column.metric in METRICS}
        if metrics:
            found.append((f"{row.method} ({settings})" if names[row.method] > 1 else row.method, metrics))
    where = f", {dataset}" if dataset else ""
    same = "published figures, measured by others on their pictures"
    other = f"; the protocol is not that of these results ({table.protocol or 'not named'}, here {protocol})"
    note = same + (other if table.protocol != protocol else "")
    return Published(f"{table.paper} Table {table.number}{where}", note, tuple(found))
