"""Pictures restored by the methods of ``--model``, each made once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sr_bench.quality.folders import Pictures
from sr_bench.quality.kept import Record, Records, digest
from sr_bench.quality.methods import AUTOENCODER, Asked, Method, folder_name
from sr_bench.quality.progress import Bar
from sr_bench.record import git_commit
from sr_data.images import read_image, write_image
from sr_models.store import sha256

FOLDER = "pictures"


class Made(Record):
    """A restored picture.

    Args:
        method: label.
        image: name.
        made: digest of the settings and the pictures that it was made of.
        versions: of the packages that made it.
        commit: of this code.
        threads: of torch.
        sha256: of the file.
        seconds: of restoring it.
    """

    method: str
    image: str
    made: str
    versions: dict[str, str]
    commit: str | None
    threads: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Restored:
    """Pictures of one method.

    Args:
        files: by name.
        folder: that holds them.
        seconds: of restoring one, the mean.
        note: commits and numbers of threads, where the pictures were made by several; empty: by one.
    """

    files: Mapping[str, Path]
    folder: Path
    seconds: float
    note: str


def restore_all(
    asked: Asked, method: Method, pictures: Pictures, folder: Path, records: Records[Made], console: Console
) -> Restored:
    """Restore what is not there yet; a picture counts as there if its file is the one that was written for this LR
    picture by these settings and versions.

    Args:
        asked: which method.
        method: the same, ready.
        pictures: LR pictures, and the ground truth.
        folder: below which ``pictures/LABEL`` lies.
        records: of restored pictures.
        console: for progress.
    """
    assert pictures.lr is not None
    place = folder / FOLDER / folder_name(asked.label)
    files = {name: place / f"{name}.png" for name in pictures.names}
    known = {record.image: record for record in records if record.method == asked.label}
    versions = {package: version(package) for package in method.packages}
    commit = git_commit(Path(__file__).parent)
    made = []
    with Bar("restoring", len(files), console) as bar:
        for name, file in files.items():
            content = _content(asked, method, pictures, name)
            record = known.get(name)
            if record is None or (record.made, record.versions) != (content, versions) or not _is_whole(file, record):
                record = Made(
                    method=asked.label,
                    image=name,
                    made=content,
                    versions=versions,
                    commit=commit,
                    threads=torch.get_num_threads(),
                    **_restore(method, pictures, name, file),
                )
                records.append(record)
            made.append(record)
            bar.advance(f"{asked.label}: {name}")
    return Restored(files, place, sum(record.seconds for record in made) / len(made), _note(made))


def _content(asked: Asked, method: Method, pictures: Pictures, name: str) -> str:
    """Digest of what a picture is made of."""
    assert pictures.lr is not None
    made_of = [dict(method.settings), method.source, sha256(pictures.lr[name])]
    if asked.name == AUTOENCODER and pictures.gt is not None:
        made_of.append(sha256(pictures.gt[name]))
    return digest(made_of)


def _restore(method: Method, pictures: Pictures, name: str, file: Path) -> dict[str, Any]:
    assert pictures.lr is not None
    lr = read_image(pictures.lr[name])
    gt = None if pictures.gt is None else read_image(pictures.gt[name])
    begin = time.perf_counter()
    restored = method.restore(lr, gt)
    seconds = time.perf_counter() - begin
    write_image(file, restored)
    return {"sha256": sha256(file), "seconds": seconds}


def _is_whole(file: Path, record: Made) -> bool:
    return file.is_file() and sha256(file) == record.sha256


def _note(made: Iterable[Made]) -> str:
    """``commit C, threads N: M pictures`` of every origin; empty for a single one."""
    origins = Counter(f"commit {record.commit or 'unknown'}, threads {record.threads}" for record in made)
    return "" if len(origins) == 1 else "; ".join(f"{origin}: {count} pictures" for origin, count in origins.items())
