"""Pictures restored by the methods of ``--model``, each made once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sr_bench.quality.folders import Pictures
from sr_bench.quality.kept import Records, digest
from sr_bench.quality.methods import AUTOENCODER, Asked, Method, folder_name
from sr_bench.quality.progress import Bar
from sr_data.images import read_image, write_image
from sr_models.store import sha256

FOLDER = "pictures"


@dataclass(frozen=True)
class Restored:
    """Pictures of one method.

    Args:
        files: by name.
        folder: that holds them.
        seconds: of restoring one, the mean.
    """

    files: Mapping[str, Path]
    folder: Path
    seconds: float


def restore_all(
    asked: Asked, method: Method, pictures: Pictures, folder: Path, records: Records, console: Console
) -> Restored:
    """Restore what is not there yet; a picture counts as there if its file is the one that was written for this LR
    picture by these settings.

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
    known = {(record["method"], record["image"]): record for record in records}
    seconds = 0.0
    with Bar("restoring", len(files), console) as bar:
        for name, file in files.items():
            made_of = [dict(method.settings), method.source, sha256(pictures.lr[name])]
            if asked.name == AUTOENCODER and pictures.gt is not None:
                made_of.append(sha256(pictures.gt[name]))
            made = digest(made_of)
            record = known.get((asked.label, name))
            if record is None or record["made"] != made or not _is_whole(file, record["sha256"]):
                record = {"method": asked.label, "image": name, "made": made, **_restore(method, pictures, name, file)}
                records.append(record)
            seconds += record["seconds"]
            bar.advance(f"{asked.label}: {name}")
    return Restored(files, place, seconds / len(files))


def _restore(method: Method, pictures: Pictures, name: str, file: Path) -> dict[str, str | float]:
    assert pictures.lr is not None
    lr = read_image(pictures.lr[name])
    gt = None if pictures.gt is None else read_image(pictures.gt[name])
    begin = time.perf_counter()
    restored = method.restore(lr, gt)
    seconds = time.perf_counter() - begin
    write_image(file, restored)
    return {"sha256": sha256(file), "seconds": seconds}


def _is_whole(file: Path, content: str) -> bool:
    return file.is_file() and sha256(file) == content
