"""TIFF: read with tifffile (16 bit, planar, every compression), written strip by strip with EXIF directories.

tifffile can neither write EXIF directories nor take rows as they come, so the writer is here; it shares the directories
with `sr_data.exif`.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sr_data import exif as exif_blocks
from sr_data.exif import LONG, LONG8, RATIONAL, SHORT, UNDEFINED, Directory, Layout, Tag
from sr_data.formats import DENOMINATOR
from sr_data.images import open_image
from sr_data.limits import check_size
from sr_data.pictures import (
    Levels,
    Metadata,
    Picture,
    Unsuitable,
    damaged,
    finished,
    pillow_pixels,
    unsuitable,
)

_STRIP_BYTES = 1 << 18
_CLASSIC_BYTES = 4_200_000_000  # 32-bit offsets end at 4.29e9; deflate makes noise 0.1 % longer
_REFUSED = {5: "CMYK pixels", 8: "Lab pixels", 9: "Lab pixels", 10: "Lab pixels", 32803: "a camera's raw data"}
_NAMED = 20


def read_tiff(path: str | os.PathLike[str], data: bytes) -> Picture:
    """Return the first page of a TIFF file.

    Args:
        path: its name in errors.
        data: the bytes of the file.

    Raises:
        ValueError: a damaged file, or more pixels than Pillow accepts.
        Unsuitable: pixels that would have to be converted first.
    """
    import tifffile

    log = logging.getLogger("tifffile")
    if not log.handlers:  # else it prints to the terminal what the error says
        log.addHandler(logging.NullHandler())
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if len(file.pages) == 0:
                raise ValueError("no page is left of it")
            page = file.pages[0]
            check_size(path, page.imagewidth, page.imagelength)
            _check_kind(page)
            notes = [] if len(file.pages) == 1 else [f"{len(file.pages)} pages in the file: only the first was read"]
            # Pillow knows palettes, 1 bit and JPEG's YCbCr; what it reads is turned upright already.
            plain = page.photometric in (0, 1, 2) and page.bitspersample in (8, 16)
            if plain:
                _check_complete(page, len(data))
                pixels = _pixels(page, notes)
            block, others = _described(data, notes)
            turn = exif_blocks.orientation(data)
            metadata = _metadata(page, data, block)
    except (Unsuitable, ValueError, MemoryError):
        raise
    except Exception as error:  # the parser meets broken bytes with errors of every kind
        raise damaged(path, error) from error
    if not plain:
        with open_image(path, data) as image:
            pixels = pillow_pixels(image)
    if others:
        named = ", ".join(str(code) for code in others[:_NAMED])
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        notes.append(f"tags of the TIFF: {named}{more}")
    if not plain and turn >= 5 and metadata.dpi is not None:
        metadata = replace(metadata, dpi=metadata.dpi[::-1])
    return finished(pixels, metadata, notes, turn=turn if plain else 1)


def _described(data: bytes, notes: list[str]) -> tuple[bytes | None, tuple[int, ...]]:
    """Return `from_tiff` of a file; tags that cannot be taken are left out and noted."""
    try:
        return exif_blocks.from_tiff(data)
    except (ValueError, struct.error):
        notes.append("EXIF: damaged")
        return None, ()


def _check_kind(page: Any) -> None:
    """Refuse pages that are no 1 to 16-bit grey, palette or RGB picture."""
    if 50706 in page.tags:  # DNGVersion
        raise unsuitable(_REFUSED[32803])
    if page.photometric in _REFUSED:
        raise unsuitable(_REFUSED[page.photometric])
    if page.sampleformat == 3:
        raise unsuitable("floating-point pixels")
    if page.sampleformat not in (1, 4) or page.bitspersample not in (1, 2, 4, 8, 16):
        raise unsuitable(f"pixels of {page.bitspersample} bits" + (" with a sign" if page.sampleformat == 2 else ""))
    if page.imagedepth != 1:
        raise unsuitable("a volume")


def _check_complete(page: Any, size: int) -> None:
    """Refuse a page whose pixels go on behind the end of the file; tifffile would fill in zeros."""
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    missing = len(page.dataoffsets) == 0 or 0 in page.dataoffsets or 0 in page.databytecounts
    if missing or max(ends) > size:
        raise ValueError("the file ends within the pixels")


def _pixels(page: Any, notes: list[str]) -> Levels:
    """Return the pixels of a plain 8 or 16-bit page; what is left out is added to `notes`."""
    decoded: NDArray[Any] = page.asarray(maxworkers=1)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        decoded = np.moveaxis(decoded, 0, -1)
    decoded = decoded.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    colours = 3 if page.photometric == 2 else 1
    if decoded.shape[2] < colours:
        raise ValueError(f"{decoded.shape[2]} samples a pixel in a picture of {colours} colours")
    pixels: Levels = decoded.astype(decoded.dtype.newbyteorder("="), copy=False)
    top = np.iinfo(pixels.dtype).max
    extra = pixels.shape[2] - colours
    # Without a meaning given, one extra channel counts as alpha, as in Pillow; 0 says that it is something else.
    meanings = tuple(page.extrasamples) or (2,) * extra
    alpha = extra > 0 and meanings[0] in (1, 2)
    if extra > alpha:
        notes.append(f"{extra - alpha} extra channels that are not alpha")
    pixels = pixels[..., : colours + alpha].copy()
    if page.photometric == 0:
        pixels[..., 0] = top - pixels[..., 0]
    if alpha and meanings[0] == 1:
        _divide_by_alpha(pixels)
    return pixels


def _divide_by_alpha(pixels: Levels) -> None:
    """Turn premultiplied colours into plain ones, in place and row by row."""
    top = int(np.iinfo(pixels.dtype).max)
    for row in pixels:
        alpha = row[:, -1:].astype(np.uint32)
        colour = (row[:, :-1].astype(np.uint32) * top + alpha // 2) // np.maximum(alpha, 1)
        row[:, :-1] = np.where(alpha > 0, np.minimum(colour, top), 0)


def _metadata(page: Any, data: bytes, block: bytes | None) -> Metadata:
    """Return the metadata of a page of a file, given its block of EXIF."""

    def value(code: int) -> Any:
        return page.tags[code].value if code in page.tags else None

    icc, xmp = (bytes(found) if isinstance(found := value(code), bytes) else None for code in (34675, 700))
    return Metadata(icc or None, block, xmp or None, exif_blocks.resolution(data))


class TiffEncoder:
    """Write a deflated TIFF strip by strip; memory holds one strip.

    Args:
        file: seekable, at its beginning.
        height: rows.
        width: columns.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        dtype: uint8 or uint16.
        metadata: written as it is.
    """

    def __init__(
        self, file: BinaryIO, height: int, width: int, channels: int, dtype: np.dtype[Any], metadata: Metadata
    ) -> None:
        self._file = file
        self._shape = (height, width, channels)
        self._metadata = metadata
        self._described = Directory()
        layout = Layout("<")
        if metadata.exif is not None:
            layout, self._described = exif_blocks.for_tiff(metadata.exif)
        held = height * width * channels * dtype.itemsize + sum(len(part or b"") for part in _parts(metadata))
        self._layout = Layout(layout.order, big=held > _CLASSIC_BYTES)
        self._dtype = dtype.newbyteorder(layout.order)
        row_bytes = width * channels * dtype.itemsize
        self._strip = np.empty((min(height, max(1, _STRIP_BYTES // row_bytes)), width, channels), dtype)
        self._filled = 0
        self._places: list[int] = []
        self._sizes: list[int] = []
        file.write(bytes(16 if self._layout.big else 8))

    def write(self, rows: Levels) -> None:
        """Take the next rows, (n, width, channels)."""
        while len(rows):
            taken = min(len(rows), len(self._strip) - self._filled)
            self._strip[self._filled : self._filled + taken] = rows[:taken]
            self._filled += taken
            rows = rows[taken:]
            if self._filled == len(self._strip):
                self._flush()

    def _flush(self) -> None:
        """Compress and write the rows that are held."""
        if self._filled == 0:
            return
        strip = self._strip[: self._filled]
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]  # horizontal predictor, modulo the range of the type
        packed = zlib.compress(differences.astype(self._dtype).tobytes(), 6)
        self._places.append(self._file.tell())
        self._sizes.append(len(packed))
        self._file.write(packed)
        self._filled = 0

    def close(self) -> None:
        """Write what is left, then the directories."""
        self._flush()
        layout = self._layout
        at = self._file.tell()
        self._file.write(bytes(at % 2))
        at += at % 2
        tags = {**self._described.tags, **self._storage_tags()}
        self._file.write(exif_blocks.serialize(Directory(tags, self._described.children), at, layout))
        self._file.seek(0)
        self._file.write(b"II" if layout.order == "<" else b"MM")
        if layout.big:
            self._file.write(layout.pack(SHORT, 43, 8, 0) + layout.pack(LONG8, at))
        else:
            self._file.write(layout.pack(SHORT, 42) + layout.pack(LONG, at))

    def _storage_tags(self) -> dict[int, Tag]:
        """Return the tags that say how the pixels are stored, and the metadata that TIFF has tags for."""
        height, width, channels = self._shape
        offset = LONG8 if self._layout.big else LONG
        numbers: dict[int, tuple[int, tuple[int, ...]]] = {
            256: (LONG, (width,)),
            257: (LONG, (height,)),
            258: (SHORT, (8 * self._dtype.itemsize,) * channels),
            259: (SHORT, (8,)),  # deflate
            262: (SHORT, (2 if channels > 2 else 1,)),
            273: (offset, tuple(self._places)),
            274: (SHORT, (1,)),
            277: (SHORT, (channels,)),
            278: (LONG, (len(self._strip),)),
            279: (offset, tuple(self._sizes)),
            284: (SHORT, (1,)),
            317: (SHORT, (2,)),
        }
        if channels in (2, 4):
            numbers[338] = (SHORT, (2,))
        if self._metadata.dpi is not None:
            for code, value in zip((282, 283), self._metadata.dpi, strict=True):
                ratio = Fraction(value).limit_denominator(DENOMINATOR)
                numbers[code] = (RATIONAL, (ratio.numerator, ratio.denominator))
            numbers[296] = (SHORT, (2,))
        tags = {
            code: Tag(kind, len(values) // (2 if kind == RATIONAL else 1), self._layout.pack(kind, *values))
            for code, (kind, values) in numbers.items()
        }
        if self._metadata.xmp is not None:
            tags[700] = Tag(1, len(self._metadata.xmp), self._metadata.xmp)
        if self._metadata.icc is not None:
            tags[34675] = Tag(UNDEFINED, len(self._metadata.icc), self._metadata.icc)
        return tags


def _parts(metadata: Metadata) -> tuple[bytes | None, ...]:
    """Return the parts of the metadata that take room."""
    return metadata.icc, metadata.exif, metadata.xmp
