"""Writing pictures: what every format keeps, rows as they come, whole files or none."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sr_data import exif as exif_blocks
from sr_data import tiff
from sr_data.exif import Directory, Layout, Tag
from sr_data.formats import FORMATS
from sr_data.pictures import PICTURE_SUFFIXES, Metadata, Picture, read_picture
from sr_data.png import _paeth, filtered
from sr_data.roundtrip import kept_metadata, sample_exif, sample_metadata, sample_pixels, sample_profile, table
from sr_data.writers import PictureWriter, write_picture

KINDS = [(dtype, channels) for dtype in (np.uint8, np.uint16) for channels in (1, 2, 3, 4)]


def _written(picture: Picture, form: str, **options: Any) -> tuple[bytes, tuple[str, ...]]:
    file = io.BytesIO()
    dropped = write_picture(file, picture, format=form, **options)
    return file.getvalue(), dropped


def _pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _in_bands(target: Any, pixels: np.ndarray, heights: list[int], **options: Any) -> None:
    with PictureWriter(target, *pixels.shape, pixels.dtype, **options) as writer:
        start = 0
        for height in heights:
            writer.write(pixels[start : start + height])
            start += height
        writer.write(pixels[start:])


@pytest.mark.parametrize("kinds", ["", "icc", "exif", "xmp", "dpi", "icc exif xmp dpi"])
@pytest.mark.parametrize(("dtype", "channels"), KINDS)
@pytest.mark.parametrize("form", ["png", "tiff", "jpeg", "webp", "bmp", "avif"])
def test_what_is_not_kept_is_named(form: str, dtype: type, channels: int, kinds: str) -> None:
    if f".{form}" not in PICTURE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    pixels = sample_pixels(channels, dtype)
    stored = {"webp": channels + 2 if channels < 3 else channels, "avif": 4 if channels == 2 else channels}
    # A profile that fits the pixels as this format stores them.
    full = sample_metadata(stored.get(form, channels), 24, 40)
    metadata = Metadata(**{kind: getattr(full, kind) for kind in kinds.split()})
    data, dropped = _written(Picture(pixels, metadata), form)
    back = read_picture("a", data)
    keeps = {"bmp": {"dpi"}, "webp": {"icc", "exif", "xmp"}, "avif": {"icc", "exif", "xmp"}}
    deep, alpha = form in ("png", "tiff"), form in ("png", "tiff", "webp", "avif")
    expected = ["alpha"] if channels in (2, 4) and not alpha else []
    expected += ["16 bit"] if dtype is np.uint16 and not deep else []
    expected += [kind.upper() for kind in kinds.split() if kind not in keeps.get(form, {"icc", "exif", "xmp", "dpi"})]
    assert [line.split(":")[0] for line in dropped] == expected
    for kind, kept in kept_metadata(metadata, back.metadata).items():
        assert kept == (kind in kinds and kind.upper() not in expected) or kind not in kinds
        if kind not in kinds:
            assert getattr(back.metadata, kind) is None or (form, kind) == ("bmp", "dpi")
    if deep:
        assert back.pixels.dtype == dtype
        np.testing.assert_array_equal(back.pixels, pixels)
    assert back.notes == ()


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_independent_readers_agree_with_the_own_encoders(dtype: type, channels: int) -> None:
    pixels = sample_pixels(channels, dtype)
    flat = pixels if channels > 1 else pixels[..., 0]
    picture = Picture(pixels, sample_metadata(channels, 24, 40))
    png, _ = _written(picture, "png")
    np.testing.assert_array_equal(imagecodecs.png_decode(png), flat)
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.info["icc_profile"] == picture.metadata.icc
        assert image.info["exif"].removeprefix(b"Exif\0\0") == picture.metadata.exif
        assert image.info["xmp"] == picture.metadata.xmp
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)
        if dtype is np.uint8 or channels == 1:
            np.testing.assert_array_equal(np.asarray(image), flat)
    data, _ = _written(picture, "tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray(), flat)
        assert page.tags[34675].value == picture.metadata.icc
        assert page.tags[700].value == picture.metadata.xmp
        assert page.tags[34665].value["MakerNote"] == b"\x00note\xff\x01\x02\x03"
        assert page.tags[34665].value["PixelXDimension"] == 40
        assert page.tags[34853].value["GPSLatitude"] == (48, 1, 8, 1, 7, 1)
        assert page.resolution == (300, 150)
    _, found, _ = exif_blocks._all_entries(data)
    # As the specification demands; a value of up to 4 bytes lies in its entry.
    assert all(entry.start % 2 == 0 for part in found.values() for entry in part)
    assert set(found) == {0, exif_blocks.EXIF, exif_blocks.GPS}
    if dtype is np.uint8 or channels == 1:
        np.testing.assert_array_equal(_pillow(data), flat)


def test_pointers_and_storage_tags_of_an_exif_block_do_not_enter_a_tiff() -> None:
    layout = Layout("<")
    tags = {
        271: Tag(2, 6, b"Maker\0"),
        259: Tag(3, 1, b"\x06\0"),
        330: Tag(4, 1, bytes(4)),
        50000: Tag(13, 1, bytes(4)),
    }
    block = b"II*\0\x08\0\0\0" + exif_blocks.serialize(Directory(tags), 8, layout)
    data, _ = _written(Picture(sample_pixels(3), Metadata(exif=block)), "tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert page.tags[271].value == "Maker"
        assert page.compression == 8
        assert 330 not in page.tags
        assert 50000 not in page.tags


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_in_both_byte_orders_and_with_64_bit_offsets(
    monkeypatch: pytest.MonkeyPatch, big: bool, order: str
) -> None:
    if big:
        monkeypatch.setattr(tiff, "_CLASSIC_BYTES", 0)
    monkeypatch.setattr(tiff, "_STRIP_BYTES", 1000)  # many strips, the last one shorter
    pixels = sample_pixels(3, np.uint16, 23)
    metadata = Metadata(exif=sample_exif(1, order), dpi=(299.5, 72.0))
    data, _ = _written(Picture(pixels, metadata), "tiff")
    assert data[:4] == {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(file.asarray(), pixels)
        assert len(file.pages[0].dataoffsets) == 6
        assert file.pages[0].tags[34665].value["MakerNote"] == b"\x00note\xff\x01\x02\x03"
    back = read_picture("a", data)
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.metadata.dpi == pytest.approx((299.5, 72.0))
    assert back.metadata.exif is not None
    assert back.metadata.exif[:2] == data[:2]


PATTERNS = {
    "random": np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8),
    "flat": np.full((40, 30, 3), 77, np.uint8),
    "rows": np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (40, 30, 3)).copy(),
    "columns": np.broadcast_to((np.arange(30, dtype=np.uint8) ** 2)[None, :, None], (40, 30, 3)).copy(),
    "sums": (np.add.outer(np.arange(40) ** 2 // 8, np.arange(30) ** 2 // 6)[..., None] + [0, 9, 70]).astype(np.uint8),
    "one row": sample_pixels(3, np.uint8, 1, 50),
    "one column": sample_pixels(4, np.uint16, 50, 1),
    "one pixel": sample_pixels(2, np.uint16, 1, 1),
}


def _filters(data: bytes, row_bytes: int) -> set[int]:
    parts, place = b"", 8
    while place < len(data):
        size, name = struct.unpack(">I4s", data[place : place + 8])
        parts += data[place + 8 : place + 8 + size] if name == b"IDAT" else b""
        place += 12 + size
    return set(zlib.decompress(parts)[:: row_bytes + 1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_png_filters_and_bands_of_any_height_give_the_same_pixels(pattern: str) -> None:
    pixels = PATTERNS[pattern]
    files = []
    for heights in ([], [1] * (len(pixels) - 1), [0, 3, 0, 7]):
        file = io.BytesIO()
        _in_bands(file, pixels, heights, format="png")
        files.append(file.getvalue())
        np.testing.assert_array_equal(
            np.atleast_3d(imagecodecs.png_decode(file.getvalue())).reshape(pixels.shape), pixels
        )
    filters = [_filters(data, pixels[0].nbytes) for data in files]
    assert filters[0] == filters[1] == filters[2]
    assert {"random": {0}, "rows": {1}, "columns": {1, 2}, "sums": {1, 4}}.get(pattern, filters[0]) <= filters[0]


def _paeth_of_the_specification(a: int, b: int, c: int) -> int:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    if pa <= pb and pa <= pc:
        return a
    return b if pb <= pc else c


def test_paeth_breaks_ties_as_the_specification_does() -> None:
    levels = [0, 1, 2, 3, 127, 128, 254, 255]
    a, b, c = (part.ravel().astype(np.uint8) for part in np.meshgrid(levels, levels, levels))
    expected = [_paeth_of_the_specification(*(int(level) for level in three)) for three in zip(a, b, c, strict=True)]
    assert _paeth(a, b, c).tolist() == expected


def test_the_filter_of_a_row_is_the_cheapest_one() -> None:
    rows = np.random.default_rng(3).integers(0, 256, (30, 24), dtype=np.uint8)
    rows[10:20] = np.cumsum(rows[10:20] % 3, axis=0)
    previous = rows[:1] * 0
    result = filtered(rows, previous, 3)
    above = np.concatenate((previous, rows[:-1])).astype(int)
    for y, row in enumerate(rows.astype(int)):
        left = np.concatenate(([0, 0, 0], row[:-3]))
        corner = np.concatenate(([0, 0, 0], above[y][:-3]))
        paeth = [_paeth_of_the_specification(*three) for three in zip(left, above[y], corner, strict=True)]
        choices = {0: row, 1: row - left, 2: row - above[y], 4: row - np.array(paeth)}
        costs = {code: np.minimum(d % 256, 256 - d % 256).sum() for code, d in choices.items()}
        code = result[y, 0]
        assert costs[code] == min(costs.values())
        np.testing.assert_array_equal(result[y, 1:], choices[code] % 256)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    deep=st.booleans(),
    form=st.sampled_from(["png", "tiff", "webp", "bmp"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_lossless_formats_give_back_any_picture(
    height: int, width: int, channels: int, deep: bool, form: str, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    if form in ("webp", "bmp"):
        deep, channels = False, {"webp": channels // 3 + 3, "bmp": channels // 3 * 2 + 1}[form]
    pixels = generator.integers(0, 65536 if deep else 256, (height, width, channels), np.uint16 if deep else np.uint8)
    file = io.BytesIO()
    heights = np.diff(np.sort(generator.integers(0, height + 1, 4)))
    _in_bands(file, pixels, [int(part) for part in heights], format=form)
    back = read_picture("a", file.getvalue()).pixels
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("form", ["png", "tif"])
def test_large_pictures_are_written_as_the_rows_come(tmp_path: Path, form: str) -> None:
    height, width = 3000, 400
    row = np.random.default_rng(0).integers(0, 256, (1, width, 3), dtype=np.uint8)
    band = np.repeat(row, 100, axis=0) ^ np.random.default_rng(1).integers(0, 4, (100, width, 3), dtype=np.uint8)
    sizes = []
    tracemalloc.start()
    with PictureWriter(tmp_path / f"a.{form}", height, width, 3, np.uint8) as writer:
        for _ in range(height // 100):
            writer.write(band)
            sizes.append(next(tmp_path.iterdir()).stat().st_size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < height * width * 3 / 2
    assert sizes[5] < sizes[15] < sizes[25]
    assert [entry.name for entry in tmp_path.iterdir()] == [f"a.{form}"]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    pixels = sample_pixels(3)

    def attempt(rows: np.ndarray, error: BaseException | None = None) -> None:
        with PictureWriter(path, 24, 40, 3, np.uint8) as writer:
            writer.write(rows)
            assert not path.exists() or path.read_bytes() == b"old"
            if error is not None:
                raise error

    for old in (None, b"old"):
        if old is not None:
            path.write_bytes(old)
        before = [] if old is None else [name]
        with pytest.raises(ValueError, match="expected 24 rows, got 23; nothing was written"):
            attempt(pixels[:23])
        with pytest.raises(ValueError, match="expected 24 rows in all, got 25"):
            attempt(np.concatenate((pixels, pixels[:1])))
        with pytest.raises(KeyboardInterrupt):
            attempt(pixels, KeyboardInterrupt())
        assert [entry.name for entry in path.parent.iterdir()] == before
        assert old is None or path.read_bytes() == old
    attempt(pixels)
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)


def test_a_failing_encoder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, where: Any, **options: Any) -> None:
        where.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    file = io.BytesIO()
    for target in (tmp_path / "a.jpg", file):
        with pytest.raises(OSError, match="disk full"):
            write_picture(target, Picture(sample_pixels(3)), format="jpg")
    assert list(tmp_path.iterdir()) == []
    assert file.getvalue() == b""


def test_a_file_object_gets_the_bytes_at_the_end_only() -> None:
    file = io.BytesIO()
    with PictureWriter(file, 24, 40, 3, np.uint8, format=".PNG") as writer:
        writer.write(sample_pixels(3))
        assert file.getvalue() == b""
    np.testing.assert_array_equal(read_picture("a", file.getvalue()).pixels, sample_pixels(3))
    with pytest.raises(ValueError, match="expected an open writer"):
        writer.write(sample_pixels(3))


def test_less_deep_formats_round_and_alpha_lies_on_white() -> None:
    levels = np.array([[[0], [128], [129], [385], [386], [65406], [65407], [65535]]], np.uint16)
    data, dropped = _written(Picture(levels), "bmp")
    assert _pillow(data)[0].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]
    assert dropped == ("16 bit: BMP has 8",)
    for dtype, scale in ((np.uint8, 1), (np.uint16, 257)):
        rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], dtype) * dtype(scale)
        data, dropped = _written(Picture(rgba), "bmp")
        assert _pillow(data)[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 224, 244]]
        assert dropped[0] == "alpha: BMP has none, the picture lies on white"
    grey = np.array([[[7, 9], [200, 255]]], np.uint8)
    assert _pillow(_written(Picture(grey), "webp")[0])[0].tolist() == [[7, 7, 7, 9], [200, 200, 200, 255]]


def test_lossy_only_when_asked_by_name_or_quality() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = {"png": False, "tif": False, "bmp": False, "webp": False, "jpg": True, "avif": True}
    for form, lossy in expected.items():
        if f".{form}" in PICTURE_SUFFIXES:
            assert PictureWriter(io.BytesIO(), 4, 4, 3, np.uint8, format=form).lossy is lossy
    assert PictureWriter(io.BytesIO(), 4, 4, 3, np.uint8, format="webp", quality=80).lossy
    with Image.open(io.BytesIO(_written(Picture(noise), "jpg")[0])) as image:
        reference = io.BytesIO()
        Image.fromarray(noise).save(reference, "JPEG", quality=95, subsampling=0)
        with Image.open(reference) as other:
            assert image.quantization == other.quantization  # type: ignore[attr-defined]
        assert image.layer[0][1:3] == (1, 1)  # type: ignore[attr-defined]
    for form in ("jpg", "webp", "avif"):
        if f".{form}" in PICTURE_SUFFIXES:
            small, large = (len(_written(Picture(noise), form, quality=quality)[0]) for quality in (20, 90))
            assert small < large


def test_grey_profiles_stay_with_grey_pixels_only() -> None:
    grey, colour = sample_profile(b"GRAY"), sample_profile()
    cases = [
        ("png", 1, grey, None),
        ("png", 1, colour, "a profile for RGB does not fit pixels stored as GRAY"),
        ("png", 3, grey, "a profile for GRAY does not fit pixels stored as RGB"),
        ("webp", 1, grey, "a profile for GRAY does not fit pixels stored as RGB"),
        ("webp", 1, colour, None),
        ("jpeg", 2, grey, None),
        ("tiff", 4, sample_profile(b"CMYK"), "a profile for CMYK does not fit pixels stored as RGB"),
        ("tiff", 3, b"short", "damaged"),
    ]
    for form, channels, profile, reason in cases:
        data, dropped = _written(Picture(sample_pixels(channels), Metadata(icc=profile)), form)
        assert [line for line in dropped if line.startswith("ICC")] == ([] if reason is None else [f"ICC: {reason}"])
        assert read_picture("a", data).metadata.icc == (None if reason else profile)


def test_the_size_in_exif_and_xmp_is_that_of_the_written_picture() -> None:
    xmp = (
        b'<r exif:PixelXDimension="7" tiff:ImageWidth=\'7\' x="exif:PixelXDimension">'
        b"<exif:PixelYDimension>5</exif:PixelYDimension><tiff:ImageLength>5</tiff:ImageLength></r>"
    )
    expected = (
        b'<r exif:PixelXDimension="70000" tiff:ImageWidth=\'70000\' x="exif:PixelXDimension">'
        b"<exif:PixelYDimension>1</exif:PixelYDimension><tiff:ImageLength>1</tiff:ImageLength></r>"
    )
    layout = Layout(">")
    main = {256: Tag(3, 1, layout.pack(3, 7)), 257: Tag(4, 1, layout.pack(4, 5))}
    plain = b"MM\0*\0\0\0\x08" + exif_blocks.serialize(Directory(main), 8, layout)
    # 70000 does not fit a SHORT, so that tag becomes a LONG.
    for block, pair in (
        (plain, (256, 257)),
        (sample_exif(1, ">"), (0xA002, 0xA003)),
        (sample_exif(), (0xA002, 0xA003)),
    ):
        picture = Picture(sample_pixels(1, np.uint8, 1, 70000), Metadata(exif=block, xmp=xmp))
        metadata = read_picture("a", _written(picture, "png")[0]).metadata
        assert metadata.xmp == expected
        assert metadata.exif is not None
        assert len(metadata.exif) == len(block)
        tags = Image.Exif()
        tags.load(metadata.exif)
        part = tags if pair[0] == 256 else tags.get_ifd(0x8769)
        assert (part[pair[0]], part[pair[1]]) == (70000, 1)


def test_metadata_that_a_format_cannot_hold_is_named_at_once() -> None:
    large = Metadata(exif=sample_exif() + bytes(65600), xmp=bytes(65600))
    writer = PictureWriter(io.BytesIO(), 24, 40, 3, np.uint8, large, format="jpg")
    assert writer.dropped == (
        f"EXIF: {len(sample_exif()) + 65600} bytes, JPEG holds 65527",
        "XMP: 65600 bytes, JPEG holds 65504",
    )
    sized = exif_blocks.resized(sample_exif(), 40, 24)
    fitting = Metadata(exif=sized + bytes(65527 - len(sized)), xmp=b" " * 65504)
    data, dropped = _written(Picture(sample_pixels(3), fitting), "jpg")
    assert dropped == ()
    assert all(kept_metadata(fitting, read_picture("a", data).metadata)[kind] for kind in ("exif", "xmp"))
    damaged = PictureWriter(io.BytesIO(), 24, 40, 3, np.uint8, Metadata(exif=b"garbage"), format="png")
    assert damaged.dropped == ("EXIF: damaged",)
    layout = Layout("<")
    stated = {code: Tag(5, 1, layout.pack(5, 300, 1)) for code in (282, 283)}
    block = b"II*\0\x08\0\0\0" + exif_blocks.serialize(Directory(stated), 8, layout)
    data, dropped = _written(Picture(sample_pixels(3), Metadata(exif=block, dpi=(300.0, 300.0))), "webp")
    assert dropped == ()
    assert read_picture("a", data).metadata.dpi == (300.0, 300.0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("a.jpg", 65501, 1, 3, np.uint8), {}, "at most 65500 pixels for JPEG, got 1x65501; write PNG or TIFF"),
        (("a.webp", 1, 16384, 3, np.uint8), {}, "at most 16383 pixels for WebP"),
        (("a.png", 0, 1, 3, np.uint8), {}, "at least one pixel, got 1x0"),
        (("a.png", 1, 1, 5, np.uint8), {}, "1 to 4 channels of uint8 or uint16, got 5 of uint8"),
        (("a.png", 1, 1, 3, np.float32), {}, "got 3 of float32"),
        (("a.xyz", 1, 1, 3, np.uint8), {}, r"expected one of \.png, .*, got '\.xyz'"),
        (("a", 1, 1, 3, np.uint8), {}, r"file name ending in \.png, .*, got 'a'"),
        (("a.jpg", 1, 1, 3, np.uint8), {"format": "gif"}, "got 'gif'"),
        (("a.png", 1, 1, 3, np.uint8), {"quality": 90}, "no quality for PNG, which is lossless"),
        (("a.jpg", 1, 1, 3, np.uint8), {"quality": 101}, "quality of 1 to 100, got 101"),
        ((io.BytesIO(), 1, 1, 3, np.uint8), {}, "a format for a file object"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    tmp_path: Path, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    target = tmp_path / arguments[0] if isinstance(arguments[0], str) else arguments[0]
    with pytest.raises(ValueError, match=message):
        PictureWriter(target, *arguments[1:], **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match=r"expected a file to write, got the folder .*a\.png; name a file in it"):
        PictureWriter(tmp_path / "a.png", 24, 40, 3, np.uint8)


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    for wrong in (np.zeros((1, 40, 4), np.uint8), np.zeros((1, 40, 3), np.uint16), np.zeros((40, 3), np.uint8)):
        with (
            pytest.raises(ValueError, match=r"expected \(n, 40, 3\) uint8, got"),
            PictureWriter(tmp_path / "a.png", 24, 40, 3, np.uint8) as writer,
        ):
            writer.write(wrong)
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_the_docs_is_what_is_measured(repository: Path) -> None:
    if ".avif" not in PICTURE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    page = (repository / "docs" / "images.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- table -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == table()


def test_the_example_of_the_docs_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = sample_pixels(4, np.uint16)
    write_picture("photo.tif", Picture(pixels, sample_metadata(4, 24, 40)))
    example = re.search(
        r"```python\n(.*?)```", (repository / "docs" / "images.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert example is not None
    exec(example[1], {})
    back = read_picture("twice.png")
    np.testing.assert_array_equal(back.pixels[::2, ::2], pixels)
    assert back.metadata.icc == sample_profile()


def test_every_suffix_has_a_format() -> None:
    for suffix in PICTURE_SUFFIXES:
        assert PictureWriter(f"a{suffix.upper()}", 1, 1, 3, np.uint8).dropped == ()
    assert set(FORMATS) == {"PNG", "TIFF", "JPEG", "WEBP", "BMP", "AVIF"}


@pytest.mark.parametrize("form", ["png", "tiff", "jpg", "bmp"])
def test_a_resolution_out_of_range_is_dropped_and_named(form: str) -> None:
    title = {"png": "PNG", "tiff": "TIFF", "jpg": "JPEG", "bmp": "BMP"}[form]
    for dots in (1e12, 1e-9, 0.0, -72.0, float("nan"), float("inf")):
        data, dropped = _written(Picture(sample_pixels(3), Metadata(dpi=(300.0, dots))), form)
        assert dropped == (f"DPI: 300 x {dots:g} is out of the range of {title}",)
        assert read_picture("a", data).metadata.dpi is None
    largest = {"png": 5.4e7, "tiff": 4.29e9, "jpg": 65535.0, "bmp": 5.4e7}[form]
    data, dropped = _written(Picture(sample_pixels(3), Metadata(dpi=(1.0, largest))), form)
    assert dropped == ()
    assert read_picture("a", data).metadata.dpi == pytest.approx((1.0, largest), rel=0.02)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(number: int) -> None:
        assert not (tmp_path / "a.png").exists()
        synced.append(os.fstat(number).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    write_picture(tmp_path / "a.png", Picture(sample_pixels(3)))
    assert synced == [(tmp_path / "a.png").stat().st_size]
