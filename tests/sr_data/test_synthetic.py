"""Generated pictures: the same everywhere, and statistics like those of photographs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sr_data.images import list_images, read_image
from sr_data.synthetic import generate_image
from sr_data.synthetic.dead_leaves import LeafSettings, draw_leaves, outlines, power_law_radii
from sr_data.synthetic.textures import TEXTURE_SIZE, TEXTURES, power_law_noise

LUMA = np.array([0.299, 0.587, 0.114])


def _spectrum(luma: np.ndarray) -> np.ndarray:
    """The radially averaged power spectrum, from frequency 0 on."""
    size = len(luma)
    window = np.hanning(size)
    power = np.abs(np.fft.fft2((luma - luma.mean()) * window[:, None] * window)) ** 2
    frequency = np.fft.fftfreq(size) * size
    radius = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    return np.bincount(radius, power.ravel()) / np.bincount(radius)


def _statistics(image: np.ndarray) -> dict[str, float]:
    pixels = image / 255.0
    luma = pixels @ LUMA
    steps = np.diff(luma, axis=1)
    gradient = np.hypot(steps[:-1], np.diff(luma, axis=0)[:, :-1]) * 255
    spectrum = _spectrum(luma)
    band = np.arange(4, len(luma) // 4)
    correlation = np.corrcoef(pixels.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    red_green, yellow_blue = pixels[..., 0] - pixels[..., 1], pixels[..., :2].mean(axis=-1) - pixels[..., 2]
    colourfulness = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    return {
        "mean": luma.mean(),
        "std": luma.std(),
        "gradient": gradient.mean(),
        "gradient_p90": np.quantile(gradient, 0.9),
        "kurtosis": ((steps - steps.mean()) ** 4).mean() / steps.var() ** 2,
        "slope": np.polyfit(np.log(band), np.log(spectrum[band]), 1)[0],
        "correlation": correlation.mean(),
        "colourfulness": 255 * colourfulness,
    }


def _mean_statistics(images: list[np.ndarray]) -> dict[str, float]:
    rows = [_statistics(image) for image in images]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [generate_image(3, index) for index in range(48)]


def test_a_picture_is_a_function_of_seed_and_index(pictures: list[np.ndarray]) -> None:
    assert pictures[5].shape == (256, 256, 3)
    assert pictures[5].dtype == np.uint8
    np.testing.assert_array_equal(generate_image(3, 5), pictures[5])
    for other in (generate_image(4, 5), generate_image(3, 6)):
        assert np.abs(other.astype(int) - pictures[5]).mean() > 5


def test_other_processes_make_the_same_picture() -> None:
    code = (
        "import hashlib; from sr_data.synthetic import generate_image; generate_image(0, 9);"
        "print(*(hashlib.sha256(generate_image(3, i).tobytes()).hexdigest() for i in range(4)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == 4


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = generate_image(0, 1)
    np.random.seed(2)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(generate_image(0, 1), first)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("size", [16, 33, 100, 384])
def test_any_size_from_16_works(size: int) -> None:
    for index in range(4):
        assert generate_image(0, index, size).shape == (size, size, 3)


@pytest.mark.parametrize(("arguments", "message"), [((-1, 0), "0"), ((0, -1), "0"), ((0, 0, 8), "16")])
def test_bad_arguments_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"expected .* >= {message}, got"):
        generate_image(*arguments)


def test_statistics_are_those_of_natural_pictures(pictures: list[np.ndarray]) -> None:
    mean = _mean_statistics(pictures)
    assert -3.0 < mean["slope"] < -1.5
    assert mean["kurtosis"] > 6
    assert mean["correlation"] > 0.8
    assert 0.35 < mean["mean"] < 0.55
    assert 0.14 < mean["std"] < 0.24
    assert 15 < mean["colourfulness"] < 50
    assert 6 < mean["gradient"] < 20


def test_statistics_lie_near_those_of_photographs(shared_dir: Path, pictures: list[np.ndarray]) -> None:
    photos = []
    for folder in ("data/train_photos", "data/realsr_crops/hr"):
        for path in list_images(shared_dir / folder)[:34]:
            image = read_image(path)
            top, left = (image.shape[0] - 256) // 2, (image.shape[1] - 256) // 2
            photos.append(image[top : top + 256, left : left + 256])
    real, generated = _mean_statistics(photos), _mean_statistics(pictures)
    tolerance = {"mean": 0.1, "std": 0.06, "slope": 0.6, "correlation": 0.1}
    for name, allowed in tolerance.items():
        assert abs(generated[name] - real[name]) < allowed, name
    for name in ("gradient", "gradient_p90", "colourfulness"):
        assert 1 / 1.6 < generated[name] / real[name] < 1.6, name


def test_pictures_hold_smooth_areas_and_fine_detail(pictures: list[np.ndarray]) -> None:
    """A block is smooth below 2 levels of deviation and detailed above 20."""
    deviations = np.concatenate([(image @ LUMA).reshape(32, 8, 32, 8).std(axis=(1, 3)).ravel() for image in pictures])
    assert (deviations < 2).mean() > 0.08
    assert (deviations > 20).mean() > 0.15


def test_radii_follow_the_inverse_cube() -> None:
    radii = power_law_radii(np.random.default_rng(0), 200_000, 2.0, 200.0)
    assert 2.0 <= radii.min() < radii.max() <= 200.0
    # Density r^-3: the share above r falls like r^-2.
    for radius in (4.0, 8.0, 16.0):
        expected = (radius**-2 - 200.0**-2) / (2.0**-2 - 200.0**-2)
        assert (radii > radius).mean() == pytest.approx(expected, rel=0.05)


def test_later_leaves_hide_earlier_ones_and_cover_the_picture() -> None:
    leaves = draw_leaves(np.random.default_rng(0), 128, LeafSettings(8.0, 100.0, coverage=8.0, at_most=5000))
    seen = leaves.labels[leaves.labels > 0]
    count = len(leaves.radii) - 1
    assert (leaves.labels > 0).mean() > 0.95
    assert seen.mean() > 0.6 * count
    assert count - seen.max() < 5


@pytest.mark.parametrize("shape", ["disk", "blob", "polygon", "quadrilateral", "triangle", "stripe"])
def test_outlines_stay_near_the_unit_circle(shape: str) -> None:
    points = outlines(np.random.default_rng(0), shape, 50, 24)
    distance = np.linalg.norm(points, axis=-1)
    assert points.shape[0] == 50
    assert distance.min() > 0.1
    assert distance.max() < 1.7


@pytest.mark.parametrize("kind", [kind for kind, _ in TEXTURES], ids=lambda kind: kind.__name__)
def test_textures_are_standardised_and_wrap_around(kind: object) -> None:
    for seed in range(5):
        field = kind(np.random.default_rng(seed))  # type: ignore[operator]
        assert field.shape == (TEXTURE_SIZE, TEXTURE_SIZE)
        assert field.dtype == np.float32
        assert abs(float(field.mean())) < 1e-3
        assert float(field.std()) == pytest.approx(1.0, abs=1e-3)
        seam = np.abs(field[:, 0] - field[:, -1]).mean()
        assert seam < 2.0 * np.abs(np.diff(field, axis=1)).mean() + 0.02


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_power_law_noise_has_its_exponent(exponent: float) -> None:
    rng = np.random.default_rng(0)
    spectra = [np.abs(np.fft.fft2(power_law_noise(rng, 256, exponent))) ** 2 for _ in range(4)]
    line = np.mean(spectra, axis=0)
    frequency = np.arange(2, 100)
    ring = np.fft.fftfreq(256) * 256
    radius = np.rint(np.hypot(ring[:, None], ring)).astype(int)
    power = np.array([line[radius == value].mean() for value in frequency])
    slope = np.polyfit(np.log(frequency), np.log(power), 1)[0]
    assert slope == pytest.approx(-2 * exponent, abs=0.12)
