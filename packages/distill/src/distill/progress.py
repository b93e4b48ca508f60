"""Live display of a run: step, losses, images per second, time left."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A progress bar in a terminal, a line now and then in a log file.

    Args:
        title: name of the run.
        steps: how many there will be.
        quiet: show nothing.
    """

    def __init__(self, title: str, steps: int, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet)
        self.steps = steps
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, losses="", speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, step: int, metrics: Mapping[str, float], images_per_second: float) -> None:
        """Show the state after ``step``; where there is no terminal, about fifty lines a run."""
        losses = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith("/loss"))
        speed = f"{images_per_second:.1f} images/s"
        self._bar.update(self._task, completed=step, losses=losses, speed=speed)
        if not self.console.is_terminal and (step % max(self.steps // 50, 1) == 0 or step == self.steps):
            self.say(f"step {step}/{self.steps}  {losses}  {speed}")
