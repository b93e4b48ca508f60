"""``sr-bench study``."""

from __future__ import annotations


def study() -> None:
    """Not there yet."""


def study_results() -> None:
    """Not there yet."""
