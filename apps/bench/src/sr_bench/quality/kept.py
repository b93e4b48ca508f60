"""Records that are appended as they come, so that an interrupted measurement continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.folder import write_text


class Record(BaseModel):
    """One line of a file; a field of another kind, or one that is not finite, makes it no record."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Record)


class Records(Generic[Kind]):
    """Records in a file of JSON lines; without a file they are kept in memory.

    What is no record is dropped: the torn last line of a process that was killed, and lines of other programs.

    Args:
        path: of the file; need not exist.
        kind: of the records.
    """

    def __init__(self, path: Path | None, kind: type[Kind]) -> None:
        self._path = path
        self._records: list[Kind] = []
        if path is None or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines[:-1]:
            try:
                self._records.append(kind.model_validate_json(line))
            except ValidationError:
                continue
        if lines[-1] or len(self._records) != len(lines) - 1:
            write_text(path, "".join(map(_line, self._records)))

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._records)

    def append(self, record: Kind) -> None:
        """Add one record; it is in the file when this returns."""
        self._records.append(record)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())


def digest(content: object) -> str:
    """Hexadecimal sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _line(record: Record) -> str:
    return json.dumps(record.model_dump(mode="json")) + "\n"
