"""Noise, rows, colour and fidelity, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from sr_models.restoration import color
from sr_models.restoration.fidelity import back_project, downscale
from sr_models.restoration.noise import NoiseField
from sr_models.restoration.norms import SharedNorms
from sr_models.restoration.rows import RowResampler, enlarge_rows, resample, to_float, to_levels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 150), st.integers(1, 90), st.integers(0, 150), st.integers(1, 90))
def test_any_part_of_the_noise_is_the_same(top: int, height: int, left: int, width: int) -> None:
    field = NoiseField(seed=7, fields=2, channels=3)
    whole = field.crop(slice(0, 240), slice(0, 240))
    part = field.crop(slice(top, top + height), slice(left, left + width))
    assert torch.equal(part, whole[..., top : top + height, left : left + width])
    assert part.shape == (2, 1, 3, height, width)


def test_noise_stays_as_it_is() -> None:
    """Pictures made by earlier versions come back from their seed: these numbers must not change."""
    field = NoiseField(0, 1, 1)
    assert field.crop(slice(64, 65), slice(0, 1)).item() == pytest.approx(-0.14091189, abs=1e-6)


def test_noise_is_standard_normal_and_independent() -> None:
    field = NoiseField(seed=0, fields=2, channels=2).crop(slice(0, 256), slice(0, 256)).double()
    assert field.mean().abs() < 0.01
    assert (field.std() - 1).abs() < 0.01
    flat = field.reshape(4, -1)
    blocks = field[0, 0, 0].unfold(0, 64, 64).unfold(1, 64, 64).reshape(16, -1)
    for rows in (flat, blocks):  # fields, channels and blocks have nothing in common
        assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.07
    other = NoiseField(seed=1, fields=2, channels=2).crop(slice(0, 64), slice(0, 64))
    assert not torch.equal(other.double(), field[..., :64, :64])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_come_back(dtype: type) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    floats = to_float(levels)
    assert (floats[0], floats[-1]) == (-1, 1)
    assert np.array_equal(to_levels(floats, np.dtype(dtype)), levels)
    assert to_levels(np.array([-1.5, 1.5], np.float32), np.dtype(dtype)).tolist() == [0, np.iinfo(dtype).max]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 90), st.integers(1, 20), st.integers(1, 17))
def test_rows_in_bands_are_resampled_as_a_whole(height: int, width: int, rows: int, columns: int, band: int) -> None:
    image = np.random.default_rng(0).random((height, width, 2), np.float32)
    resampler = RowResampler((height, width), (rows, columns))
    parts = [resampler.push(image[start : start + band]) for start in range(0, height, band)]
    out = np.concatenate([part for part in parts if part is not None])
    expected = np.stack(
        [np.asarray(Image.fromarray(image[..., c]).resize((columns, rows), Image.Resampling.BICUBIC)) for c in (0, 1)],
        -1,
    )
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(resample(image, (rows, columns)), expected, atol=2e-5)
    middle = rows // 2
    np.testing.assert_allclose(enlarge_rows(image, (rows, columns), middle, rows), expected[middle:], atol=2e-5)


def test_resampling_keeps_few_rows() -> None:
    resampler = RowResampler((1000, 4), (730, 3))
    kept = []
    for start in range(0, 1000, 10):
        resampler.push(np.zeros((10, 4, 3), np.float32) + start)
        assert resampler._kept is not None
        kept.append(len(resampler._kept))
    assert max(kept) < 25


@pytest.mark.parametrize("rows", [13, 90])
def test_rows_from_the_middle(rows: int) -> None:
    image = np.random.default_rng(0).random((60, 5, 1), np.float32)
    part = enlarge_rows(image, (rows, 7), rows // 3, rows // 2)
    np.testing.assert_allclose(part, resample(image, (rows, 7))[rows // 3 : rows // 2], atol=2e-5)


def measured(norm: nn.GroupNorm, *passes: Tensor) -> SharedNorms:
    norms = SharedNorms([norm])
    for x in passes:
        with norms.measuring():
            norm(x)
    return norms


def test_later_passes_weigh_more() -> None:
    norm, spread = nn.GroupNorm(1, 1), torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    with measured(norm, spread, spread + 3).used():  # mean (1 * 0 + 2 * 3) / 3
        assert norm(torch.full((1, 1, 1, 1), 2.0)).abs() < 1e-4


def test_flat_pictures_have_no_negative_variance() -> None:
    for level in torch.linspace(900, 1100, 60):
        norm, x = nn.GroupNorm(1, 1), level.expand(1, 1, 2, 2)
        with measured(norm, x, x).used():
            assert norm(x).isfinite().all()


def test_norms_that_overflow_are_seen() -> None:
    assert not measured(nn.GroupNorm(1, 1), torch.full((1, 1, 2, 2), 3e30)).finite()
    assert measured(nn.GroupNorm(1, 1), torch.full((1, 1, 2, 2), 3.0)).finite()


def test_norms_of_half_precision_are_computed_in_float32() -> None:
    norm, x = nn.GroupNorm(1, 1).bfloat16(), (100 + torch.arange(16.0)).view(1, 1, 4, 4).bfloat16()
    with measured(norm, x).used():
        assert (norm(x).float() - F.group_norm(x.float(), 1)).abs().max() < 0.02


def test_color_statistics_are_those_of_all_parts() -> None:
    statistics, whole = color.ColorStatistics(), torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    statistics.add(whole[:3], whole[:3] * 2)
    statistics.add(whole[3:], whole[3:] * 2)
    mean, std, lr_mean, _ = statistics.moments()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(std, whole.std((0, 2, 3), keepdim=True, correction=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(lr_mean, 2 * mean)
    flat = color.ColorStatistics()
    flat.add(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert all((value > 0).all() for value in flat.moments()[1::2])


def images(size: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A restored image, and the LR image enlarged that it should look like: other colours, other detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), size, mode="bicubic").clamp(0, 1)
    detail = 0.1 * torch.randn(1, 3, size, size, generator=generator)
    return (0.8 * coarse + detail - 0.3).clamp(-1, 1), (coarse * 1.4 - 0.8).clamp(-1, 1)


def test_adain_gives_mean_and_deviation_of_the_lr_image() -> None:
    sr, lr = images()
    out = color.adain(sr, lr)
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(out, dim=(0, 2, 3)), statistic(lr, dim=(0, 2, 3)), rtol=0, atol=1e-3)
    # an affine map of every channel, nothing else
    assert torch.corrcoef(torch.stack([out[0, 1].flatten(), sr[0, 1].flatten()]))[0, 1] > 0.9999


def test_wavelet_takes_coarse_from_the_lr_image_and_fine_from_the_other() -> None:
    sr, lr = images(128)
    out = color.wavelet(sr, lr)
    expected = sr - color.low_frequencies(sr) + color.low_frequencies(lr)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    flat = torch.full((1, 3, 40, 40), 0.25)
    torch.testing.assert_close(color.low_frequencies(flat), flat)


def test_low_frequencies_are_five_binomial_blurs() -> None:
    """An impulse in the middle gives the product of the five kernels, whatever the implementation."""
    impulse = torch.zeros(1, 1, 127, 127, dtype=torch.float64)
    impulse[0, 0, 63, 63] = 1
    row = np.array([1.0])
    for level in range(5):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        row = np.convolve(row, kernel)
    found = color.low_frequencies(impulse)[0, 0, 63 - 31 : 63 + 32, 63 - 31 : 63 + 32].numpy()
    np.testing.assert_allclose(found, np.outer(row, row), atol=1e-12)


@pytest.mark.parametrize(
    ("rgb", "expected"),  # values of the CIE formulas for sRGB primaries under D65
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 128, 0), (46.23, -51.70, 49.90)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((10, 10, 10), (2.74, 0.0, 0.0)),
    ],
)
def test_lab_values(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    pixel = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1) / 127.5 - 1
    lab = color.to_lab(pixel)
    torch.testing.assert_close(lab.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(color.from_lab(lab), pixel, rtol=0, atol=1e-6)


def test_lab_keeps_lightness_and_takes_chroma() -> None:
    sr, lr = images(128)
    sr, lr = 0.5 * sr, 0.5 * lr  # within the gamut
    out, ours, wanted = (color.to_lab(image) for image in (color.lab(sr.clone(), lr), sr, lr))
    torch.testing.assert_close(out[:, 0], ours[:, 0], rtol=0, atol=1e-3)
    expected = ours - color.low_frequencies(ours) + color.low_frequencies(wanted)
    torch.testing.assert_close(out[:, 1:], expected[:, 1:], rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["adain", "wavelet", "lab", "none"])
def test_corrections_leave_equal_images_alone(name: str) -> None:
    _, lr = images()
    torch.testing.assert_close(color.correct(lr.clone(), lr, name), lr, rtol=0, atol=2e-3)
    one = torch.full((2, 3, 1, 1), 0.3)  # a picture of one pixel has no deviation
    assert torch.isfinite(color.correct(one.clone(), one, name)).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_fidelity_is_the_way_to_the_lr_image(scale: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lr = F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), 24, mode="bicubic") * 0.5
    sr = F.interpolate(lr, scale_factor=float(scale), mode="nearest") * 0.7 + 0.1
    sr = sr + 0.1 * torch.randn(sr.shape, generator=generator)

    def error(fidelity: float) -> float:
        return float((downscale(back_project(sr, lr, scale, fidelity), scale) - lr).square().mean().sqrt())

    start = error(0)
    for fidelity in (0.25, 0.5, 0.75):
        assert error(fidelity) == pytest.approx((1 - fidelity) * start, rel=0.05)
    assert error(1) < 0.05 * start
    # what is finer than the LR grid is not touched
    fine = back_project(sr, lr, scale, 1.0) - sr
    if scale > 1:
        assert (fine - color.low_frequencies(fine)).std() < (sr - color.low_frequencies(sr)).std()
    assert torch.equal(back_project(sr, lr, scale, 0.0), sr)
