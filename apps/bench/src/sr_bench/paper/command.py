"""``sr-bench paper``."""

from __future__ import annotations


def paper() -> None:
    """Not there yet."""
