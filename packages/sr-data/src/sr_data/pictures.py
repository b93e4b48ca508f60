"""Read pictures as photographers have them: 8 or 16 bit, grey or colour, with alpha, profile, EXIF, XMP and resolution.

`read_image` of `sr_data.images` gives 8-bit RGB for training; here nothing is converted that an output could keep.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from sr_data import exif as exif_blocks
from sr_data.images import open_image
from sr_data.limits import pixel_limit, too_large

Levels = NDArray[np.uint8 | np.uint16]
"""Pixels (H, W, C), uint8 or uint16: C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""

PICTURE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp") + (
    (".avif",) if features.check("avif") else ()
)
"""File name endings, lower case, that `read_picture` and `write_picture` take."""

_READABLE = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "AVIF", "GIF")
_REFUSED = {
    "CMYK": "CMYK pixels",
    "LAB": "Lab pixels",
    "F": "floating-point pixels",
    "I": "32-bit pixels",
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_KNOWN_TEXT = ("XML:com.adobe.xmp", "Raw profile type exif")


@dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels besides the pixels.

    Args:
        icc: colour profile, byte for byte.
        exif: EXIF block, beginning with its TIFF header.
        xmp: XMP packet.
        dpi: horizontal and vertical resolution in pixels an inch.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """Upright pixels and their metadata.

    Args:
        pixels: (H, W, C) uint8 or uint16; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, alpha not premultiplied.
        metadata: profile, EXIF, XMP, resolution.
        notes: what could not be kept while reading, one short line each.
    """

    pixels: Levels
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()


def read_picture(
    path: str | os.PathLike[str], content: bytes | None = None, *, max_pixels: int | None = None
) -> Picture:
    """Return the first picture of a file, upright, with its depth, alpha and metadata.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP, AVIF (where Pillow has it) or GIF.
        content: the bytes of the file where they are at hand; then `path` is only its name in errors.
        max_pixels: the most that are accepted; None: as many as `PIL.Image.MAX_IMAGE_PIXELS` says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a pipe, not a picture, a damaged file, too many pixels, or a kind of pixels that would
            have to be converted first (CMYK, Lab, floating point).
    """
    data = _content(path) if content is None else content
    if not data:
        raise ValueError(f"expected an image, got {path}: it is empty; replace or remove it")
    try:
        with pixel_limit(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags; those that matter are in the notes
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decoded(path, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(path, " ".join(str(error).split())) from error
    except Unsuitable as error:
        raise ValueError(f"expected 8 or 16-bit grey or RGB, got {path}: {error}") from error
    except ValueError as error:
        # Our own errors name the file; those of the libraries do not.
        raise error if str(path) in str(error) else damaged(path, error) from error
    except MemoryError as error:
        raise ValueError(f"expected a picture that fits into memory, got {path}; cut it into parts") from error
    except (OSError, SyntaxError, EOFError, RuntimeError, struct.error, OverflowError) as error:
        raise damaged(path, error) from error


def _decoded(path: str | os.PathLike[str], data: bytes) -> Picture:
    """Return the picture that the bytes of a file hold."""
    if data[:4] in _TIFF_STARTS:
        from sr_data.tiff import read_tiff  # here, as it is built on this module

        return read_tiff(path, data)
    return _read_with_pillow(path, data)


class Unsuitable(Exception):
    """A whole picture whose pixels would have to be converted first; the message names the remedy."""


def damaged(path: str | os.PathLike[str], error: Exception) -> ValueError:
    """Return the error for a file that is cut off or broken."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"expected a complete image, got {path}: {reason}; replace or remove the file")


def unsuitable(kind: str) -> Unsuitable:
    """Return the refusal of pixels that have no single meaning as grey or RGB."""
    return Unsuitable(
        f"{kind}; convert to RGB with its colour profile first, for example with an image editor or "
        "`magick in.tif -profile sRGB.icc -depth 16 out.tif`"
    )


def _content(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file."""
    place = Path(path)
    if place.is_dir():
        raise ValueError(f"expected an image, got the folder {path}; name one file in it")
    if place.exists() and not place.is_file():  # reading would wait for whoever writes into it
        raise ValueError(f"expected an image, got {path}: a pipe or device; name a regular file, or - for stdin")
    try:
        return place.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"expected an image, got {path}: no such file; check the path") from None
    except OSError as error:
        raise ValueError(f"expected a readable image, got {path}: {error.strerror}; allow reading it") from error


def _read_with_pillow(path: str | os.PathLike[str], data: bytes) -> Picture:
    """Return a picture that is no TIFF."""
    with open_image(path, data) as image:
        if image.format not in _READABLE:
            raise ValueError(
                f"expected one of {', '.join(PICTURE_SUFFIXES)}, got {path}: {image.format}; convert it to PNG"
            )
        if image.mode in _REFUSED:
            raise unsuitable(_REFUSED[image.mode])
        image.load()  # first, as a PNG may have EXIF and text behind the pixels
        notes = _notes(image, data)
        # Pillow keeps only the high bytes of 16-bit colour; imagecodecs (libpng) keeps both, applies tRNS and refuses
        # files that are cut off. torchvision.io.decode_png would do as well, but prints warnings of interlaced files.
        if image.format == "PNG" and data[24] == 16:
            import imagecodecs

            decoded: Levels = imagecodecs.png_decode(data)
            pixels = decoded if decoded.ndim == 3 else decoded[..., None]
        else:
            pixels = pillow_pixels(image, data[24] if image.format == "PNG" else 8)
        info = dict(image.info)
        form = image.format
    block = _bytes(info.get("exif") or _legacy_exif(info))
    metadata = Metadata(_bytes(info.get("icc_profile")), block, _bytes(info.get("xmp")), _resolution(info, form, block))
    return finished(pixels, metadata, notes)


def pillow_pixels(image: Image.Image, depth: int = 8) -> Levels:
    """Return the 8-bit pixels of an opened picture; palettes and transparent colours are resolved.

    Args:
        image: opened, in a mode of 8 bits or fewer.
        depth: bits a sample in the file, as the transparent level of a grey PNG counts in these.
    """
    key = image.info.get("transparency")
    if image.mode in ("1", "L", "RGB"):
        plain = np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
        plain = plain if plain.ndim == 3 else plain[..., None]
        if key is None or isinstance(key, bytes):
            return np.ascontiguousarray(plain)
        # Pillow stretches the levels of fewer than 8 bits to 255, and of 1 bit the transparent one too.
        level = np.asarray(key).reshape(-1) * 255 // (255 if image.mode == "1" else 2**depth - 1)
        alpha = np.where((plain == level).all(axis=2, keepdims=True), 0, 255).astype(np.uint8)
        return np.concatenate((plain, alpha), axis=2)
    modes = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}
    mode = modes.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if image.has_transparency_data else "RGB"
    if mode is None:
        raise unsuitable(_REFUSED.get(image.mode, f"{image.mode} pixels"))
    return np.array(image.convert(mode), dtype=np.uint8)


def finished(pixels: Levels, metadata: Metadata, notes: list[str], turn: int | None = None) -> Picture:
    """Return the picture turned upright, its metadata made to agree.

    Args:
        pixels: (H, W, C) as stored.
        metadata: as stored.
        notes: what was lost so far.
        turn: the orientation to undo; None takes that of the EXIF.
    """
    block = metadata.exif
    if block is not None:
        try:
            found = exif_blocks.orientation(block)
            block = exif_blocks.upright(block)
        except (ValueError, struct.error):
            found, block = 1, None
            notes = [*notes, "EXIF: damaged"]
        turn = found if turn is None else turn
    xmp = metadata.xmp
    if xmp is not None:
        xmp = exif_blocks.set_xmp(xmp, {"tiff:Orientation": 1})
        if b"HasExtendedXMP" in xmp:
            notes = [*notes, "XMP: its extended part"]
    turn = turn or 1
    dpi = metadata.dpi
    if dpi is not None and turn >= 5:
        dpi = (dpi[1], dpi[0])
    upright = np.ascontiguousarray(turned(pixels, turn))
    return Picture(upright, replace(metadata, exif=block, xmp=xmp, dpi=dpi), tuple(notes))


def turned(pixels: Levels, orientation: int) -> Levels:
    """Return pixels upright that were stored in an EXIF orientation 1 ... 8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _notes(image: Image.Image, data: bytes) -> list[str]:
    """Return what an opened file holds that a `Picture` does not."""
    notes = []
    count = int(getattr(image, "n_frames", 1))
    if count > 1:
        notes.append(f"{count} pictures in the file: only the first was read")
    if image.format == "AVIF":
        found = data.find(b"av1C")
        flags = data[found + 6] if 0 < found < len(data) - 6 else 0
        if flags & 0x40:
            notes.append(f"{12 if flags & 0x20 else 10} bit: AVIF is read as 8")
    photoshop = image.info.get("photoshop")
    if isinstance(photoshop, Mapping) and 0x0404 in photoshop:
        notes.append("IPTC")
    if image.format in ("JPEG", "MPO", "GIF") and image.info.get("comment"):
        notes.append("comment")
    text = [name for name in getattr(image, "text", {}) if name not in _KNOWN_TEXT] if image.format == "PNG" else []
    if text:
        notes.append(f"text: {', '.join(text)}")
    gamma = image.info.get("gamma")
    if image.format == "PNG" and gamma and abs(gamma - 0.45455) > 0.01 and "icc_profile" not in image.info:
        notes.append(f"gamma {gamma:g}")
    return notes


def _bytes(value: Any) -> bytes | None:
    """Return metadata as bytes without the mark that JPEG puts before EXIF; None for nothing."""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        return None
    return value.removeprefix(b"Exif\0\0") or None


def _legacy_exif(info: Mapping[Any, Any]) -> bytes | None:
    """Return the EXIF that old programs keep as hexadecimal text of a PNG."""
    text = info.get("Raw profile type exif")
    if not isinstance(text, str):
        return None
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return None


def _resolution(info: Mapping[Any, Any], form: str, block: bytes | None) -> tuple[float, float] | None:
    """Return the pixels an inch that a file states itself, or else in its EXIF."""
    # Of a JPEG that states none Pillow takes that of the EXIF, or makes up 72.
    own = info.get("dpi") if form not in ("JPEG", "MPO") or info.get("jfif_unit") in (1, 2) else None
    if own is not None:
        x, y = (float(value) for value in own)
        return (x, y) if x > 0 and y > 0 else None
    try:
        return exif_blocks.resolution(block) if block is not None else None
    except (ValueError, struct.error):
        return None
