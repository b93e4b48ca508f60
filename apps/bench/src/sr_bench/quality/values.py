"""Values measured so far: every picture by every metric once, whatever its name and whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from sr_bench.quality.kept import Record, Records
from sr_bench.quality.measuring import Key, Task, work_all
from sr_bench.quality.metrics import METRICS
from sr_bench.quality.progress import Bar


class Value(Record):
    """A value and its :data:`sr_bench.quality.measuring.Key`."""

    picture: str
    reference: str
    how: str
    value: float


class Values:
    """Values by the content of the pictures and the way of measuring.

    Args:
        path: of the file that keeps them; None: in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._records = Records(path, Value)
        self._known: dict[Key, float | str] = {
            (record.picture, record.reference, record.how): record.value for record in self._records
        }

    def __getitem__(self, key: Key) -> float | str:
        """The value, or why there is none."""
        return self._known[key]

    def measure(self, tasks: Iterable[Task], jobs: int, console: Console) -> None:
        """Measure what is not known yet; a value is in the file as soon as it is there."""
        wanted = {task.key: task for task in tasks}
        todo = [task for key, task in wanted.items() if key not in self._known]
        with Bar("measuring", len(wanted), console, len(wanted) - len(todo)) as bar:
            for task, value in work_all(todo, jobs):
                self._keep(task.key, value)
                bar.advance(f"{METRICS[task.metric].title} of {task.picture.name}")

    def once(self, key: Key, function: Callable[[], float]) -> float | str:
        """The value, computed where it is not known yet."""
        if key not in self._known:
            try:
                self._keep(key, function())
            except Exception as error:  # as in measuring.work: the other metrics go on
                self._keep(key, " ".join(str(error).split()) or type(error).__name__)
        return self._known[key]

    def _keep(self, key: Key, value: float | str) -> None:
        self._known[key] = value
        if not isinstance(value, str):  # what failed is tried again next time
            picture, reference, how = key
            self._records.append(Value(picture=picture, reference=reference, how=how, value=value))
