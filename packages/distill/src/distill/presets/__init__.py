"""Presets: functions that return a complete run configuration, by task and name."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import AnyRun
from distill.presets import paper, t2i, tiny, vq

PRESETS: dict[str, dict[str, Callable[[], AnyRun]]] = {
    "autoencoder": {"tiny": tiny.autoencoder, "tiny-vq": vq.tiny_vq, "vq-f4": vq.vq_f4},
    "teacher": {"tiny": tiny.teacher, "x4": paper.teacher, "x4-lpips": paper.teacher_lpips},
    "rsd": {
        "tiny": tiny.rsd,
        "rsd-paper": paper.rsd_paper,
        "rsd-24gb": paper.rsd_24gb,
        "rsd-512": paper.rsd_512,
        "rsd-distill-only": paper.rsd_distill_only,
    },
    "vsd": {"tiny": tiny.vsd, "vsd-paper": paper.vsd_paper},
    "sinsr": {
        "tiny": tiny.sinsr,
        "sinsr-paper": paper.sinsr_paper,
        "sinsr-distill-only": paper.sinsr_distill_only,
    },
    "flow-teacher": {"tiny": t2i.flow_teacher},
    "tsd": {"tiny": t2i.tsd, "sd3-paper": t2i.sd3_paper, "sd3-24gb": t2i.sd3_24gb, "sd21": t2i.sd21_tsd},
    "osediff": {"tiny": t2i.osediff, "sd21-paper": t2i.sd21_paper},
}


def preset(task: str, name: str) -> AnyRun:
    """Return the preset ``name`` of ``task``.

    Raises:
        ValueError: unknown task or preset.
    """
    _check_task(task)
    if name not in PRESETS[task]:
        raise ValueError(f"expected a preset of {', '.join(PRESETS[task])} for {task}, got {name!r}")
    return PRESETS[task][name]()


def describe_presets(task: str) -> str:
    """One line for each preset of ``task``: its name and the first line of its docstring."""
    _check_task(task)
    width = max(len(name) for name in PRESETS[task])
    lines = [(name, (function.__doc__ or "").splitlines()[0]) for name, function in PRESETS[task].items()]
    return "\n".join(f"{name:<{width}}  {text.removeprefix('Return ').rstrip('.')}" for name, text in lines)


def _check_task(task: str) -> None:
    if task not in PRESETS:
        raise ValueError(f"expected a task of {', '.join(PRESETS)}, got {task!r}")
