"""Plot the curves of several runs side by side: compare_runs.py OUT.png RUN [RUN ...].

Made the picture in docs/healthy-curves.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

PANELS = {
    "student/term/distillation": "distillation (Eq. 7): at or above 0",
    "student/fake_lag": "fake_lag: below 1",
    "student/teacher_gap": "teacher_gap: steady",
    "fake/term/z_0": "fake model's loss: steady",
    "student/grad_norm": "student's gradient norm",
    "fake/gan_accuracy": "gan_accuracy: between 0.5 and 1",
}


def smoothed(values: list[float], width: int = 9) -> list[float]:
    """Moving mean; single steps are noisy."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]


def main(out: Path, runs: list[Path]) -> None:
    """Draw one panel per number, one line per run."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for index, (name, title) in enumerate(PANELS.items()):
        axes = figure.add_subplot(2, 3, index + 1)
        for number, run in enumerate(runs):
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, smoothed(list(values)), label=run.name, color=f"C{number}", linewidth=1.3)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if name == "student/fake_lag":
            axes.axhline(1, color="black", linewidth=0.8)
        if name == "student/term/distillation":
            axes.axhline(0, color="black", linewidth=0.8)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
