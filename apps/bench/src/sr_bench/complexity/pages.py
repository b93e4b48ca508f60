"""The result for people and for spreadsheets: console, Markdown, CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.folder import write_text
from sr_bench.complexity.result import NETWORKS, PARTS, Complexity, Published, Row
from sr_bench.record import write_json

Cells = Sequence[Sequence[str]]
NONE = "-"
SIZES = ("model", "path", "LR", "NFE", "params (M)", "GMAC", "time (s)", "range (rounds)", "memory (MB)", "loaded (MB)")
WEIGHTS = {"none": "shapes alone"}
TITLES = {part: part for part in PARTS} | {"color": "colour"}
SPLIT = ("model", "path", "LR", *TITLES.values(), "networks of ceiling")
COUNTS = (
    *("model", "weights", "LR", "encoder (M)", "network (M)", "decoder (M)", "of it LoRA (M)", "NFE"),
    *(f"{part} GMAC" for part in NETWORKS),
)
PUBLISHED = ("method", "source", "NFE", "params (M)", "time (s)", "memory (MB)")
NOTES = (
    "GMAC: 1e9 multiplications with their additions, of a whole restoration and batch; 1 MAC is 2 FLOP.",
    "time: median after a warm-up, of the whole batch, from PNG to PNG; noise is drawn before; range: p10 to p90, of "
    "up to 10 rounds the fastest to the slowest.",
    "memory: peak of the first restoration; on a CPU the resident set of a process for this row, Python and torch "
    "among it, on a GPU torch's tensors; loaded: the same before that, with the model in memory; -: nothing tells the "
    "peak (torch keeps none on MPS; on a CPU it takes Linux and a writable /proc/self/clear_refs).",
    "shares: 2 MAC / median time / matrix rate; colour: bytes that have to be moved / median time / copy rate.",
)


def show(result: Complexity, console: Console) -> None:
    """Print the tables."""
    for title, head, cells in tables(result):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
        for index, name in enumerate(head):
            table.add_column(escape(name), justify="left" if index < 2 else "right", overflow="fold")
        for row in cells:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
        console.print()
    for line in lines_below(result):
        console.print(escape(line), highlight=False, soft_wrap=True)


def write(result: Complexity, folder: Path) -> None:
    """Write ``complexity.json``, ``.csv``, ``.md`` and ``.html`` into a folder."""
    write_json(folder / "complexity.json", result)
    write_text(folder / "complexity.csv", as_csv(result))
    write_text(folder / "complexity.md", as_markdown(result))
    write_text(folder / "complexity.html", as_html(result))


def tables(result: Complexity) -> list[tuple[str, Sequence[str], Cells]]:
    """Title, head and cells of each table."""
    timed = [row for row in result.rows if row.seconds]
    counted = list({(row.model, row.size, row.batch): row for row in result.rows if row.parameters}.values())
    found: list[tuple[str, Sequence[str], Cells]] = [
        ("Complexity", SIZES, [_sizes(row) for row in result.rows if not row.problem]),
        ("PUBLISHED, other hardware: not measured here", PUBLISHED, [_published(row) for row in result.published]),
        ("Where the time goes (s), and share of the ceiling", SPLIT, [_split(row) for row in timed]),
        ("Parameters and MACs by part", COUNTS, [_counts(row) for row in counted]),
    ]
    return [table for table in found if table[2]]


def ceiling_lines(result: Complexity) -> list[str]:
    """What the machine can do."""
    return [
        f"ceiling of {ceiling.device} in {ceiling.dtype}: {ceiling.matrix_gflops:.0f} GFLOP/s ({ceiling.operation}), "
        f"{ceiling.copy_gbs:.1f} GB/s of copying"
        for ceiling in result.ceilings
    ]


def lines_below(result: Complexity) -> list[str]:
    """Everything to be said besides the tables."""
    return [*ceiling_lines(result), *problem_lines(result), *hardware_lines(result), *NOTES]


def hardware_lines(result: Complexity) -> list[str]:
    """What the published rows were measured on."""
    found = {row.source: row.hardware for row in result.published if row.hardware}
    return [f"{source}: published, {hardware}" for source, hardware in found.items()]


def problem_lines(result: Complexity) -> list[str]:
    """Rows that could not be measured, and why."""
    return [
        f"not measured: {row.model}, {row.path}, {row.size} px x {row.batch}: {row.problem}"
        for row in result.rows
        if row.problem
    ]


def machine_line(result: Complexity) -> str:
    """Where this was measured."""
    about = result.provenance
    return (
        f"{about.processor}, {about.threads} threads; device {about.device}; {about.platform}, Python {about.python}, "
        f"torch {about.versions.get('torch', '?')}; {about.date}; commit {about.git_commit or 'unknown'}"
    )


def as_markdown(result: Complexity) -> str:
    """All tables as Markdown."""
    lines = ["# Complexity", "", f"`{result.provenance.command}`", "", machine_line(result), ""]
    for title, head, cells in tables(result):
        lines += [f"## {title}", "", f"| {' | '.join(head)} |"]
        lines.append("| --- | --- |" + " ---: |" * (len(head) - 2))
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
        lines.append("")
    return "\n".join([*lines, *(f"- {line}" for line in lines_below(result))]) + "\n"


def as_csv(result: Complexity) -> str:
    """Every value of every row, in plain units; published rows at the end, marked in the first column."""
    spreads = [f"{part}_{kind}_s" for part in (*PARTS, "total") for kind in ("median", "p10", "p90")]
    head = ["origin", "model", "device", "dtype", "path", "lr_size", "batch", "scale", "nfe", "weights", "color"]
    head += [*(f"parameters_{part}" for part in (*NETWORKS, "total", "adapters"))]
    head += [*(f"macs_{part}" for part in (*NETWORKS, "total")), "rounds", *spreads]
    head += ["memory_kind", "memory_loaded_mb", "memory_peak_mb"]
    head += [*(f"share_{part}" for part in (*NETWORKS, "networks", "color")), "problem"]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(row) for row in result.rows)
    for published in result.published:
        values = {
            "origin": f"published: {published.source}",
            "model": published.method,
            "device": published.hardware,
            "nfe": published.values.get("nfe"),
            "parameters_total": _millions(published.values.get("parameters_m")),
            "total_median_s": published.values.get("seconds"),
            "memory_peak_mb": published.values.get("memory_mb"),
        }
        writer.writerow(values)
    return text.getvalue()


def as_html(result: Complexity) -> str:
    """A page that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sr_bench.complexity", "."), autoescape=True, undefined=StrictUndefined
    )
    page: str = environment.get_template("page.html.j2").render(
        tables=tables(result),
        bars=[_bar(row) for row in result.rows if row.seconds],
        parts=PARTS,
        titles=TITLES,
        machine=machine_line(result),
        ceilings=ceiling_lines(result),
        problems=problem_lines(result),
        notes=[*hardware_lines(result), *NOTES],
        command=result.provenance.command,
    )
    return page


def _sizes(row: Row) -> list[str]:
    total = row.seconds.get("total")
    return [
        *_where(row),
        str(row.evaluations),
        _mega(sum(row.parameters.values())),
        f"{sum(row.macs.values()) / 1e9:.1f}",
        f"{total.median:.3f}" if total else NONE,
        _range(row),
        f"{row.memory.peak:.0f}" if row.memory else NONE,
        f"{row.memory.loaded:.0f}" if row.memory else NONE,
    ]


def _range(row: Row) -> str:
    total = row.seconds.get("total")
    if total is None:
        return NONE
    low, high = ("min ", "max ") if row.rounds <= 10 else ("p10 ", "p90 ")
    return f"{low}{total.p10:.3f} to {high}{total.p90:.3f} ({row.rounds})"


def _split(row: Row) -> list[str]:
    def cell(part: str) -> str:
        share = f" {row.shares[part]:.0%}" if part in row.shares else ""
        return f"{row.seconds[part].median:.4f}{share}"

    return [*_where(row), *(cell(part) for part in PARTS), f"{row.shares['networks']:.0%}" if row.shares else NONE]


def _where(row: Row) -> list[str]:
    batch = f" x {row.batch}" if row.batch > 1 else ""
    return [row.model, row.path, f"{row.size}{batch}"]


def _counts(row: Row) -> list[str]:
    return [
        row.model,
        WEIGHTS.get(row.weights, row.weights),
        _where(row)[-1],
        *(_mega(row.parameters[part]) for part in NETWORKS),
        _mega(row.adapters) if row.adapters else NONE,
        str(row.evaluations),
        *(f"{row.macs[part] / 1e9:.1f}" for part in NETWORKS),
    ]


def _published(row: Published) -> list[str]:
    keys = ("nfe", "parameters_m", "seconds", "memory_mb")
    return [row.method, row.source, *(row.values.get(key, NONE) for key in keys)]


def _mega(count: int) -> str:
    return f"{count / 1e6:.2f}" if count < 100e6 else f"{count / 1e6:.1f}"


def _millions(value: str | None) -> int | None:
    return None if value is None else round(float(value) * 1e6)


def _record(row: Row) -> dict[str, object]:
    record: dict[str, object] = {
        "origin": "measured",
        "model": row.model,
        "device": row.device,
        "dtype": row.dtype,
        "path": row.path,
        "lr_size": row.size,
        "batch": row.batch,
        "problem": row.problem,
    }
    if row.problem:
        return record
    record |= {"scale": row.scale, "nfe": row.evaluations, "weights": row.weights, "color": row.color}
    record |= {f"parameters_{part}": count for part, count in row.parameters.items()}
    record |= {"parameters_total": sum(row.parameters.values()), "parameters_adapters": row.adapters}
    record |= {f"macs_{part}": count for part, count in row.macs.items()} | {"macs_total": sum(row.macs.values())}
    record |= {"rounds": row.rounds}
    for part, spread in row.seconds.items():
        record |= {f"{part}_{kind}_s": value for kind, value in spread.model_dump().items()}
    if row.memory:
        kind, loaded, peak = row.memory.kind, row.memory.loaded, row.memory.peak
        record |= {"memory_kind": kind, "memory_loaded_mb": loaded, "memory_peak_mb": peak}
    return record | {f"share_{part}": share for part, share in row.shares.items()}


def _bar(row: Row) -> dict[str, object]:
    """Name, seconds, and start, width (percent of the sum of medians) and label of every part."""
    whole = sum(row.seconds[part].median for part in PARTS) or 1.0
    pieces, start = [], 0.0
    for part in PARTS:
        seconds = row.seconds[part].median
        width = 100 * seconds / whole
        pieces.append(
            {"part": part, "start": start, "width": width, "label": f"{TITLES[part]} {seconds:.4f} s, {width:.0f} %"}
        )
        start += width
    return {"name": ", ".join(_where(row)), "seconds": f"{row.seconds['total'].median:.3f} s", "pieces": pieces}
