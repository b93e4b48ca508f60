"""Folders of restored pictures, checked and made into a study."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.progress import track

from sr_bench.quality.result import RESULT, read_result
from sr_bench.study.definition import MOST_CANDIDATES, Reference, Study
from sr_data.images import list_images, read_image

Files = Mapping[str, Path]
"""Name of a picture, without suffix, ``/`` between folders -> its file."""


@dataclass(frozen=True)
class Material:
    """A study and the files of its pictures.

    Args:
        study: the study.
        methods: label -> files by name.
        references: ``lr`` or ``gt`` -> files by name.
    """

    study: Study
    methods: Mapping[str, Files]
    references: Mapping[Reference, Files]


@dataclass(frozen=True)
class Folders:
    """Where the pictures are.

    Args:
        methods: label -> folder.
        references: ``lr`` or ``gt`` -> folder.
    """

    methods: Mapping[str, Path]
    references: Mapping[Reference, Path]


def find_folders(given: Sequence[str], lr: Path | None = None, gt: Path | None = None) -> Folders:
    """Find the folder of every method.

    Args:
        given: ``DIR`` (its name is the label), ``LABEL=DIR``, or a folder with the ``result.json`` of
            ``sr-bench quality``, which stands for all its methods, and for its references where none are given.
        lr: folder of the low resolution pictures.
        gt: folder of the originals.

    Raises:
        ValueError: one label twice, or fewer than two methods.
    """
    methods: list[tuple[str, Path]] = []
    references: dict[Reference, Path] = {}
    for text in given:
        label, equals, folder = text.partition("=")
        path = Path(text)
        if equals and not path.exists():
            methods.append((label, Path(folder)))
        elif (path / RESULT).is_file():
            result = read_result(path)
            methods += [(name, path / one.pictures) for name, one in result.methods.items() if one.pictures is not None]
            references |= {"lr": path / result.lr} if result.lr is not None else {}
            references |= {"gt": path / result.gt} if result.gt is not None else {}
        else:
            methods.append((path.resolve().name, path))
    references |= {"lr": lr} if lr is not None else {}
    references |= {"gt": gt} if gt is not None else {}
    labels = [label for label, _ in methods]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"expected one folder for each label, got {', '.join(twice)} twice; write LABEL=DIR")
    if len(methods) < 2 or "" in labels:
        raise ValueError(f"expected at least two methods with labels, got {labels}; name two folders, or LABEL=DIR")
    return Folders(dict(methods), references)


def gather(
    folders: Folders,
    *,
    question: str | None = None,
    categories: Path | None = None,
    candidates: int | None = None,
    per_person: int | None = None,
    repeats: int = 0,
    seed: int = 0,
) -> Material:
    """Read every picture once, check that they belong together, and define the study.

    Args:
        folders: where the pictures are.
        question: as it is asked; None: a question about the references that are shown.
        categories: CSV file with a line ``image,category`` for each picture.
        candidates: methods in one question; None: all, but not more than six.
        per_person: pictures for each person; None: all.
        repeats: pictures shown twice to each person.
        seed: of all orders.

    Raises:
        ValueError: names or sizes that differ, a picture that cannot be read, or numbers that do not fit.
    """
    order: tuple[Reference, ...] = tuple(name for name in ("lr", "gt") if name in folders.references)
    methods = {label: _by_name(folder) for label, folder in folders.methods.items()}
    references = {name: _by_name(folders.references[name]) for name in order}
    first = next(iter(methods))
    _check_names({**methods, **{str(name): files for name, files in references.items()}}, first)
    images = tuple(sorted(methods[first]))
    study = _define(
        question=question or default_question(order),
        methods=tuple(methods),
        images=images,
        categories=read_categories(categories, images) if categories is not None else {},
        references=order,
        candidates=min(len(methods), MOST_CANDIDATES) if candidates is None else candidates,
        per_person=len(images) if per_person is None else per_person,
        repeats=repeats,
        seed=seed,
        pictures_sha256=_checked_digest(images, methods, references),
    )
    return Material(study, methods, references)


def _define(**fields: Any) -> Study:
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def default_question(references: Sequence[Reference]) -> str:
    """The criteria of TSD-SR's user study, as far as the references allow them (TSD-SR Section 4.3)."""
    looks = {"gt": "like the original", "lr": "true to the input"}
    criteria = [looks[name] for name in ("gt", "lr") if name in references]
    return f"Which is the best restoration: {', '.join([*criteria, 'with natural textures and details'])}?"


def read_categories(path: Path, images: Sequence[str]) -> dict[str, str]:
    """Read ``image,category`` lines under a header of these two words; every image must have one category.

    Raises:
        ValueError: another header, images without a category, or names that are no image.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if not lines or lines[0] != ["image", "category"] or any(len(line) != 2 or not line[1] for line in lines):
        raise ValueError(f"expected lines image,category under a header image,category in {path}; add what is missing")
    known = set(images)
    found = {name if name in known else _without_suffix(name): category for name, category in lines[1:]}
    if len(found) < len(lines) - 1:
        raise ValueError(f"expected one line for each image in {path}, got some twice; remove what is double")
    problems = [f"no category for {_few(known - found.keys())}"] if known - found.keys() else []
    problems += [f"no image for {_few(found.keys() - known)}"] if found.keys() - known else []
    if problems:
        raise ValueError(f"expected a category for every image, got {'; '.join(problems)}; correct {path}")
    return {name: found[name] for name in images}


def _by_name(folder: Path) -> Files:
    files: dict[str, Path] = {}
    for path in list_images(folder):
        name = _without_suffix(path.relative_to(folder).as_posix())
        if name in files:
            raise ValueError(f"expected one file of each name, got {files[name]} and {path}; remove one")
        files[name] = path
    return files


def _without_suffix(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = Path(file).stem
    return f"{folder}/{stem}" if folder else stem


def _check_names(found: Mapping[str, Files], first: str) -> None:
    problems = []
    for label, files in found.items():
        missing, more = found[first].keys() - files.keys(), files.keys() - found[first].keys()
        problems += [f"{label} lacks {_few(missing)}"] if missing else []
        problems += [f"{first} lacks {_few(more)} of {label}"] if more else []
    if problems:
        raise ValueError(f"expected the same names in every folder, got: {'; '.join(problems)}; add or remove files")


def _checked_digest(images: Sequence[str], methods: Mapping[str, Files], references: Mapping[Reference, Files]) -> str:
    """SHA-256 over the pixels of all pictures; a ValueError lists those whose sizes differ."""
    digest, problems = hashlib.sha256(), []
    for name in track(images, description="checking pictures", transient=True):
        wanted: tuple[int, ...] | None = None
        for label, files in (*methods.items(), *references.items()):
            pixels = read_image(files[name])
            digest.update(f"{label}/{name}{pixels.shape}".encode())
            digest.update(pixels.tobytes())
            size = pixels.shape[:2]
            wanted = wanted or size
            if not (_same_shape(size, wanted) if label == "lr" and label in references else size == wanted):
                problems.append(f"{files[name]} is {size[1]}x{size[0]}, not {wanted[1]}x{wanted[0]}")
    if problems:
        raise ValueError(f"expected one size for each picture, got: {_few(problems)}; make them again")
    return digest.hexdigest()


def _same_shape(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether one scale makes a small picture large, up to a pixel of rounding."""
    scale = max(round(large[0] / small[0]), 1)
    return all(abs(little * scale - much) < scale for little, much in zip(small, large, strict=True))


def _few(names: Iterable[str], most: int = 10) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
