"""Write pictures row by row, whole or not at all, with all that the format can hold and a list of what it cannot."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from sr_data import exif as exif_blocks
from sr_data.formats import Format, converted, find_format, fitting
from sr_data.pictures import Levels, Metadata, Picture
from sr_data.png import PngEncoder
from sr_data.tiff import TiffEncoder

_QUALITY = 95


class Encoder(Protocol):
    """Takes rows from the top down and writes a file."""

    def write(self, rows: Levels) -> None:
        """Take the next rows."""

    def close(self) -> None:
        """Write what is left."""


class PictureWriter:
    """Write a picture from the top down; the file appears whole when the block ends, or not at all.

    PNG and TIFF are written as the rows come, so memory holds a band of them; the others are collected first.

    Args:
        target: file to write, missing parent folders are created; or an open binary file, which gets the bytes when
            the block ends.
        height: rows.
        width: columns.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        dtype: uint8 or uint16.
        metadata: to keep as far as the format can; the sizes in EXIF and XMP become those of this picture.
        format: "png", "jpeg" ...; None takes the suffix of the target.
        quality: 1 ... 100 for JPEG and AVIF (None is 95) and for lossy WebP (None is lossless).

    Raises:
        ValueError: an unknown format, pixels or a size that it cannot hold, or a quality where none applies.
    """

    dropped: tuple[str, ...]
    """What the format cannot hold, one short line each; known as soon as the writer exists."""
    lossy: bool
    """Whether the pixels change by writing them."""

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        height: int,
        width: int,
        channels: int,
        dtype: DTypeLike,
        metadata: Metadata = Metadata(),  # noqa: B008 (frozen)
        *,
        format: str | None = None,
        quality: int | None = None,
    ) -> None:
        self._target = target if not isinstance(target, (str, os.PathLike)) else Path(target)
        self._format = find_format(target, format)
        self._dtype = np.dtype(dtype)
        self._shape = (height, width, channels)
        self._quality = quality
        self._check()
        self.lossy = not self._format.lossless or quality is not None
        self._stored_dtype = self._dtype if self._format.deep else np.dtype(np.uint8)
        colours, alpha = (1 if channels < 3 else 3), channels in (2, 4)
        alpha = alpha and 4 in self._format.channels
        # Grey, or grey with alpha, is written as colour where the format has no such pixels.
        self._stored_channels = colours + alpha if colours + alpha in self._format.channels else 3 + alpha
        self._metadata, dropped = fitting(metadata, self._format, height, width, self._stored_channels)
        if self._stored_dtype != self._dtype:
            dropped.insert(0, f"16 bit: {self._format.title} has 8")
        if channels in (2, 4) and not alpha:
            dropped.insert(0, f"alpha: {self._format.title} has none, the picture lies on white")
        self.dropped = tuple(dropped)
        self._rows = 0
        self._file: BinaryIO | None = None
        self._temporary: Path | None = None
        self._encoder: Encoder | None = None

    def _check(self) -> None:
        """Refuse what cannot be written."""
        height, width, channels = self._shape
        form = self._format
        if channels not in (1, 2, 3, 4) or self._dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ValueError(f"expected 1 to 4 channels of uint8 or uint16, got {channels} of {self._dtype}; convert")
        if isinstance(self._target, Path) and self._target.is_dir():
            raise ValueError(f"expected a file to write, got the folder {self._target}; name a file in it")
        if min(height, width) < 1:
            raise ValueError(f"expected at least one pixel, got {width}x{height}; check the size")
        if max(height, width) > form.side:
            raise ValueError(
                f"expected sides of at most {form.side} pixels for {form.title}, got {width}x{height}; "
                "write PNG or TIFF, or a smaller picture"
            )
        if self._quality is not None and form.name not in ("JPEG", "WEBP", "AVIF"):
            raise ValueError(
                f"expected no quality for {form.title}, which is lossless, got {self._quality}; leave it out"
            )
        if self._quality is not None and not 1 <= self._quality <= 100:
            raise ValueError(f"expected a quality of 1 to 100, got {self._quality}; 95 is a good one")

    def __enter__(self) -> Self:
        if isinstance(self._target, Path):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, as a file cannot be moved atomically to another disk; hidden from list_images.
            self._temporary = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}.tmp")
            self._file = self._temporary.open("w+b")
        else:
            self._file = tempfile.TemporaryFile()
        height, width, _ = self._shape
        arguments = (height, width, self._stored_channels, self._stored_dtype, self._metadata)
        try:
            if self._format.name == "PNG":
                self._encoder = PngEncoder(self._file, *arguments)
            elif self._format.name == "TIFF":
                self._encoder = TiffEncoder(self._file, *arguments)
            else:
                self._encoder = _PillowEncoder(self._file, self._format, self._quality, *arguments)
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, rows: Levels) -> None:
        """Take the next rows.

        Args:
            rows: (n, width, channels) of the writer's dtype, from the top down.

        Raises:
            ValueError: another shape or dtype, more rows than the picture has, or a writer that is not open.
        """
        height, width, channels = self._shape
        if self._encoder is None:
            raise ValueError("expected an open writer, got a closed one; use it in a with statement")
        if rows.ndim != 3 or rows.shape[1:] != (width, channels) or rows.dtype != self._dtype:
            raise ValueError(f"expected (n, {width}, {channels}) {self._dtype}, got {rows.shape} {rows.dtype}; convert")
        if self._rows + len(rows) > height:
            raise ValueError(f"expected {height} rows in all, got {self._rows + len(rows)}; give each row once")
        self._rows += len(rows)
        if len(rows):
            self._encoder.write(converted(rows, self._stored_dtype, self._stored_channels))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        """Bring the whole file to its place."""
        if self._encoder is None or self._file is None:
            raise ValueError("expected an open writer, got a closed one; use it in a with statement")
        if self._rows != self._shape[0]:
            raise ValueError(f"expected {self._shape[0]} rows, got {self._rows}; nothing was written")
        self._encoder.close()
        if isinstance(self._target, Path):
            assert self._temporary is not None
            # Else after a power failure the new name may be there before the bytes are.
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._target)
        else:
            self._file.seek(0)
            shutil.copyfileobj(self._file, self._target)

    def _discard(self) -> None:
        """Close and remove the temporary file, where there still is one."""
        self._encoder = None
        if self._file is not None:
            with suppress(OSError):  # a full disk may refuse the last bytes again
                self._file.close()
            self._file = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None


class _PillowEncoder:
    """Collect the rows, then let Pillow write them."""

    def __init__(
        self,
        file: BinaryIO,
        form: Format,
        quality: int | None,
        height: int,
        width: int,
        channels: int,
        dtype: np.dtype[Any],
        metadata: Metadata,
    ) -> None:
        self._file = file
        self._format = form
        self._quality = quality
        self._metadata = metadata
        self._pixels = np.empty((height, width, channels), dtype)
        self._filled = 0

    def write(self, rows: Levels) -> None:
        self._pixels[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def close(self) -> None:
        pixels = self._pixels[..., 0] if self._pixels.shape[2] == 1 else self._pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(self._file, format=self._format.name, **self._settings(), **self._kept())

    def _settings(self) -> dict[str, Any]:
        """Return how Pillow shall compress."""
        quality = self._quality or _QUALITY
        if self._format.name == "JPEG":
            return {"quality": quality, "subsampling": "4:4:4"}
        if self._format.name == "AVIF":
            grey = self._pixels.shape[2] == 1
            return {"quality": quality, "subsampling": "4:0:0" if grey else "4:4:4"}
        if self._format.name == "WEBP":
            # exact keeps the colours below full transparency.
            return {"lossless": self._quality is None, "exact": True} | (
                {"quality": self._quality} if self._quality else {}
            )
        return {}

    def _kept(self) -> dict[str, Any]:
        """Return the metadata as Pillow takes it."""
        metadata = self._metadata
        kept: dict[str, Any] = {}
        if metadata.icc is not None:
            kept["icc_profile"] = metadata.icc
        if metadata.exif is not None:
            # Pillow writes the EXIF of an AVIF anew where it has an orientation; without one it stays byte for byte.
            block = exif_blocks.without_orientation(metadata.exif) if self._format.name == "AVIF" else metadata.exif
            kept["exif"] = b"Exif\0\0" + block if self._format.name == "JPEG" else block
        if metadata.xmp is not None:
            kept["xmp"] = metadata.xmp
        if metadata.dpi is not None:
            kept["dpi"] = metadata.dpi
        elif self._format.name == "BMP":
            kept["dpi"] = (0, 0)  # not stated; Pillow would make up 96
        return kept


def write_picture(
    target: str | os.PathLike[str] | BinaryIO,
    picture: Picture,
    *,
    format: str | None = None,
    quality: int | None = None,
) -> tuple[str, ...]:
    """Write a picture and return what the format could not hold; see `PictureWriter`.

    Raises:
        ValueError: as `PictureWriter`.
    """
    height, width, channels = picture.pixels.shape
    writer = PictureWriter(
        target, height, width, channels, picture.pixels.dtype, picture.metadata, format=format, quality=quality
    )
    with writer:
        writer.write(picture.pixels)
    return writer.dropped
