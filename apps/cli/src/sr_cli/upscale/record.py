"""What was made in an output folder, from what and with which settings: one line of JSON an event.

A file that exists is whole, as it is moved to its name when it is finished. Whether it is *the one that is asked for*
is what this record tells: it has the settings, the input's size, time and sha256, and the output's size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

if sys.platform != "win32":
    import fcntl

RECORD = ".sr-distill.jsonl"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")  # as sr_data.writers names unfinished files


@dataclass(frozen=True)
class Stamp:
    """A file as it was seen: unchanged size and time mean an unchanged file, else the hash tells."""

    size: int
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True)
class Made:
    """What a record says about an output; ``output`` is None where the run ended before it was finished."""

    settings: Mapping[str, Any]
    source: Stamp
    output: Stamp | None


@dataclass(frozen=True)
class Verdict:
    """Whether an output is to be made, and why where it is not for the first time."""

    make: bool
    why: str = ""


def stamp(path: Path, content: bytes | None = None) -> Stamp:
    """Return the stamp of a file, with a hash where its bytes are at hand."""
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, hashlib.sha256(content).hexdigest() if content else "")


def judge(target: Path, source: Path, made: Made | None, settings: Mapping[str, Any], *, overwrite: bool) -> Verdict:
    """Tell whether an output has to be made.

    What this program made and nobody touched since is made again when the input or the settings changed. Any other
    file is never replaced without ``overwrite``.

    Args:
        target: the output.
        source: the input.
        made: what the record says about the output; None: nothing.
        settings: :meth:`Settings.identity` of this run.
        overwrite: make everything again.
    """
    if not target.exists():
        return Verdict(True)
    if overwrite:
        return Verdict(True, "overwritten")
    if made is None:
        return Verdict(False, "exists; --overwrite makes it again")
    if made.output is None:
        return Verdict(True, "made again: its run was interrupted")
    now = stamp(target)
    if (now.size, now.mtime_ns) != (made.output.size, made.output.mtime_ns):
        return Verdict(False, "exists, and was changed after it was made; --overwrite makes it again")
    different = sorted(name for name in {*settings, *made.settings} if settings.get(name) != made.settings.get(name))
    if different:
        return Verdict(True, f"made again: other {', '.join(different)}")
    if _changed(source, made.source):
        return Verdict(True, "made again: the input changed")
    return Verdict(False, "done before")


def _changed(path: Path, before: Stamp) -> bool:
    try:
        now = stamp(path)
        if now.size != before.size:
            return True
        if now.mtime_ns == before.mtime_ns:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != before.sha256
    except OSError:
        return True  # reading it will tell what is wrong


def read_entries(folder: Path) -> dict[str, Made]:
    """Return what the record of a folder says, by the paths of the outputs below it; lines cut short are ignored."""
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    entries = {}
    for line in lines:
        try:
            content = json.loads(line)
            output = content["made"]
            entries[str(content["output"])] = Made(
                dict(content["settings"]), Stamp(**content["input"]), None if output is None else Stamp(**output)
            )
        except (ValueError, TypeError, KeyError):
            continue
    return entries


class Record:
    """The record of an output folder, held by one run at a time.

    Args:
        folder: created where it does not exist.

    Raises:
        ValueError: another run is writing into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = (folder / RECORD).open("a+", encoding="utf-8")
        if sys.platform != "win32":
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
            except BlockingIOError:
                self._file.close()
                raise ValueError(
                    f"expected one run at a time in {folder}, got another one at work; wait for it or give another -o"
                ) from None
        self._file.write("\n")  # ends a line that a killed run left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, target: Path, settings: Mapping[str, Any], source: Stamp, output: Stamp | None) -> None:
        """Note that an output is being made (``output`` None), or has been."""
        content = {
            "output": target.relative_to(self.folder).as_posix(),
            "settings": dict(settings),
            "input": vars(source),
            "made": None if output is None else vars(output),
        }
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # before the output gets its name: what is not noted is taken for the user's


def remove_stale(targets: Iterable[Path]) -> None:
    """Remove what a killed run left beside these targets; only for folders whose record is held."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    for folder, wanted in names.items():
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            left = [
                entry.path for entry in entries if (found := _TEMPORARY.fullmatch(entry.name)) and found[1] in wanted
            ]
        for path in left:
            Path(path).unlink(missing_ok=True)
