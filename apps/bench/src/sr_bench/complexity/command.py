"""``sr-bench complexity``."""

from __future__ import annotations


def complexity() -> None:
    """Not there yet."""
