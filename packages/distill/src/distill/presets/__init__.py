"""Presets: functions that return a complete run configuration, by task and name."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import AnyRun
from distill.presets import paper, tiny

PRESETS: dict[str, dict[str, Callable[[], AnyRun]]] = {
    "autoencoder": {"tiny": tiny.autoencoder},
    "teacher": {"tiny": tiny.teacher, "x4": paper.teacher},
    "rsd": {"tiny": tiny.rsd, "x4": paper.rsd_distill_only},
}


def preset(task: str, name: str) -> AnyRun:
    """Return the preset ``name`` of ``task``.

    Raises:
        ValueError: unknown task or preset.
    """
    if task not in PRESETS:
        raise ValueError(f"expected a task of {', '.join(PRESETS)}, got {task!r}")
    if name not in PRESETS[task]:
        raise ValueError(f"expected a preset of {', '.join(PRESETS[task])} for {task}, got {name!r}")
    return PRESETS[task][name]()
