"""Kernels, filter, JPEG, noise: against golden outputs, closed forms and statistics."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sr_data.degradation import (
    add_gaussian_noise,
    add_poisson_noise,
    filter2d,
    gaussian_kernel,
    generalized_gaussian_kernel,
    jpeg,
    plateau_kernel,
    resize,
    sinc_kernel,
)

GREY = torch.tensor([True])
COLOUR = torch.tensor([False])


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> dict[str, torch.Tensor]:
    with np.load(shared_dir / "golden" / "degradation_ops.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(batch: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1, generator=generator())
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


# Kernels


def test_gaussian_families_equal_golden(golden: dict[str, torch.Tensor]) -> None:
    compared = 0
    for index in range(3):
        size, sigma_x, sigma_y, angle = golden[f"blur{index}.params"].tolist()
        elliptic = (int(size), sigma_x, sigma_y, angle)
        for key, expected in golden.items():
            prefix, _, name = key.partition(".")
            family, _, beta = name.partition("_")
            if prefix != f"blur{index}" or name == "params":
                continue
            match family:
                case "iso":
                    kernel = gaussian_kernel(int(size), sigma_x, sigma_x)
                case "aniso":
                    kernel = gaussian_kernel(*elliptic)
                case "generalized":
                    kernel = generalized_gaussian_kernel(*elliptic, float(beta))
                case _:
                    kernel = plateau_kernel(*elliptic, float(beta))
            torch.testing.assert_close(kernel[0], expected, rtol=0, atol=1e-12)
            compared += 1
    assert compared == 18


@pytest.mark.parametrize(("key", "cutoff"), [("1.0472", math.pi / 3), ("1.7000", 1.7), ("3.1416", math.pi)])
def test_sinc_equals_golden(golden: dict[str, torch.Tensor], key: str, cutoff: float) -> None:
    torch.testing.assert_close(sinc_kernel(21, cutoff)[0], golden[f"sinc_{key}"], rtol=0, atol=1e-12)


def test_kernels_are_batched_and_normalised() -> None:
    sigma_x, sigma_y = torch.tensor([0.2, 1.5, 3.0]), torch.tensor([2.0, 0.7, 3.0])
    angle, beta = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([0.5, 1.7, 4.0])
    batches = {
        gaussian_kernel: (9, sigma_x, sigma_y, angle),
        generalized_gaussian_kernel: (9, sigma_x, sigma_y, angle, beta),
        plateau_kernel: (9, sigma_x, sigma_y, angle, beta),
        sinc_kernel: (9, beta / 2),
    }
    for function, (size, *parameters) in batches.items():
        kernels = function(size, *parameters)
        assert kernels.shape == (3, 9, 9)
        assert kernels.dtype == torch.float64
        torch.testing.assert_close(kernels.sum(dim=(1, 2)), torch.ones(3, dtype=torch.float64))
        for index in range(3):
            single = function(size, *(float(parameter[index]) for parameter in parameters))
            torch.testing.assert_close(kernels[index], single[0], rtol=0, atol=1e-14)


def test_gaussian_has_its_variances_along_its_axes() -> None:
    offsets = torch.arange(41, dtype=torch.float64) - 20
    kernel = gaussian_kernel(41, 3.0, 1.5, 0.0)[0]
    assert float((kernel.sum(0) * offsets**2).sum()) == pytest.approx(9.0, rel=1e-6)  # columns are x
    assert float((kernel.sum(1) * offsets**2).sum()) == pytest.approx(2.25, rel=1e-6)
    turned = gaussian_kernel(41, 3.0, 1.5, math.pi / 4)[0]
    assert turned[23, 23] > 2 * turned[17, 23]  # x turns towards y, which points down


def test_generalized_kernel_of_beta_one_is_gaussian_and_plateau_is_flat() -> None:
    parameters = (21, 3.0, 2.0, 0.4)
    torch.testing.assert_close(generalized_gaussian_kernel(*parameters, 1.0), gaussian_kernel(*parameters))
    plateau = plateau_kernel(21, 3.0, 3.0, 0.0, 2.0)[0]
    # 1 / (q^2 + 1) with q = 1 one standard deviation away from the centre
    assert float(plateau[10, 13] / plateau[10, 10]) == pytest.approx(0.5)


def test_sinc_passes_low_and_stops_high_frequencies() -> None:
    response = torch.fft.fft2(sinc_kernel(41, math.pi / 3)[0]).abs()
    frequency = torch.fft.fftfreq(41, dtype=torch.float64) * 2 * math.pi
    radius = torch.hypot(frequency, frequency[:, None])
    assert response[radius < math.pi / 3 - 0.3].min() > 0.8
    assert response[radius > math.pi / 3 + 0.3].max() < 0.2


def test_sinc_agrees_with_torch_bessel_function() -> None:
    offsets = torch.arange(21, dtype=torch.float64) - 10
    radius = torch.hypot(offsets, offsets[:, None])
    expected = 2.0 * torch.special.bessel_j1(2.0 * radius) / (2 * math.pi * radius)
    expected[10, 10] = 2.0**2 / (4 * math.pi)
    torch.testing.assert_close(sinc_kernel(21, 2.0)[0], expected / expected.sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_kernel(8, 1.0, 1.0),
        lambda: gaussian_kernel(7, 0.0, 1.0),
        lambda: gaussian_kernel(7, 1.0, torch.tensor([1.0, -1.0])),
        lambda: plateau_kernel(7, 1.0, 1.0, 0.0, 0.0),
        lambda: generalized_gaussian_kernel(7, 1.0, 1.0, 0.0, -1.0),
        lambda: sinc_kernel(7, 0.0),
        lambda: sinc_kernel(0, 1.0),
    ],
)
def test_kernels_refuse_bad_parameters(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()


# Filter


def test_filter2d_equals_golden(golden: dict[str, torch.Tensor]) -> None:
    filtered = filter2d(golden["jpeg.image"], golden["filter2d.kernel"])
    torch.testing.assert_close(filtered, golden["filter2d.out"], rtol=0, atol=3e-6)


@pytest.mark.parametrize("shape", [(24, 31), (10, 40), (4, 5), (2, 2), (1, 7), (1, 1)])
def test_filter2d_correlates_with_reflected_border(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape, generator=generator())
    kernels = torch.rand(2, 21, 21, generator=generator(1)) / 441  # not symmetric, different for each sample
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect"))
    expected = torch.stack([F.conv2d(p[:, None], k[None, None])[:, 0] for p, k in zip(padded, kernels, strict=True)])
    torch.testing.assert_close(filter2d(images, kernels), expected, rtol=0, atol=3e-6)


def test_filter2d_keeps_dtype() -> None:
    images = torch.rand(1, 3, 16, 16, generator=generator())
    kernels = gaussian_kernel(7, 1.0, 1.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert filter2d(images.to(dtype), kernels).dtype == dtype


def test_filter2d_refuses_kernels_that_do_not_fit() -> None:
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="expected 2 odd square kernels"):
        filter2d(images, gaussian_kernel(7, 1.0, 1.0))
    with pytest.raises(ValueError, match="odd"):
        filter2d(images, torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="expected floating images"):
        filter2d(images[0], gaussian_kernel(7, 1.0, 1.0))


# JPEG


def test_jpeg_equals_golden(golden: dict[str, torch.Tensor]) -> None:
    result = jpeg(golden["jpeg.image"], golden["jpeg.quality"])
    torch.testing.assert_close(result, golden["jpeg.out"], rtol=0, atol=2e-6)


def test_jpeg_rounds_coefficients_to_the_table() -> None:
    n = torch.arange(8, dtype=torch.float64)
    cosine = torch.cos((2 * n + 1) * math.pi / 16)  # frequency one
    unit = cosine.expand(8, 8) / 8**0.5 / 2  # orthonormal basis image, horizontal
    for basis, step in ((unit, 12), (unit.T, 11)):  # luminance table at quality 50, transposed
        tiled = basis.repeat(2, 2).expand(1, 3, 16, 16)
        image = (128 + 100.0 * tiled) / 255
        expected = (128 + round(100 / step) * step * tiled) / 255
        torch.testing.assert_close(jpeg(image, 50.0), expected, rtol=0, atol=1e-5)


def test_jpeg_of_chroma_is_averaged_and_rounded() -> None:
    # Colour differences of a flat image: DC steps 17 / 8 at quality 50, luma step 16 / 8.
    image = torch.tensor([200.0, 100.0, 50.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(1, 3, 16, 16)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    blue = -0.168736 * 200 - 0.331264 * 100 + 0.5 * 50
    red = 0.5 * 200 - 0.418688 * 100 - 0.081312 * 50
    luma = round((luma - 128) * 8 / 16) * 2 + 128
    blue, red = round(blue * 8 / 17) * 17 / 8, round(red * 8 / 17) * 17 / 8
    rgb = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    result = jpeg(image / 255, 50.0)[0].mean(dim=(1, 2)) * 255
    torch.testing.assert_close(result, torch.tensor(rgb, dtype=torch.float64), rtol=0, atol=1e-6)
    # Chroma that alternates between neighbours vanishes: 4:2:0.
    stripes = torch.zeros(1, 3, 16, 16)
    stripes[:, 0, :, ::2] = 0.299
    stripes[:, 0, :, 1::2] = 0.5
    assert (jpeg(stripes, 100.0)[:, 0] - stripes[:, 0]).abs().max() > 0.05


def test_jpeg_error_falls_with_quality_sample_by_sample() -> None:
    image = smooth_images(1, 40, 56) * 0.8 + 0.1
    image = (image + 0.05 * torch.randn(image.shape, generator=generator(2))).clamp(0, 1)
    qualities = torch.tensor([5.0, 15.0, 30.0, 50.0, 70.0, 90.0, 100.0])
    result = jpeg(image.expand(7, -1, -1, -1), qualities)
    assert result.shape == (7, 3, 40, 56)
    errors = (result - image).pow(2).mean(dim=(1, 2, 3))
    assert bool((errors.diff() < 0).all()), errors
    for index, quality in enumerate(qualities.tolist()):
        torch.testing.assert_close(result[index : index + 1], jpeg(image, quality), rtol=0, atol=1e-6)


def test_jpeg_pads_odd_sizes_with_black() -> None:
    images = smooth_images(2, 23, 37)
    padded = jpeg(F.pad(images, (0, 11, 0, 9)), 60.0)
    torch.testing.assert_close(jpeg(images, 60.0), padded[..., :23, :37])
    assert jpeg(images[..., :1, :1], 60.0).shape == (2, 3, 1, 1)


def test_jpeg_at_quality_100_keeps_a_grey_image() -> None:
    grey = smooth_images(1, 32, 32)[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(jpeg(grey, 100.0), grey, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_loses_as_much_as_a_real_codec(quality: int) -> None:
    pixels = (smooth_images(1, 64, 64)[0] * 255).round()
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())
    picture.save(buffer, "jpeg", quality=quality, subsampling="4:2:0")
    codec = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) - pixels
    ours = jpeg(pixels[None] / 255, float(quality))[0] * 255 - pixels
    # Luma only: codecs smooth the chroma they enlarge, we repeat it.
    codec_loss, our_loss = (
        float(torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), error, dims=1).pow(2).mean().sqrt())
        for error in (codec, ours)
    )
    assert our_loss == pytest.approx(codec_loss, rel=0.15)


def test_jpeg_constants_made_in_inference_mode_can_be_used_elsewhere() -> None:
    # sr_data.degradation.jpeg is the function that the package exports; the module is found by its full name.
    module = sys.modules["sr_data.degradation.jpeg"]
    module._constant.cache_clear()
    module._block_transform.cache_clear()
    image = smooth_images(1, 16, 16)
    with torch.inference_mode():
        jpeg(image, 50.0)
    assert jpeg(image.requires_grad_(), 50.0).requires_grad


def test_jpeg_refuses_bad_input() -> None:
    image = torch.rand(2, 3, 16, 16)
    for quality in (0.0, 101.0, float("nan"), torch.tensor([50.0, 50.0, 50.0])):
        with pytest.raises(ValueError, match="expected quality"):
            jpeg(image, quality)
    with pytest.raises(ValueError, match="expected floating RGB"):
        jpeg((image * 255).byte(), 50.0)
    with pytest.raises(ValueError, match="expected floating RGB"):
        jpeg(image[:, :1], 50.0)


# Noise


def test_gaussian_noise_has_its_strength_sample_by_sample() -> None:
    images = torch.full((3, 3, 96, 96), 0.5)
    sigma, grey = torch.tensor([5.0, 20.0, 20.0]), torch.tensor([False, False, True])
    noise = (add_gaussian_noise(images, sigma, grey, generator()) - images) * 255
    for index, expected in enumerate((5.0, 20.0, 20.0)):
        assert float(noise[index, 0].std()) == pytest.approx(expected, rel=0.03)
        assert abs(float(noise[index, 0].mean())) < expected * 0.04
    field = torch.randn(3, 3, 96, 96, generator=generator())
    torch.testing.assert_close(noise[0], 5.0 * field[0], rtol=0, atol=1e-4)
    correlation = torch.corrcoef(noise[1].flatten(1))
    assert abs(float(correlation[0, 1])) < 0.05
    assert bool((noise[2] == noise[2, :1]).all())
    assert abs(float(torch.corrcoef(torch.stack([noise[0, 0].flatten(), noise[1, 0].flatten()]))[0, 1])) < 0.05


def test_poisson_noise_has_the_variance_of_shot_noise() -> None:
    # 3 values (0, 64 and 192 of 255) round up to v = 4, the noise of level x has variance x / 4.
    image = torch.zeros(1, 3, 128, 128)
    image[..., 32:] = 64 / 255
    image[..., 80:] = 192 / 255
    noise = add_poisson_noise(image, torch.tensor([0.5]), COLOUR, generator()) - image
    assert float(noise[..., :32].abs().max()) == 0.0
    for region, level in ((noise[..., 32:80], 64 / 255), (noise[..., 80:], 192 / 255)):
        assert float(region.std()) == pytest.approx(0.5 * math.sqrt(level / 4), rel=0.03)
        assert abs(float(region.mean())) < 0.01
    assert bool((noise[:, 0] != noise[:, 1]).any())


def test_poisson_noise_is_scaled_by_the_number_of_levels() -> None:
    ramp = (torch.arange(256) / 255).expand(1, 3, 64, 256)
    noise = add_poisson_noise(ramp, torch.tensor([1.0]), COLOUR, generator()) - ramp
    expected = math.sqrt(0.5 / 256)  # mean level one half, 256 values
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)


def test_grey_poisson_noise_follows_the_luma() -> None:
    image = torch.zeros(1, 3, 128, 128)
    image[:, 0] = 1.0  # pure red, luma 76 / 255, one value: v = 1
    noise = add_poisson_noise(image, torch.tensor([1.0]), GREY, generator()) - image
    torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(noise[:, 1], noise[:, 2], rtol=0, atol=1e-6)
    assert float(noise[:, 1].var()) == pytest.approx(76 / 255, rel=0.05)


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_noise_comes_from_the_generator_alone(add: Callable[..., torch.Tensor]) -> None:
    images = smooth_images(2, 16, 16)
    strength, grey = torch.tensor([3.0, 1.0]), torch.tensor([False, True])
    torch.manual_seed(1)
    first = add(images, strength, grey, generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, add(images, strength, grey, generator(5)))
    assert not torch.equal(first, add(images, strength, grey, generator(6)))


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_noise_refuses_bad_input(add: Callable[..., torch.Tensor]) -> None:
    images = smooth_images(2, 16, 16)
    with pytest.raises(ValueError, match="expected strength and grey"):
        add(images, torch.tensor([1.0]), torch.tensor([True, False]), generator())
    with pytest.raises(ValueError, match="expected strength and grey"):
        add(images, torch.ones(2), torch.ones(2), generator())
    with pytest.raises(ValueError, match="expected floating RGB"):
        add(images[0], torch.ones(3), torch.ones(3, dtype=torch.bool), generator())


# Resize


def test_resize_area_averages_and_bilinear_aliases() -> None:
    stripes = torch.zeros(1, 3, 8, 16)
    stripes[..., ::4] = 1.0
    assert torch.equal(resize(stripes, (2, 4), "area"), torch.full((1, 3, 2, 4), 0.25))
    assert torch.equal(resize(stripes, (2, 4), "bilinear"), torch.zeros(1, 3, 2, 4))  # only pixels 4i+1, 4i+2
    assert resize(stripes, (5, 3), "bicubic").shape == (1, 3, 5, 3)
    assert resize(stripes, (8, 16), "bicubic") is stripes
