"""Flow matching of a teacher, and the term on features: values, minima and gradients in closed form, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import FlowTeacherRun
from distill.noise import SampleNoise
from distill.objectives import flow
from distill.objectives.terms import Features
from resshift_core import FlowMatchingSchedule, Gaussian
from resshift_core.analytic import ideal_velocity
from sr_models.t2i.predictor import FlowPredictor
from sr_models.t2i.prompts import Prompt

SCHEDULE = FlowMatchingSchedule.shifted()
SHAPE = (2, 4, 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Toy(FlowPredictor):
    """A formula of z_t, sigma and the prompt's mean in place of the network; it keeps the prompts it was asked."""

    asked: list[Prompt] = field(default_factory=list)

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        self.asked.append(prompt)
        sigma = torch.tensor(self.schedule.sigmas)[index].view(-1, 1, 1, 1)
        velocity: Tensor = self.network(z_t, sigma, prompt.embeds.mean((1, 2)).view(-1, 1, 1, 1))
        return velocity


def toy() -> Toy:
    return Toy(lambda z, sigma, level: torch.tanh(z * (1 + sigma) + level), SCHEDULE)


def constant(value: float, batch: int) -> Prompt:
    return Prompt(
        torch.full((batch, 2, 3), value, dtype=torch.float64), torch.full((batch, 3), -value, dtype=torch.float64)
    )


def images(z_0: Tensor) -> flow.PromptedImages:
    own, null, default = (constant(value, len(z_0)) for value in (1.0, 2.0, 3.0))
    return flow.PromptedImages(z_0, own, null, default)


def test_the_loss_is_the_error_of_the_velocity_noise_minus_image() -> None:
    z_0, noise = normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    time, percent = torch.tensor([0, 500, 999]), torch.tensor([10, 50, 95])
    step = flow.FlowPass(toy(), images(z_0), flow.FlowDraws(time, noise, percent), 20, 10)
    value = flow.velocity_error(step)
    for i, level in enumerate((2.0, 1.0, 3.0)):  # null, own, default
        u = (1000 - int(time[i])) / 1000
        sigma = 3 * u / (1 + 2 * u)
        z_t = (1 - sigma) * z_0[i] + sigma * noise[i]
        error = torch.tanh(z_t * (1 + sigma) + level) - (noise[i] - z_0[i])
        torch.testing.assert_close(value.values[i], error.square().mean())
    assert value.times is not None
    assert value.times.tolist() == [10, 8, 1]


@pytest.mark.parametrize(
    ("null", "default", "shares"),
    [(0, 0, (0, 100, 0)), (100, 0, (100, 0, 0)), (0, 100, (0, 0, 100)), (15, 10, (15, 75, 10)), (40, 60, (40, 0, 60))],
)
def test_so_many_percent_get_the_null_and_the_default_prompt(
    null: int, default: int, shares: tuple[int, int, int]
) -> None:
    """Of the hundred values that are drawn, exactly; embeddings and pooled vectors alike."""
    percent = torch.arange(100)
    draws = flow.FlowDraws(percent, torch.zeros(100, 1, 1, 1), percent)
    step = flow.FlowPass(toy(), images(torch.zeros(100, 1, 1, 1)), draws, null, default)
    found = step.prompt.embeds
    assert found.shape == (100, 2, 3)
    counts = tuple(int((found == level).all((1, 2)).sum()) for level in (2.0, 1.0, 3.0))
    assert counts == shares
    assert step.prompt.pooled is not None
    assert torch.equal(step.prompt.pooled, -found[:, 0])


def test_draws_cover_the_table_and_the_hundred() -> None:
    short = Toy(lambda z, sigma, level: z, FlowMatchingSchedule.shifted(5))
    found = flow.draw(short, images(torch.zeros(1, *SHAPE)), SampleNoise(0, range(1500)))
    assert set(found.time.tolist()) == set(range(5))
    assert set(found.percent.tolist()) == set(range(100))
    assert found.noise.shape == (1500, *SHAPE)


@pytest.mark.parametrize("index", [0, 250, 750, 999])
def test_the_ideal_network_has_the_least_loss(index: int) -> None:
    mean, variance = -0.4, 0.6
    values, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = torch.tensor(list(product(values, repeat=2))).view(-1, 2, 1, 1)
    joint = torch.tensor([np.prod(w) for w in product(weights / weights.sum(), repeat=2)])
    z_0 = mean + variance**0.5 * grid[:, :1]
    time = torch.full((len(joint),), index)

    def loss(theta: Tensor) -> Tensor:
        network = Toy(lambda z, sigma, level: theta[0] * z + theta[1], SCHEDULE)
        step = flow.FlowPass(network, images(z_0), flow.FlowDraws(time, grid[:, 1:], time * 0), 0, 0)
        return (joint * flow.velocity_error(step).values).sum()

    law = Gaussian(*(torch.tensor([[value]], dtype=torch.float64) for value in (mean, variance)))
    sigma = float(SCHEDULE.sigmas[index])
    best = ideal_velocity(law, sigma)
    theta = torch.stack([best.slope.squeeze(), best.offset.squeeze()]).requires_grad_(True)
    value = loss(theta)
    left = 1 + variance - (sigma - (1 - sigma) * variance) ** 2 / ((1 - sigma) ** 2 * variance + sigma**2)
    assert value.item() == pytest.approx(left, rel=1e-10)
    (found,) = torch.autograd.grad(value, theta)
    assert found.abs().max() < 1e-12


def test_bins_are_tenths_of_sigma_closed_above() -> None:
    index = torch.tensor([0, 1, 249, 250, 251, 500, 750, 751, 875, 876, 999])
    sigmas = [SCHEDULE.sigmas[i] for i in index.tolist()]
    wanted = [int(np.ceil(round(10 * sigma, 9))) for sigma in sigmas]
    assert flow.time_bins(toy(), index).tolist() == wanted
    assert [wanted[position] for position in (0, 2, 3, 6, 8, 10)] == [10, 10, 9, 5, 3, 1]


def test_shares_above_the_whole_are_refused() -> None:
    settings: dict[str, Any] = {"preset": "minute", "steps": 1, "autoencoder": "none"}
    assert FlowTeacherRun(null_percent=40, default_percent=60, **settings).null_percent == 40
    with pytest.raises(ValueError, match="at most 100"):
        FlowTeacherRun(null_percent=41, default_percent=60, **settings)


# The term on features


@dataclass
class Images:
    """A pass as the terms on pixels read it."""

    pixels: Tensor
    hr: Tensor

    @property
    def latents(self) -> Images:
        return self


def layers(weight: Tensor) -> Any:
    """Two layers of unlike sizes."""

    def read(pixels: Tensor) -> list[Tensor]:
        first = torch.nn.functional.conv2d(pixels, weight)
        return [first, torch.nn.functional.avg_pool2d(torch.tanh(first), 2)]

    return read


def test_the_distance_of_features_by_hand() -> None:
    weight = normal(5, 3, 3, 3)
    hr, pixels = normal(2, 3, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
    pixels[1] = hr[1]
    found = Features(layers(weight))(Images(pixels, hr)).values
    wanted = torch.zeros(2, dtype=torch.float64)
    for one, other in zip(layers(weight)(pixels), layers(weight)(hr), strict=True):
        one, other = (part / part.square().sum(1, keepdim=True).sqrt() for part in (one, other))
        wanted += (one - other).square().sum(1).mean((1, 2))
    torch.testing.assert_close(found, wanted)
    assert found[0] > 0.1
    assert found[1] == 0


def test_features_ignore_how_strong_they_are() -> None:
    hr, pixels = normal(2, 3, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
    weight = normal(5, 3, 3, 3)

    def read(pixels: Tensor) -> list[Tensor]:
        return layers(weight)(pixels)[:1]  # linear

    torch.testing.assert_close(Features(read)(Images(3 * pixels, hr)).values, Features(read)(Images(pixels, hr)).values)


def test_the_gradient_of_features_goes_to_the_pixels_not_to_the_hr_image() -> None:
    hr, pixels = (normal(2, 3, 8, 8, seed=seed).requires_grad_(True) for seed in (1, 2))
    Features(layers(normal(5, 3, 3, 3)))(Images(pixels, hr)).values.mean().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().min(1).values.max() > 0
    assert hr.grad is None
