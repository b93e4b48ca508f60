"""Means with intervals, ranks, differences of paired values, and how all of them are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from sr_bench import statistics
from sr_bench.compare.load import Comparison, Values
from sr_bench.quality.metrics import METRICS
from sr_bench.statistics import Paired

SURE = 0.05
"""A corrected p below this is a difference."""
SWAPPED: Mapping[str, Literal["first", "second", ""]] = {"first": "second", "second": "first", "": ""}
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval; None: of a single image, of a whole set, or with values that are not finite."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A method against another one, image by image.

    Args:
        paired: the method minus the other one.
        p: corrected after Holm for the number of metrics of the same two methods.
        verdict: ``better`` or ``worse`` where p is below :data:`SURE`, ``open`` else, and where the mean has another
            direction than the test, which a few large differences can do.
    """

    paired: Paired
    p: float
    verdict: str


def all_means(comparison: Comparison) -> dict[tuple[str, str], Mean]:
    """(method, metric) -> mean with its interval, of what was measured."""
    found = {}
    for method in comparison.methods:
        for key in comparison.metrics:
            if (mean := method.mean(key)) is not None:
                found[method.label, key] = _mean(mean, method.values.get(key))
    return found


def all_differences(comparison: Comparison) -> dict[tuple[str, str], dict[str, Difference]]:
    """(method, reference) -> metric -> their difference, where both have finite values for every image."""
    found = {}
    pairs = list(combinations(comparison.methods, 2))
    for first, second in track(pairs, "comparing", disable=not pairs, transient=True, console=Console(stderr=True)):
        forth = {
            key: statistics.compare(
                first.values[key].tolist(),
                second.values[key].tolist(),
                higher_is_better=METRICS[key].higher_is_better,
            )
            for key in comparison.metrics
            if _finite(first.values.get(key)) and _finite(second.values.get(key))
        }
        found[second.label, first.label] = _judged(forth)
        found[first.label, second.label] = _judged({key: _turned(pair) for key, pair in forth.items()})
    return found


def ranks(values: Sequence[float | None], key: str, places: int) -> list[str]:
    """``best``, ``second`` or nothing for each value; what is written alike shares a rank, all alike have none.

    Args:
        values: of one metric; None: not measured.
        key: of the metric.
        places: digits after the point that are written.
    """
    sign = -1 if METRICS[key].higher_is_better else 1
    shown = [None if value is None else sign * float(f"{value:.{places}f}") for value in values]
    known = sorted({value for value in shown if value is not None and not np.isnan(value)})
    if len(known) < 2:
        return ["" for _ in values]
    names = dict(zip(known[:2], ("best", "second"), strict=True))
    return ["" if value is None else names.get(value, "") for value in shown]


def digits(values: Sequence[float]) -> int:
    """Digits after the point for a column: two where the largest value is 10 or more, else four."""
    finite = [abs(value) for value in values if np.isfinite(value)]
    return 2 if finite and max(finite) >= 10 else 4


def written(value: float, places: int, sign: bool = False) -> str:
    """A number as the page shows it, with a real minus and ∞."""
    if np.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def _mean(mean: float, values: Values | None) -> Mean:
    if values is None or len(values) < 2 or not _finite(values):
        return Mean(mean)
    found = statistics.bootstrap(values.tolist())
    return Mean(mean, found.low, found.high)


def _finite(values: Values | None) -> bool:
    return values is not None and bool(np.isfinite(values).all())


def _turned(pair: Paired) -> Paired:
    """The same pair with the first method minus the second."""
    ends = pair.difference
    turned = statistics.Interval(0.0 - ends.mean, 0.0 - ends.high, 0.0 - ends.low)
    favours = SWAPPED[pair.favours]
    return replace(pair, difference=turned, favours=favours, wins=pair.count - pair.ties - pair.wins)


def _judged(pairs: Mapping[str, Paired]) -> dict[str, Difference]:
    corrected = statistics.holm([pair.p for pair in pairs.values()])
    judged = {}
    for (key, pair), p in zip(pairs.items(), corrected, strict=True):
        better = pair.favours == "second"
        mean = pair.difference.mean if METRICS[key].higher_is_better else -pair.difference.mean
        agree = bool(pair.favours) and (mean > 0 if better else mean < 0)
        judged[key] = Difference(pair, p, "open" if p >= SURE or not agree else "better" if better else "worse")
    return judged
