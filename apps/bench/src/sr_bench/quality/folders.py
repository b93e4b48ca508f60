"""Folders of pictures that belong together: the same names, sizes that fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sr_bench.quality.progress import Bar
from sr_bench.quality.protocols import Protocol
from sr_data.images import image_size, list_images, read_image

LISTED = 20
"""So many files an error names."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to measure.

    Args:
        names: without suffix, "/" between folders.
        lr: LR picture by name; None: not given.
        gt: ground truth by name; None: not given.
    """

    names: tuple[str, ...]
    lr: Mapping[str, Path] | None
    gt: Mapping[str, Path] | None


def by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, sorted.

    Raises:
        ValueError: two files of one name, no pictures.
        FileNotFoundError: no such folder.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"expected one file per name in {folder}, got {found[name]} and {path}; remove one")
        found[name] = path
    return dict(sorted(found.items()))


def match(lr_folder: Path, hr_folder: Path) -> list[tuple[Path, Path]]:
    """Pair LR and HR files by name.

    Raises:
        ValueError: names that are in one folder only, or twice in one.
    """
    lr, hr = by_name(lr_folder), by_name(hr_folder)
    _same_names(lr_folder, lr, hr_folder, hr)
    return [(lr[name], hr[name]) for name in lr]


def pair(lr: Path | None, gt: Path | None, preds: Iterable[Path], limit: int | None = None) -> Pictures:
    """Find the pictures that all folders hold.

    Args:
        lr: folder of LR pictures.
        gt: folder of the ground truth.
        preds: folders of restored pictures.
        limit: take the first so many names.

    Raises:
        ValueError: names that are not in all folders, or twice in one; no folder at all.
        FileNotFoundError: no such folder.
    """
    folders = {folder: by_name(folder) for folder in (gt, lr, *preds) if folder is not None}
    if not folders:
        raise ValueError("expected a folder of pictures, got none; give --pred DIR, or --model NAME with --lr DIR")
    first, *others = folders
    for other in others:
        _same_names(first, folders[first], other, folders[other])
    return Pictures(
        names=tuple(folders[first])[:limit],
        lr=None if lr is None else folders[lr],
        gt=None if gt is None else folders[gt],
    )


def check_readable(files: Collection[Path], console: Console) -> None:
    """Read every picture once: what is broken would leave a metric without values.

    Raises:
        ValueError: pictures that cannot be read; names the files.
    """
    broken = []
    with Bar("reading", len(files), console) as bar:
        for file in files:
            try:
                read_image(file)
            except (ValueError, OSError):
                broken.append(str(file))
            bar.advance(file.name)
    if broken:
        raise ValueError(
            f"expected whole pictures, got {_listed(broken, ', ')}, which cannot be read; replace or remove these files"
        )


def check_sources(pictures: Pictures, protocol: Protocol) -> None:
    """Compare the sizes of LR pictures and ground truth with each other and with the protocol, by their headers.

    Raises:
        ValueError: sizes that do not fit; names the files.
    """
    wrong = []
    for name in pictures.names:
        gt = None if pictures.gt is None else image_size(pictures.gt[name])
        lr = None if pictures.lr is None else image_size(pictures.lr[name])
        enlarged = None if lr is None else (lr[0] * protocol.scale, lr[1] * protocol.scale)
        expected = None if protocol.gt_size is None else protocol.gt_size[::-1]
        if pictures.gt is not None and gt is not None:
            if expected is not None and gt != expected:
                wrong.append(f"{pictures.gt[name]} of {_size(gt)} instead of {_size(expected)}")
            elif pictures.lr is not None and lr is not None and gt != enlarged:
                wrong.append(f"{pictures.gt[name]} of {_size(gt)} for {pictures.lr[name]} of {_size(lr)}")
        elif pictures.lr is not None and lr is not None and expected is not None and enlarged != expected:
            wrong.append(f"{pictures.lr[name]} of {_size(lr)} for a ground truth of {_size(expected)}")
    if wrong:
        raise ValueError(
            f"expected the sizes of protocol {protocol.name} (scale {protocol.scale}), got {_listed(wrong)}; "
            "remove these files, or choose another --protocol"
        )


def check_restored(restored: Mapping[str, Path], pictures: Pictures, protocol: Protocol) -> None:
    """Compare the sizes of restored pictures, by their headers, with the ground truth, the LR pictures or the protocol.

    Raises:
        ValueError: sizes that do not fit; names the files.
    """
    wrong = []
    for name in pictures.names:
        size = image_size(restored[name])
        if pictures.gt is not None:
            other, expected = str(pictures.gt[name]), image_size(pictures.gt[name])
        elif pictures.lr is not None:
            lr = image_size(pictures.lr[name])
            other, expected = str(pictures.lr[name]), (lr[0] * protocol.scale, lr[1] * protocol.scale)
        elif protocol.gt_size is not None:
            other, expected = f"protocol {protocol.name}", protocol.gt_size[::-1]
        else:
            continue
        if size != expected:
            wrong.append(f"{restored[name]} of {_size(size)} instead of {_size(expected)}, which fits {other}")
    if wrong:
        raise ValueError(
            f"expected restored pictures of the size of their ground truth, or {protocol.scale} times that of LR, "
            f"got {_listed(wrong)}; bring them to that size with the tool that made them"
        )


def _same_names(one: Path, first: Mapping[str, Path], two: Path, second: Mapping[str, Path]) -> None:
    if different := sorted(first.keys() ^ second.keys()):
        only = [
            f"only in {folder}: {_listed([name for name in different if name in names], ', ')}"
            for folder, names in ((one, first), (two, second))
            if any(name in names for name in different)
        ]
        raise ValueError(
            f"expected the same names in {one} and {two}, got {'; '.join(only)}; add or remove these files"
        )


def _listed(items: list[str], separator: str = "; ") -> str:
    more = len(items) - LISTED
    return separator.join([*items[:LISTED], *([f"and {more} more"] if more > 0 else [])])


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
