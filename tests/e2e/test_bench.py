"""``sr-bench tiles`` on pictures made here, and what all measurements record."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_bench.record import command_line
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


def test_the_place_of_the_output_is_no_part_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--out", "./oo/"], ["--out=oo/"], ["--out", "oo"]):
        monkeypatch.setattr("sys.argv", ["/bin/sr-bench", "quality", *words, "--model", "bicubic"])
        assert command_line(Path("./oo/")) == "sr-bench quality --model bicubic"
        assert command_line(None) == shlex.join(["sr-bench", "quality", *words, "--model", "bicubic"])


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
