"""Pictures in and out: conversions, the errors a user meets, and the pixel domain."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_data.images import (
    IMAGE_SUFFIXES,
    ImageFiles,
    image_size,
    list_images,
    read_image,
    to_tensor,
    to_uint8,
    write_image,
)


def _ramp(height: int = 12, width: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack((rows * 9, columns * 11, rows + columns), axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_a_picture_written_losslessly_reads_back_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / "er" / f"a{suffix}"
    write_image(path, _ramp())
    np.testing.assert_array_equal(read_image(path), _ramp())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_follow_the_suffix_and_stay_close(tmp_path: Path, suffix: str) -> None:
    smooth = np.broadcast_to(np.linspace(20, 220, 64).astype(np.uint8)[:, None, None], (64, 64, 3)).copy()
    path = tmp_path / f"a{suffix}"
    write_image(path, smooth)
    with Image.open(path) as image:
        assert image.format == {".webp": "WEBP"}.get(suffix, "JPEG")
    assert np.abs(read_image(path).astype(int) - smooth).max() <= 4


def test_jpeg_is_written_at_quality_95(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", _ramp())
    reference = tmp_path / "b.jpg"
    Image.fromarray(_ramp()).save(reference, quality=95)
    with Image.open(tmp_path / "a.jpg") as ours, Image.open(reference) as expected:
        assert ours.quantization == expected.quantization


def test_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; shown rotated clockwise by a quarter
    Image.fromarray(_ramp()).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(_ramp(), -1))
    assert image_size(path) == (20, 12)


def test_grey_palette_alpha_and_16_bit_become_8_bit_rgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))

    palette = Image.fromarray(grey % 4, mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0, :4].tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [9, 9, 9],
    ]

    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]

    Image.fromarray(np.array([[0, 257, 60000, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 1].tolist() == [0, 1, 233, 255]


def test_unreadable_files_are_explained_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not pixels")
    whole = tmp_path / "whole.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(whole, noise)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:6000])
    cut_jpeg = tmp_path / "cut.jpg"
    write_image(cut_jpeg, noise)
    cut_jpeg.write_bytes(cut_jpeg.read_bytes()[:3000])

    cases = [
        (tmp_path / "absent.png", FileNotFoundError, "no such file"),
        (tmp_path, ValueError, "got the folder"),
        (text, ValueError, "expected an image, got .*: not a picture Pillow can read; "),
        (cut, ValueError, "expected a complete image, got .*replace or remove"),
        (cut_jpeg, ValueError, "expected a complete image, got .*replace or remove"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            read_image(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    for limit in (
        64 * 64 - 1,
        64 * 64 // 3,
    ):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"expected at most .* pixels, got .*whole.png"):
            read_image(whole)


def test_writing_refuses_unknown_suffixes_and_other_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.png, .*\.tiff, got 'a\.xyz'"):
        write_image(tmp_path / "a.xyz", _ramp())
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        write_image(tmp_path / "a.png", _ramp().astype(np.float32))
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        write_image(tmp_path / "a.png", _ramp()[..., 0])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_image(path, _ramp())

    def half_written(self: Image.Image, where: Path, **options: object) -> None:
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_image(path, 255 - _ramp())
    np.testing.assert_array_equal(read_image(path), _ramp())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_listing_is_sorted_recursive_and_skips_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".cache/d.png", "notes.txt", "sub/.e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "sub/c.webp"]


def test_listing_below_a_hidden_folder_works(tmp_path: Path) -> None:
    (tmp_path / ".store").mkdir()
    (tmp_path / ".store" / "a.png").touch()
    assert len(list_images(tmp_path / ".store")) == 1


def test_listed_files_are_kept_compactly_and_in_order(tmp_path: Path) -> None:
    names = ["b/ü.png", "a-b.png", "a.png", "a/c.jpg", os.fsdecode(b"not-utf8-\xff.png")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = ImageFiles(tmp_path)
    assert list(files.names()) == sorted(names)
    assert list(files) == [files[place] for place in range(5)] == [tmp_path / name for name in sorted(names)]
    assert list(ImageFiles(tmp_path, reversed(names)).names()) == names[::-1]
    for place in (-1, 5):
        with pytest.raises(IndexError, match=r"0 \.\.\. 4"):
            files[place]
    # No object a file: a million would be copied into every worker.
    many = ImageFiles(tmp_path, (f"n{number:08d}.jpg" for number in range(1000)))
    assert len(pickle.dumps(many)) < 1000 * (len("n00000000.jpg") + 8) + 500


def test_listing_follows_links_to_files_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "sub" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "sub" / "a.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "absent.png")
    assert list(ImageFiles(tmp_path).names()) == ["link.png", "sub/a.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"expected a readable folder, got .*: Permission denied; allow reading"):
        list_images(tmp_path)


def test_a_picture_in_memory_is_read_like_its_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", _ramp())
    content = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(read_image("shard/a.png", content), _ramp())
    for wrong in (content[:60], b"", b"text"):
        with pytest.raises(ValueError, match=r"got shard/a\.png: .*; "):
            read_image("shard/a.png", wrong)


def test_listing_explains_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no images in .*; expected files ending in \.png"):
        list_images(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="got the file"):
        list_images(tmp_path / "a.png")
    assert ".jpeg" in IMAGE_SUFFIXES


def test_every_level_survives_the_way_through_a_tensor() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack((levels, levels[::-1], levels.T), axis=-1)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(tensor), image)


def test_to_uint8_rounds_to_nearest_and_clamps() -> None:
    values = torch.tensor([-7.0, -1.0, 10.6 / 127.5 - 1, 10.4 / 127.5 - 1, 1.0, 3.0])
    image = to_uint8(values.expand(3, 1, 6))
    assert image[0, :, 0].tolist() == [0, 0, 11, 10, 255, 255]
    assert to_uint8(torch.ones(3, 2, 2, dtype=torch.bfloat16)).max() == 255


def test_conversions_refuse_other_shapes_and_types() -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        to_tensor(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
    for wrong in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"expected \(3, H, W\) floating point"):
            to_uint8(wrong)
