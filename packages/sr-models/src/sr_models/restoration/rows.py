"""Rows of a picture, from the top down: resampled to an exact size, and turned into whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Levels = NDArray[Any]
"""uint8 or uint16."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, as Pillow converts to grey."""
SUPPORT = 2.0
"""Of Pillow's bicubic kernel, in pixels of the coarser grid."""


def to_float(levels: Levels) -> Floats:
    """uint8 or uint16 levels to pixels [-1, 1]."""
    half = np.float32(np.iinfo(levels.dtype).max / 2)
    return np.asarray(levels.astype(np.float32) / half - 1, np.float32)


def to_levels(pixels: Floats, dtype: np.dtype[Any]) -> Levels:
    """Pixels [-1, 1] to the levels of ``dtype``, rounded to nearest; values outside are clamped."""
    top = np.float32(np.iinfo(dtype).max)
    levels: Levels = np.clip(np.rint((pixels + 1) * (top / 2)), 0, top).astype(dtype)
    return levels


def resample(image: Floats, size: tuple[int, int], rows: tuple[float, float] | None = None) -> Floats:
    """Pillow's bicubic resampling (antialiased when it makes smaller) of (H, W, C) float32.

    Args:
        image: rows and channels.
        size: (height, width) of the result.
        rows: which rows of the image the result shows, not whole numbers in general; rows beyond them are context.
    """
    height, width = image.shape[:2]
    top, bottom = rows or (0.0, float(height))
    planes = [
        Image.fromarray(np.ascontiguousarray(image[..., channel], np.float32)).resize(
            (size[1], size[0]), Image.Resampling.BICUBIC, box=(0.0, top, float(width), bottom)
        )
        for channel in range(image.shape[2])
    ]
    out: Floats = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return out


class RowResampler:
    """Resamples a picture that comes in bands of rows and keeps only the rows that are still needed.

    Args:
        source: (height, width) of what comes.
        target: (height, width) of what goes.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        self._source, self._target = source, target
        self._step = source[0] / target[0]  # source rows per target row
        self._reach = SUPPORT * max(self._step, 1.0) + 1
        self._kept: Floats | None = None
        self._first = 0  # number of the first row that is kept
        self._done = 0  # target rows that are out

    def push(self, rows: Floats) -> Floats | None:
        """Take the next rows (n, W, C); return the target rows that can be computed now, if any."""
        if self._source == self._target:
            return rows
        self._kept = rows if self._kept is None else np.concatenate([self._kept, rows])
        seen = self._first + len(self._kept)
        if seen == self._source[0]:
            ready = self._target[0]
        else:
            ready = min(max(int((seen - self._reach) / self._step - 0.5), self._done), self._target[0])
        if ready == self._done:
            return None
        where = (self._done * self._step - self._first, min(ready * self._step - self._first, float(len(self._kept))))
        out = resample(self._kept, (ready - self._done, self._target[1]), where)
        self._done = ready
        keep = max(int((ready + 0.5) * self._step - self._reach) - self._first, 0)
        self._kept, self._first = self._kept[keep:].copy(), self._first + keep
        return out


def enlarge_rows(image: Floats, target: tuple[int, int], start: int, stop: int) -> Floats:
    """Rows ``start`` to ``stop`` of an image resampled to ``target`` (height, width), computed by themselves."""
    step = image.shape[0] / target[0]
    first = max(int(start * step - SUPPORT * max(step, 1.0)) - 2, 0)
    last = min(int(stop * step + SUPPORT * max(step, 1.0)) + 2, image.shape[0])
    where = (start * step - first, min(stop * step - first, float(last - first)))
    return resample(image[first:last], (stop - start, target[1]), where)


def to_grey(pixels: Floats) -> Floats:
    """(n, W, 3) to (n, W, 1), pixels [-1, 1]."""
    return (pixels @ LUMA)[..., None]
