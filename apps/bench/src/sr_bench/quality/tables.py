"""Tables of a result: for the console, as Markdown and as CSV."""

from __future__ import annotations

import csv as writing
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sr_bench.quality.metrics import METRICS
from sr_bench.quality.result import MethodResult, QualityResult
from sr_bench.statistics import Interval, Paired, bootstrap, compare, holm

NOTHING = "-"


@dataclass(frozen=True)
class Comparison:
    """A method against the reference by one metric; ``p`` is corrected for the number of metrics."""

    label: str
    metric: str
    paired: Paired
    p: float


def keys(result: QualityResult) -> list[str]:
    """Metrics of a result, in the order they were asked for, those without values among them."""
    found: dict[str, None] = {}
    for method in result.methods.values():
        found |= dict.fromkeys((*method.values, *method.whole, *method.missing))
    asked = list(dict.fromkeys((*result.protocol.metrics, *METRICS)))
    return sorted(found, key=asked.index)


def title(result: QualityResult, key: str) -> str:
    """Title of a column, with an arrow to what is better."""
    metric = METRICS[key]
    return f"{metric.title_on(result.protocol.color)} {'↑' if metric.higher_is_better else '↓'}"


def interval(method: MethodResult, key: str) -> Interval | None:
    """Mean of a metric with its interval; that of all pictures together has none; None: not available."""
    if key in method.values:
        return bootstrap(method.values[key])
    if key in method.whole:
        return Interval(method.whole[key], method.whole[key], method.whole[key])
    return None


def comparisons(result: QualityResult) -> list[Comparison]:
    """Every other method against the reference by every metric that both have, on the same pictures."""
    reference = _reference(result)
    first = result.methods[reference]
    found = []
    for label, method in result.methods.items():
        if label == reference:
            continue
        both = [key for key in keys(result) if key in first.values and key in method.values]
        pairs = [
            compare(first.values[key], method.values[key], higher_is_better=METRICS[key].higher_is_better)
            for key in both
        ]
        corrected = holm([pair.p for pair in pairs])
        found += [Comparison(label, *row) for row in zip(both, pairs, corrected, strict=True)]
    return found


def show(result: QualityResult, console: Console) -> None:
    """Print means with intervals, the comparison with the reference, and what is not available."""
    console.out(_protocol(result), highlight=False)
    for caption, head, rows in _tables(result):
        console.out(caption, highlight=False)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in head:
            table.add_column(Text(name), justify="left" if name in ("metric", "method") else "right")
        for row in rows:
            table.add_row(*map(Text, row))  # labels are no markup
        console.print(table)
        console.print()
    for line in missing(result):
        console.out(line, highlight=False)


def markdown(result: QualityResult) -> str:
    """Means as the papers print them, means with intervals, comparison, and what is not available."""
    found = keys(result)
    means = [
        [label, *(_figure(interval(method, key)) for key in found), _seconds(method)]
        for label, method in result.methods.items()
    ]
    parts = [
        _lines(["method", *(title(result, key) for key in found), "s/image"], means),
        f"{_protocol(result)}\n",
        *(f"{caption}\n\n{_lines(head, rows)}" for caption, head, rows in _tables(result)),
    ]
    if lines := missing(result):
        parts.append("".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def csv(result: QualityResult) -> str:
    """Every value of every picture; empty where there is none."""
    found = [key for key in keys(result) if any(key in method.values for method in result.methods.values())]
    text = io.StringIO()
    writer = writing.writer(text, lineterminator="\n")
    writer.writerow(["method", "image", *found])
    for label, method in result.methods.items():
        for index, image in enumerate(result.images):
            values = (repr(method.values[key][index]) if key in method.values else "" for key in found)
            writer.writerow([label, image, *values])
    return text.getvalue()


def _protocol(result: QualityResult) -> str:
    images = f"{len(result.images)} image{'' if len(result.images) == 1 else 's'}"
    return f"{images} by protocol {result.protocol.name}, version {result.protocol.version} ({result.protocol.source})."


def _tables(result: QualityResult) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Captions, heads and rows: means with intervals, and with two methods the comparison with the reference."""
    found = [key for key in keys(result) if any(interval(method, key) for method in result.methods.values())]
    rows = [
        [title(result, key), *(_spread(interval(method, key)) for method in result.methods.values())] for key in found
    ]
    if any(method.seconds_per_image is not None for method in result.methods.values()):
        rows.append(["s/image", *(_seconds(method) for method in result.methods.values())])
    yield "Mean and its bootstrap 95 % interval.", ["metric", *result.methods], rows
    if len(result.methods) > 1:
        caption = (
            f"Against {_reference(result)} (--reference), on the same images: Wilcoxon signed-rank test, "
            "p corrected by Holm's method."
        )
        head = ["metric", "method", "difference", "better on", "p"]
        yield caption, head, [_comparison(result, row) for row in comparisons(result)]


def _comparison(result: QualityResult, row: Comparison) -> list[str]:
    return [
        title(result, row.metric),
        row.label,
        _spread(row.paired.difference, sign="+"),
        f"{row.paired.wins}/{row.paired.count}",
        f"{row.p:.2g}",
    ]


def _reference(result: QualityResult) -> str:
    return next(iter(result.methods)) if result.reference is None else result.reference


def missing(result: QualityResult) -> list[str]:
    """One line for each reason; with the methods it belongs to, where others have values."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for label, method in result.methods.items():
        for key, reason in method.missing.items():
            reasons.setdefault((key, reason), []).append(label)
    return [
        f"{METRICS[key].title_on(result.protocol.color)}{'' if len(labels) == len(result.methods) else _of(labels)}: "
        f"{reason}"
        for (key, reason), labels in reasons.items()
    ]


def _of(labels: Iterable[str]) -> str:
    return f" of {', '.join(labels)}"


def _figure(value: Interval | None) -> str:
    return NOTHING if value is None else f"{value.mean:#.4g}".removesuffix(".")


def _spread(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return NOTHING
    form = f"{sign}#.3g" if sign else "#.4g"
    mean, low, high = (f"{number:{form}}".removesuffix(".") for number in (value.mean, value.low, value.high))
    return mean if value.low == value.high else f"{mean} [{low}, {high}]"


def _seconds(method: MethodResult) -> str:
    return NOTHING if method.seconds_per_image is None else f"{method.seconds_per_image:.2f}"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles, *lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([titles, "| --- |" + " ---: |" * (len(head) - 1), *lines]) + "\n"
