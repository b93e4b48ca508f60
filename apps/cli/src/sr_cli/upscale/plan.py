"""Which pictures are read, and where each one is written: decided for all of them before the first is touched."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sr_cli.upscale.record import read_entries
from sr_data.pictures import PICTURE_SUFFIXES

STREAM = "-"
"""Stands for stdin and stdout."""


@dataclass(frozen=True)
class Source:
    """A picture to read."""

    path: Path
    """Where it is; ``-`` for stdin."""
    below: PurePosixPath
    """Its path below the folder it was found in; its name where it was given itself."""
    given: Path
    """The argument that it comes from."""
    in_folder: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it is read from stdin."""
        return str(self.path) == STREAM

    @property
    def name(self) -> str:
        """What it is called in lines and reports."""
        return "stdin" if self.is_stream else str(self.path)


@dataclass(frozen=True)
class Job:
    """One picture and its place."""

    source: Source
    target: Path | None
    """The file to write; None for stdout."""
    root: Path | None = None
    """The output folder whose record knows the target; None for a file beside its input or named by the user."""

    @property
    def output(self) -> str:
        """What the target is called in lines and reports."""
        return "stdout" if self.target is None else str(self.target)


@dataclass
class Found:
    """Pictures below the arguments, and what could not be looked into."""

    sources: list[Source] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def find(paths: Sequence[str], output: str | None = None) -> Found:
    """List the pictures that the arguments name: in the order of the arguments, sorted within a folder.

    Hidden files and folders, links to folders, the output folder, and what a run wrote into a folder below are not
    read. A picture that two arguments name is taken once. A file is taken as it is, to fail when it is read.

    Args:
        paths: files, folders, ``-``.
        output: of the run, so that an output folder inside an input folder is left out.

    Raises:
        ValueError: no picture at all, or an output folder that is an input folder.
    """
    found = Found()
    seen: set[str] = set()
    excluded = None if output in (None, STREAM) else os.path.realpath(output)
    for text in paths:
        path = Path(text)
        if text == STREAM:
            sources = [Source(path, PurePosixPath("stdin"), path)]
        elif path.is_dir():
            if os.path.realpath(path) == excluded:
                raise ValueError(f"expected -o another folder than the input, got {output} for both; give a new one")
            before = len(found.failed)
            sources = list(_walk(path, excluded, found.failed))
            if not sources and len(found.failed) == before:
                suffixes = ", ".join(PICTURE_SUFFIXES)
                found.failed.append((str(path), f"no pictures in {path}; expected files ending in {suffixes}"))
        else:
            sources = [Source(path, PurePosixPath(path.name), path)]
        for source in sources:
            key = STREAM if source.is_stream else os.path.join(os.path.realpath(source.path.parent), source.path.name)  # noqa: PTH118
            if key not in seen:
                seen.add(key)
                found.sources.append(source)
    if not found.sources:
        raise ValueError(found.failed[0][1])
    return found


def _walk(folder: Path, excluded: str | None, failed: list[tuple[str, str]]) -> Iterator[Source]:
    """Yield the pictures below a folder; what cannot be listed goes to ``failed``."""

    def note(error: OSError) -> None:
        failed.append((str(error.filename), f"expected a readable folder, got {error.strerror}; allow reading it"))

    written: set[str] = set()
    for here, folders, files in os.walk(folder, onerror=note):
        place = Path(here)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (excluded is None or os.path.realpath(place / name) != excluded)
        )
        written |= {str(place / name) for name in read_entries(place)}
        for name in sorted(files):
            path = place / name
            if not name.startswith(".") and path.suffix.lower() in PICTURE_SUFFIXES:
                # A folder that is named itself is read whole: someone may want to enlarge what was made before.
                if str(path) in written and place != folder:
                    continue
                yield Source(path, PurePosixPath(path.relative_to(folder).as_posix()), folder, in_folder=True)


def place(
    sources: Sequence[Source], output: str | None, *, label: str, suffix: str | None, alone: bool = False
) -> list[Job]:
    """Say where each picture is written, so that no two share a file and no input is overwritten.

    An output is called like its input, ``a.jpg`` -> ``a.png``. Where that name is wanted twice, regarding ``A.png`` and
    ``a.png`` as one name as some file systems do, each keeps its input's suffix: ``a.jpg.png``, ``a.png.png``.
    Where this does not help either, each gets a hash of its input's path. The set of inputs decides, not their order.

    Args:
        sources: all pictures of the run.
        output: file or folder, ``-``, or None for places beside the inputs.
        label: what the names beside the inputs say, such as ``x4``.
        suffix: of the outputs, such as ``.png``; None: that of each input.
        alone: the one input is not a folder, so that ``output`` may be a file.

    Raises:
        ValueError: an input would be overwritten, or one file is asked for several pictures.
    """
    if output == STREAM or (output is None and alone and sources[0].is_stream):
        if not alone:
            raise ValueError(f"expected one picture for stdout, got {len(sources)}; give -o a folder")
        return [Job(sources[0], None)]
    if output is not None and alone and names_a_file(output):
        jobs = [Job(sources[0], Path(output))]
    else:
        if output is not None and not Path(output).is_dir() and _picture_suffix(output):
            raise ValueError(
                f"expected -o a folder for folders or several pictures, got {output}; leave its suffix out"
            )
        jobs = _distinct(sources, output, label, suffix)
    _check_inputs_are_safe(jobs)
    _check_folders(jobs)
    return jobs


def names_a_file(output: str) -> bool:
    """Whether ``-o`` of a single picture names a file; else it is a folder.

    Raises:
        ValueError: it looks like a file of a format that is not written.
    """
    if output.endswith(("/", os.sep)) or Path(output).is_dir():
        return False
    if _picture_suffix(output):
        return True
    if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", Path(output).suffix):
        raise ValueError(
            f"expected an output ending in {', '.join(PICTURE_SUFFIXES)}, got {output}; use one of them, "
            "or end the name of a folder with /"
        )
    return False


def _picture_suffix(output: str) -> bool:
    return not output.endswith(("/", os.sep)) and Path(output).suffix.lower() in PICTURE_SUFFIXES


def _distinct(sources: Sequence[Source], output: str | None, label: str, suffix: str | None) -> list[Job]:
    """Return jobs whose targets are all different."""
    several = len({source.given for source in sources}) > 1
    level = [0] * len(sources)
    while True:
        jobs = [
            _job(source, output, label, suffix, several=several, level=tried)
            for source, tried in zip(sources, level, strict=True)
        ]
        groups: dict[str, list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            groups[_folded(str(job.target))].append(index)
        crowded = [index for group in groups.values() if len(group) > 1 for index in group]
        if not crowded:
            return jobs
        assert any(level[index] < 2 for index in crowded)
        for index in crowded:
            level[index] = min(level[index] + 1, 2)


def _folded(path: str) -> str:
    """The same text for all names that some file system takes for one: case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _job(source: Source, output: str | None, label: str, suffix: str | None, *, several: bool, level: int) -> Job:
    """Return the job with the name of this level: stem, whole name, whole name and hash."""
    root, folder = None, source.given.parent
    beside = output is None and not source.in_folder
    if not beside:
        if output is not None:
            root = Path(output)
        else:
            given = source.given if source.given.name not in ("", "..") else source.given.resolve()
            if not given.name:
                raise ValueError(f"expected -o FOLDER for the input {source.given}, got none; give it")
            root = given.with_name(f"{given.name}_{label}")
        folder = root / source.below.parent
        if output is not None and several and source.in_folder:
            folder = root / (source.given.name or source.given.resolve().name) / source.below.parent
    name = source.below.stem if level == 0 else source.below.name
    if beside:
        name += f"_{label}"
    if level == 2:
        place_text = f"{source.given.as_posix()}/{source.below}"
        name += f"-{hashlib.sha256(os.fsencode(place_text)).hexdigest()[:8]}"
    return Job(source, folder / (name + (source.below.suffix if suffix is None else suffix)), root)


def _check_inputs_are_safe(jobs: Collection[Job]) -> None:
    inputs = {file_key(job.source.path) for job in jobs} - {None}
    for job in jobs:
        if job.target is not None and file_key(job.target) in inputs:
            raise ValueError(f"expected outputs that are no inputs, got {job.output}; give -o another name or folder")


def _check_folders(jobs: Collection[Job]) -> None:
    """Refuse targets below something that is no folder."""
    for folder in dict.fromkeys(job.target.parent for job in jobs if job.target is not None):
        present = next((place for place in (folder, *folder.parents) if place.exists()), None)
        if present is not None and not present.is_dir():
            raise ValueError(f"expected -o a folder, got the file {present}; give another name, or remove the file")


def file_key(path: Path) -> tuple[int, int] | None:
    """Return what is the same for all names of one file; None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
