"""TSD-SR's losses with formulas in place of networks, in float64: directions, trajectories and the fake model.

What they are compared with is written here once more, sample by sample, from the paper's equations: velocities,
Euler steps and noise levels of the shifted table, with nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import DASMConfig, RampConfig, TSDRun, TSDScheduleConfig
from distill.noise import SampleNoise
from distill.objectives import prompted, tsd
from distill.objectives.prompted import FakePass, OneTimeDraws, PromptedPairs, Switched
from distill.tasks.t2i_methods import TSDMethod
from resshift_core import FlowMatchingSchedule, Gaussian
from resshift_core.analytic import ideal_velocity
from sr_models.t2i.predictor import FlowPredictor, guided
from sr_models.t2i.prompts import Prompt

SCHEDULE = FlowMatchingSchedule.shifted()
FULL = tsd.Sampling((1.0, 0.3, 0.3, 0.3), 50)
B, SHAPE = 3, (2, 4, 4)
CFG = 7.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Toy(FlowPredictor):
    """A formula of z_t, sigma and the prompt's mean in place of the network; it keeps what it was asked."""

    asked: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        level = prompt.embeds.mean((1, 2))
        self.asked.append((z_t.detach(), index, level.detach()))
        sigma = torch.tensor(self.schedule.sigmas)[index]
        velocity: Tensor = self.network(z_t, sigma.view(-1, 1, 1, 1), level.view(-1, 1, 1, 1))
        return velocity


def toy(strength: float = 1.0, weight: Tensor | None = None) -> Toy:
    """A network that is not linear in anything, with one weight."""
    weight = torch.tensor(strength, dtype=torch.float64) if weight is None else weight
    return Toy(lambda z, sigma, level: weight * torch.tanh(z * (1 + sigma) + level) - sigma * z, SCHEDULE)


def prompt(seed: int) -> Prompt:
    return Prompt(normal(B, 2, 3, seed=seed), normal(B, 3, seed=seed + 100))


@pytest.fixture
def batch() -> PromptedPairs:
    pixels = normal(B, 3, 8, 8, seed=1)
    return PromptedPairs(pixels, pixels, pixels + 1, normal(B, *SHAPE, seed=2), prompt(3), prompt(4), prompt(5))


@pytest.fixture
def draws() -> tsd.TSDDraws:
    first, bias = torch.tensor([60, 431, 930]), torch.tensor([-25, 7, 25])
    return tsd.TSDDraws(normal(B, *SHAPE, seed=6), first, bias, normal(B, *SHAPE, seed=7))


def leaf(seed: int = 8) -> Tensor:
    return normal(B, *SHAPE, seed=seed).requires_grad_(True)


def student_pass(
    batch: PromptedPairs,
    draws: tsd.TSDDraws,
    z_hat: Tensor,
    teacher: Any = None,
    fake: Any = None,
    sampling: tsd.Sampling = FULL,
    guidance: float = CFG,
) -> tsd.StudentPass:
    return tsd.StudentPass(
        lambda pixels, noise, prompt: z_hat,
        batch,
        draws.posterior,
        lambda z: z,
        fake or toy(0.6),
        teacher or toy(1.1),
        draws,
        sampling,
        guidance,
    )


def gradient(step: tsd.StudentPass, z_hat: Tensor, vsd_weight: float, parameterisation: Any = "noise") -> Tensor:
    """Gradient of the batch's loss: the mean over the samples."""
    value = tsd.Distillation(vsd_weight, parameterisation)(step)
    (found,) = torch.autograd.grad(value.values.mean(), z_hat)
    return found


def sigma_of(index: int) -> float:
    """The table of SD3 with shift 3, as the facts have it."""
    u = (1000 - index) / 1000
    return 3 * u / (1 + 2 * u)


def by_hand(
    step: tsd.StudentPass, z_hat: Tensor, vsd_weight: float, parameterisation: str = "noise", i: int = 0
) -> Tensor:
    """Direction of sample i: Algorithm 1 with guided velocities and sigma^2, in its own loop."""
    draws, data, total = step.draws, step.latents, torch.zeros(SHAPE, dtype=torch.float64)
    count = len(step.sampling.weights)

    def ask(network: Any, z: Tensor, sigma: float) -> Tensor:
        own, null = (p.embeds[i].mean() for p in (data.own, data.null))
        with_, without = (network.network(z, torch.tensor(sigma, dtype=torch.float64), p) for p in (own, null))
        result: Tensor = without + step.guidance * (with_ - without)
        return result.detach()

    begin = int(draws.first[i])
    end = min(begin + 50 * count + int(draws.bias[i]), 999)
    path = [int(begin + k * (end - begin) / count) for k in range(count + 1)]
    noise = draws.noise[i]
    moved_hat, moved = (
        sigma_of(begin) * noise + (1 - sigma_of(begin)) * clean for clean in (z_hat[i].detach(), data.z_0[i])
    )
    for k, weight in enumerate(step.sampling.weights):
        sigma = sigma_of(path[k])
        v_hat, v = ask(step.teacher, moved_hat, sigma), ask(step.teacher, moved, sigma)
        v_fake = ask(step.fake, moved_hat, sigma)
        e_hat, e, e_fake = v_hat, v, v_fake
        if parameterisation == "noise":
            e_hat, e, e_fake = (z + (1 - sigma) * v for z, v in ((moved_hat, v_hat), (moved, v), (moved_hat, v_fake)))
        total += weight * sigma**2 * ((1 - vsd_weight) * (e_hat - e) + vsd_weight * (e_hat - e_fake))
        moved_hat = moved_hat - (sigma - sigma_of(path[k + 1])) * v_fake
        moved = moved - (sigma - sigma_of(path[k + 1])) * v
    return total


@pytest.mark.parametrize("parameterisation", ["noise", "velocity"])
@pytest.mark.parametrize("vsd_weight", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("sampling", [tsd.Sampling(), FULL], ids=["TSD", "DASM"])
def test_the_gradient_is_the_direction_of_the_algorithm(
    batch: PromptedPairs, draws: tsd.TSDDraws, sampling: tsd.Sampling, vsd_weight: float, parameterisation: str
) -> None:
    """Direction / elements of the whole batch, each sample with its own times; lambda 0 is TSM alone, 1 VSD alone."""
    z_hat = leaf()
    step = student_pass(batch, draws, z_hat, sampling=sampling)
    wanted = torch.stack([by_hand(step, z_hat, vsd_weight, parameterisation, i) for i in range(B)])
    found = gradient(step, z_hat, vsd_weight, parameterisation)
    torch.testing.assert_close(found, wanted / z_hat.numel(), rtol=1e-9, atol=1e-12)
    value = tsd.Distillation(vsd_weight, parameterisation)(step)  # type: ignore[arg-type]
    torch.testing.assert_close(value.metrics["direction"], wanted.square().mean().sqrt())
    torch.testing.assert_close(value.values, wanted.square().flatten(1).mean(1) / 2)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_pseudo_loss_has_the_given_gradient(factor: float) -> None:
    """Whatever the direction depends on."""
    z_hat, direction = leaf(), normal(B, *SHAPE, seed=9).requires_grad_(True)
    value = prompted.pulled(z_hat, direction * z_hat, factor)
    assert value.shape == (B,)
    value.mean().backward()
    torch.testing.assert_close(z_hat.grad, factor * (direction * z_hat).detach() / z_hat.numel(), rtol=1e-6, atol=0)
    assert direction.grad is None


def test_no_gradient_reaches_what_the_direction_is_made_of(batch: PromptedPairs, draws: tsd.TSDDraws) -> None:
    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.1, 0.6)]
    inputs = [batch.z_0, batch.own.embeds, batch.null.embeds, batch.hr]
    for value in inputs:
        value.requires_grad_(True)
    z_hat = leaf()
    teacher, fake = (toy(weight=weight) for weight in weights)
    tsd.Distillation(0.5)(student_pass(batch, draws, z_hat, teacher, fake)).values.mean().backward()
    assert z_hat.grad is not None
    assert all(value.grad is None for value in (*weights, *inputs))


def test_vsd_alone_knows_no_hr_image_and_tsm_alone_no_fake_model(batch: PromptedPairs, draws: tsd.TSDDraws) -> None:
    z_hat = leaf()
    other = batch._replace(z_0=batch.z_0 + 1)
    found, same = (gradient(student_pass(data, draws, z_hat), z_hat, 1.0) for data in (batch, other))
    assert torch.equal(found, same)
    one = tsd.Sampling()  # in a trajectory the fake model moves the student's output
    steps = [student_pass(batch, draws, z_hat, fake=toy(strength), sampling=one) for strength in (0.6, 5.0)]
    assert torch.equal(gradient(steps[0], z_hat, 0.0), gradient(steps[1], z_hat, 0.0))
    assert not torch.equal(gradient(steps[0], z_hat, 0.3), gradient(steps[1], z_hat, 0.3))


@pytest.mark.parametrize("parameterisation", ["noise", "velocity"])
def test_nothing_is_left_at_the_optimum(batch: PromptedPairs, draws: tsd.TSDDraws, parameterisation: str) -> None:
    """TSM at z_hat = z for the first time, VSD of a fake model that is the teacher along the whole trajectory."""
    z_hat = batch.z_0.clone().requires_grad_(True)
    step = student_pass(batch, draws, z_hat, sampling=tsd.Sampling())
    assert gradient(step, z_hat, 0.0, parameterisation).abs().max() == 0
    assert gradient(step, z_hat, 0.1, parameterisation).abs().max() > 0
    far = leaf()
    step = student_pass(batch, draws, far, teacher=toy(0.6))
    assert gradient(step, far, 1.0, parameterisation).abs().max() == 0
    assert gradient(step, far, 0.9, parameterisation).abs().max() > 0


def test_each_sample_of_a_batch_is_as_it_were_alone(batch: PromptedPairs, draws: tsd.TSDDraws) -> None:
    """The published program evaluates and moves all samples at the times of the first."""
    z_hat = leaf()
    together = gradient(student_pass(batch, draws, z_hat), z_hat, 0.4) * B
    for i in range(B):
        part = slice(i, i + 1)
        prompts = [Prompt(p.embeds[part], p.pooled[part]) for p in (batch.own, batch.null, batch.student)]
        alone = PromptedPairs(*(value[part] for value in batch[:4]), *prompts)
        z = z_hat[part].detach().requires_grad_(True)
        found = gradient(student_pass(alone, tsd.TSDDraws(*(value[part] for value in draws)), z), z, 0.4)
        torch.testing.assert_close(found[0], together[i], rtol=1e-10, atol=1e-14)


def test_the_times_of_a_trajectory() -> None:
    first, bias = torch.tensor([50, 431, 800, 990, 999]), torch.tensor([0, 7, -25, -25, 25])
    path = torch.stack(tsd.indexes(SCHEDULE, first, FULL, bias))
    assert path.T.tolist() == [
        [50, 100, 150, 200, 250],
        [431, 482, 534, 586, 638],  # cut off, not rounded: 431 + 51.75 k
        [800, 843, 887, 931, 975],
        [990, 992, 994, 996, 999],  # steps shrink at the end of the table
        [999, 999, 999, 999, 999],
    ]
    assert [p.tolist() for p in tsd.indexes(SCHEDULE, first[:2], tsd.Sampling((1.0,), 50), bias[:2])] == [
        [50, 431],
        [100, 488],
    ]
    # A stride below the bias never turns back to noisier times.
    assert torch.stack(tsd.indexes(SCHEDULE, first[:1], tsd.Sampling((1.0, 1.0), 5), bias[2:3])).tolist() == [[50]] * 3


def test_the_bias_moves_the_end_of_the_trajectory(batch: PromptedPairs, draws: tsd.TSDDraws) -> None:
    """Plain TSD has one time, which it does not move."""
    z_hat = leaf()
    moved = draws._replace(bias=-draws.bias)
    for sampling, same in ((tsd.Sampling(), True), (FULL, False)):
        found, other = (
            gradient(student_pass(batch, values, z_hat, sampling=sampling), z_hat, 0.5) for values in (draws, moved)
        )
        assert torch.equal(found[1], other[1]) is same


def test_draws_are_uniform_over_the_given_times(batch: PromptedPairs) -> None:
    found = tsd.draw(batch, SampleNoise(0, range(400)), 50, 53, 2)
    assert sorted(set(found.first.tolist())) == [50, 51, 52, 53]
    assert sorted(set(found.bias.tolist())) == [-2, -1, 0, 1, 2]
    assert found.noise.shape == found.posterior.shape == (400, *SHAPE)
    assert not torch.equal(found.noise, found.posterior)


def test_guidance_goes_from_the_null_prompt_through_the_own(batch: PromptedPairs) -> None:
    network, index = toy(), torch.tensor([5, 500, 900])
    null, own = (network(batch.z_0, index, p) for p in (batch.null, batch.own))
    network.asked.clear()
    assert torch.equal(guided(network, batch.z_0, index, batch.own, batch.null, 1.0), own)
    assert [len(z) for z, *_ in network.asked] == [B]
    found = guided(network, batch.z_0, index, batch.own, batch.null, 3.0)
    torch.testing.assert_close(found, null + 3 * (own - null), rtol=1e-12, atol=1e-12)
    z, times, level = network.asked[-1]
    assert torch.equal(z, torch.cat([batch.z_0, batch.z_0]))
    assert torch.equal(times, torch.cat([index, index]))
    assert torch.equal(level, torch.cat([batch.null.embeds, batch.own.embeds]).mean((1, 2)))


def test_teacher_and_fake_model_are_both_guided_with_each_images_prompt(
    batch: PromptedPairs, draws: tsd.TSDDraws
) -> None:
    z_hat, teacher, fake = leaf(), toy(1.1), toy(0.6)
    tsd.Distillation(0.5)(student_pass(batch, draws, z_hat, teacher, fake))
    levels = torch.cat([batch.null.embeds, batch.own.embeds]).mean((1, 2))
    assert (len(teacher.asked), len(fake.asked)) == (8, 4)
    for _, _, level in (*teacher.asked, *fake.asked):
        assert torch.equal(level, levels)


def test_the_student_gets_its_own_prompt_and_the_posteriors_noise(batch: PromptedPairs, draws: tsd.TSDDraws) -> None:
    asked: list[Any] = []

    def student(pixels: Tensor, noise: Tensor, prompt: Prompt | None = None) -> Tensor:
        asked.append((pixels, noise, prompt))
        return 2 * leaf()

    step = replace(student_pass(batch, draws, leaf()), student=student)
    tsd.Distillation(0.5)(step)
    assert step.pixels is step.pixels
    fake = FakePass(toy(), student, batch, OneTimeDraws(draws.posterior + 1, draws.first, draws.noise))
    assert not fake.z_0_hat.requires_grad
    (pixels, noise, given), (pixels_fake, noise_fake, given_fake) = asked  # one evaluation each
    assert pixels is pixels_fake is batch.lr_up
    assert given is given_fake is batch.student
    assert noise is draws.posterior
    assert torch.equal(noise_fake, draws.posterior + 1)


# The fake model


def test_the_fake_models_loss_by_hand(batch: PromptedPairs) -> None:
    """Sigma^2 times the error of the velocity, on the student's output; the HR image and the student take no part."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    z_hat, fake = leaf(), toy(weight=weight)
    draws = OneTimeDraws(normal(B, *SHAPE), torch.tensor([50, 500, 940]), normal(B, *SHAPE, seed=9))
    for data in (batch, batch._replace(z_0=batch.z_0 + 3, hr=batch.hr + 3)):
        weight.grad = None
        values = tsd.fake_error(FakePass(fake, lambda *_: theta * z_hat, data, draws)).values
        for i in range(B):
            sigma = torch.tensor(sigma_of(int(draws.time[i])), dtype=torch.float64)
            target = (theta * z_hat[i]).detach()
            z_t = (1 - sigma) * target + sigma * draws.noise[i]
            error = fake.network(z_t, sigma, batch.own.embeds[i].mean()) - (draws.noise[i] - target)
            torch.testing.assert_close(values[i], (sigma * error).square().mean(), rtol=1e-9, atol=1e-12)
        values.mean().backward()
        assert weight.grad is not None
        assert theta.grad is None
        assert z_hat.grad is None
    assert all(len(z) == B for z, *_ in fake.asked)  # without guidance


def nodes() -> tuple[Tensor, Tensor, Tensor]:
    """A Gauss-Hermite rule over two normals, exact for polynomials of degree 7."""
    values, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = torch.tensor(list(product(values, repeat=2)))
    joint = torch.tensor([np.prod(w) for w in product(weights / weights.sum(), repeat=2)])
    return grid[:, 0].view(-1, 1, 1, 1), grid[:, 1].view(-1, 1, 1, 1), joint


@pytest.mark.parametrize("index", [50, 250, 750, 949])
def test_the_best_fake_model_is_the_ideal_network_of_the_students_distribution(index: int) -> None:
    mean, variance = 0.4, 0.3
    posterior, noise, weights = nodes()
    count, sigma = len(weights), sigma_of(index)
    far = torch.full((count, 1, 1, 1), 9.0, dtype=torch.float64)  # HR latents
    prompts = Prompt(torch.zeros(count, 1, 1, dtype=torch.float64))
    batch = PromptedPairs(far, far, far, far, prompts, prompts, prompts)
    draws = OneTimeDraws(posterior, torch.full((count,), index), noise)

    def loss(theta: Tensor) -> Tensor:
        fake = Toy(lambda z, sigma, level: theta[0] * z + theta[1], SCHEDULE)
        step = FakePass(fake, lambda pixels, noise, prompt: mean + variance**0.5 * noise, batch, draws)
        return (weights * tsd.fake_error(step).values).sum()

    law = Gaussian(*(torch.tensor([[value]], dtype=torch.float64) for value in (mean, variance)))
    best = ideal_velocity(law, sigma)
    theta = torch.stack([best.slope.squeeze(), best.offset.squeeze()]).requires_grad_(True)
    value = loss(theta)
    left = 1 + variance - (sigma - (1 - sigma) * variance) ** 2 / ((1 - sigma) ** 2 * variance + sigma**2)
    assert value.item() == pytest.approx(sigma**2 * left, rel=1e-10)
    (found,) = torch.autograd.grad(value, theta)
    assert found.abs().max() < 1e-12
    for change in ([0.1, 0.0], [0.0, 0.1]):
        assert loss(theta + torch.tensor(change, dtype=torch.float64)) > value


# Phases of a run


def run(**changes: Any) -> TSDRun:
    settings = {
        "preset": "minute",
        "steps": 10,
        "base": "none",
        "fake_lr": 1e-3,
        "times": (50, 53),
        "terms": {"distillation": 1.0, "lpips": 3.0, "features": 5.0, "latent_mse": 7.0, "pixel_mse": 9.0},
        "schedule": TSDScheduleConfig(latent_mse_until=4, dasm_from=6, gamma_1=RampConfig(start=1.0, end=2.0)),
        "dasm": DASMConfig(weights=(1.0, 0.5), stride=20, bias=3),
    }
    return TSDRun(**{**settings, **changes})


def method(config: TSDRun, networks: Any = None, known: Any = None) -> TSDMethod:
    return TSDMethod(config, networks, known or {})


def test_the_latent_mse_leaves_and_dasm_joins_at_their_steps() -> None:
    found = method(run())
    assert [("latent_mse" in found.weights(step)) for step in (0, 3, 4, 9)] == [True, True, False, False]
    plain, dasm = tsd.Sampling((1.0,), 20), tsd.Sampling((1.0, 0.5), 20)
    assert [found.sampling(step) for step in (0, 5, 6, 9)] == [plain, plain, dasm, dasm]
    always = method(run(schedule=TSDScheduleConfig(latent_mse_until=None, dasm_from=None)))
    assert "latent_mse" in always.weights(9)
    assert always.sampling(9) == plain
    assert method(run(schedule=TSDScheduleConfig(latent_mse_until=0))).weights(0).keys().isdisjoint({"latent_mse"})
    assert method(run(schedule=TSDScheduleConfig())).sampling(0) == dasm


def test_gamma_1_grows_on_the_perceptual_terms_alone() -> None:
    found = method(run())
    assert found.weights(0) == {
        "distillation": 1.0, "lpips": 3.0, "features": 5.0, "latent_mse": 7.0, "pixel_mse": 9.0
    }  # fmt: skip
    assert found.weights(5) == {"distillation": 1.0, "lpips": 4.5, "features": 7.5, "pixel_mse": 9.0}
    assert found.weights(10) == {"distillation": 1.0, "lpips": 6.0, "features": 10.0, "pixel_mse": 9.0}
    off = run(schedule=TSDScheduleConfig(gamma_1=RampConfig(start=0.0, end=1.0)))
    assert method(off).weights(0).keys() == {"distillation", "latent_mse", "pixel_mse"}


def test_a_ramp_is_straight_and_ends() -> None:
    ramp = RampConfig(start=0.7, end=0.3)
    assert [ramp.at(part) for part in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([0.7, 0.5, 0.3, 0.3])


@dataclass(frozen=True)
class Networks:
    """What the losses of a run ask for."""

    student: Callable[..., Tensor]
    fake: Toy
    teacher: Switched | None = None
    vae: None = None


@pytest.mark.parametrize(("step", "vsd_weight"), [(0, 0.9), (5, 0.5), (10, 0.1)])
def test_lambda_of_the_runs_loss_follows_its_ramp(batch: PromptedPairs, step: int, vsd_weight: float) -> None:
    schedule = TSDScheduleConfig(dasm_from=10, vsd_weight=RampConfig(start=0.9, end=0.1))
    config = run(terms={"distillation": 2.0}, schedule=schedule, guidance=3.0)
    z_hat = leaf()
    strength = torch.tensor(0.6, dtype=torch.float64)

    @contextmanager
    def teachers() -> Iterator[None]:
        """The teacher's adapters on the fake model's network."""
        strength.fill_(1.1)
        yield
        strength.fill_(0.6)

    fake = toy(weight=strength)
    networks = Networks(lambda *_: z_hat, fake, Switched(fake, teachers))
    noise = SampleNoise(3, range(B))
    found = method(config, networks).student_loss(batch, noise, step)
    draws = tsd.draw(batch, SampleNoise(3, range(B)), 50, 53, 3)
    sampling = tsd.Sampling((1.0, 0.5) if step == 10 else (1.0,), 20)
    wanted = tsd.Distillation(vsd_weight)(student_pass(batch, draws, z_hat, sampling=sampling, guidance=3.0))
    torch.testing.assert_close(found.terms["distillation"], wanted.values)
    assert found.loss.item() == pytest.approx(2 * wanted.values.mean().item())


def test_the_fake_model_learns_at_the_times_of_the_configuration(batch: PromptedPairs) -> None:
    fake = toy(0.6)
    networks = Networks(lambda *_: leaf(), fake)
    found = method(run(), networks)
    for number in range(30):
        output = found.fake_loss(batch, SampleNoise(number, range(B)))
    assert {int(index) for _, times, _ in fake.asked for index in times} == {50, 51, 52, 53}
    assert list(output.terms) == ["z_0"]
    assert output.weights["z_0"] == 1.0


def test_times_and_shares_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= first <= last, got \[60, 50\]"):
        run(times=(60, 50))
    with pytest.raises(ValueError, match="0 <= first <= last"):
        run(times=(-1, 50))
    for ramp in (RampConfig(start=1.1, end=0.3), RampConfig(start=0.5, end=1.2)):
        with pytest.raises(ValueError, match="vsd_weight between 0"):
            TSDScheduleConfig(vsd_weight=ramp)
