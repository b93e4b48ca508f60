"""Figures and pictures of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.evaluation import luma, measure
from distill.pictures import save_grid


def test_luma_is_bt_601_studio_swing() -> None:
    # BT.601: white 235, black 16; red, green, blue from the standard's rounded 8-bit table.
    colours = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    levels = luma(colours[:, :, None, None])[:, 0, 0, 0] * 255
    assert levels.tolist() == pytest.approx([235, 16, 81.48, 144.55, 40.97], abs=0.01)


def test_psnr_is_the_mean_over_images() -> None:
    grey = torch.zeros(2, 3, 16, 16)
    shifted = grey + torch.tensor([0.1, 0.4])[:, None, None, None]  # steps of 0.05 and 0.2 in [0, 1], times 219/255
    figures = measure(shifted, grey)
    for name, swing in (("PSNR-Y", 219 / 255), ("PSNR-RGB", 1)):
        wanted = np.mean([-20 * math.log10(step * swing) for step in (0.05, 0.2)])
        assert figures[name] == pytest.approx(wanted, abs=1e-3)
    tinted = grey + torch.tensor([0.2, -0.2 * 65.481 / 128.553, 0.0])[:, None, None]  # of the same luma
    figures = measure(tinted, grey)
    assert figures["PSNR-Y"] > 90
    assert figures["PSNR-RGB"] < 30


def test_sharpness_is_relative_to_the_reference() -> None:
    reference = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = measure(reference, reference)
    assert same["SSIM-Y"] == pytest.approx(1, abs=1e-5)
    assert same["sharpness"] == pytest.approx(1, abs=1e-6)
    assert measure(0.25 * reference, reference)["sharpness"] == pytest.approx(0.25, rel=1e-4)
    assert measure(0.25 * reference, reference)["SSIM-Y"] < 0.9


def test_a_grid_has_a_column_per_method_and_a_row_per_image(tmp_path: Path) -> None:
    levels = torch.tensor([[0.0, 51], [102, 153], [204, 255]])  # image, column
    columns = {
        title: (levels[:, column] / 127.5 - 1)[:, None, None, None].expand(3, 3, 40, 60)
        for column, title in enumerate(("LR", "HR"))
    }
    save_grid(tmp_path / "grid.png", columns, rows=2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (26 + 2 * 44, 2 * 64 - 4, 3)
    for row in range(2):
        for column in range(2):
            cell = pixels[26 + 44 * row :, 64 * column :][:40, :60]
            assert (cell == levels[row, column].item()).all()
    assert (pixels[:26] < 128).any()  # titles
