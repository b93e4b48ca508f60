"""The results of a study as one HTML page: bars with intervals, and a radar chart over the categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader

from sr_bench.study.results import StudyResult, facts, method_rows, percent

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4")
RADIUS, CENTRE = 130.0, (250.0, 175.0)


@dataclass(frozen=True)
class Bar:
    """A share with its interval, in percent; without a value nothing is drawn."""

    name: str
    color: str
    text: str
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Radar:
    """Everything that is drawn, in the units of the SVG.

    Args:
        rings: (radius, x of the label, y of the label, label).
        axes: (x, y, x of the label, y of the label, anchor, label).
        shapes: (points, color, dash, method).
    """

    rings: Sequence[tuple[float, float, float, str]]
    axes: Sequence[tuple[float, float, float, float, str, str]]
    shapes: Sequence[tuple[str, str, str, str]]


def to_html(result: StudyResult) -> str:
    """One page that needs nothing from elsewhere."""
    environment = Environment(loader=PackageLoader("sr_bench.study", "."), autoescape=True)
    categories = sorted(set(result.study.categories.values()))
    head, lines = method_rows(result)
    return environment.get_template("results.html.j2").render(
        result=result,
        bars=_bars(result),
        groups=[(category, _bars(result, category)) for category in categories],
        radar=_radar(result, categories),
        centre=CENTRE,
        head=head,
        lines=lines,
        facts=facts(result)[1:],
    )


def _bars(result: StudyResult, category: str | None = None) -> list[Bar]:
    found = []
    for index, (name, method) in enumerate(result.methods.items()):
        one = method.votes if category is None else method.categories[category]
        value, low, high = (None if edge is None else 100 * edge for edge in (one.value, one.low, one.high))
        found.append(Bar(name, _cycle(COLORS, index), percent(one), value, low or 0.0, high or 0.0))
    return found


def _radar(result: StudyResult, categories: Sequence[str]) -> Radar | None:
    """As TSD-SR Fig. 8; fewer than three axes span no area, and a category without votes has no place on its axis."""
    methods = list(result.methods.items())
    values = [[method.categories[category].value for category in categories] for _, method in methods]
    flat = [value for row in values for value in row if value is not None]
    if len(categories) < 3 or len(flat) < len(methods) * len(categories):
        return None
    top = max(math.ceil(max(flat) * 5), 1) / 5  # outermost ring: the next full 20 %
    angles = [2 * math.pi * index / len(categories) for index in range(len(categories))]

    def at(angle: float, radius: float) -> tuple[float, float]:
        return round(CENTRE[0] + radius * math.sin(angle), 1), round(CENTRE[1] - radius * math.cos(angle), 1)

    axes = []
    for angle, category in zip(angles, categories, strict=True):
        side = math.sin(angle)
        anchor = "middle" if abs(side) < 0.2 else "start" if side > 0 else "end"
        x, y = at(angle, RADIUS + 12)
        axes.append((*at(angle, RADIUS), x, round(y + 4 - 4 * math.cos(angle), 1), anchor, category))
    shapes = []
    for index, ((name, _), row) in enumerate(zip(methods, values, strict=True)):
        corners = [at(angle, RADIUS * (value or 0.0) / top) for angle, value in zip(angles, row, strict=True)]
        points = " ".join(f"{x},{y}" for x, y in corners)
        shapes.append((points, _cycle(COLORS, index), _cycle(DASHES, index), name))
    between = math.pi / len(categories)  # labels of the rings stand where no corner can be
    radii = [RADIUS * step / 4 for step in range(1, 5)]
    rings = [(radius, *at(between, radius), f"{100 * top * radius / RADIUS:.0f} %") for radius in radii]
    return Radar(rings, axes, shapes)


def _cycle(values: Sequence[str], index: int) -> str:
    return values[index % len(values)]
