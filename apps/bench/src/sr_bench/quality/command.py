"""``sr-bench quality``."""

from __future__ import annotations


def quality() -> None:
    """Not there yet."""
