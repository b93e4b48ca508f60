"""Peak memory of this process while a picture is restored."""

from __future__ import annotations

import threading
from typing import Self

import psutil

INTERVAL = 0.05
"""Seconds between two looks."""


class PeakMemory:
    """While entered, a thread looks at the memory of this process; ``megabytes`` is the largest it saw.

    What is counted is resident memory with everything that is loaded: Python, the libraries, the weights.
    """

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._process = psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self.megabytes = max(self.megabytes, self._process.memory_info().rss / 1e6)
