"""A progress bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINES = 10
"""At most about so many lines are written where there is no terminal, and one a second."""


class Bar:
    """Progress with n/N and time left.

    Args:
        title: what is done.
        total: how many there are.
        console: where to show it.
        done: how many are there already.
    """

    def __init__(self, title: str, total: int, console: Console, done: int = 0) -> None:
        self._console = console
        self._title, self._total, self._done, self._last = title, total, done, done
        self._start = self._shown = time.monotonic()
        self._first = done
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", style="dim", markup=False),
        )
        self._bar = Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=3600,  # metrics differ a hundredfold in time
        )
        self._task = self._bar.add_task(title, total=total, completed=done, what="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, what: str) -> None:
        """One more is done, and what it was."""
        self._done += 1
        self._bar.update(self._task, advance=1, what=what)
        now, step = time.monotonic(), max(1, self._total // LINES)
        due = self._done - self._last >= step and now - self._shown >= 1
        if not self._console.is_terminal and (due or self._done == self._total):
            self._last, self._shown = self._done, now
            left = (now - self._start) / (self._done - self._first) * (self._total - self._done)
            self._console.out(f"{self._title} {self._done}/{self._total}, {left:.0f} s left", highlight=False)
