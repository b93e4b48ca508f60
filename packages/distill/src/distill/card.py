"""The model card of a run: ``README.md`` beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.evaluation import METRICS

LICENCE = {
    "generated": "Apache-2.0; trained on generated images only, so no licence of a data set applies",
    "folder": "yours to state: it depends on the photographs it was trained on",
    "pairs": "yours to state: it depends on the photographs it was trained on",
    "stream": "yours to state: it depends on the photographs it was trained on",
}
TITLES = {
    "autoencoder": "Autoencoder between pixels and latents",
    "teacher": "ResShift teacher",
    "flow-teacher": "Flow-matching teacher with prompts",
    "rsd": "One-step student, distilled by RSD",
    "vsd": "One-step student, distilled by ResShift-VSD",
    "tsd": "One-step student of a text-to-image teacher, distilled by TSD-SR",
    "osediff": "One-step student of a text-to-image teacher, distilled by OSEDiff",
    "sinsr": "One-step student, distilled by SinSR",
}


def _licence(summary: Mapping[str, Any]) -> str:
    """Of the data, and of the base that adapters belong to."""
    base = "that of its base; for the rest: " if "base" in summary["notes"] else ""
    return base + LICENCE[summary["data"]]


def write_card(folder: Path, summary: Mapping[str, Any], sha256: Mapping[str, str]) -> None:
    """Write the model card.

    Args:
        folder: model folder.
        summary: of the run, as in its ``summary.json``.
        sha256: file name -> hexadecimal digest.
    """
    parameters = ", ".join(f"{name} {count:,}" for name, count in summary["parameters"].items())
    facts = {
        "command": f"`{summary['command']}`" if summary["command"] else "from Python",
        "seed": summary["seed"],
        "updates": summary["steps"],
        "images seen": summary["images_seen"],
        "wall time": f"{summary['seconds']:.0f} s, with what it measures before and after",
        "machine": summary["machine"],
        "trained parameters": parameters,
        "data": f"{summary['data']} images",
        **summary["notes"],
        "licence": _licence(summary),
        **{f"sha256 of {name}": f"`{digest}`" for name, digest in sha256.items()},
    }
    lines = [f"# {TITLES[summary['task']]} ({summary['preset']})", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "Measured on the run's validation images (sharpness 1 = as sharp as HR):", ""]
    lines += ["| method | " + " | ".join(METRICS) + " |", "| --- |" + " ---: |" * len(METRICS)]
    for method, values in summary["after"].items():
        lines.append(f"| {method} | " + " | ".join(f"{values[metric]:.4g}" for metric in METRICS) + " |")
    (folder / "README.md").write_text("\n".join(lines) + "\n")
