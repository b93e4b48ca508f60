"""Write PNG row by row with its metadata; no library does both."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sr_data.pictures import Levels, Metadata

_BAND_BYTES = 1 << 16  # rows filtered at once; small enough for the caches
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


class PngEncoder:
    """Write a PNG band by band; memory holds one small band.

    Args:
        file: at its beginning.
        height: rows.
        width: columns.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        dtype: uint8 or uint16.
        metadata: written as it is.

    Source: PNG (Third Edition), W3C.
    """

    def __init__(
        self, file: BinaryIO, height: int, width: int, channels: int, dtype: np.dtype[Any], metadata: Metadata
    ) -> None:
        self._file = file
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 15, 9)
        self._pixel_bytes = channels * dtype.itemsize
        self._previous = np.zeros((1, width * self._pixel_bytes), np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        head = struct.pack(">IIBBBBB", width, height, 8 * dtype.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
        self._chunk(b"IHDR", head)
        if metadata.icc is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc, 9))
        if metadata.dpi is not None:
            x, y = (min(round(value / 0.0254), 2**31 - 1) for value in metadata.dpi)
            self._chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
        if metadata.exif is not None:
            self._chunk(b"eXIf", metadata.exif)
        if metadata.xmp is not None:
            self._chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)

    def write(self, rows: Levels) -> None:
        """Take the next rows, (n, width, channels)."""
        step = max(1, _BAND_BYTES // self._previous.shape[1])
        for start in range(0, len(rows), step):
            band = rows[start : start + step]
            stored = band.astype(band.dtype.newbyteorder(">"), order="C")
            flat = stored.view(np.uint8).reshape(len(band), -1)
            self._data(self._compressor.compress(filtered(flat, self._previous, self._pixel_bytes).tobytes()))
            self._previous = flat[-1:].copy()

    def close(self) -> None:
        """Write what is left and the end mark."""
        self._data(self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _data(self, packed: bytes) -> None:
        """Write compressed pixels, where there are some."""
        if packed:
            self._chunk(b"IDAT", packed)

    def _chunk(self, name: bytes, content: bytes) -> None:
        """Write one chunk: length, name, content, checksum."""
        checksum = zlib.crc32(content, zlib.crc32(name))
        self._file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))


def filtered(rows: NDArray[np.uint8], previous: NDArray[np.uint8], pixel_bytes: int) -> NDArray[np.uint8]:
    """Return rows with each row's best filter: the one with the smallest sum of absolute differences.

    Args:
        rows: (n, bytes a row).
        previous: (1, bytes a row), the row above the first one.
        pixel_bytes: bytes a pixel.

    Returns:
        (n, 1 + bytes a row): the number of the filter (0 none, 1 sub, 2 up, 4 Paeth), then the differences.

    Source: PNG (Third Edition), section 9; the choice is the heuristic of its section 12.7.
    """
    above = np.concatenate((previous, rows[:-1]))
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    corner[:, pixel_bytes:] = above[:, :-pixel_bytes]
    best = rows
    cost = _cost(rows)
    number = np.zeros(len(rows), np.uint8)
    for code, predicted in ((1, left), (2, above), (4, _paeth(left, above, corner))):
        candidate = rows - predicted
        candidate_cost = _cost(candidate)
        better = candidate_cost < cost
        best = np.where(better[:, None], candidate, best)
        number[better] = code
        cost = np.minimum(cost, candidate_cost)
    return np.concatenate((number[:, None], best), axis=1)


def _cost(differences: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return each row's sum of absolute differences, bytes taken as -128 ... 127."""
    sums: NDArray[np.int64] = np.minimum(differences, np.uint8(0) - differences).sum(axis=1, dtype=np.int64)
    return sums


def _paeth(left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return of each three neighbours the one nearest to left + above - corner; ties go left, then above."""
    by_left = np.abs(above.astype(np.int16) - corner)
    by_above = np.abs(left.astype(np.int16) - corner)
    by_corner = np.abs(left.astype(np.int16) + above - 2 * corner.astype(np.int16))
    upper = np.where(by_above <= by_corner, above, corner)
    return np.where((by_left <= by_above) & (by_left <= by_corner), left, upper)
