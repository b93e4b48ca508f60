"""The results of an ablation as Markdown tables and as a figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from sr_bench.ablation.costs import Cost
from sr_bench.ablation.tables import Ablation, Table, Variant

BESIDE = 5
"""So many published figures stand in the row of ours; a table with more of them gets a second part."""

GENERATED = ("PSNR-Y", "SSIM-Y", "sharpness")
EQUAL = {
    "updates": "Every row has the same number of updates; what they cost stands in the columns evaluations (images "
    "through the network, with whoever's adapters) and TFLOP.",
    "flops": "Every row has the same number of floating-point operations.",
    "evaluations": "Every row has the same number of network evaluations: images through a U-Net, whoever's it is. "
    "Backward passes are not counted, so rows that differentiate more have more operations (TFLOP, with all of them).",
}
MEANING = {"PSNR-Y": ", dB", "PIQE": ", lower is better", "sharpness": ", 1 = as sharp as HR"}
PANELS = (("PSNR-Y", "photographs"), ("SSIM-Y", "photographs"), ("PIQE", "photographs"), ("sharpness", "generated"))


class Figures(TypedDict):
    """Metric -> value, on the validation images and on photographs (empty without)."""

    generated: dict[str, float]
    photographs: dict[str, float]


@dataclass(frozen=True)
class Results:
    """Everything that an ablation measured.

    Args:
        runs: key of a row -> its results, one for each seed.
        costs: key of a row -> cost of one step.
        references: method that is not trained here -> its figures.
        command: how it was made.
        made_by: what differs between the codes and versions that made the figures; empty: nothing.
    """

    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    costs: Mapping[str, Cost]
    references: Mapping[str, Figures]
    command: str
    made_by: Sequence[str] = ()


def write_page(ablation: Ablation, results: Results) -> str:
    """All tables: mean and standard deviation over the seeds, the paper's figures beside them."""
    runs = [run for found in results.runs.values() for run in found]
    lines = [
        f"`{results.command}`",
        "",
        EQUAL[ablation.cost],
        f"Measured on {runs[0]['measured_on']}; ± is the standard deviation over the seeds.",
    ]
    notes = sorted({note for run in runs for note in run["notes"].values()})
    lines += [f"Perceptual loss: {note}." for note in notes]
    if results.made_by:
        lines += ["", "Parts were made by different code or versions:", "", *(f"- {one}" for one in results.made_by)]
    for table in ablation.tables:
        lines += ["", f"## {table.title}", "", *_table(table, results, ablation.start)]
        if len(table.columns) > BESIDE:
            lines += ["", "The paper's other figures for the same rows:", "", *_published(table)]
    if ablation.points > 1:
        lines += ["", "![quality against training cost](figure.png)"]
    return "\n".join(lines) + "\n"


def _table(table: Table, results: Results, start: str) -> list[str]:
    columns = _columns(results)
    titles = ["", "updates", "images seen", "evaluations", "TFLOP", *(f"{name} ({where})" for where, name in columns)]
    titles += [f"paper: {name}" for name in table.columns[:BESIDE]]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for name, figures in results.references.items():
        values = [_one(figures, where, metric) for where, metric in columns]
        published = table.teacher if name.startswith("teacher") and name != start else ()
        rest = published[:BESIDE] or ("",) * len(table.columns[:BESIDE])
        lines.append("| " + " | ".join([name, *("",) * 4, *values, *rest]) + " |")
    for variant in table.variants:
        runs, cost = results.runs[variant.key], results.costs[variant.key]
        steps = runs[0]["steps"]
        spent = [str(steps), f"{runs[0]['images_seen']:,}", f"{steps * cost['evaluations']:,}"]
        spent.append(f"{steps * cost['flops'] / 1e12:.1f}")
        last = [run["curve"][-1] for run in runs]
        values = [_mean_and_spread([point[where][metric] for point in last]) for where, metric in columns]
        lines.append(
            "| " + " | ".join([variant.name, *spent, *values, *variant.published[: len(table.columns[:BESIDE])]]) + " |"
        )
    return lines


def _published(table: Table) -> list[str]:
    """What does not fit beside our own figures."""
    titles = ["", *table.columns[BESIDE:]]
    rows = [("teacher", table.teacher), *((variant.name, variant.published) for variant in table.variants)]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    return lines + ["| " + " | ".join([name, *figures[BESIDE:]]) + " |" for name, figures in rows if figures]


def _columns(results: Results) -> list[tuple[str, str]]:
    first = next(iter(results.runs.values()))[0]["curve"][-1]
    return [("generated", name) for name in GENERATED] + [("photographs", name) for name in first["photographs"]]


def _one(figures: Mapping[str, Any], where: str, metric: str) -> str:
    value = figures[where].get(metric)
    return "" if value is None else f"{value:.{_digits(value)}f}"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.fmean(values)
    digits = _digits(mean)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _digits(value: float) -> int:
    return 2 if abs(value) >= 10 else 4


def draw_figure(path: Path, ablation: Ablation, results: Results) -> None:
    """Quality against training cost: mean of the seeds and their range, one line for each row of one table.

    All lines start at the teacher in one step, at no cost.
    """
    from matplotlib.figure import Figure

    photographs = bool(next(iter(results.references.values()))["photographs"])
    panels = PANELS if photographs else [(metric, "generated") for metric in GENERATED]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 4.2 * rows), layout="constrained")
    for index, (metric, where) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, index + 1)
        for variant in ablation.tables[ablation.drawn].variants:
            _line(axes, variant, results, (where, metric), ablation.start)
        for (name, figures), style in zip(results.references.items(), (":", "--", "-."), strict=False):
            if metric in figures[where]:  # type: ignore[literal-required]
                axes.axhline(figures[where][metric], color="grey", linestyle=style, label=name)  # type: ignore[literal-required]
        axes.set_title(f"{metric} ({where}{MEANING.get(metric, '')})")
        axes.set_xlabel("training cost in TFLOP, forward and backward")
        axes.grid(alpha=0.3)
    # A reference may lack the metric of one panel.
    known = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def _line(axes: Any, variant: Variant, results: Results, what: tuple[str, str], start: str) -> None:
    where, metric = what
    runs, cost = results.runs[variant.key], results.costs[variant.key]
    steps = [point["step"] for point in runs[0]["curve"]]
    values = [[run["curve"][index][where][metric] for run in runs] for index in range(len(steps))]
    spent = [0.0, *(step * cost["flops"] / 1e12 for step in steps)]
    values.insert(0, [results.references[start][where][metric]])  # type: ignore[literal-required]
    (line,) = axes.plot(spent, [statistics.fmean(found) for found in values], marker=".", label=variant.name)
    axes.fill_between(
        spent, [min(found) for found in values], [max(found) for found in values], color=line.get_color(), alpha=0.15
    )
