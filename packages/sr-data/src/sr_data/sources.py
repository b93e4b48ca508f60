"""Where crops come from: every crop is a pure function of (seed, index), so a run resumes at any index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sr_data.images import ImageFiles, image_size, read_image
from sr_data.synthetic import generate_image

Pixels = NDArray[np.uint8]

CHECKED_FILES = 4096
"""How many files `validate` of a folder looks at; of a larger folder, a fixed sample of this size."""


@runtime_checkable
class CropSource(Protocol):
    """Square crops by number."""

    def crop(self, index: int, size: int) -> Pixels:
        """Return crop number `index` >= 0 as (size, size, 3) uint8; the same for the same arguments."""
        ...


@runtime_checkable
class PairSource(Protocol):
    """Aligned high- and low-resolution crops by number."""

    scale: int

    def pair(self, index: int, hr_size: int) -> tuple[Pixels, Pixels]:
        """Return pair number `index` as (hr_size, hr_size, 3) and (hr_size / scale, ..., 3) uint8."""
        ...


def _numbers(*key: int) -> np.random.Generator:
    """Return the numpy generator that belongs to a key of integers >= 0."""
    if min(key) < 0:
        raise ValueError(f"expected seed and index >= 0, got {key}; count from 0")
    return np.random.default_rng(np.random.SeedSequence(key))


def _cut(image: Pixels, top: int, left: int, size: int, flip: bool) -> Pixels:
    """Return a square part of a picture, mirrored or not."""
    part = image[top : top + size, left : left + size]
    return np.ascontiguousarray(part[:, ::-1] if flip else part)


class GeneratedImages:
    """Crops of generated pictures (`sr_data.synthetic`); nothing is downloaded.

    Consecutive indexes come from `pool` different pictures. Index i belongs to slot s = i % pool in round
    k = i // pool; a slot shows one picture for c = `crops_per_image` rounds, and the slots change at
    different rounds, which spreads the cost of generating: picture = s + pool * ((k + s * c // pool) // c).

    Args:
        seed: family of pictures, >= 0.
        image_size: side of a generated picture in pixels.
        crops_per_image: crops taken from one picture.
        pool: number of pictures in use at a time.
    """

    def __init__(self, seed: int, image_size: int = 256, crops_per_image: int = 16, pool: int = 64) -> None:
        if min(crops_per_image, pool) < 1:
            raise ValueError(f"expected crops_per_image and pool >= 1, got {crops_per_image} and {pool}; use 1")
        self.seed = seed
        self.image_size = image_size
        self.crops_per_image = crops_per_image
        self.pool = pool
        # Only saves time; what `crop` returns never depends on it.
        self._current: dict[int, tuple[int, Pixels]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_current": {}}

    def image_index(self, index: int) -> int:
        """Return the number of the picture that crop `index` is cut from."""
        turn, slot = divmod(index, self.pool)
        return slot + self.pool * ((turn + slot * self.crops_per_image // self.pool) // self.crops_per_image)

    def crop(self, index: int, size: int) -> Pixels:
        """Return crop number `index` >= 0 as (size, size, 3) uint8."""
        if size > self.image_size:
            raise ValueError(
                f"expected a crop of at most {self.image_size} pixels, got {size}; set image_size to {size} or more"
            )
        rng = _numbers(self.seed, 1, index)
        image = self._image(index)
        top, left = rng.integers(0, self.image_size - size + 1, 2).tolist()
        return _cut(image, top, left, size, flip=bool(rng.random() < 0.5))

    def _image(self, index: int) -> Pixels:
        """Return the picture of crop `index`, generated unless its slot still holds it."""
        slot, number = index % self.pool, self.image_index(index)
        held = self._current.get(slot)
        if held is None or held[0] != number:
            held = (number, generate_image(self.seed, number, self.image_size))
            self._current[slot] = held
        return held[1]


def random_crop(image: Pixels, size: int, seed: int, index: int) -> Pixels:
    """Return the square part of a picture, mirrored or not, that belongs to (seed, index).

    Args:
        image: (H, W, 3) uint8, both sides at least `size`.
        size: side of the crop in pixels.
        seed: >= 0.
        index: number of the sample, >= 0.
    """
    rng = _numbers(seed, 1, index)
    height, width = image.shape[:2]
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return _cut(image, top, left, size, flip=bool(rng.random() < 0.5))


class HRFolder:
    """Crops of the pictures in a folder: shuffled anew every epoch, cut and mirrored at random.

    Args:
        folder: pictures, also in subfolders; millions of them take seconds to list and some tens of megabytes.
        seed: order, positions and mirroring, >= 0.
    """

    def __init__(self, folder: str | os.PathLike[str], seed: int) -> None:
        self.paths = ImageFiles(folder)
        self.seed = seed
        self._order: tuple[int, NDArray[np.integer]] | None = None

    def validate(self, size: int, what: str = "crop") -> None:
        """Check by their headers that the pictures can be opened and are large enough.

        All pictures are looked at up to `CHECKED_FILES`; of a larger folder, as many spread evenly over the sorted
        names, always the same ones. `crop` gives the same error when it meets a bad file that was not looked at.

        Args:
            size: side of the crops in pixels.
            what: what the crops are called in the error, for example "validation crop".

        Raises:
            ValueError: names the first file that is no picture or too small.
        """
        for position in checked_positions(len(self.paths)):
            path = self.paths[position]
            height, width = image_size(path)
            _check_size(path, height, width, size, what)

    def crop(self, index: int, size: int) -> Pixels:
        """Return crop number `index` >= 0 as (size, size, 3) uint8."""
        path = self.paths[self.position(index)]
        image = read_image(path)
        _check_size(path, image.shape[0], image.shape[1], size)
        return random_crop(image, size, self.seed, index)

    def name(self, index: int) -> str:
        """Return the path in the folder, without suffix, of the file that crop `index` >= 0 is cut from."""
        return _name_of(self.paths, self.position(index))

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return [_name_of(self.paths, position) for position in range(len(self.paths))]

    def position(self, index: int) -> int:
        """Return which of the sorted files crop `index` >= 0 is cut from."""
        epoch, place = divmod(index, len(self.paths))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, _numbers(self.seed, 0, epoch).permutation(len(self.paths)))
        return int(self._order[1][place])


def _name_of(paths: ImageFiles, position: int) -> str:
    return paths[position].relative_to(paths.folder).with_suffix("").as_posix()


def checked_positions(files: int) -> list[int]:
    """Return which of so many sorted files are looked at before a run: all, or `CHECKED_FILES` spread evenly."""
    if files <= CHECKED_FILES:
        return list(range(files))
    return [step * (files - 1) // (CHECKED_FILES - 1) for step in range(CHECKED_FILES)]


def _check_size(path: Path, height: int, width: int, size: int, what: str = "crop") -> None:
    """Raise a ValueError where a picture is smaller than the crop."""
    if min(height, width) < size:
        raise ValueError(
            f"expected images of at least {size}x{size} pixels, got {path}: {width}x{height}; "
            f"remove it, enlarge it, or use a smaller {what}"
        )


class PairedFolder:
    """Aligned crops of two folders whose files have the same names.

    Args:
        hr_folder: high-resolution pictures.
        lr_folder: the same pictures, exactly `scale` times smaller.
        scale: enlargement.
        seed: order, positions and mirroring, >= 0.

    Raises:
        ValueError: names that have no partner, or sizes that do not fit.
    """

    def __init__(
        self, hr_folder: str | os.PathLike[str], lr_folder: str | os.PathLike[str], scale: int, seed: int
    ) -> None:
        self.scale = scale
        self._hr = HRFolder(hr_folder, seed)
        hr, lr = _by_name(self._hr.paths), _by_name(ImageFiles(lr_folder))
        if missing := sorted(hr.keys() ^ lr.keys()):
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ValueError(
                f"expected the same names in {hr_folder} and {lr_folder}, got {shown} in only one of them; "
                "rename or remove these files"
            )
        # In the order of the high-resolution files.
        self._lr = ImageFiles(lr_folder, (lr[name] for name in hr))

    def validate(self, hr_size: int, what: str = "crop") -> None:
        """Check by their headers that the pairs fit each other and the crop; of many, a sample as in `HRFolder`.

        Args:
            hr_size: side of the high-resolution crops in pixels.
            what: what the crops are called in the error, for example "validation crop".

        Raises:
            ValueError: names the first pair that does not fit.
        """
        for position in checked_positions(len(self._lr)):
            hr_path, lr_path = self._hr.paths[position], self._lr[position]
            hr, lr = image_size(hr_path), image_size(lr_path)
            self._check_pair(hr_path, lr_path, hr, lr)
            _check_size(hr_path, *hr, hr_size, what)

    def _check_pair(self, hr_path: Path, lr_path: Path, hr: tuple[int, int], lr: tuple[int, int]) -> None:
        """Raise a ValueError where the sizes (height, width) are not exactly `scale` apart."""
        if hr != (lr[0] * self.scale, lr[1] * self.scale):
            fitting = f"{lr[1] * self.scale}x{lr[0] * self.scale}"
            raise ValueError(
                f"expected {hr_path} to be exactly {self.scale} times {lr_path}, got {hr[1]}x{hr[0]} and "
                f"{lr[1]}x{lr[0]}; crop the larger one to {fitting} or set another scale"
            )

    def name(self, index: int) -> str:
        """Return the name of pair `index`, as `HRFolder.name`."""
        return self._hr.name(index)

    def names(self) -> list[str]:
        """Return the names of all pairs, sorted."""
        return self._hr.names()

    def pair(self, index: int, hr_size: int) -> tuple[Pixels, Pixels]:
        """Return aligned crops number `index` >= 0: (hr_size, hr_size, 3) and hr_size / scale, uint8."""
        lr_size = low_resolution_size(hr_size, self.scale)
        rng = _numbers(self._hr.seed, 1, index)
        position = self._hr.position(index)
        hr_path, lr_path = self._hr.paths[position], self._lr[position]
        hr, lr = read_image(hr_path), read_image(lr_path)
        self._check_pair(hr_path, lr_path, (hr.shape[0], hr.shape[1]), (lr.shape[0], lr.shape[1]))
        _check_size(hr_path, hr.shape[0], hr.shape[1], hr_size)
        # Positions in the low-resolution grid keep the two crops aligned.
        top, left = (int(rng.integers(edge - lr_size + 1)) for edge in lr.shape[:2])
        flip = bool(rng.random() < 0.5)
        scale = self.scale
        return _cut(hr, top * scale, left * scale, hr_size, flip), _cut(lr, top, left, lr_size, flip)


def _by_name(files: ImageFiles) -> dict[str, str]:
    """Return the files by their path in the folder without suffix, in order; a ValueError for doubles."""
    found: dict[str, str] = {}
    for file in files.names():
        name = file.rpartition(".")[0]
        if name in found:
            raise ValueError(
                f"expected one file per name in {files.folder}, got {files.folder / found[name]} and "
                f"{files.folder / file}; remove one"
            )
        found[name] = file
    return found


def low_resolution_size(hr_size: int, scale: int) -> int:
    """Return the side of the low-resolution crop; a ValueError unless hr_size is a multiple of the scale."""
    if scale < 1 or hr_size % scale:
        raise ValueError(f"expected an HR size divisible by the scale, got {hr_size} and {scale}; choose a multiple")
    return hr_size // scale
