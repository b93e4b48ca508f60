"""What a run shows: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr_cli.upscale.report import Entry


class Screen:
    """Lines about pictures on stdout, bars and errors on stderr.

    Args:
        total: pictures that are going to be made.
        quiet: errors only.
        to_stderr: lines go to stderr as well, as stdout takes a picture.
        clock: seconds; tests give their own.
    """

    def __init__(
        self, total: int, *, quiet: bool, to_stderr: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self.count = 0
        self._quiet = quiet
        self._to_stderr = to_stderr
        self._clock = clock
        self._begin = clock()
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),  # else lines meant for a file would land on the terminal
        )
        self._all = self._bars.add_task("pictures", total=total, visible=total > 1)
        self._one = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, name: str) -> None:
        """Show which picture is restored now."""
        name = on_one_line(name)
        shown = name if len(name) <= 40 else f"...{name[-37:]}"
        self._bars.reset(self._one, description=shown.replace("[", r"\["), total=None, visible=True)

    def tiles(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._bars.update(self._one, completed=done, total=total)

    def end(self, entry: Entry) -> None:
        """Print the line of a picture that was made, or was not."""
        self.count += 1
        self._bars.update(self._one, visible=False)
        self._bars.update(self._all, completed=self.count)
        number = f"[{self.count}/{self.total}] " if self.total > 1 else ""
        text = f"{entry.input}: failed" if entry.status == "failed" else entry.line()  # why: at the end
        self.line(f"{number}{text}{self._time_left()}")

    def _time_left(self) -> str:
        left = self.total - self.count
        if not left or not self._bars.disable:
            return ""
        return f", about {_duration((self._clock() - self._begin) / self.count * left)} left"

    def line(self, text: str) -> None:
        """Print something that is not an error."""
        if not self._quiet:
            print(on_one_line(text), file=sys.stderr if self._to_stderr else sys.stdout, flush=True)

    def error(self, text: str) -> None:
        """Print something that is."""
        print(on_one_line(text), file=sys.stderr, flush=True)


def on_one_line(text: str) -> str:
    """Return a text with what would break the line, or cannot be printed, as its escape, such as ``\\n``."""
    breaking = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in breaking else letter
        for letter in text
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
