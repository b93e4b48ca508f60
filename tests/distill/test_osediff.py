"""OSEDiff's losses with formulas in place of networks, in float64; what runs of it share with TSD-SR is tested there.

Diffusion here is DDPM's, z_t = sqrt(ab) x_0 + sqrt(1 - ab) noise, whose ideal network for a Gaussian is written down;
the same loss with flow matching is compared with :mod:`resshift_core.analytic`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import OSEDiffRun
from distill.noise import SampleNoise
from distill.objectives import osediff, prompted
from distill.objectives.prompted import FakePass, OneTimeDraws, PromptedPairs
from distill.tasks.t2i_methods import OSEDiffMethod
from resshift_core import DiffusionSchedule, FlowMatchingSchedule, Gaussian
from resshift_core.analytic import ideal_velocity, vsd_factor
from sr_models.t2i.predictor import FlowPredictor, NoisePredictor
from sr_models.t2i.prompts import Prompt

SCHEDULE = DiffusionSchedule.scaled_linear()
B, SHAPE = 3, (2, 4, 4)
CFG = 7.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Toy(NoisePredictor):
    """A formula of z_t, ab and the prompt's mean in place of the network; it keeps what it was asked."""

    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        level = prompt.embeds.mean((1, 2))
        self.asked.append((index, level.detach()))
        signal = torch.tensor(self.schedule.alphas_cumprod)[index].view(-1, 1, 1, 1)
        noise: Tensor = self.network(z_t, signal, level.view(-1, 1, 1, 1))
        return noise


def toy(strength: float = 1.0, weight: Tensor | None = None, schedule: DiffusionSchedule = SCHEDULE) -> Toy:
    weight = torch.tensor(strength, dtype=torch.float64) if weight is None else weight
    return Toy(lambda z, signal, level: weight * torch.tanh(z * (1 + signal) + level), schedule)


def prompt(seed: int) -> Prompt:
    return Prompt(normal(B, 2, 3, seed=seed))


@pytest.fixture
def batch() -> PromptedPairs:
    pixels = normal(B, 3, 8, 8, seed=1)
    return PromptedPairs(pixels, pixels, pixels + 1, normal(B, *SHAPE, seed=2), prompt(3), prompt(4), prompt(5))


@pytest.fixture
def draws() -> OneTimeDraws:
    return OneTimeDraws(normal(B, *SHAPE, seed=6), torch.tensor([20, 431, 980]), normal(B, *SHAPE, seed=7))


def leaf(seed: int = 8) -> Tensor:
    return normal(B, *SHAPE, seed=seed).requires_grad_(True)


def student_pass(
    batch: PromptedPairs, draws: OneTimeDraws, z_hat: Tensor, teacher: Any = None, fake: Any = None
) -> osediff.StudentPass:
    return osediff.StudentPass(
        lambda pixels, noise, prompt: z_hat,
        batch,
        draws.posterior,
        lambda z: z,
        fake or toy(0.6),
        teacher or toy(1.1),
        draws,
        CFG,
    )


def gradient(step: osediff.StudentPass, z_hat: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(osediff.distillation(step).values.mean(), z_hat)
    return found


def by_hand(step: osediff.StudentPass, z_hat: Tensor, i: int) -> Tensor:
    """(x_0 of the fake model - x_0 of the teacher) / mean |z_hat - x_0 of the teacher| of sample i."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    ab = (1 - betas).cumprod(0)[step.draws.time[i]]
    own, null = (p.embeds[i].mean() for p in (step.latents.own, step.latents.null))
    z = z_hat[i].detach()
    z_t = ab.sqrt() * z + (1 - ab).sqrt() * step.draws.noise[i]
    teacher: Any = step.teacher
    fake: Any = step.fake
    without, with_ = (teacher.network(z_t, ab, level).detach() for level in (null, own))
    guided = without + CFG * (with_ - without)
    x_teacher, x_fake = (
        (z_t - (1 - ab).sqrt() * noise) / ab.sqrt() for noise in (guided, fake.network(z_t, ab, own).detach())
    )
    result: Tensor = (x_fake - x_teacher) / (z - x_teacher).abs().mean()
    return result


def test_the_gradient_is_twice_the_normalised_difference(batch: PromptedPairs, draws: OneTimeDraws) -> None:
    """Over the elements of the whole batch; every sample has its own time and its own divisor."""
    z_hat = leaf()
    step = student_pass(batch, draws, z_hat)
    wanted = torch.stack([by_hand(step, z_hat, i) for i in range(B)])
    torch.testing.assert_close(gradient(step, z_hat), 2 * wanted / z_hat.numel(), rtol=1e-6, atol=1e-12)
    value = osediff.distillation(step)
    torch.testing.assert_close(value.values, wanted.square().flatten(1).mean(1), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(value.metrics["direction"], wanted.square().mean().sqrt(), rtol=1e-6, atol=1e-12)


def test_the_divisor_is_of_each_sample(batch: PromptedPairs, draws: OneTimeDraws) -> None:
    """Another sample far off changes nothing for the others."""
    near = leaf()
    far = near.detach().clone()
    far[1] += 100
    far.requires_grad_(True)
    found, other = (gradient(student_pass(batch, draws, z_hat), z_hat) for z_hat in (near, far))
    assert torch.equal(found[[0, 2]], other[[0, 2]])
    assert not torch.equal(found[1], other[1])


def test_no_gradient_reaches_what_the_direction_is_made_of(batch: PromptedPairs, draws: OneTimeDraws) -> None:
    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.1, 0.6)]
    inputs = [batch.z_0, batch.own.embeds, batch.null.embeds, batch.hr]
    for value in inputs:
        value.requires_grad_(True)
    z_hat = leaf()
    teacher, fake = (toy(weight=weight) for weight in weights)
    osediff.distillation(student_pass(batch, draws, z_hat, teacher, fake)).values.mean().backward()
    assert z_hat.grad is not None
    assert all(value.grad is None for value in (*weights, *inputs))


def test_only_the_teacher_is_guided(batch: PromptedPairs, draws: OneTimeDraws) -> None:
    z_hat, teacher, fake = leaf(), toy(1.1), toy(0.6)
    osediff.distillation(student_pass(batch, draws, z_hat, teacher, fake))
    own, null = (p.embeds.mean((1, 2)) for p in (batch.own, batch.null))
    ((times, level),) = teacher.asked
    assert torch.equal(level, torch.cat([null, own]))
    assert torch.equal(times, torch.cat([draws.time, draws.time]))
    ((times, level),) = fake.asked
    assert torch.equal(level, own)
    assert torch.equal(times, draws.time)


def test_nothing_is_left_where_the_fake_model_is_the_guided_teacher(batch: PromptedPairs, draws: OneTimeDraws) -> None:
    z_hat = leaf()
    same = batch._replace(null=batch.own)  # guidance from a prompt to itself is none
    assert gradient(student_pass(same, draws, z_hat, toy(0.6)), z_hat).abs().max() < 1e-9
    assert gradient(student_pass(batch, draws, z_hat, toy(0.6)), z_hat).abs().max() > 1e-4


def ideal_ddpm(variance: float) -> Toy:
    """The network that has learned the noise of latents N(0, S)."""
    return Toy(lambda z, signal, level: (1 - signal).sqrt() * z / (signal * variance + 1 - signal), SCHEDULE)


@dataclass(frozen=True)
class IdealFlow(FlowPredictor):
    """The network that has learned the velocity of latents N(0, S); the prompt means nothing."""

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        sigma = torch.tensor(self.schedule.sigmas)[index]
        velocity: Tensor = ideal_velocity(law(self.network, z_t), sigma)(z_t)
        return velocity


def law(variance: float, like: Tensor) -> Gaussian:
    return Gaussian(torch.zeros_like(like), torch.full_like(like, variance))


def ideal_flow(variance: float) -> IdealFlow:
    return IdealFlow(variance, FlowMatchingSchedule.shifted())


def gaussian_pass(
    ideal: Callable[[float], Any], teacher: float, fake: float, gain: Tensor, index: int
) -> tuple[osediff.StudentPass, Tensor]:
    """A student whose output is gain * noise, at the nodes of a Gauss-Hermite rule, and the rule's weights."""
    values, weights = np.polynomial.hermite_e.hermegauss(24)
    first, second = (part.reshape(-1, 1, 1, 1) for part in np.meshgrid(values, values, indexing="ij"))
    joint = torch.tensor(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    count = len(joint)
    nothing = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    prompts = Prompt(torch.zeros(count, 1, 1, dtype=torch.float64))
    batch = PromptedPairs(nothing, nothing, nothing, nothing, prompts, prompts, prompts)
    draws = OneTimeDraws(torch.tensor(first), torch.full((count,), index), torch.tensor(second))
    step = osediff.StudentPass(
        lambda pixels, noise, prompt: gain * noise,
        batch,
        draws.posterior,
        lambda z: z,
        ideal(fake),
        ideal(teacher),
        draws,
        CFG,
    )
    return step, joint


@pytest.mark.parametrize("ideal", [ideal_ddpm, ideal_flow])
@pytest.mark.parametrize("index", [100, 500, 900])
@pytest.mark.parametrize("variance", [0.1, 2.5])
def test_descent_brings_the_students_variance_to_the_teachers(
    ideal: Callable[[float], Any], index: int, variance: float
) -> None:
    """The fake model knows the student; the teacher's latents are N(0, 0.8)."""
    gain = torch.tensor(variance**0.5, dtype=torch.float64, requires_grad=True)
    step, weights = gaussian_pass(ideal, 0.8, variance, gain, index)
    (found,) = torch.autograd.grad((weights * osediff.distillation(step).values).sum(), gain)
    assert found.item() * (variance - 0.8) > 0
    gain = torch.tensor(0.8**0.5, dtype=torch.float64, requires_grad=True)
    step, weights = gaussian_pass(ideal, 0.8, 0.8, gain, index)
    (found,) = torch.autograd.grad((weights * osediff.distillation(step).values).sum(), gain)
    assert abs(found.item()) < 1e-12


@pytest.mark.parametrize("index", [100, 500, 900])
def test_differences_of_x_0_have_the_sign_of_minus_those_of_noise(index: int) -> None:
    """Fake - teacher of x_0 is sigma times teacher - fake of the velocity, whose factor is known."""
    gain = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    step, _ = gaussian_pass(ideal_flow, 0.8, 0.3, gain, index)
    z_hat = step.one_step
    (found,) = torch.autograd.grad(osediff.distillation(step).values.sum(), z_hat)
    sigma = step.fake.schedule.sigmas[index]  # type: ignore[attr-defined]
    z_t = (1 - sigma) * z_hat.detach() + sigma * step.draws.noise
    keep = 1 - sigma
    x_teacher = keep * 0.8 / (keep**2 * 0.8 + sigma**2) * z_t
    gap = (z_hat.detach() - x_teacher).abs()
    wanted = 2 * sigma * vsd_factor(0.8, 0.3, sigma, "velocity") * z_t / gap
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("index", [0, 500, 949])
def test_with_flow_matching_the_fake_model_learns_noise_minus_the_students_output(
    batch: PromptedPairs, index: int
) -> None:
    """OSEDiff on an SD3 base."""
    z_hat, noise, sigma = (
        leaf().detach(),
        normal(B, *SHAPE, seed=9),
        float(FlowMatchingSchedule.shifted().sigmas[index]),
    )
    draws = OneTimeDraws(normal(B, *SHAPE), torch.full((B,), index), noise)
    values = prompted.fake_error(FakePass(ideal_flow(0.5), lambda *_: z_hat, batch, draws)).values
    slope = (sigma - (1 - sigma) * 0.5) / ((1 - sigma) ** 2 * 0.5 + sigma**2)
    error = slope * ((1 - sigma) * z_hat + sigma * noise) - (noise - z_hat)
    torch.testing.assert_close(values, error.square().flatten(1).mean(1))


def test_the_fake_model_learns_to_predict_the_noise_of_the_students_output(batch: PromptedPairs) -> None:
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    z_hat, fake = leaf(), toy(weight=weight)
    draws = OneTimeDraws(normal(B, *SHAPE), torch.tensor([0, 500, 999]), normal(B, *SHAPE, seed=9))
    for data in (batch, batch._replace(z_0=batch.z_0 + 3, hr=batch.hr + 3)):
        weight.grad = None
        values = prompted.fake_error(FakePass(fake, lambda *_: theta * z_hat, data, draws)).values
        ab = torch.tensor(SCHEDULE.alphas_cumprod)[draws.time].view(-1, 1, 1, 1)
        z_t = ab.sqrt() * (theta * z_hat).detach() + (1 - ab).sqrt() * draws.noise
        error = fake.network(z_t, ab, batch.own.embeds.mean((1, 2)).view(-1, 1, 1, 1)) - draws.noise
        torch.testing.assert_close(values, error.square().flatten(1).mean(1))
        values.mean().backward()
        assert weight.grad is not None
        assert theta.grad is None
        assert z_hat.grad is None
    assert all(torch.equal(level, batch.own.embeds.mean((1, 2))) for _, level in fake.asked)  # without guidance


@dataclass(frozen=True)
class Networks:
    """What the losses of a run ask for."""

    student: Callable[..., Tensor]
    fake: Toy
    teacher: Toy
    vae: None = None


def run(**changes: Any) -> OSEDiffRun:
    settings = {"preset": "minute", "steps": 10, "base": "none", "fake_lr": 1e-3, "terms": {"distillation": 3.0}}
    return OSEDiffRun(**{**settings, **changes})


def test_the_fake_model_learns_at_all_times_and_the_student_at_some(batch: PromptedPairs) -> None:
    short = DiffusionSchedule(np.array([0.9, 0.7, 0.5, 0.3, 0.1]))
    fake, teacher = toy(0.6, schedule=short), toy(schedule=short)
    method = OSEDiffMethod(run(times=(1, 3)), Networks(lambda *_: leaf(), fake, teacher), {})
    for number in range(30):
        output = method.fake_loss(batch, SampleNoise(number, range(B)))
    assert {int(index) for times, _ in fake.asked for index in times} == {0, 1, 2, 3, 4}
    assert output.weights == {"prediction": 1.0}
    fake.asked.clear()
    for number in range(30):
        output = method.student_loss(batch, SampleNoise(number, range(B)), 0)
    assert {int(index) for times, _ in (*fake.asked, *teacher.asked) for index in times} == {1, 2, 3}
    assert output.weights == {"distillation": 3.0}
    assert output.loss.item() == pytest.approx(3 * output.terms["distillation"].mean().item())


def test_times_in_the_wrong_order_are_refused() -> None:
    assert run().times == (20, 979)
    with pytest.raises(ValueError, match="0 <= first <= last"):
        run(times=(980, 20))
