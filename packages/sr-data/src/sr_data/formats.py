"""What each picture format can hold: depth, channels, metadata, sides; and how a picture is made to fit."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sr_data import exif as exif_blocks
from sr_data.pictures import PICTURE_SUFFIXES, Levels, Metadata


@dataclass(frozen=True)
class Format:
    """What a format can hold.

    Args:
        name: as Pillow calls it.
        title: as people call it.
        side: the largest width or height.
        deep: 16 bit.
        channels: numbers of channels that are written as they are.
        metadata: the kinds of metadata, of "icc", "exif", "xmp", "dpi".
        lossless: whether it can be written without loss.
        largest: the largest EXIF and XMP in bytes, 0 for no limit.
    """

    name: str
    title: str
    side: int
    deep: bool
    channels: tuple[int, ...]
    metadata: tuple[str, ...]
    lossless: bool
    largest: tuple[int, int] = (0, 0)


DENOMINATOR = 10_000
"""Largest divisor of a resolution in a TIFF."""
ALL_METADATA = ("icc", "exif", "xmp", "dpi")
_FORMATS = (
    Format("PNG", "PNG", 2**31 - 1, True, (1, 2, 3, 4), ALL_METADATA, True),
    Format("TIFF", "TIFF", 2**32 - 1, True, (1, 2, 3, 4), ALL_METADATA, True),
    # 65500 is the limit of libjpeg; the segments of a JPEG hold 65533 bytes with their marks.
    Format("JPEG", "JPEG", 65500, False, (1, 3), ALL_METADATA, False, (65533 - 6, 65533 - 29)),
    Format("WEBP", "WebP", 16383, False, (3, 4), ALL_METADATA[:3], True),
    Format("BMP", "BMP", 2**31 - 1, False, (1, 3), ("dpi",), True),
    Format("AVIF", "AVIF", 32768, False, (1, 3, 4), ALL_METADATA[:3], False),
)
FORMATS: dict[str, Format] = {entry.name: entry for entry in _FORMATS}
"""What each format that `PictureWriter` writes can hold."""

_NAMES = {"jpg": "JPEG", "tif": "TIFF"}


def find_format(target: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> Format:
    """Return the format that a name (as "png" or "JPEG") or else the suffix of the target asks for.

    Raises:
        ValueError: neither gives a format that can be written here.
    """
    known = ", ".join(PICTURE_SUFFIXES)
    if name is None:
        if not isinstance(target, (str, os.PathLike)):
            raise ValueError(f"expected a format for a file object, got none; give format as one of {known}")
        name = Path(target).suffix
        if not name:
            raise ValueError(f"expected a file name ending in {known}, got {Path(target).name!r}; use one of them")
    plain = name.lower().removeprefix(".")
    if f".{plain}" not in PICTURE_SUFFIXES:
        raise ValueError(f"expected one of {known}, got {name!r}; use one of them")
    return FORMATS[_NAMES.get(plain, plain.upper())]


def fitting(metadata: Metadata, form: Format, height: int, width: int, channels: int) -> tuple[Metadata, list[str]]:
    """Return the metadata that a format holds, stating the size of the picture, and what it does not hold.

    Args:
        metadata: of the picture.
        form: to be written.
        height: rows that are written.
        width: columns that are written.
        channels: channels that are stored; a profile has to fit them.
    """
    dropped = []
    if metadata.dpi is not None and "dpi" not in form.metadata and _states_resolution(metadata.exif):
        metadata = replace(metadata, dpi=None)  # kept, within the EXIF
    for name in ALL_METADATA:
        value = getattr(metadata, name)
        reason = None if value is None else _refusal(form, name, value, channels)
        if reason is not None:
            dropped.append(f"{name.upper()}: {reason}")
            metadata = replace(metadata, **{name: None})
    if metadata.exif is not None:
        try:
            block = exif_blocks.resized(metadata.exif.removeprefix(b"Exif\0\0"), width, height)
            if form.name == "TIFF":
                exif_blocks.for_tiff(block)  # which tells whether it can be taken apart
            metadata = replace(metadata, exif=block)
        except (ValueError, struct.error):
            metadata = replace(metadata, exif=None)
            dropped.append("EXIF: damaged")
    if metadata.xmp is not None:
        sizes = {"exif:PixelXDimension": width, "exif:PixelYDimension": height}
        sizes |= {"tiff:ImageWidth": width, "tiff:ImageLength": height}
        metadata = replace(metadata, xmp=exif_blocks.set_xmp(metadata.xmp, sizes))
    return metadata, dropped


def _states_resolution(block: bytes | None) -> bool:
    """Return whether a block of EXIF has the resolution."""
    try:
        return block is not None and exif_blocks.resolution(block) is not None
    except (ValueError, struct.error):
        return False


def _refusal(form: Format, name: str, value: Any, channels: int) -> str | None:
    """Return why a format cannot hold one kind of metadata; None where it can."""
    if name not in form.metadata:
        return f"{form.title} has no place for it"
    if name == "icc":
        wanted = b"GRAY" if channels < 3 else b"RGB "
        if len(value) < 128 or value[36:40] != b"acsp":
            return "damaged"
        if value[16:20] != wanted:
            space = value[16:20].decode("ascii", "replace").strip()
            return f"a profile for {space} does not fit pixels stored as {wanted.decode().strip()}"
    if name == "dpi" and not all(_storable(form, dots) for dots in value):
        return f"{value[0]:g} x {value[1]:g} is out of the range of {form.title}"
    limit = dict(zip(("exif", "xmp"), form.largest, strict=True)).get(name, 0)
    if limit and len(value) > limit:
        return f"{len(value)} bytes, {form.title} holds {limit}"
    return None


def _storable(form: Format, dots: float) -> bool:
    """Return whether the whole number or fraction that a format keeps for pixels an inch is in its range, and not 0."""
    if not math.isfinite(dots) or dots <= 0:
        return False
    if form.name == "JPEG":
        return 1 <= round(dots) <= 2**16 - 1
    if form.name == "TIFF":
        ratio = Fraction(dots).limit_denominator(DENOMINATOR)
        return 1 <= ratio.numerator <= 2**32 - 1
    return 1 <= round(dots / 0.0254) <= 2**31 - 1  # whole pixels a metre


def converted(rows: Levels, dtype: np.dtype[Any], channels: int) -> Levels:
    """Return rows in the depth and channels that are stored: alpha over white, 16 bit rounded, grey repeated.

    Args:
        rows: (n, W, C) uint8 or uint16.
        dtype: uint8 or uint16, not deeper than `rows`.
        channels: 1 to 4.

    Returns:
        (n, W, channels) of `dtype`.
    """
    if rows.shape[2] in (2, 4) and channels in (1, 3):
        top = np.uint32(np.iinfo(rows.dtype).max)
        colour, alpha = rows[..., :-1].astype(np.uint32), rows[..., -1:].astype(np.uint32)
        # At most top * top + top / 2, which 32 bits hold.
        rows = ((colour * alpha + top * (top - alpha) + top // 2) // top).astype(rows.dtype)
    if rows.dtype != dtype:
        rows = ((rows.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if rows.shape[2] < 3 <= channels:
        rows = np.concatenate((np.repeat(rows[..., :1], 3, axis=2), rows[..., 1:]), axis=2)
    return rows
