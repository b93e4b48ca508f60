"""Which pictures to show: worst and best cases, where methods disagree most, and an even spread of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sr_bench.compare.figures import digits, written
from sr_bench.compare.load import Comparison, Method
from sr_bench.quality.metrics import METRICS

PERCEPTUAL = ("lpips", "dists", "musiq", "clipiqa", "maniqa-pipal", "niqe")
"""What a picture's case is judged by, if measured: the first of these."""


@dataclass(frozen=True)
class Case:
    """A picture to show.

    Args:
        index: among the images of the comparison.
        reason: why it is shown.
    """

    index: int
    reason: str


def choose(comparison: Comparison, count: int, metric: str | None = None, method: str | None = None) -> list[Case]:
    """Choose images: a quarter each of worst, best and most different, then an even spread.

    Args:
        comparison: what was measured.
        count: images to choose; all, if there are not more.
        metric: key of the metric that judges; None: the first perceptual one that was measured, else the first.
        method: label of the method that is judged; None: the last.

    Raises:
        ValueError: no such method, or a metric that was not measured of it for every image.
    """
    judged = comparison.method(method, "--method") if method else comparison.methods[-1]
    key = metric or _judge(comparison, judged)
    if key is None:
        return [Case(index, "even spread") for index in _spread(range(len(comparison.images)), count)]
    if key not in judged.values:
        known = ", ".join(name for name in comparison.metrics if name in judged.values)
        raise ValueError(f"expected one of the metrics {known}, got {key!r}; change --metric")
    chosen: dict[int, str] = {}
    quarter = max(1, count // 4)
    for index, reason in (*_extremes(judged, key, quarter), *_disagreements(comparison, key)):
        if len(chosen) >= min(count, 3 * quarter):
            break
        chosen.setdefault(index, reason)
    rest = [index for index in range(len(comparison.images)) if index not in chosen]
    for index in _spread(rest, count - len(chosen)):
        chosen[index] = "even spread"
    return [Case(index, reason) for index, reason in chosen.items()]


def _judge(comparison: Comparison, method: Method) -> str | None:
    measured = [key for key in comparison.metrics if key in method.values]
    return next((key for key in PERCEPTUAL if key in measured), measured[0] if measured else None)


def _extremes(method: Method, key: str, quarter: int) -> Iterator[tuple[int, str]]:
    """The worst, then the best images of a method, from the extreme inwards."""
    values, title = method.values[key], METRICS[key].title
    order = np.argsort(values if METRICS[key].higher_is_better else -values, kind="stable")
    places = digits(values.tolist())
    half = min(quarter, len(order) // 2) or 1
    for index in order[:half]:
        yield int(index), f"worst {title} of {method.label}: {written(values[index], places)}"
    for index in order[::-1][:half]:
        yield int(index), f"best {title} of {method.label}: {written(values[index], places)}"


def _disagreements(comparison: Comparison, key: str) -> Iterator[tuple[int, str]]:
    """Images by the range of a metric over the methods, from the largest."""
    values = [method.values[key] for method in comparison.methods if key in method.values]
    if len(values) < 2:
        return
    with np.errstate(invalid="ignore"):  # two methods without any error have a PSNR of infinity
        span = np.nan_to_num(np.ptp(np.stack(values), axis=0), nan=0.0, posinf=np.inf)
    places = digits(np.concatenate(values).tolist())
    for index in np.argsort(-span, kind="stable"):
        yield int(index), f"methods differ by {written(span[index], places)} in {METRICS[key].title}"


def _spread(indexes: Sequence[int], count: int) -> list[int]:
    """Some of the indexes, evenly spread."""
    if count <= 0:
        return []
    if count >= len(indexes):
        return list(indexes)
    return [indexes[position] for position in np.linspace(0, len(indexes) - 1, count).round().astype(int)]
