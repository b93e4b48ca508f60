"""Results of ours as further rows of a published table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from sr_bench.complexity.result import NETWORKS, Complexity, Row
from sr_bench.paper.differences import digits
from sr_bench.paper.tables import PaperTable
from sr_bench.paper.view import Line, View, select
from sr_bench.quality.protocols import PROTOCOLS
from sr_bench.quality.result import MethodResult, QualityResult, read_result

Figures = Mapping[str, float]
"""Column's metric -> value."""


def join(
    table: PaperTable, results: tuple[Path, ...], *, dataset: str | None = None, other_protocol: bool = False
) -> View:
    """Append a row for every method of our results.

    Args:
        table: published.
        results: ``result.json`` of ``sr-bench quality``, or its folder; for tables of complexity ``complexity.json``.
        dataset: that was measured; needed where the table has several. Only its figures are shown.
        other_protocol: show results of another protocol all the same.

    Raises:
        ValueError: another protocol, a result that does not suit the table, or several datasets and none is named.
        FileNotFoundError: no result there.
    """
    view = select(table, dataset)
    if dataset is None and len(table.datasets) > 1:
        known = ", ".join(table.datasets)
        raise ValueError(f"expected one dataset for --join, got {table.name} with {known}; name yours with --dataset")
    lines = [line for path in results for line in _lines(view, path, other_protocol)]
    return replace(view, lines=(*view.lines, *lines))


def _lines(view: View, path: Path, other_protocol: bool) -> list[Line]:
    if view.table.protocol is None:
        return _complexity_lines(view, path)
    result = read_result(path)
    wanted = PROTOCOLS[view.table.protocol]
    matches = result.protocol == wanted  # with its version, and everything that its name stands for
    found = f"{result.protocol.name} v{result.protocol.version}"
    if not matches and not other_protocol:
        raise ValueError(
            f"expected a result of protocol {wanted.name} v{wanted.version} for {view.table.name}, got {found} in "
            f"{path}; measure with --protocol {wanted.name}, or show it all the same with --other-protocol"
        )
    how = f"{len(result.images)} images, {found}"
    dataset = view.lines[0].dataset if view.lines else None
    return [
        Line(label, dataset, _printed(view, _figures(result, label)), ", ".join(_remarks(method, matches)) + f": {how}")
        for label, method in result.methods.items()
    ]


def _remarks(method: MethodResult, matches: bool) -> list[str]:
    """That the row is ours, and what forbids comparing it with published ones."""
    return ["ours", *(["another protocol"] * (not matches)), *(["sees the ground truth"] * method.sees_gt)]


def _figures(result: QualityResult, label: str) -> Figures:
    method = result.methods[label]
    means = {key: fmean(values) for key, values in method.values.items()}
    steps = _steps(method)
    return {**means, **method.whole, **({} if steps is None else {"nfe": steps})}


def _steps(method: MethodResult) -> float | None:
    steps = method.settings.get("steps")
    return float(steps) if isinstance(steps, int) else None


def _printed(view: View, figures: Figures) -> tuple[str | None, ...]:
    """Our figures with as many digits as the published ones of their column."""
    printed: list[str | None] = []
    for index, column in enumerate(view.columns):
        value = figures.get(column.metric)
        published = [line.values[index] for line in view.lines]
        places = max((digits(text) for text in published if text is not None), default=0)
        printed.append(None if value is None or not math.isfinite(value) else f"{value:.{places}f}")
    return tuple(printed)


def _complexity_lines(view: View, path: Path) -> list[Line]:
    """Rows of other hardware."""
    file = path / "complexity.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"expected complexity.json of sr-bench complexity or its folder, got {path}")
    try:
        result = Complexity.model_validate(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(
            f"expected a result of sr-bench complexity for {view.table.name}, got another file: {file}; make one with "
            "`sr-bench complexity --out FOLDER`"
        ) from error
    return [Line(row.model, None, _printed(view, _costs(row)), _measured(row)) for row in result.rows]


def _costs(row: Row) -> Figures:
    if row.problem is not None:
        return {}
    costs: dict[str, float] = {"nfe": row.evaluations, "parameters_m": sum(row.parameters.values()) / 1e6}
    if all(part in row.seconds for part in NETWORKS):
        costs["seconds"] = sum(row.seconds[part].median for part in NETWORKS) / row.batch
    if row.memory is not None:
        costs["memory_mb"] = row.memory.peak
    return costs


def _measured(row: Row) -> str:
    if row.problem is not None:
        return f"ours: {row.problem}"
    how = [f"ours: {row.path or row.device}", f"LR {row.size}x{row.size}", f"batch {row.batch}"]
    if row.memory is not None and row.memory.kind == "resident":
        how.append("memory of the whole process")
    return ", ".join(how)
