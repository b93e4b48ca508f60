"""Records that are appended as they come, so that an interrupted measurement continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.folder import write_text

Record = Mapping[str, Any]


class Records:
    """Records in a file of JSON lines; without a file they are kept in memory.

    A torn last line, of a process that was killed, is dropped.

    Args:
        path: of the file; need not exist.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: list[Record] = []
        if path is None or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines[:-1]:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                self._records.append(record)
        if lines[-1] or len(self._records) != len(lines) - 1:
            write_text(path, "".join(f"{json.dumps(record)}\n" for record in self._records))

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def append(self, record: Record) -> None:
        """Add one record; it is in the file when this returns."""
        self._records.append(record)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())


def digest(content: object) -> str:
    """Hexadecimal sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
