"""Several results as one comparison: the same protocol, the images that all have, one label for each method."""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sr_bench.quality.metrics import METRICS
from sr_bench.quality.protocols import Protocol
from sr_bench.quality.result import MethodResult, QualityResult, read_result
from sr_bench.record import Provenance
from sr_data.images import list_images

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """A method on the images of the comparison.

    Args:
        label: unlike all others.
        values: metric key -> one value for each image.
        whole: metric key -> one value of all images together.
        missing: metric key -> why there is no value.
        pictures: folder, which need not exist; None: not kept.
        result: everything else that was recorded.
    """

    label: str
    values: Mapping[str, Values]
    whole: Mapping[str, float]
    missing: Mapping[str, str]
    pictures: Path | None
    result: MethodResult

    @property
    def is_ranked(self) -> bool:
        """Whether it may be best or second best: not with the ground truth in its pictures."""
        return not self.result.sees_gt

    def mean(self, key: str) -> float | None:
        """Mean over the images, or the value of all together; None: not measured."""
        if key in self.values:
            return float(np.mean(self.values[key]))
        return self.whole.get(key)


@dataclass(frozen=True)
class Comparison:
    """Methods that were measured in the same way on the same images.

    Args:
        protocol: of all.
        images: names without suffix, those that all results have.
        methods: in the order of the results.
        lr: folder of the LR pictures; None: unknown.
        gt: folder of the ground truth; None: unknown.
        provenances: name of a result -> how it was made.
        notes: what the reader of the figures should know.
    """

    protocol: Protocol
    images: tuple[str, ...]
    methods: tuple[Method, ...]
    lr: Path | None
    gt: Path | None
    provenances: Mapping[str, Provenance]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Keys of what was measured of one method at least: the protocol's first, then in the order of METRICS."""
        measured = {key for method in self.methods for key in (*method.values, *method.whole)}
        order = dict.fromkeys((*self.protocol.metrics, *METRICS))
        return tuple(key for key in order if key in measured and key in METRICS)

    def method(self, label: str, option: str) -> Method:
        """A method by its label.

        Raises:
            ValueError: there is none; ``option`` is named as the place to change.
        """
        for found in self.methods:
            if found.label == label:
                return found
        labels = ", ".join(found.label for found in self.methods)
        raise ValueError(f"expected one of the methods {labels}, got {label!r}; change {option}")


def load(paths: Sequence[Path], gt: Path | None = None, lr: Path | None = None) -> Comparison:
    """Read results and bring them together.

    Args:
        paths: ``result.json`` or their folders.
        gt: folder of the ground truth instead of the recorded one.
        lr: folder of the LR pictures instead of the recorded one.

    Raises:
        ValueError: results of different protocols, of different pictures, without a common image, or the same twice.
    """
    folders = [(path if path.is_dir() else path.parent).resolve() for path in paths]
    if twice := [str(path) for path, count in zip(paths, map(folders.count, folders), strict=True) if count > 1]:
        raise ValueError(f"expected every result once, got {', '.join(twice)}; leave one out")
    results = [read_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        _check_protocol(paths[0], results[0].protocol, path, result.protocol)
    images = [name for name in results[0].images if all(name in set(result.images) for result in results)]
    if not images:
        raise ValueError(
            f"expected results of the same images, got none in common in {len(paths)} results; choose others"
        )
    names = _names(folders)
    labels = Counter(label for result in results for label in result.methods)
    methods = [
        _method(f"{label} ({name})" if labels[label] > 1 else label, found, result.images, images, folder)
        for name, folder, result in zip(names, folders, results, strict=True)
        for label, found in result.methods.items()
    ]
    return Comparison(
        protocol=results[0].protocol,
        images=tuple(images),
        methods=tuple(methods),
        lr=lr or _first_folder(folders, [result.lr for result in results]),
        gt=gt or _first_folder(folders, [result.gt for result in results]),
        provenances={name: result.provenance for name, result in zip(names, results, strict=True)},
        notes=(*_notes(names, results, len(images)), *_unchecked(names, folders, results, images)),
    )


def picture_files(folder: Path | None) -> Mapping[str, Path]:
    """Name without suffix -> file; empty without a folder. A PNG comes before the same picture in another format."""
    if folder is None or not folder.is_dir():
        return {}
    try:
        paths = list_images(folder)
    except ValueError:  # no images
        return {}
    paths.sort(key=lambda path: path.suffix.lower() == ".png")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _check_protocol(first: Path, wanted: Protocol, path: Path, got: Protocol) -> None:
    if got == wanted:
        return
    different = [key for key in Protocol.model_fields if getattr(got, key) != getattr(wanted, key)]
    raise ValueError(
        f"expected results of one protocol, got {wanted.name} {wanted.version} in {first} and {got.name} {got.version} "
        f"in {path} ({', '.join(different)} differ); measure one of them again with the other's --protocol"
    )


def _unchecked(
    names: Sequence[str], folders: Sequence[Path], results: Sequence[QualityResult], images: Sequence[str]
) -> list[str]:
    """Check that all results are of the first one's pictures; a note for each that it cannot be known of.

    Raises:
        ValueError: pictures with the same name differ.
    """
    notes = []
    for name, folder, result in list(zip(names, folders, results, strict=True))[1:]:
        pairs = (("LR", results[0].lr, result.lr), ("ground truth", results[0].gt, result.gt))
        same = [
            _same_pictures(kind, (folders[0] / one).resolve(), (folder / other).resolve(), images)
            for kind, one, other in pairs
            if one is not None and other is not None
        ]
        if not any(same):
            notes.append(
                f"{names[0]} and {name} have images of the same names; whether they are the same pictures could not "
                "be checked, as their folders of LR and ground truth are not both known and there."
            )
    return notes


def _same_pictures(kind: str, one: Path, other: Path, images: Sequence[str]) -> bool:
    """Whether two folders are known to hold the same files for the images that both have.

    Raises:
        ValueError: a file differs.
    """
    if one == other:
        return True
    first, second = picture_files(one), picture_files(other)
    common = [name for name in images if name in first and name in second]
    for name in common:
        if not filecmp.cmp(first[name], second[name], shallow=False):
            raise ValueError(
                f"expected results of the same pictures, got different {kind} files {first[name]} and {second[name]}; "
                "measure one of them again with the pictures of the other, or compare results of the same data"
            )
    return bool(common)


def _method(label: str, found: MethodResult, had: Sequence[str], images: Sequence[str], folder: Path) -> Method:
    """Take the values of the common images; a value of all images together holds for all of them alone."""
    place = {name: index for index, name in enumerate(had)}
    chosen = np.array([place[name] for name in images])
    fewer = "not available: measured on more images than are compared"
    complete = len(had) == len(images)
    return Method(
        label=label,
        values={key: np.asarray(values, dtype=np.float64)[chosen] for key, values in found.values.items()},
        whole=found.whole if complete else {},
        missing={**found.missing, **({} if complete else dict.fromkeys(found.whole, fewer))},
        pictures=None if found.pictures is None else folder / found.pictures,
        result=found,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parent folders as tell them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [folder.as_posix() for folder in folders]


def _first_folder(folders: Sequence[Path], recorded: Sequence[str | None]) -> Path | None:
    """The first recorded folder that is there."""
    found = [folder / place for folder, place in zip(folders, recorded, strict=True) if place is not None]
    return next((place for place in found if place.is_dir()), found[0] if found else None)


def _notes(names: Sequence[str], results: Sequence[QualityResult], common: int) -> list[str]:
    notes = []
    for name, result in zip(names, results, strict=True):
        if len(result.images) > common:
            notes.append(f"Only {common} of the {len(result.images)} images of {name} are in all results and compared.")
    versions = {result.provenance.versions.get("pyiqa") for result in results} - {None}
    if len(versions) > 1:
        notes.append(
            f"The results were measured with different versions of pyiqa: {', '.join(sorted(map(str, versions)))}."
        )
    return notes
