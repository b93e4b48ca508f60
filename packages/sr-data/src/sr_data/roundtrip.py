"""Measure what each format keeps by writing and reading; `python -m sr_data.roundtrip` prints the table."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from sr_data import exif as exif_blocks
from sr_data.exif import ORIENTATION, Directory, Layout, Tag
from sr_data.formats import ALL_METADATA, FORMATS, Format
from sr_data.pictures import PICTURE_SUFFIXES, Levels, Metadata, Picture, read_picture
from sr_data.writers import PictureWriter, write_picture


def sample_exif(orientation: int = 1, order: str = "<") -> bytes:
    """Return a small block of EXIF with a camera, a maker note, the size of the pixels and a place.

    Args:
        orientation: 1 ... 8.
        order: "<" or ">", the byte order.
    """
    layout = Layout("<" if order == "<" else ">")
    main = {
        271: Tag(2, 6, b"Maker\0"),
        ORIENTATION: Tag(exif_blocks.SHORT, 1, layout.pack(exif_blocks.SHORT, orientation)),
        33432: Tag(2, 13, b"Somebody (c)\0"),
    }
    photo = {
        0x829A: Tag(exif_blocks.RATIONAL, 1, layout.pack(exif_blocks.RATIONAL, 1, 250)),
        0x927C: Tag(exif_blocks.UNDEFINED, 9, b"\x00note\xff\x01\x02\x03"),
        0xA002: Tag(exif_blocks.SHORT, 1, layout.pack(exif_blocks.SHORT, 7)),
        0xA003: Tag(exif_blocks.SHORT, 1, layout.pack(exif_blocks.SHORT, 5)),
    }
    place = {
        1: Tag(2, 2, b"N\0"),
        2: Tag(exif_blocks.RATIONAL, 3, layout.pack(exif_blocks.RATIONAL, 48, 1, 8, 1, 7, 1)),
    }
    tree = Directory(main, {exif_blocks.EXIF: Directory(photo), exif_blocks.GPS: Directory(place)})
    start = (b"II" if order == "<" else b"MM") + layout.pack(exif_blocks.SHORT, 42) + layout.pack(exif_blocks.LONG, 8)
    return start + exif_blocks.serialize(tree, 8, layout)


def sample_profile(space: bytes = b"RGB ") -> bytes:
    """Return the sRGB profile that Pillow makes, or the same bytes with the label of another colour space."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return bytes(profile[:16] + space + profile[20:])


def sample_metadata(channels: int, height: int, width: int) -> Metadata:
    """Return metadata of every kind that fit a picture of these sizes."""
    exif = exif_blocks.resized(sample_exif(), width, height)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="\xc3\xa4"/></x:xmpmeta>'
    return Metadata(sample_profile(b"RGB " if channels > 2 else b"GRAY"), exif, xmp, (300.0, 150.0))


def sample_pixels(channels: int, dtype: Any = np.uint8, height: int = 24, width: int = 40) -> Levels:
    """Return a smooth picture, so that lossy formats stay close; alpha, where there is one, too."""
    rows, columns = np.mgrid[:height, :width]
    planes = [40 + 20 * number + rows * 2 + columns for number in range(channels)]
    pixels = np.stack(planes, axis=-1).astype(dtype)
    # With a low byte of its own, 16 bit is more than 8 bit repeated.
    return pixels if pixels.dtype == np.uint8 else pixels * np.uint16(257) + rows[..., None].astype(np.uint16)


def kept_metadata(before: Metadata, after: Metadata) -> dict[str, bool]:
    """Return for each kind of metadata whether it came back: bytes as they were, EXIF by its tags, DPI to 0.02."""

    def tags(block: bytes | None) -> Directory | None:
        return None if block is None else exif_blocks.for_tiff(block)[1]

    near = before.dpi is not None and after.dpi is not None and np.allclose(before.dpi, after.dpi, rtol=0, atol=0.02)
    same = {"icc": before.icc == after.icc, "exif": tags(before.exif) == tags(after.exif)}
    return same | {"xmp": before.xmp == after.xmp, "dpi": bool(near)}


def _cells(form: Format) -> list[str]:
    """Return what writing and reading a format keeps, in the order of the table."""
    deep = Picture(sample_pixels(4, np.uint16), sample_metadata(4, 24, 40))
    file = io.BytesIO()
    dropped = write_picture(file, deep, format=form.name)
    back = read_picture(form.title, file.getvalue())
    kept = kept_metadata(deep.metadata, back.metadata)
    silent = [name for name in ALL_METADATA if not kept[name] and not any(name.upper() in line for line in dropped)]
    assert not silent, f"{form.title} lost {silent} without a word"
    grey = io.BytesIO()
    write_picture(grey, Picture(sample_pixels(1)), format=form.name)
    lossy = PictureWriter(io.BytesIO(), 1, 1, 3, np.uint8, format=form.name).lossy
    return [
        form.title,
        "lossy" if lossy else "lossless" + (", lossy with a quality" if form.name == "WEBP" else ""),
        "8, 16" if back.pixels.dtype == np.uint16 else "8; 16 is rounded",
        "kept" if read_picture(form.title, grey.getvalue()).pixels.shape[2] == 1 else "as RGB",
        "kept" if back.pixels.shape[2] == 4 else "laid on white",
        *("kept" if kept[name] else "dropped" for name in ALL_METADATA),
    ]


def table() -> str:
    """Return the table of what each format keeps, as Markdown."""
    titles = ["format", "pixels", "bits", "grey", "alpha", "ICC", "EXIF", "XMP", "DPI"]
    lines = [titles, ["---"] * len(titles)]
    lines += [_cells(form) for form in FORMATS.values() if form.name != "AVIF" or ".avif" in PICTURE_SUFFIXES]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
