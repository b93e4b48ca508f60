"""Reading pictures: every depth and kind of pixels, orientation, metadata, and files that cannot be read."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from sr_data import exif as exif_blocks
from sr_data.exif import Directory, Layout, Tag
from sr_data.images import image_size, read_image
from sr_data.pictures import PICTURE_SUFFIXES, Metadata, Picture, read_picture
from sr_data.roundtrip import sample_exif, sample_metadata, sample_pixels, sample_profile
from sr_data.writers import write_picture


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(pixels: np.ndarray, depth: int, colour: int, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of the plainest kind: no filter; rows packed by the caller where depth < 8."""
    height, width = size or pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + extra
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def _written(picture: Picture, form: str) -> bytes:
    file = io.BytesIO()
    write_picture(file, picture, format=form)
    return file.getvalue()


def _equal(data: bytes, expected: np.ndarray) -> Picture:
    picture = read_picture("a", data)
    assert picture.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.pixels.flags.c_contiguous
    return picture


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bit_keeps_both_bytes(channels: int) -> None:
    pixels = sample_pixels(channels, np.uint16)
    _equal(_png(pixels.reshape(24, -1), 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], size=(24, 40)), pixels)


def test_a_transparent_colour_becomes_alpha() -> None:
    grey = np.array([[0, 90, 255, 90]], np.uint8)
    _equal(
        _png(grey, 8, 0, _chunk(b"tRNS", struct.pack(">H", 90))), np.stack((grey, [[255, 0, 255, 0]]), -1).astype("u1")
    )
    # In 4 bits level 9 is 153 of 255, and the colour is given as 9.
    packed = _png(np.array([[0x09, 0xF9]], np.uint8), 4, 0, _chunk(b"tRNS", struct.pack(">H", 9)), size=(1, 4))
    _equal(packed, np.array([[[0, 255], [153, 0], [255, 255], [153, 0]]], np.uint8))
    bits = _png(np.array([[0b01000000]], np.uint8), 1, 0, _chunk(b"tRNS", struct.pack(">H", 1)), size=(1, 2))
    _equal(bits, np.array([[[0, 255], [255, 0]]], np.uint8))
    colour = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    data = _png(colour.reshape(1, -1), 8, 2, _chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)), size=(1, 2))
    _equal(data, np.array([[[1, 2, 3, 0], [1, 2, 4, 255]]], np.uint8))
    deep_grey = _png(np.array([[300, 301]], np.uint16), 16, 0, _chunk(b"tRNS", struct.pack(">H", 300)))
    _equal(deep_grey, np.array([[[300, 0], [301, 65535]]], np.uint16))
    deep = np.array([[[300, 2, 3], [300, 2, 4]]], np.uint16)
    data = _png(deep.reshape(1, -1), 16, 2, _chunk(b"tRNS", struct.pack(">3H", 300, 2, 3)), size=(1, 2))
    _equal(data, np.array([[[300, 2, 3, 0], [300, 2, 4, 65535]]], np.uint16))


def test_palettes_become_rgb_and_one_bit_becomes_grey() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    _equal(_saved(image, "PNG"), np.array([[[255, 0, 0], [0, 255, 0], [9, 8, 7]]], np.uint8))
    data = _saved(image, "PNG", transparency=bytes([255, 128, 0]))
    _equal(data, np.array([[[255, 0, 0, 255], [0, 255, 0, 128], [9, 8, 7, 0]]], np.uint8))
    _equal(_saved(image, "TIFF"), np.array([[[255, 0, 0], [0, 255, 0], [9, 8, 7]]], np.uint8))
    for form in ("PNG", "TIFF", "BMP"):
        bits = Image.fromarray(np.array([[True, False, True]]))
        _equal(_saved(bits, form), np.array([[[255], [0], [255]]], np.uint8))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bit_in_every_storage(compression: str | None, order: str) -> None:
    pixels = sample_pixels(3, np.uint16)
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression, "byteorder": order}
    if compression in ("lzw", "zlib"):
        options["predictor"] = True
    _equal(_tiff(pixels, **options), pixels)
    planar = _tiff(np.ascontiguousarray(pixels.transpose(2, 0, 1)), planarconfig="separate", **options)
    _equal(planar, pixels)
    _equal(_tiff(pixels, bigtiff=True, tile=(16, 16), **options), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_grey_inverted_and_with_alpha(dtype: type) -> None:
    top = np.iinfo(dtype).max
    grey = sample_pixels(2, dtype)
    _equal(_tiff(grey[..., 0], photometric="miniswhite"), top - grey[..., :1])
    contiguous = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    _equal(_tiff(grey, photometric="minisblack", **contiguous), grey)
    inverted = np.stack((top - grey[..., 0], grey[..., 1]), -1)
    _equal(_tiff(grey, photometric="miniswhite", **contiguous), inverted)
    rgba = sample_pixels(4, dtype)
    _equal(_tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), rgba)


def test_premultiplied_alpha_is_divided_out_and_other_channels_are_named() -> None:
    stored = np.array([[[100, 50, 0, 128], [7, 0, 0, 0], [255, 1, 2, 255]]], np.uint16) * np.uint16(257)
    expected = np.array([[[51199, 25600, 0, 32896], [0, 0, 0, 0], [65535, 257, 514, 65535]]], np.uint16)
    picture = read_picture("a", _tiff(stored, photometric="rgb", extrasamples=["assocalpha"]))
    np.testing.assert_array_equal(picture.pixels, expected)
    five = np.concatenate((sample_pixels(4), sample_pixels(1)), axis=2)
    picture = read_picture("a", _tiff(five, photometric="rgb", extrasamples=["unassalpha", "unspecified"]))
    np.testing.assert_array_equal(picture.pixels, five[..., :4])
    assert picture.notes == ("1 extra channels that are not alpha",)
    picture = read_picture("a", _tiff(five[..., :4], photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(picture.pixels, five[..., :3])


def test_jpeg_in_a_tiff_is_read() -> None:
    pixels = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    picture = read_picture("a", _saved(Image.fromarray(pixels), "TIFF", compression="jpeg"))
    assert np.abs(picture.pixels.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF16", "PNG16", "PALETTE", "AVIF"])
def test_every_orientation_is_undone(form: str, turn: int) -> None:
    if form == "AVIF" and ".avif" not in PICTURE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    upright = np.zeros((32, 48), np.uint8)  # in blocks of 16, which a JPEG keeps
    upright[:16, :16], upright[:16, 32:], upright[16:, 16:32] = 250, 120, 60
    # How the camera stored it: the inverse of what the specification says to do for display.
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: np.rot90(np.transpose(a), 2),
        8: lambda a: np.rot90(a, -1),
    }[turn](upright)
    stored = np.ascontiguousarray(stored)
    block = sample_exif(turn, "<" if turn % 2 else ">")
    xmp = f'<x tiff:Orientation="{turn}"><tiff:Orientation>{turn}</tiff:Orientation></x>'.encode()
    if form == "PNG16":
        data = _png(
            stored * np.uint16(257), 16, 0, _chunk(b"eXIf", block) + _chunk(b"pHYs", struct.pack(">IIB", 3937, 7874, 1))
        )
    elif form == "TIFF16":
        extra = [(274, 3, 1, turn, True), (700, 1, len(xmp), xmp, True)]
        data = _tiff(stored * np.uint16(257), extratags=extra, resolution=(100, 200), resolutionunit=2)
    elif form == "TIFF":
        exif = Image.Exif()
        exif[274] = turn
        data = _saved(Image.fromarray(stored), "TIFF", exif=exif, dpi=(100, 200))
    elif form == "PALETTE":  # of the TIFFs that Pillow reads and turns itself
        exif = Image.Exif()
        exif[274] = turn
        image = Image.fromarray(stored, mode="P")
        image.putpalette([level for level in range(256) for _ in range(3)])
        data = _saved(image, "TIFF", exif=exif, dpi=(100, 200))
    else:
        options: dict[str, Any] = {"exif": b"Exif\0\0" + block, "xmp": xmp, "dpi": (100, 200), "quality": 100}
        if form == "WEBP":
            options["lossless"] = True
        data = _saved(Image.fromarray(stored), form, **options)
    picture = read_picture("a", data)
    seen = picture.pixels[..., 0].astype(float) / (257 if "16" in form else 1)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).max() <= (6 if form in ("JPEG", "AVIF") else 0)
    if picture.metadata.exif is not None:
        assert exif_blocks.orientation(picture.metadata.exif) == 1
        if form not in ("TIFF", "PALETTE", "TIFF16"):
            assert b"\x00note\xff\x01\x02\x03" in picture.metadata.exif
    if picture.metadata.xmp is not None:
        assert picture.metadata.xmp == xmp.replace(str(turn).encode(), b"1")
    if form not in ("WEBP", "AVIF"):
        assert picture.metadata.dpi == pytest.approx((200, 100) if turn >= 5 else (100, 200), abs=0.1)


def test_the_size_from_the_header_is_that_of_the_turned_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for suffix in (".tif", ".png", ".jpg"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(sample_pixels(3)).save(path, exif=exif)
        assert image_size(path) == read_image(path).shape[:2] == read_picture(path).pixels.shape[:2] == (40, 24)


def test_the_thumbnail_is_erased_and_all_other_tags_stay() -> None:
    block = sample_exif(3, ">")
    thumbnail = b"\xff\xd8 the old picture \xff\xd9"
    layout = Layout(">")
    second = len(block)
    table = exif_blocks.serialize(
        Directory({0x0201: Tag(4, 1, layout.pack(4, second + 30)), 0x0202: Tag(4, 1, layout.pack(4, len(thumbnail)))}),
        second,
        layout,
    )
    with_thumbnail = bytearray(block + table + thumbnail)
    _, offset = exif_blocks.header(block)
    _, following = exif_blocks.entries(block, layout, offset)
    struct.pack_into(">I", with_thumbnail, following, second)
    for tail in (b"", b"more"):
        cleaned = exif_blocks.upright(bytes(with_thumbnail) + tail)
        assert b"old picture" not in cleaned
        assert cleaned[: len(block)] == sample_exif(1, ">")
        assert cleaned.endswith(tail)
    # A thumbnail said to lie over the tags erases nothing.
    struct.pack_into(">I", with_thumbnail, second + 2 + 8, 8)
    assert exif_blocks.upright(bytes(with_thumbnail))[: len(block)] == sample_exif(1, ">")


def test_pillow_reads_the_tags_that_a_tiff_gave() -> None:
    data = _written(Picture(sample_pixels(3), sample_metadata(3, 24, 40)), "tiff")
    block = read_picture("a", data).metadata.exif
    assert block is not None
    tags = Image.Exif()
    tags.load(block)
    assert (tags[271], tags[33432]) == ("Maker", "Somebody (c)")
    assert tags.get_ifd(0x8769)[0x927C] == b"\x00note\xff\x01\x02\x03"
    assert tags.get_ifd(0x8825)[2] == (48.0, 8.0, 7.0)


def test_resolution_comes_from_the_file_or_its_exif_and_is_never_made_up() -> None:
    image = Image.fromarray(sample_pixels(3))
    layout = Layout("<")
    stated = {code: Tag(5, 1, layout.pack(5, value, 10)) for code, value in ((282, 1180), (283, 590))}
    stated[296] = Tag(3, 1, layout.pack(3, 3))  # centimetres
    block = b"II*\0\x08\0\0\0" + exif_blocks.serialize(Directory(stated), 8, layout)
    assert read_picture("a", _saved(image, "WEBP", exif=block)).metadata.dpi == pytest.approx((299.72, 149.86))
    assert read_picture("a", _saved(image, "JPEG", exif=b"Exif\0\0" + block)).metadata.dpi == pytest.approx(
        (299.72, 149.86)
    )
    for form in ("JPEG", "PNG", "WEBP"):
        assert read_picture("a", _saved(image, form, exif=b"Exif\0\0" + sample_exif())).metadata.dpi is None
        assert read_picture("a", _saved(image, form)).metadata == Metadata()


def test_what_reading_cannot_keep_is_noted() -> None:
    image, other = Image.fromarray(sample_pixels(3)), Image.fromarray(255 - sample_pixels(3))
    for form in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = _saved(image, form, save_all=True, append_images=[other], **options)
        picture = _equal(data, sample_pixels(3))
        assert len(picture.notes) == 1
        assert picture.notes[0].startswith("2 p")
        assert "only the first was read" in picture.notes[0]
    assert read_picture("a", _saved(image, "JPEG", comment=b"hello")).notes == ("comment",)
    assert read_picture("a", _saved(image, "JPEG", exif=b"Exif\0\0garbage")).notes == ("EXIF: damaged",)
    text = _chunk(b"tEXt", b"Title\0A") + _chunk(b"gAMA", struct.pack(">I", 100000))
    plain = sample_pixels(3).reshape(24, -1)
    assert read_picture("a", _png(plain, 8, 2, text, size=(24, 40))).notes == ("text: Title", "gamma 1")
    assert read_picture("a", _tiff(sample_pixels(3), photometric="rgb", extratags=[(65000, 3, 1, 7, True)])).notes == (
        "tags of the TIFF: 65000",
    )
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x04abcd"
    jpeg = _saved(image, "JPEG")
    marked = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + jpeg[2:]
    assert read_picture("a", marked).notes == ("IPTC",)


def test_pixels_that_have_to_be_converted_first_are_refused() -> None:
    rgb = Image.fromarray(sample_pixels(3))
    cases = {
        "CMYK": [_saved(rgb.convert("CMYK"), "JPEG"), _saved(rgb.convert("CMYK"), "TIFF")],
        "Lab": [_saved(Image.new("LAB", (4, 4)), "TIFF")],
        "floating-point": [_tiff(np.zeros((4, 4), np.float32)), _tiff(np.zeros((4, 4), np.float16))],
        "32 bits": [_tiff(np.zeros((4, 4), np.uint32))],
        "16 bits with a sign": [_tiff(np.zeros((4, 4), np.int16))],
        "camera's raw": [_tiff(sample_pixels(3), photometric="rgb", extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])],
    }
    for kind, files in cases.items():
        for data in files:
            with pytest.raises(
                ValueError, match=rf"^expected 8 or 16-bit .* got b\.tif: .*{kind}.*convert to RGB"
            ) as caught:
                read_picture("b.tif", data)
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"got a\.jp2: JPEG2000; convert it to PNG"):
        read_picture("a.jp2", _saved(rgb, "JPEG2000"))


FILES = ["png", "png16", "jpeg", "webp", "tiff", "tiff16", "bmp", "avif"]


def _file(name: str) -> bytes:
    if name == "avif" and ".avif" not in PICTURE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    dtype = np.uint16 if name.endswith("16") else np.uint8
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (24, 40, 3), dtype=dtype)
    return _written(Picture(noise), name.removesuffix("16"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    data = _file(name)
    for part in (0, 1, 5, 12, 30, len(data) // 4, len(data) // 2, len(data) * 3 // 4, len(data) - 60):
        path = tmp_path / "cut.img"
        path.write_bytes(data[:part])
        with pytest.raises(ValueError, match=r"expected .*, got .*cut\.img: .*; ") as caught:
            read_picture(path)
        assert "\n" not in str(caught.value)


def test_a_tiff_with_missing_pixels_is_an_error() -> None:
    pixels = sample_pixels(3, np.uint16)
    data = bytearray(_tiff(pixels, photometric="rgb", rowsperstrip=8))
    with pytest.raises(ValueError, match="complete image"):
        read_picture("a", bytes(data[:-1]))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        place = file.pages[0].tags[279].valueoffset
    data[place : place + 4] = bytes(4)  # the first strip is said to have no bytes, which tifffile reads as black
    with pytest.raises(ValueError, match="complete image, got a: the file ends within the pixels"):
        read_picture("a", bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_broken_bytes_give_a_picture_or_a_value_error(name: str) -> None:
    data = _file(name)
    generator = np.random.default_rng(1)
    messages = []
    for _ in range(40):
        broken = bytearray(data)
        for place in generator.integers(0, len(data) if generator.integers(2) else 200, 3):
            broken[place] = generator.integers(256)
        try:
            picture = read_picture("broken", bytes(broken))
        except ValueError as error:
            messages.append(str(error))
        else:
            assert picture.pixels.ndim == 3
    assert all("broken" in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("name", FILES)
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = _file(name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    with pytest.raises(ValueError, match=r"expected at most 959 pixels, got a\.png: .*cut it into parts"):
        read_picture("a.png", data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40)
    read_picture("a.png", data)


def test_no_file_a_folder_and_text_are_explained(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not pixels")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="got the folder"):
        read_picture(tmp_path)
    with pytest.raises(ValueError, match="not a picture Pillow can read"):
        read_picture(tmp_path / "notes.png")
    with pytest.raises(ValueError, match="complete image"):
        read_picture("a.tif", b"II*\0 and then text")


@pytest.mark.parametrize("depth", [8, 16])
def test_exif_behind_the_pixels_of_a_png_is_found(depth: int) -> None:
    block = sample_exif()
    data = _png(sample_pixels(1)[..., 0], depth, 0)
    end = data.rindex(b"IEND") - 4
    assert read_picture("a", data[:end] + _chunk(b"eXIf", block) + data[end:]).metadata.exif == block


def test_old_programs_keep_exif_as_text_of_a_png() -> None:
    block = sample_exif()
    hexadecimal = (b"Exif\0\0" + block).hex()
    text = f"\nexif\n{len(block) + 6:8d}\n{hexadecimal}\n".encode()
    data = _png(sample_pixels(1)[..., 0], 8, 0, _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    picture = read_picture("a", data)
    assert (picture.metadata.exif, picture.notes) == (block, ())


def test_a_deep_avif_is_noted() -> None:
    if ".avif" not in PICTURE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    data = bytearray(_file("avif"))
    place = data.find(b"av1C") + 6
    assert read_picture("a", bytes(data)).notes == ()
    from sr_data.pictures import _notes

    with Image.open(io.BytesIO(bytes(data))) as image:
        data[place] |= 0x40
        assert _notes(image, bytes(data)) == ["10 bit: AVIF is read as 8"]
        data[place] |= 0x20
        assert _notes(image, bytes(data)) == ["12 bit: AVIF is read as 8"]


def test_profiles_are_read_byte_for_byte() -> None:
    grey, colour = sample_profile(b"GRAY"), sample_profile()
    for form in ("PNG", "JPEG", "TIFF"):
        data = _saved(Image.fromarray(sample_pixels(1)[..., 0]), form, icc_profile=grey)
        assert read_picture("a", data).metadata.icc == grey
    deep = _tiff(sample_pixels(3, np.uint16), photometric="rgb", iccprofile=colour)
    assert read_picture("a", deep).metadata.icc == colour


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_picture, read_image):
        with pytest.raises(ValueError, match=r"got .*a\.png: a pipe or device; name a regular file"):
            read(tmp_path / "a.png")


def test_the_limit_of_pixels_can_be_raised_for_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    pixels = sample_pixels(3)
    for form in ("png", "tiff"):
        data = _written(Picture(pixels), form)
        assert read_picture("a", data, max_pixels=24 * 40).pixels.shape == pixels.shape
        for limit in (None, 959):
            with pytest.raises(ValueError, match=rf"at most {limit or 400} pixels, .* upscale --max-pixels"):
                read_picture("a", data, max_pixels=limit)
        assert Image.MAX_IMAGE_PIXELS == 400
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        read_picture("a", data, max_pixels=0)


def _overlapping(codes: range, size: int, extra: bytes = b"") -> bytes:
    """A directory of tags that all have the same `size` bytes from byte 8 on as their value."""
    table = b"".join(struct.pack("<HHII", code, 7, size, 8) for code in codes)
    return struct.pack("<H", len(codes) + len(extra) // 12) + extra + table + bytes(4)


def test_tags_that_overlap_are_not_copied() -> None:
    plain = _written(Picture(sample_pixels(3)), "tiff")
    (offset,) = struct.unpack_from("<I", plain, 4)
    number = struct.unpack_from("<H", plain, offset)[0]
    storage = plain[offset + 2 : offset + 2 + 12 * number]
    at, size = len(plain), 100_000
    private = struct.pack("<I", at).join((plain[:4], plain[8:])) + _overlapping(range(40100, 42100), size, storage)
    below = _overlapping(range(40100, 42100), size)
    pointer = struct.pack("<HHII", 0x8769, 4, 1, at)
    own = struct.pack("<H", number + 1) + storage + pointer + bytes(4)
    child = struct.pack("<I", at + len(below)).join((plain[:4], plain[8:])) + below + own
    for data, note in ((private, "and 1980 more"), (child, "EXIF: damaged")):
        data += bytes(size)
        tracemalloc.start()
        picture = read_picture("a", data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * size  # 2000 copies would be 200 MB
        np.testing.assert_array_equal(picture.pixels, sample_pixels(3))
        assert picture.metadata.exif is None
        assert len(picture.notes) == 1
        assert picture.notes[0].endswith(note)
    block = b"II*\0\x08\0\0\0" + _overlapping(range(270, 273), 40) + bytes(40)
    for form, dropped in (("png", ()), ("tiff", ("EXIF: damaged",))):
        picture = Picture(sample_pixels(3), Metadata(exif=block))
        assert write_picture(io.BytesIO(), picture, format=form) == dropped


def test_damaged_tags_print_nothing() -> None:
    block = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0110, 2, 1000, 5000, 0)
    data = _saved(Image.fromarray(sample_pixels(3)), "JPEG", exif=b"Exif\0\0" + block)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data))  # Pillow alone says so
        count = len(caught)
        read_picture("a", data)
    assert count > 0
    assert len(caught) == count
