"""What the template shows, as plain dictionaries of texts and numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sr_bench.compare.cases import Case
from sr_bench.compare.figures import Difference, Mean, all_differences, digits, ranks, written
from sr_bench.compare.load import Comparison, Method
from sr_bench.compare.pictures import Strip
from sr_bench.compare.published import Published
from sr_bench.quality.metrics import METRICS

FIDELITY = ("psnr", "ssim", "ms_ssim", "fsim", "vif")
PERCEPTUAL = ("musiq", "clipiqa", "maniqa-pipal", "lpips", "dists", "niqe", "piqe", "gmsd")
"""Axes of the scatter at first, if measured: the first of each."""
SHOWN = 4
"""So many metrics stand below a picture at first; the reader can add others."""

Means = Mapping[tuple[str, str], Mean]


def scatter_view(comparison: Comparison, means: Means, table: Published | None) -> dict[str, Any]:
    """Marks of the scatter: means with intervals of every metric, and the published rows.

    Numbers that are not finite are left out: JSON has none.
    """
    marks: list[dict[str, Any]] = []
    for method in comparison.methods:
        found = {key: mean for key in comparison.metrics if (mean := means.get((method.label, key)))}
        values = {key: [one.value, one.low, one.high] for key, one in found.items() if np.isfinite(one.value)}
        marks.append({"label": method.label, "published": False, "values": values})
    keys = [key for key in comparison.metrics if any(key in mark["values"] for mark in marks)]
    printed = table.rows if table else ()
    for label, row in printed:
        known = {key: [float(value), None, None] for key, value in row.items() if key in keys}
        marks.append({"label": label, "published": True, "values": known})
    drawable = {key for _, row in printed for key in row}
    x = _axis(FIDELITY, keys, drawable)
    return {
        "metrics": [_metric_view(comparison, key) for key in keys],
        "marks": marks,
        "x": x,
        "y": _axis(PERCEPTUAL, [key for key in keys if key != x], drawable),
    }


def table_views(
    comparison: Comparison, means: Means, table: Published | None, against: str | None = None
) -> dict[str, Any]:
    """Table of means, published rows below it, what nobody has, and one table of differences for every reference."""
    keys, methods = comparison.metrics, comparison.methods
    columns = [_metric_view(comparison, key) for key in keys]
    rank = {
        key: ranks([method.mean(key) if method.is_ranked else None for method in methods], key, column["digits"])
        for key, column in zip(keys, columns, strict=True)
    }
    rows = [
        {
            "label": method.label,
            "source": method.result.source,
            "ranked": method.is_ranked,
            "cells": [
                _mean_cell(method, column, means.get((method.label, key)), rank[key][index])
                for key, column in zip(keys, columns, strict=True)
            ],
            "seconds": _seconds(method.result.seconds_per_image),
        }
        for index, method in enumerate(methods)
    ]
    first = against or methods[0].label
    found = all_differences(comparison)
    return {
        "columns": columns,
        "rows": rows,
        "timed": any(row["seconds"] for row in rows),
        "published": [
            {"label": label, "cells": [values.get(key, "") for key in keys]}
            for label, values in (table.rows if table else ())
            if any(key in keys for key in values)
        ],
        "missing": _missing(comparison),
        "references": [
            {
                "label": reference.label,
                "shown": reference.label == first,
                "rows": [
                    {
                        "label": method.label,
                        "cells": [_difference_cell(pairs.get(c["key"]), c["digits"]) for c in columns],
                    }
                    for method in methods
                    if (pairs := found.get((method.label, reference.label))) is not None
                ],
            }
            for reference in (methods if len(methods) > 1 else ())
        ],
    }


def picture_view(comparison: Comparison, case: Case, strip: Strip) -> dict[str, Any]:
    """One strip: its pictures, each with its values."""
    keys = [key for key in comparison.metrics if any(key in method.values for method in comparison.methods)]
    places = {key: _places(comparison, key) for key in keys}
    rank = {}
    for key in keys:
        values = [float(m.values[key][case.index]) if key in m.values else None for m in comparison.methods]
        allowed = [method.is_ranked for method in comparison.methods]
        ranked = [value if may else None for value, may in zip(values, allowed, strict=True)]
        names = ranks(ranked, key, places[key])
        for method, value, name in zip(comparison.methods, values, names, strict=True):
            if value is not None:
                rank[method.label, key] = (written(value, places[key]), name)
    size = f"{strip.whole[0]} x {strip.whole[1]}"
    if strip.cut:
        size = f"{strip.width} x {strip.height} at ({strip.corner[0]}, {strip.corner[1]}) of {size}"
    return {
        "name": comparison.images[case.index],
        "reason": case.reason,
        "size": size,
        "width": strip.width,
        "height": strip.height,
        "place": [round(number, 4) for number in strip.place],
        "cells": [
            {
                "name": cell.name,
                "kind": cell.kind,
                "uri": cell.uri,
                "figures": [
                    {"key": key, "title": METRICS[key].title, "text": text, "rank": name}
                    for key in keys
                    if cell.kind == "method" and (cell.name, key) in rank
                    for text, name in [rank[cell.name, key]]
                ],
            }
            for cell in strip.cells
        ],
    }


def _axis(preferred: Sequence[str], keys: Sequence[str], drawable: Collection[str]) -> str:
    """The first metric that is preferred; among those, one with published rows goes first."""
    known = sorted((key for key in preferred if key in keys), key=lambda key: key not in drawable)
    return next(iter([*known, *keys]), "")


def _metric_view(comparison: Comparison, key: str) -> dict[str, Any]:
    metric, found = METRICS[key], comparison.metrics
    return {
        "key": key,
        "title": metric.title,
        "higher": metric.higher_is_better,
        "arrow": "↑" if metric.higher_is_better else "↓",
        "better": "higher is better" if metric.higher_is_better else "lower is better",
        "digits": _places(comparison, key),
        "each": any(key in method.values for method in comparison.methods),
        "shown": found.index(key) < SHOWN,
    }


def _places(comparison: Comparison, key: str) -> int:
    return digits([mean for method in comparison.methods if (mean := method.mean(key)) is not None])


def _mean_cell(method: Method, column: Mapping[str, Any], found: Mean | None, rank: str) -> dict[str, str]:
    if found is None:
        return {"text": "", "interval": "", "rank": "", "missing": method.missing.get(column["key"], "not measured")}
    return {
        "text": written(found.value, column["digits"]),
        "interval": _interval(found, column["digits"]),
        "rank": rank,
        "missing": "",
    }


def _difference_cell(found: Difference | None, places: int) -> dict[str, Any] | None:
    if found is None:
        return None
    pair = found.paired
    low, high = (written(end, places, sign=True) for end in (pair.difference.low, pair.difference.high))
    return {
        "text": written(pair.difference.mean, places, sign=True),
        "interval": f"{low} … {high}",
        "wins": pair.wins,
        "losses": pair.count - pair.ties - pair.wins,
        "p": f"{found.p:.2g}" if found.p >= 0.0001 else "< 0.0001",
        "verdict": found.verdict,
    }


def _interval(found: Mean, places: int) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{written(found.low, places)} … {written(found.high, places)}"


def _missing(comparison: Comparison) -> list[dict[str, str]]:
    """Metrics that no method has, with the reason; they have no column."""
    keys = dict.fromkeys(key for method in comparison.methods for key in method.missing)
    found = []
    for key in keys:
        if key not in comparison.metrics:
            reasons = dict.fromkeys(method.missing[key] for method in comparison.methods if key in method.missing)
            found.append({"title": METRICS[key].title if key in METRICS else key, "reason": "; ".join(reasons)})
    return found


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
