"""What was done with each picture: the lines that are printed, and ``--report run.json``."""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

Status = Literal["waiting", "done", "skipped", "failed", "interrupted"]
VERSIONS = ("sr-distill", "sr-models", "sr-data", "torch", "numpy", "pillow")
SECONDS_BETWEEN_WRITES = 2.0
"""Writing takes longer the more pictures there are; at most a twentieth of the time goes into it."""


@dataclass
class Entry:
    """One picture of a run; sizes are (width, height), LR consistency is as in :class:`sr_models.options.Report`."""

    input: str
    output: str
    status: Status = "waiting"
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    lr_consistency: float | None = None
    restoration: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    error: str | None = None

    def line(self) -> str:
        """What is printed about it."""
        if self.status == "skipped":
            return f"{self.output}: skipped, {'; '.join(self.notes)}"
        if self.status != "done":
            return f"{self.input}: {self.error or self.status}"
        assert self.input_size is not None
        assert self.output_size is not None
        text = f"{self.output}: {_size(self.output_size)} from {_size(self.input_size)}, {self.seconds:.1f} s"
        if self.lr_consistency is not None:
            text += f", LR consistency {self.lr_consistency:.1f}/255"
        remarks = [*self.notes, *(f"dropped {what}" for what in self.dropped)]
        return f"{text} ({'; '.join(remarks)})" if remarks else text


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class RunReport:
    """The file ``--report`` names, which is complete JSON at any moment.

    Args:
        path: None writes nothing.
        settings: as they were given.
        entries: all pictures of the run; they change while it goes on.
        clock: seconds; tests give their own.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        entries: list[Entry],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.entries = entries
        self.model: dict[str, Any] = {}
        """Name, hash and compute path of the model, once it is loaded."""
        self._settings = dict(settings)
        self._clock = clock
        self._begin = clock()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._next = self._begin

    def write(self, status: str) -> None:
        """Write the file; while ``status`` is ``running`` only where the last time is long enough ago."""
        if self.path is None or (status == "running" and self._clock() < self._next):
            return
        before = self._clock()
        write_whole(self.path, json.dumps(self.content(status), indent=2) + "\n")
        spent = self._clock() - before
        self._next = self._clock() + max(SECONDS_BETWEEN_WRITES, 20 * spent)

    def content(self, status: str) -> dict[str, Any]:
        """Return what is written."""
        return {
            "status": status,
            "started": self._started,
            "seconds": round(self._clock() - self._begin, 3),
            "settings": self._settings,
            "model": self.model,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU threads",
            "counts": dict(Counter(entry.status for entry in self.entries)),
            "files": [asdict(entry) for entry in self.entries],
        }


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
