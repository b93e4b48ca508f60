"""Settings of the degradation and the parameters drawn from them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sr_data.degradation import DegradationConfig, DegradationParameters, draw_parameters

DRAWS = 4000


@pytest.fixture(scope="module")
def config() -> DegradationConfig:
    return DegradationConfig.real_esrgan()


@pytest.fixture(scope="module")
def drawn(config: DegradationConfig) -> list[DegradationParameters]:
    generator = torch.Generator().manual_seed(0)
    return [draw_parameters(config, generator) for _ in range(DRAWS)]


def changed(config: DegradationConfig, path: str, value: object) -> dict[str, Any]:
    """The settings as a dictionary with the entry at a dotted path replaced."""
    settings = config.model_dump()
    *folders, name = path.split(".")
    entry = settings
    for folder in folders:
        entry = entry[folder]
    entry[name] = value
    return settings


def share(draws: list[bool]) -> float:
    return sum(draws) / len(draws)


def test_published_numbers(config: DegradationConfig) -> None:
    first, second, final = config.first, config.second, config.final
    for blur in (first.blur, second.blur):
        assert list(blur.kinds.model_dump().values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
        assert (blur.sinc_probability, blur.generalized_beta, blur.plateau_beta) == (0.1, (0.5, 4), (1, 2))
    assert (first.blur.probability, first.blur.kernel_size, first.blur.sigma) == (1, (7, 21), (0.2, 3))
    assert (second.blur.probability, second.blur.kernel_size, second.blur.sigma) == (0.8, (7, 15), (0.2, 1.5))
    resizes = [
        (r.up_probability, r.down_probability, r.keep_probability, r.scale) for r in (first.resize, second.resize)
    ]
    assert resizes == [(0.2, 0.7, 0.1, (0.15, 1.5)), (0.3, 0.4, 0.3, (0.3, 1.2))]
    noises = [
        (n.gaussian_probability, n.gaussian_sigma, n.poisson_scale, n.grey_probability)
        for n in (first.noise, second.noise)
    ]
    assert noises == [(0.5, (1, 30), (0.05, 3), 0.4), (0.5, (1, 25), (0.05, 2.5), 0.4)]
    assert (first.jpeg_quality, final.jpeg_quality) == ((30, 95), (30, 95))
    assert (second.probability, final.sinc_probability, final.jpeg_last_probability) == (0.5, 0.8, 0.5)
    assert {first.resize.modes, second.resize.modes, final.modes} == {("area", "bilinear", "bicubic")}


def test_settings_survive_json_and_are_frozen(config: DegradationConfig) -> None:
    assert DegradationConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.first.blur.probability = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("first.blur.kinds.isotropic", 0.5, "sum to 1"),
        ("second.resize.up_probability", 0.2, "sum to 1"),
        ("first.resize.scale", (1.5, 0.15), "ordered"),
        ("first.resize.scale", (0.1, 0.9), "around 1"),
        ("first.resize.scale", (0.0, 1.5), "greater than 0"),
        ("first.resize.modes", (), "at least 1"),
        ("first.resize.modes", ("lanczos",), "bicubic"),
        ("first.blur.kernel_size", (7, 20), "odd"),
        ("second.blur.kernel_size", (15, 7), "ordered"),
        ("first.blur.sigma", (3.0, 0.2), "ordered"),
        ("first.blur.sigma", (0.0, 3.0), "greater than 0"),
        ("first.blur.sigma", (1.0, math.inf), "finite"),
        ("second.noise.gaussian_sigma", (-1.0, 3.0), "greater than or equal to 0"),
        ("second.noise.grey_probability", 1.2, "less than or equal to 1"),
        ("final.jpeg_quality", (95, 30), "ordered"),
        ("final.jpeg_quality", (30, 101), "less than or equal to 100"),
        ("final.sinc_cutoff", (1.0, 4.0), "less than or equal to 3.14"),
        ("final.sinc_kernel_sise", (7, 21), "Extra inputs"),
        ("third", {}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(config: DegradationConfig, path: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DegradationConfig.model_validate(changed(config, path, value))


def test_draws_come_from_the_generator_and_always_use_forty_numbers(config: DegradationConfig) -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = draw_parameters(config, generator), draw_parameters(config, generator)
    assert first != second
    repeated = torch.Generator().manual_seed(3)
    torch.rand(40, dtype=torch.float64, generator=repeated)
    assert draw_parameters(config, repeated) == second
    assert draw_parameters(config, torch.Generator().manual_seed(3)) == first


def test_a_setting_does_not_shift_the_draws_after_it(config: DegradationConfig) -> None:
    path = "first.blur.sinc_probability"
    always = DegradationConfig.model_validate(changed(config, path, 1.0))
    never = DegradationConfig.model_validate(changed(config, path, 0.0))
    for seed in range(5):
        one = draw_parameters(always, torch.Generator().manual_seed(seed))
        other = draw_parameters(never, torch.Generator().manual_seed(seed))
        assert one.first.kernel is not None
        assert one.first.kernel.shape == "sinc"
        assert one.first.kernel != other.first.kernel
        assert (one.first.resize, one.second, one.final_quality) == (
            other.first.resize,
            other.second,
            other.final_quality,
        )


def test_kernel_kinds_follow_their_probabilities(drawn: list[DegradationParameters]) -> None:
    kernels = [parameters.first.kernel for parameters in drawn if parameters.first.kernel is not None]
    assert len(kernels) == DRAWS
    counts: Counter[tuple[str, bool]] = Counter()
    for kernel in kernels:
        if kernel.shape == "sinc":
            low = math.pi / 5 if kernel.size >= 13 else math.pi / 3
            assert low <= kernel.cutoff <= math.pi
        else:
            assert 0.2 <= min(kernel.sigma_x, kernel.sigma_y) <= max(kernel.sigma_x, kernel.sigma_y) <= 3
            assert (kernel.sigma_x == kernel.sigma_y) == (kernel.angle == 0)
        counts[kernel.shape, kernel.sigma_x != kernel.sigma_y] += 1
    assert min(kernel.cutoff for kernel in kernels if kernel.shape == "sinc") < math.pi / 4  # large ones
    expected = {
        ("sinc", False): 0.1,
        ("gaussian", False): 0.405,
        ("gaussian", True): 0.225,
        ("generalized", False): 0.108,
        ("generalized", True): 0.027,
        ("plateau", False): 0.108,
        ("plateau", True): 0.027,
    }
    assert counts.keys() == expected.keys()
    for kind, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(counts[kind] / DRAWS - probability) < 4 * deviation, kind
    sizes = Counter(kernel.size for kernel in kernels)
    assert sorted(sizes) == [7, 9, 11, 13, 15, 17, 19, 21]
    assert min(sizes.values()) / DRAWS > 0.1


def test_shapes_are_drawn_on_both_sides_of_the_gaussian(drawn: list[DegradationParameters]) -> None:
    kernels = [parameters.first.kernel for parameters in drawn if parameters.first.kernel is not None]
    generalized = [kernel.beta for kernel in kernels if kernel.shape == "generalized"]
    assert 0.5 <= min(generalized) < 0.55
    assert 3.9 < max(generalized) <= 4
    assert share([beta < 1 for beta in generalized]) == pytest.approx(0.5, abs=0.1)
    plateau = [kernel.beta for kernel in kernels if kernel.shape == "plateau"]
    assert min(plateau) == 1
    assert 1.9 < max(plateau) <= 2


def test_other_choices_follow_their_probabilities(drawn: list[DegradationParameters]) -> None:
    scales = [parameters.first.resize.scale for parameters in drawn]
    assert share([scale > 1 for scale in scales]) == pytest.approx(0.2, abs=0.03)
    assert share([scale < 1 for scale in scales]) == pytest.approx(0.7, abs=0.03)
    assert 0.15 <= min(scales) < 0.16
    assert 1.49 < max(scales) <= 1.5
    modes = Counter(parameters.first.resize.mode for parameters in drawn)
    assert all(count / DRAWS == pytest.approx(1 / 3, abs=0.03) for count in modes.values())
    assert len(modes) == 3
    gaussian = [p.first.noise.strength for p in drawn if p.first.noise.kind == "gaussian"]
    poisson = [p.first.noise.strength for p in drawn if p.first.noise.kind == "poisson"]
    assert len(gaussian) / DRAWS == pytest.approx(0.5, abs=0.03)
    assert 1 <= min(gaussian) < 1.1 < 29.9 < max(gaussian) <= 30
    assert 0.05 <= min(poisson) < 0.06 < 2.99 < max(poisson) <= 3
    assert share([p.first.noise.grey for p in drawn]) == pytest.approx(0.4, abs=0.03)
    for qualities in ([p.first_quality for p in drawn], [p.final_quality for p in drawn]):
        assert 30 <= min(qualities) < 30.2 < 94.8 < max(qualities) <= 95
    assert share([p.jpeg_last for p in drawn]) == pytest.approx(0.5, abs=0.03)
    assert share([p.final_kernel is not None for p in drawn]) == pytest.approx(0.8, abs=0.03)
    assert {p.final_kernel.shape for p in drawn if p.final_kernel is not None} == {"sinc"}


def test_second_stage_follows_its_own_settings(drawn: list[DegradationParameters]) -> None:
    seconds = [parameters.second for parameters in drawn if parameters.second is not None]
    assert len(seconds) / DRAWS == pytest.approx(0.5, abs=0.03)
    kernels = [second.kernel for second in seconds if second.kernel is not None]
    assert len(kernels) / len(seconds) == pytest.approx(0.8, abs=0.04)
    assert {kernel.size for kernel in kernels} == {7, 9, 11, 13, 15}
    assert max(kernel.sigma_x for kernel in kernels) <= 1.5
    scales = [second.resize.scale for second in seconds]
    assert share([scale > 1 for scale in scales]) == pytest.approx(0.3, abs=0.04)
    assert share([scale == 1 for scale in scales]) == pytest.approx(0.3, abs=0.04)
    assert 0.3 <= min(scales) < 0.32
    assert 1.19 < max(scales) <= 1.2
    assert 24.5 < max(s.noise.strength for s in seconds if s.noise.kind == "gaussian") <= 25
    assert 2.45 < max(s.noise.strength for s in seconds if s.noise.kind == "poisson") <= 2.5
