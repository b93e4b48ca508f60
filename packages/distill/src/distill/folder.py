"""The run folder: found or created, locked while a run is in it, continued when the same command comes again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.checkpoint import has_checkpoint
from distill.config import RunConfig, read_yaml, to_yaml

CONFIG, METRICS, SUMMARY, LOCK = "config.yaml", "metrics.jsonl", "summary.json", ".lock"

FREE_KEYS = (
    "micro_batch",
    "log_every",
    "tracker",
    "device",
    "compile",
    "checkpointing",
    "checkpoint",
    "guard",
    "data.workers",
    "data.degrade_on",
    "validation.every",
)
"""What may differ when a run is continued: where and how it computes and what it writes, not what it computes."""


@dataclass
class RunFolder:
    """A locked run folder.

    Args:
        path: the folder.
        state: ``new``, ``started`` (to be continued) or ``finished``.
        lock: held until :meth:`close`; None in processes that only read.
    """

    path: Path
    state: str
    lock: FileLock | None = None

    def close(self) -> None:
        """Let the next run in."""
        if self.lock is not None:
            self.lock.release()


def open_run(config: RunConfig, out: Path | None) -> RunFolder:
    """Find the folder of this run: ``out``, or under ``runs/`` the newest unfinished run of the same configuration.

    Args:
        config: complete configuration.
        out: folder; None: ``runs/TASK-PRESET-NNN``, continued or with the next free number.

    Raises:
        FileExistsError: ``out`` is not a run folder, another run is at work in it, or its configuration is another.
    """
    if out is not None:
        return _open_given(config, out)
    stem = f"{config.task}-{config.preset}"
    for path in sorted(Path("runs").glob(f"{stem}-[0-9]*"), key=lambda path: (len(path.name), path.name), reverse=True):
        found = _continue(config, path)
        if found is not None:
            return found
    return _create_numbered(config, stem)


def truncate_metrics(folder: Path, step: int) -> None:
    """Drop the records after ``step``: the run continues from there and writes them again."""
    path = folder / METRICS
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the last line of a process that was killed
            break
        if record["step"] > step:
            break
        kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_given(config: RunConfig, out: Path) -> RunFolder:
    if out.exists() and not (out / CONFIG).is_file():
        raise FileExistsError(f"expected a new folder or a run to continue, got {out}; choose another --out")
    if not out.exists():
        return _create(config, out)
    if different := _differences(config, out):
        raise FileExistsError(
            f"expected the configuration that the run in {out} was started with, got another {', '.join(different)}; "
            "repeat the same command to continue, or choose another --out"
        )
    lock = _lock(out)  # before its state is read
    if lock is None:
        raise FileExistsError(f"expected a run that is not at work, got {out}, which another process trains in; wait")
    return RunFolder(out, _state(out), lock)


def _continue(config: RunConfig, path: Path) -> RunFolder | None:
    """Return an unfinished run of exactly this configuration, unless another process is at work in it."""
    if not (path / CONFIG).is_file() or _state(path) != "started" or not has_checkpoint(path):
        return None
    if (path / CONFIG).read_text() != to_yaml(config):
        return None
    lock = _lock(path)
    if lock is None:
        return None
    if _state(path) != "started":  # it was finished in between
        lock.release()
        return None
    return RunFolder(path, "started", lock)


def _create_numbered(config: RunConfig, stem: str) -> RunFolder:
    number = 1
    while True:
        try:
            return _create(config, Path("runs") / f"{stem}-{number:03d}")
        except FileExistsError:
            number += 1


def _create(config: RunConfig, path: Path) -> RunFolder:
    path.mkdir(parents=True)
    lock = _lock(path)
    write_text(path / CONFIG, to_yaml(config))
    return RunFolder(path, "new", lock)


def _state(path: Path) -> str:
    return "finished" if (path / SUMMARY).is_file() else "started"


def _lock(path: Path) -> FileLock | None:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _differences(config: RunConfig, path: Path) -> list[str]:
    """Names of the keys in which the run's configuration differs, those that may differ left out."""
    stored, wanted = read_yaml(path / CONFIG), json.loads(config.model_dump_json())
    return [name for name in _changed(stored, wanted) if not f"{name}.".startswith(tuple(f"{k}." for k in FREE_KEYS))]


def _changed(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [] if stored == wanted else [prefix.rstrip(".")]
    return [
        name
        for key in sorted(stored.keys() | wanted.keys())
        for name in _changed(stored.get(key), wanted.get(key), f"{prefix}{key}.")
    ]
