"""One self-contained page per run: what was trained, curves, pictures, table."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.evaluation import METRICS

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: 1rem; overflow: auto }
code { background: #f5f5f5 } h2 { margin-top: 2rem }
"""


def write_report(folder: Path, summary: Mapping[str, Any], config_yaml: str) -> None:
    """Write ``report.html`` from what lies in the run folder."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    title = f"{summary['task']} {summary['preset']}"
    facts = (
        "command",
        "steps",
        "images_seen",
        "seconds",
        "updates_per_second",
        "images_per_second",
        "peak_memory_mb",
        "data",
        "machine",
    )
    values = {name: summary[name] for name in facts} | dict(summary["notes"])
    lines = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        _table(("", "value"), [(name.replace("_", " "), _text(value)) for name, value in values.items()]),
        "<h2>Measured on the validation images</h2>",
        _metric_table(summary["before"], summary["after"]),
        "<p>PSNR and SSIM on the Y channel; sharpness is the mean gradient magnitude of Y "
        "relative to the HR images' (1 = as sharp).</p>",
        "<h2>Pictures</h2>",
        _image("validation pictures by method", (folder / "grid.png").read_bytes()),
        "<h2>Curves</h2>",
        _image("training curves", _curves(records)),
        f"<h2>Configuration</h2><pre>{html.escape(config_yaml)}</pre></html>",
    ]
    (folder / "report.html").write_text("\n".join(lines))


def _metric_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = [(name, *(f"{values[metric]:.4g}" for metric in METRICS)) for name, values in after.items()]
    rows += [
        (f"{name} (before)", *(f"{values[metric]:.4g}" for metric in METRICS))
        for name, values in before.items()
        if after.get(name) != values
    ]
    return _table(("method", *METRICS), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"


def _curves(records: list[dict[str, float]]) -> bytes:
    """One panel for each logged number over the steps, then one for each player's loss over t."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for record in records for name in record))
    names = [name for name in names if name not in ("step", "images", "seconds") and "/loss_t/" not in name]
    names = [name for name in names if name != "skipped" or any(record[name] for record in records)]
    players = list(dict.fromkeys(name.split("/")[0] for record in records for name in record if "/loss_t/" in name))
    columns = 3
    rows = max(1, -(-(len(names) + len(players)) // columns))
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for index, name in enumerate([*names, *players]):
        axes = figure.add_subplot(rows, columns, index + 1)
        if index < len(names):
            points = [(record["step"], record[name]) for record in records if name in record]
            axes.plot(*zip(*points, strict=True), linewidth=0.9)
            axes.set_title(name, fontsize=10)
        else:
            _plot_by_time(axes, records, name)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _plot_by_time(axes: Any, records: list[dict[str, float]], player: str) -> None:
    """Mean loss of a player at each t, over the first and the last third of the run."""
    third = max(1, len(records) // 3)
    for label, part in (("first third", records[:third]), ("last third", records[-third:])):
        found: dict[int, list[float]] = {}
        for record in part:
            for name, value in record.items():
                if name.startswith(f"{player}/loss_t/"):
                    found.setdefault(int(name.rpartition("/")[2]), []).append(value)
        times = sorted(found)
        axes.plot(times, [sum(found[t]) / len(found[t]) for t in times], marker=".", linewidth=0.9, label=label)
    axes.set_title(f"{player}: main term at each t", fontsize=10)
    axes.legend(fontsize=7)


def _text(value: Any) -> str:
    return str(value)


def _image(title: str, content: bytes) -> str:
    return f"<img alt='{title}' src='data:image/png;base64,{base64.b64encode(content).decode()}'>"
