"""How many trainings the machine can hold at a time."""

from __future__ import annotations

import os

import psutil

from distill.dry_run import plan
from sr_bench.ablation.costs import StudentRun

SHARE = 0.8
"""Of the free memory that may be used: measuring before and after the training is not part of the forecast."""


def core_count() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def fitting_jobs(largest: StudentRun, trainings: int) -> int:
    """One training for each core, as far as they fit into the free memory; one alone on an accelerator.

    Args:
        largest: the run that needs most memory.
        trainings: to be done; there are never more jobs.
    """
    most = min(core_count(), trainings)
    if most <= 1 or largest.device != "cpu":
        return 1
    needed = plan(largest).memory.total_bytes
    return max(1, min(most, int(SHARE * psutil.virtual_memory().available / needed)))
