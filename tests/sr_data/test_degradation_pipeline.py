"""The whole degradation: reproducible, independent of the batch, and of the promised form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sr_data.degradation import (
    DegradationConfig,
    add_gaussian_noise,
    add_poisson_noise,
    degrade,
    degrade_one,
    degrade_seeded,
    draw_parameters,
    filter2d,
    jpeg,
    resize,
    sample_seeds,
)


@pytest.fixture(scope="module")
def config() -> DegradationConfig:
    return DegradationConfig.real_esrgan()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(batch: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(batch, 3, height // 4 + 1, width // 4 + 1, generator=generator(9))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def gentle(**changes: Any) -> DegradationConfig:
    """Settings under which nothing happens but the final resize, with the named stages' entries replaced."""
    settings = DegradationConfig.real_esrgan().model_dump()
    for stage in (settings["first"], settings["second"]):
        stage["blur"]["probability"] = 0.0
        stage["resize"].update(up_probability=0.0, down_probability=0.0, keep_probability=1.0, modes=("area",))
        stage["noise"].update(gaussian_probability=1.0, gaussian_sigma=(0.0, 0.0))
    settings["first"]["jpeg_quality"] = (100.0, 100.0)
    settings["second"]["probability"] = 0.0
    settings["final"].update(sinc_probability=0.0, modes=("area",), jpeg_quality=(100.0, 100.0))
    for path, value in changes.items():
        *folders, name = path.split("__")
        entry = settings
        for folder in folders:
            entry = entry[folder]
        entry[name] = value
    return DegradationConfig.model_validate(settings)


def grey_ramp(height: int, width: int) -> torch.Tensor:
    ramp = torch.linspace(0.1, 0.9, width) + torch.linspace(-0.1, 0.1, height)[:, None]
    return ramp.expand(1, 3, height, width)


def to_levels(image: torch.Tensor) -> torch.Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize(("size", "scale"), [((64, 64), 4), ((48, 80), 4), ((30, 18), 2), ((20, 20), 1)])
def test_lr_images_have_the_promised_size_range_and_levels(
    config: DegradationConfig, size: tuple[int, int], scale: int
) -> None:
    lr = degrade(photographs(6, *size), config, generator(), scale=scale)
    assert lr.shape == (6, 3, size[0] // scale, size[1] // scale)
    assert lr.dtype == torch.float32
    assert 0 <= float(lr.min()) < float(lr.max()) <= 1
    levels = lr * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert not lr.requires_grad


@pytest.mark.parametrize("size", [(4, 4), (4, 12), (8, 64)])
def test_tiny_images_pass(config: DegradationConfig, size: tuple[int, int]) -> None:
    lr = degrade(photographs(48, *size), config, generator(1))
    assert lr.shape == (48, 3, size[0] // 4, size[1] // 4)
    assert bool(lr.isfinite().all())


def test_same_generator_same_result_and_other_seed_other_result(config: DegradationConfig) -> None:
    hr = photographs(4, 32, 32)
    torch.manual_seed(1)
    first = degrade(hr, config, generator(7))
    torch.manual_seed(2)
    assert torch.equal(first, degrade(hr, config, generator(7)))
    assert not torch.equal(first, degrade(hr, config, generator(8)))
    advancing = generator(7)
    degrade(hr, config, advancing)
    assert not torch.equal(first, degrade(hr, config, advancing))


def test_a_sample_depends_on_its_pixels_and_seed_only(config: DegradationConfig) -> None:
    hr = photographs(8, 64, 48)
    lr = degrade(hr, config, generator(3))
    for index, seed in enumerate(sample_seeds(generator(3), 8)):
        assert torch.equal(lr[index], degrade_one(hr[index], config, generator(seed)))
    # The seeds of the first samples do not depend on how many follow.
    assert torch.equal(lr[:3], degrade(hr[:3], config, generator(3)))
    changed = hr.clone()
    changed[0] = 1 - changed[0]
    assert torch.equal(lr[1:], degrade(changed, config, generator(3))[1:])


def test_seeds_that_are_drawn_already_give_the_same(config: DegradationConfig) -> None:
    hr = photographs(3, 32, 32)
    seeds = sample_seeds(generator(3), 3)
    assert torch.equal(degrade_seeded(hr, config, seeds), degrade(hr, config, generator(3)))
    with pytest.raises(ValueError, match=r"B seeds, got \(3, 3, 32, 32\) and 2"):
        degrade_seeded(hr, config, seeds[:2])


def test_samples_of_a_batch_are_degraded_differently(config: DegradationConfig) -> None:
    hr = photographs(1, 32, 32).expand(6, -1, -1, -1)
    lr = degrade(hr, config, generator())
    assert len({tuple(image.flatten().tolist()) for image in lr}) == 6
    assert len(set(sample_seeds(generator(), 100))) == 100


def test_input_is_left_alone_and_gradients_stop(config: DegradationConfig) -> None:
    hr = photographs(2, 32, 32).requires_grad_()
    before = hr.detach().clone()
    assert not degrade(hr, config, generator()).requires_grad
    assert torch.equal(hr, before)


def test_reduced_precision_input_and_autocast_do_not_change_the_work(config: DegradationConfig) -> None:
    hr = to_levels(photographs(2, 32, 32))
    lr = degrade(hr, config, generator())
    assert torch.equal(degrade(hr.double(), config, generator()), lr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(hr, config, generator()), lr)
    with torch.inference_mode():
        assert torch.equal(degrade(hr, config, generator()), lr)
    assert degrade(hr.bfloat16(), config, generator()).dtype == torch.float32


def test_an_empty_batch_gives_an_empty_batch(config: DegradationConfig) -> None:
    assert degrade(torch.zeros(0, 3, 16, 8), config, generator()).shape == (0, 3, 4, 2)


# Stages


def test_gentle_settings_leave_only_the_final_resize() -> None:
    hr = grey_ramp(32, 64)
    lr = degrade(hr, gentle(), generator())
    torch.testing.assert_close(lr, F.avg_pool2d(hr, 4), rtol=0, atol=0.6 / 255)


def test_first_resize_is_relative_to_hr_and_second_to_lr() -> None:
    hr = photographs(1, 64, 96).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)  # grey: JPEG 100 is lossless
    scale = {"up_probability": 0.0, "down_probability": 1.0, "keep_probability": 0.0, "modes": ("area",)}
    for stage, size, probability in (("first", (32, 48), 0.0), ("second", (8, 12), 1.0)):
        settings = gentle(second__probability=probability).model_dump()
        settings[stage]["resize"] = {**scale, "scale": (0.5, 1.0)}
        configured = DegradationConfig.model_validate(settings)
        # Uniforms are in [0, 1): find a seed whose factor is one half to the pixel.
        for seed in range(2000):
            drawn = getattr(draw_parameters(configured, generator(seed)), stage)
            if tuple(round(n * drawn.resize.scale) for n in (size[0] * 2, size[1] * 2)) == size:
                break
        lr = degrade_one(hr[0], configured, generator(seed))
        expected = to_levels(resize(resize(hr, size, "area"), (16, 24), "area"))[0]
        torch.testing.assert_close(lr, expected, rtol=0, atol=1.1 / 255)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_each_stage_blurs_with_its_kernel_before_resizing(stage: str) -> None:
    hr = photographs(1, 64, 64).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    settings = gentle(second__probability=1.0).model_dump()
    settings[stage]["blur"]["probability"] = 1.0
    configured = DegradationConfig.model_validate(settings)
    drawn = getattr(draw_parameters(configured, generator(1)), stage)
    # The first stage keeps the HR size here, so the second one blurs at that size too and then goes to LR.
    expected = F.avg_pool2d(filter2d(hr, drawn.kernel.weights()), 4)
    lr = degrade_one(hr[0], configured, generator(1))
    torch.testing.assert_close(lr, to_levels(expected)[0], rtol=0, atol=1.1 / 255)
    assert (lr - F.avg_pool2d(hr, 4)[0]).abs().max() > 3 / 255  # the blur is seen


@pytest.mark.parametrize("jpeg_last", [False, True])
def test_overshoot_of_the_last_sinc_is_clamped(jpeg_last: bool) -> None:
    hr = torch.zeros(1, 3, 32, 32)
    hr[..., 16:] = 1.0
    ringing = gentle(
        final__sinc_probability=1.0,
        final__sinc_cutoff=(1.5, 1.5),
        final__jpeg_quality=(30.0, 30.0),
        final__jpeg_last_probability=float(jpeg_last),
    )
    lr = degrade_one(hr[0], ringing, generator(), scale=2)
    kernel = draw_parameters(ringing, generator()).final_kernel
    assert kernel is not None
    if jpeg_last:
        expected = jpeg(filter2d(F.avg_pool2d(hr, 2), kernel.weights()).clamp(0, 1), 30.0)
    else:
        expected = filter2d(F.avg_pool2d(jpeg(hr, 30.0), 2), kernel.weights())
        assert float(expected.min()) < -0.02
        assert float(expected.max()) > 1.02
    torch.testing.assert_close(lr, to_levels(expected)[0], rtol=0, atol=1.1 / 255)


def test_second_stage_adds_its_noise_at_the_lr_size() -> None:
    hr = torch.full((1, 3, 256, 256), 0.5)
    for probability, expected in ((0.0, 0.0), (1.0, 10.0)):
        lr = degrade(
            hr,
            gentle(
                second__probability=probability,
                second__noise__gaussian_sigma=(10.0, 10.0),
                second__noise__grey_probability=1.0,
            ),
            generator(),
        )
        assert float((lr * 255).std()) == pytest.approx(expected, abs=0.5)


def test_first_noise_is_added_after_the_blur_and_averaged_by_the_final_resize() -> None:
    hr = torch.full((1, 3, 256, 256), 0.5)
    noisy = gentle(
        first__blur__probability=1.0,
        first__blur__sigma=(3.0, 3.0),
        first__noise__gaussian_sigma=(20.0, 20.0),
        first__noise__grey_probability=1.0,
    )
    lr = degrade(hr, noisy, generator())
    assert float((lr * 255).std()) == pytest.approx(20.0 / 4, rel=0.1)  # mean of 4x4; blurred it would be less


@pytest.mark.parametrize("jpeg_last", [False, True])
def test_final_stage_applies_resize_sinc_and_jpeg_in_the_drawn_order(jpeg_last: bool) -> None:
    hr = photographs(1, 64, 64).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    configured = gentle(
        final__sinc_probability=1.0,
        final__jpeg_quality=(30.0, 40.0),
        final__modes=("bicubic",),
        final__jpeg_last_probability=float(jpeg_last),
    )
    parameters = draw_parameters(configured, generator(2))
    assert parameters.final_kernel is not None
    kernel, quality = parameters.final_kernel.weights(), parameters.final_quality
    if jpeg_last:
        expected = jpeg(filter2d(resize(hr, (16, 16), "bicubic"), kernel).clamp(0, 1), quality)
    else:
        expected = filter2d(resize(jpeg(hr, quality), (16, 16), "bicubic"), kernel)
    lr = degrade_one(hr[0], configured, generator(2))
    torch.testing.assert_close(lr, to_levels(expected)[0], rtol=0, atol=1.1 / 255)


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_parameters_come_first_then_noise_then_jpeg(add: Callable[..., torch.Tensor]) -> None:
    hr = grey_ramp(32, 64)
    configured = gentle(
        first__jpeg_quality=(20.0, 30.0),
        first__noise__gaussian_probability=float(add is add_gaussian_noise),
        first__noise__gaussian_sigma=(30.0, 60.0),
        first__noise__poisson_scale=(2.0, 4.0),
        first__noise__grey_probability=1.0,
    )
    stream = generator(4)
    parameters = draw_parameters(configured, stream)
    strength = torch.tensor([parameters.first.noise.strength])
    noisy = add(hr, strength, torch.tensor([True]), stream).clamp(0, 1)
    expected = to_levels(F.avg_pool2d(jpeg(noisy, parameters.first_quality), 4))[0]
    lr = degrade_one(hr[0], configured, generator(4))
    torch.testing.assert_close(lr, expected, rtol=0, atol=1.1 / 255)


@pytest.mark.parametrize(
    ("hr", "scale", "message"),
    [
        (torch.zeros(3, 16, 16), 4, "batch axis"),
        (torch.zeros(1, 1, 16, 16), 4, "RGB"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 4, "convert to float"),
        (torch.zeros(1, 3, 18, 16), 4, "multiples of the scale 4"),
        (torch.zeros(1, 3, 16, 16), 3, "multiples of the scale 3"),
        (torch.zeros(1, 3, 16, 16), 0, "multiples of the scale 0"),
        (torch.zeros(1, 3, 0, 16), 4, "multiples of the scale"),
        (torch.full((1, 3, 16, 16), -1.0), 4, r"pixels \[0, 1\]"),
        (torch.full((1, 3, 16, 16), 255.0), 4, r"pixels \[0, 1\]"),
        (torch.full((1, 3, 16, 16), float("nan")), 4, r"pixels \[0, 1\]"),
    ],
)
def test_wrong_images_are_refused(config: DegradationConfig, hr: torch.Tensor, scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade(hr, config, generator(), scale=scale)


def test_degrade_one_refuses_a_batch(config: DegradationConfig) -> None:
    with pytest.raises(ValueError, match="call degrade"):
        degrade_one(torch.zeros(1, 3, 16, 16), config, generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_other_devices_draw_the_same_degradation(config: DegradationConfig) -> None:
    hr = photographs(8, 64, 64)
    lr = degrade(hr, config, generator())
    on_device = degrade(hr.cuda(), config, generator())
    assert on_device.device.type == "cuda"
    # Rounding may tip single JPEG coefficients over, not more.
    assert float((on_device.cpu() - lr).abs().mean()) < 1e-3
    with pytest.raises(ValueError, match="CPU generator"):
        degrade(hr, config, torch.Generator("cuda"))
