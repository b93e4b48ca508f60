"""What result folders keep: figures, and what they come from besides their settings: code, versions, weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from distill.config import AnyRun
from sr_bench.record import Provenance
from sr_models import store

LOCK = ".lock"
PLACES = ("teacher", "base", "teacher_lora", "start", "prompts.folder", "lpips.backbone")
"""Keys of a run whose values may be files or folders that a training reads weights from."""


class Origin(BaseModel):
    """Which code made a figure, and on what.

    Args:
        git_commit: as in :class:`sr_bench.record.Provenance`.
        processor: likewise.
        versions: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_commit: str | None
    processor: str
    versions: dict[str, str]

    @classmethod
    def of(cls, described: Provenance) -> Origin:
        """That of this process."""
        return cls.model_validate(described.model_dump(include=set(cls.model_fields)))


class Point(BaseModel):
    """Metric -> value after some updates, on the validation images and on photographs (empty without)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1)
    generated: dict[str, FiniteFloat] = Field(min_length=1)
    photographs: dict[str, FiniteFloat]


class RunRecord(BaseModel):
    """One training and its measurements.

    Args:
        config: of the run.
        weights: what it started from, see :func:`weights_of`.
        measured_on: what the figures belong to.
        steps: updates of the student.
        images_seen: by the student.
        notes: facts that the configuration does not tell.
        last_step: means of the last update, for the curious; need not be finite.
        references: method that is not trained -> metric -> value, on the validation images.
        curve: measurements, the last at the end.
        made_by: code and versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    config: dict[str, Any]
    weights: dict[str, str]
    measured_on: str
    steps: int = Field(ge=0)
    images_seen: int = Field(ge=0)
    notes: dict[str, str]
    last_step: dict[str, float]
    references: dict[str, dict[str, FiniteFloat]]
    curve: tuple[Point, ...]
    made_by: Origin


class ReferenceRecord(BaseModel):
    """Figures on photographs of a method that is not trained, and what was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: dict[str, str | int | None]
    values: dict[str, FiniteFloat] = Field(min_length=1)
    made_by: Origin


Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """A kept record; None: no file, or a damaged or foreign one, which is to be made again."""
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, ValidationError):
        return None


def lock_folder(out: Path) -> FileLock:
    """Keep other commands out of a result folder, until the lock is released.

    Raises:
        FileExistsError: another command works in it.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"expected a folder that no other command works in, got {out}; wait for it, or choose another --out"
        ) from None
    return lock


def weights_of(configs: Sequence[AnyRun]) -> list[dict[str, str]]:
    """The sha256 of what each run reads weights from: key of the configuration -> digest; every place is read once."""
    digest = cache(digest_of)
    found = []
    for config in configs:
        places = ((key, _at(config.model_dump(mode="json"), key)) for key in PLACES)
        found.append({key: known for key, place in places if place is not None and (known := digest(place))})
    return found


def digest_of(place: str) -> str | None:
    """The sha256 of a file, or over all files of a folder, a shipped model or base; None: it is none of these."""
    path = store.shipped().get(place, Path(place))
    if path.is_file():
        return store.sha256(path)
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = [f"{file.relative_to(path).as_posix()}:{store.sha256(file)}" for file in files]
    if store.is_model_folder(path) and (neighbour := store.read_config(path).get("autoencoder_from")):
        parts.append(f"autoencoder:{digest_of(str(path.parent / neighbour))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def distinct(origins: Sequence[Origin]) -> list[Origin]:
    """Each origin once, in the order they came."""
    found: list[Origin] = []
    for one in origins:
        if one not in found:
            found.append(one)
    return found


def differences(origins: Sequence[Origin]) -> list[str]:
    """What differs between distinct origins, in words, one for each; of one alone nothing."""
    if len(origins) < 2:
        return []
    flat = [{"commit": one.git_commit, "processor": one.processor, **one.versions} for one in origins]
    names = dict.fromkeys(name for entry in flat for name in entry)
    differing = [name for name in names if len({entry.get(name) for entry in flat}) > 1]
    return [", ".join(f"{name} {entry.get(name) or 'unknown'}" for name in differing) for entry in flat]


def _at(content: dict[str, Any], key: str) -> Any:
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
