"""The pictures of one image for the page: the same region of LR, every method and ground truth, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sr_bench.compare.load import Comparison, picture_files
from sr_data.images import Pixels, read_image

QUALITY = 90
LR, GT = "LR", "ground truth"
_WINDOW = 48  # pixels along a side of the place that is magnified first


@dataclass(frozen=True)
class Cell:
    """One picture of a strip.

    Args:
        name: label of the method, :data:`LR` or :data:`GT`.
        kind: ``lr``, ``method`` or ``gt``.
        uri: ``data:image/...``; None: there is no such picture.
    """

    name: str
    kind: str
    uri: str | None


@dataclass(frozen=True)
class Strip:
    """The pictures of one image.

    Args:
        cells: LR, methods, ground truth.
        width: of the region, in pixels of the ground truth.
        height: likewise.
        whole: (width, height) of the picture that the region is cut from.
        corner: (x, y) of the region in it.
        place: (x, y) in the region, 0 to 1, where methods differ most.
    """

    cells: tuple[Cell, ...]
    width: int
    height: int
    whole: tuple[int, int]
    corner: tuple[int, int]
    place: tuple[float, float]

    @property
    def cut(self) -> bool:
        """Whether there is more of the picture than the region."""
        return self.whole != (self.width, self.height)


class Folders:
    """Where the pictures are: a folder for LR, for ground truth, and for every method that has one.

    Args:
        comparison: what was measured.
    """

    def __init__(self, comparison: Comparison) -> None:
        places = {method.label: method.pictures for method in comparison.methods}
        self.methods = {label: picture_files(place) for label, place in places.items()}
        self.lr, self.gt = picture_files(comparison.lr), picture_files(comparison.gt)

    def notes(self) -> list[str]:
        """What the page has to say about pictures that are not there."""
        notes = []
        if without := [label for label, files in self.methods.items() if not files]:
            notes.append(f"In the tables only, as their pictures were not kept or not found: {', '.join(without)}.")
        for name, files, option in (("LR pictures", self.lr, "--lr"), (f"{GT} pictures", self.gt, "--gt")):
            if not files:
                notes.append(f"No {name} were found; {option} FOLDER names them.")
        return notes

    def strip(self, image: str, crop: int, lossless: bool) -> Strip | None:
        """The pictures of an image; None: no method has one.

        Args:
            image: name without suffix.
            crop: longest side of the region in pixels.
            lossless: PNG instead of JPEG.

        Raises:
            ValueError: pictures of one image have different sizes.
        """
        paths = {label: files.get(image) for label, files in self.methods.items() if files}
        methods = {label: read_image(path) for label, path in paths.items() if path is not None}
        if not methods:
            return None
        gt = read_image(self.gt[image]) if image in self.gt else None
        full = gt if gt is not None else next(iter(methods.values()))
        for label, picture in methods.items():
            if picture.shape != full.shape:
                raise ValueError(
                    f"expected pictures of one size for {image}, got {_size(picture)} of {label} beside {_size(full)}; "
                    "measure again, or name the right folder with --gt"
                )
        height, width = full.shape[:2]
        unlike = disagreement([*methods.values()], gt)
        step = self._step(image, width)
        high, wide = (side if side <= crop else max(step, crop - crop % step) for side in (height, width))
        top, left = busiest(unlike, (high, wide), step)
        region = (slice(top, top + high), slice(left, left + wide))
        cells = [Cell(label, "method", _uri(methods.get(label), region, lossless)) for label in paths]
        if image in self.lr:
            lr = _enlargeable(read_image(self.lr[image]), (height, width), region)
            cells.insert(0, Cell(LR, "lr", data_uri(lr, lossless=True)))
        if gt is not None:
            cells.append(Cell(GT, "gt", _uri(gt, region, lossless)))
        side = (min(_WINDOW, high), min(_WINDOW, wide))
        y, x = busiest(unlike[region], side)
        place = ((x + side[1] / 2) / wide, (y + side[0] / 2) / high)
        return Strip(tuple(cells), wide, high, (width, height), (left, top), place)

    def _step(self, image: str, width: int) -> int:
        """Regions begin and end at whole LR pixels, where the scale is a whole number."""
        if image not in self.lr:
            return 1
        with Image.open(self.lr[image]) as lr:
            return max(1, round(width / lr.width))


def disagreement(methods: Sequence[Pixels], gt: Pixels | None) -> NDArray[np.float32]:
    """How much pictures differ at every pixel: standard deviation over the methods, or one method's distance to GT.

    Args:
        methods: (H, W, 3) uint8 each.
        gt: likewise; None: not there.

    Returns:
        (H, W).
    """
    pictures = [*methods] if len(methods) > 1 or gt is None else [*methods, gt]
    total = np.zeros(pictures[0].shape, np.float32)
    squares = np.zeros_like(total)
    for picture in pictures[1:]:
        apart = picture - pictures[0].astype(np.float32)  # so that equal pictures give exact zeros
        total += apart
        squares += np.square(apart)
    variance = squares / len(pictures) - np.square(total / len(pictures))
    found: NDArray[np.float32] = np.sqrt(np.maximum(variance, 0).mean(axis=-1))
    return found


def busiest(values: NDArray[np.float32], size: tuple[int, int], step: int = 1) -> tuple[int, int]:
    """(top, left) of the window with the largest sum; the middle one where all are equal.

    Args:
        values: (H, W), not negative.
        size: (height, width) of the window, at most (H, W).
        step: windows begin at multiples of it.
    """
    height, width = size
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.astype(np.float64).cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    windows = windows[::step, ::step]
    largest = windows.max()
    if largest - windows.min() <= 1e-6 * max(largest, 1.0):
        return (windows.shape[0] // 2) * step, (windows.shape[1] // 2) * step
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(row) * step, int(column) * step


def data_uri(picture: Pixels, lossless: bool) -> str:
    """A picture as ``data:image/png`` or ``data:image/jpeg``, without chroma subsampling."""
    stream = io.BytesIO()
    if lossless:
        Image.fromarray(picture).save(stream, "PNG", optimize=True)
    else:
        Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _uri(picture: Pixels | None, region: tuple[slice, slice], lossless: bool) -> str | None:
    return None if picture is None else data_uri(picture[region], lossless)


def _enlargeable(lr: Pixels, size: tuple[int, int], region: tuple[slice, slice]) -> Pixels:
    """The part of the LR picture under a region of the large one; the browser enlarges it without smoothing."""
    down, across = lr.shape[0] / size[0], lr.shape[1] / size[1]
    top, bottom = region[0].start * down, region[0].stop * down
    left, right = region[1].start * across, region[1].stop * across
    target = (max(1, round(right - left)), max(1, round(bottom - top)))
    cut = Image.fromarray(lr).resize(target, Image.Resampling.NEAREST, box=(left, top, right, bottom))
    return np.asarray(cut)


def _size(picture: Pixels) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
