"""What a folder of ``sr-bench quality`` was started with, so that the same command continues and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from sr_bench.quality.protocols import Protocol
from sr_bench.record import write_json

SETTINGS, LOCK = "settings.json", ".lock"


class Settings(BaseModel):
    """What decides about the figures; paths as seen from the folder.

    Args:
        protocol: complete.
        metrics: keys, in the order of the table.
        methods: by label, as they were asked for.
        lr: folder of LR pictures.
        gt: folder of the ground truth.
        seed: of models.
        limit: first pictures that are taken.
        device: that computes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol
    metrics: tuple[str, ...]
    methods: Mapping[str, str]
    lr: str | None
    gt: str | None
    seed: int
    limit: int | None
    device: str


def open_folder(out: Path, settings: Settings) -> FileLock:
    """Start a folder, or go on in one that was started with the same settings.

    Returns:
        The lock of the folder, to be released when all is written.

    Raises:
        FileExistsError: it holds something else, was started with other settings, or another process is at work in it.
        OSError: it cannot be written.
    """
    file = out / SETTINGS
    if not file.is_file() and out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK}):
        raise FileExistsError(
            f"expected a new folder or one of sr-bench quality, got {out}, which exists; choose another --out"
        )
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"expected a folder that no other process measures in, got {out}; wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise OSError(
            f"expected a folder that can be written, got {out}: {error.strerror or error}; choose another --out"
        ) from error
    try:
        _start_or_compare(out, settings)
    except BaseException:
        lock.release()
        raise
    return lock


def _start_or_compare(out: Path, settings: Settings) -> None:
    file = out / SETTINGS
    if not file.is_file():
        write_json(file, settings)
        return
    try:
        stored = Settings.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise FileExistsError(
            f"expected the settings of sr-bench quality in {file}, got something else; choose another --out"
        ) from error
    if different := [name for name in Settings.model_fields if getattr(stored, name) != getattr(settings, name)]:
        raise FileExistsError(
            f"expected the settings that the measurement in {out} was started with, got other {', '.join(different)}; "
            "repeat the same command to continue, or choose another --out"
        )
