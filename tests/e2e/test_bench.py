"""``sr-bench quality`` against figures computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_data.images import write_image

Pixels = np.ndarray


def pictures(folder: Path, names: tuple[str, ...], size: tuple[int, int], seed: int) -> dict[str, Pixels]:
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        found[name] = np.clip(smooth.astype(int) + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
        write_image(folder / f"{name}.png", found[name])
    return found


def psnr_y(restored: Pixels, hr: Pixels) -> float:
    """PSNR of the 8-bit studio-swing luma of BT.601, not rounded."""
    luma = [16 + picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 for picture in (restored, hr)]
    return float(10 * np.log10(255**2 / np.square(luma[0] - luma[1]).mean()))


def test_bicubic_is_measured_as_it_is_written(run: Any, tmp_path: Path) -> None:
    names = ("a", "deeper/a", "deeper/b")
    hr = pictures(tmp_path / "hr", names, (96, 64), 0)
    lr = pictures(tmp_path / "lr", names, (24, 16), 1)
    out = tmp_path / "result"
    options = ["--lr", tmp_path / "lr", "--hr", tmp_path / "hr", "--method", "bicubic", "--out", out]
    outcome = run("sr-bench", "quality", *options, "--limit", 2)
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "result.json").read_text())
    assert result["images"] == ["a.png", "a.png"]
    measured = result["methods"]["bicubic"]["per_image"]
    assert set(measured) == {"PSNR-Y", "SSIM-Y", "GMSD", "NLPD", "PIQE", "LR-RMSE"}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in measured.values())
    written = sorted(path.relative_to(out / "bicubic").as_posix() for path in (out / "bicubic").rglob("*.png"))
    assert written == ["a.png", "deeper/a.png"]
    for name, value in zip(names[:2], measured["PSNR-Y"], strict=True):
        restored = np.asarray(Image.open(out / "bicubic" / f"{name}.png"))
        wanted = np.asarray(Image.fromarray(lr[name]).resize((64, 96), Image.Resampling.BICUBIC))
        assert np.array_equal(restored, wanted)
        assert value == pytest.approx(psnr_y(restored, hr[name]), abs=2e-3)
        averaged = restored.reshape(24, 4, 16, 4, 3).mean((1, 3))
        assert np.sqrt(np.square(averaged - lr[name]).mean()) in [pytest.approx(v) for v in measured["LR-RMSE"]]
    table = (out / "table.md").read_text()
    assert table.splitlines()[0] == "| method | PSNR-Y ↑ | SSIM-Y ↑ | GMSD ↓ | NLPD ↓ | PIQE ↓ | LR-RMSE ↓ |"
    assert f"| bicubic | {np.mean(measured['PSNR-Y']):.4g} |" in table
    assert {"command", "seed", "device", "versions", "protocol"} <= set(result["provenance"])


def test_a_model_with_options(run: Any, trained: Any, tmp_path: Path) -> None:
    """Options after the name: another picture, nearer to the LR image, unknown ones are refused."""
    pictures(tmp_path / "hr", ("a",), (64, 64), 0)
    pictures(tmp_path / "lr", ("a",), (16, 16), 0)
    folders = ["--lr", tmp_path / "lr", "--hr", tmp_path / "hr"]
    near = f"{trained.student},fidelity=1,seed=2"
    outcome = run(
        "sr-bench", "quality", *folders, "--method", trained.student, "--method", near, "--out", tmp_path / "out"
    )
    assert outcome.code == 0, outcome.err
    methods = json.loads((tmp_path / "out" / "result.json").read_text())["methods"]
    plain, nearer = (methods[name]["per_image"]["LR-RMSE"][0] for name in (str(trained.student), near))
    assert nearer < 0.6 * plain
    for method, message in (
        (f"{trained.student},fidelity=2", "expected fidelity from 0 to 1, got 2"),
        (f"{trained.student},fidelity=x", "expected a number for fidelity, got 'x'"),
        (f"{trained.student},magic=1", "expected options such as fidelity=0.5 of seed, steps, tile, color, fidelity"),
        ("bicubic,seed=1", "expected no options for bicubic"),
    ):
        refused = run("sr-bench", "quality", *folders, "--method", method)
        assert refused.code == 2
        assert message in refused.err


def test_tiles_are_compared_with_the_whole(run: Any, trained: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "images", ("a",), (40, 64), 0)
    out = tmp_path / "tiles.json"
    options = ["--images", tmp_path / "images", "--weights", trained.student, "--out", out]
    outcome = run("sr-bench", "tiles", *options, "--tile", 32)
    assert outcome.code == 0, outcome.err
    rows = json.loads(out.read_text())["rows"]
    assert [(row["tile"], row["norms"]) for row in rows] == [(32, "shared"), (32, "own")]
    assert rows[0]["psnr"] != rows[1]["psnr"]
    assert all(row["largest_within"] > 0 and row["largest_elsewhere"] > 0 for row in rows)
    refused = run("sr-bench", "tiles", *options[:4], "--tile", 64)
    assert refused.code == 2
    assert "expected pictures larger than tiles of 64, got a.png of 64x40" in refused.err


def test_seams_are_seen_where_they_are() -> None:
    """A step at the border of a tile counts there, one elsewhere elsewhere."""
    from sr_bench.tiles import seams_of

    class Model:
        scale, lr_multiple = 4, 8

    flat = np.full((4 * 40, 4 * 64, 3), 100, np.uint8)
    at_border, elsewhere = flat.copy(), flat.copy()
    at_border[:, 4 * 20 :] += 8  # tiles of 32 overlap in columns 16 to 32
    elsewhere[:, 4 * 8 :] += 8
    seen, unseen = (seams_of(image, (40, 64), 32, Model()) for image in (at_border, elsewhere))  # type: ignore[arg-type]
    assert (seen.largest_within, seen.largest_elsewhere) == (8, 0)
    assert (unseen.largest_within, unseen.largest_elsewhere) == (0, 8)


def test_bad_input_is_refused_in_one_line(run: Any, trained: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "hr", ("a", "b", "c"), (64, 64), 0)
    pictures(tmp_path / "lr", ("a", "d"), (16, 16), 0)
    pictures(tmp_path / "fits", ("a", "b", "c"), (16, 16), 0)
    pictures(tmp_path / "twice", ("a",), (16, 16), 0)
    write_image(tmp_path / "twice" / "a.jpg", np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    fits = ["--lr", tmp_path / "fits", "--method", "bicubic"]
    cases: list[tuple[list[object], str]] = [
        (["--lr", tmp_path / "lr"], "expected the same names in"),
        (["--lr", tmp_path / "lr"], "got in one only: b, c, d"),
        (["--lr", tmp_path / "none"], "no such folder"),
        (["--lr", tmp_path / "empty"], "no images in"),
        (["--lr", tmp_path / "twice"], "expected one file per name"),
        ([*fits, "--out", tmp_path / "empty"], "which exists; choose another --out"),
        ([*fits, "--device", "nowhere"], "expected a torch device"),
        ([*fits, "--method", tmp_path / "none"], "expected a model folder"),
        ([*fits, "--method", trained.autoencoder], "got kind 'autoencoder'"),
    ]
    for arguments, message in cases:
        outcome = run("sr-bench", "quality", "--hr", tmp_path / "hr", *arguments)
        lines = outcome.err.splitlines()
        assert outcome.code == 2, outcome
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("error: ")
        assert message in lines[0]
    assert run("sr-bench", "quality", "--hr", tmp_path / "hr", *fits, "--limit", 0).code == 2


def test_model_folders_of_one_name_keep_their_pictures_apart() -> None:
    from sr_bench.quality import folder_name

    names = [folder_name(f"runs/rsd-tiny-{number}/model") for number in ("001", "002")]
    assert names == ["runs_rsd-tiny-001_model", "runs_rsd-tiny-002_model"]
    assert folder_name("tiny-student") == "tiny-student"
