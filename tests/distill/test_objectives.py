"""Objectives against formulas written out in numpy, with linear functions in place of networks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives import autoencoder, resshift, rsd
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from resshift_core import ResShiftSchedule, student_timesteps

SCHEDULE = ResShiftSchedule.exponential(num_steps=4, kappa=0.7)
TIMESTEPS = student_timesteps(4, 2)
BATCH = 24


@dataclass
class Linear:
    """Predictor: slope[t] z_t + offset[t] + gain * mean(lr) + 0.5 * noise."""

    slope: Tensor
    offset: Tensor
    gain: float = 0.3
    schedule: ResShiftSchedule = SCHEDULE

    def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        shape = (-1, 1, 1, 1)
        result = (
            self.slope[t].view(shape) * z_t + self.offset[t].view(shape) + self.gain * lr.mean((1, 2, 3)).view(shape)
        )
        return result if noise is None else result + 0.5 * noise

    def numpy(self, z_t: np.ndarray, lr: np.ndarray, t: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
        slope, offset = self.slope.detach().numpy()[t], self.offset.detach().numpy()[t]
        mean = lr.mean((1, 2, 3))[:, None, None, None]
        return slope[:, None, None, None] * z_t + offset[:, None, None, None] + self.gain * mean + 0.5 * noise


def linear(seed: int, gain: float = 0.3) -> Linear:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 5)))
    return Linear(values[0].clone(), values[1].clone(), gain)


@pytest.fixture
def latents() -> Latents:
    rng = np.random.default_rng(5)
    lr, z_y, z_0 = (rng.normal(size=(BATCH, c, 4, 4)) for c in (3, 2, 2))
    return Latents(*(torch.from_numpy(part) for part in (lr, rng.normal(size=(BATCH, 3, 8, 8)), z_y, z_0)))


def noise_of(seed: int, count: int = BATCH) -> SampleNoise:
    return SampleNoise(seed, range(count))


def student_loss(
    student: Linear, fake: Linear, teacher: Linear, latents: Latents, draws: rsd.RSDDraws, *, normalize: bool = True
) -> ObjectiveOutput:
    """The distillation term alone."""
    step = rsd.StudentPass(student, fake, teacher, latents, draws, decode=lambda z: z)
    return weighted_sum(step, [WeightedTerm("distillation", 1.0, rsd.Distillation(normalize))])


def fake_loss(fake: Linear, student: Linear, latents: Latents, draws: rsd.RSDDraws) -> ObjectiveOutput:
    return weighted_sum(rsd.FakePass(fake, student, latents, draws), [WeightedTerm("z_0", 1.0, rsd.fake_mse)])


@pytest.fixture
def draws(latents: Latents) -> rsd.RSDDraws:
    drawn = rsd.draw(SCHEDULE, TIMESTEPS, latents, noise_of(0))
    return drawn._replace(t=torch.arange(BATCH) % 4 + 1)  # every time equally often


def marginal(z_0: np.ndarray, z_y: np.ndarray, t: np.ndarray, noise: np.ndarray) -> np.ndarray:
    eta = SCHEDULE.etas[t][:, None, None, None]
    return z_0 + eta * (z_y - z_0) + 0.7 * np.sqrt(eta) * noise


@dataclass
class Expected:
    """What Algorithm 1 computes, in float64 numpy."""

    z_0_hat: np.ndarray
    z_t: np.ndarray
    f_teacher: np.ndarray
    f_fake: np.ndarray

    @property
    def per_sample(self) -> np.ndarray:
        """Eq. 7: -(|f_phi|^2 - |f*|^2 + 2 <f* - f_phi, z_0_hat>), the mean over elements."""
        terms = self.f_fake**2 - self.f_teacher**2 + 2 * (self.f_teacher - self.f_fake) * self.z_0_hat
        return -terms.mean((1, 2, 3))

    @property
    def gap(self) -> np.ndarray:
        return np.abs(self.f_teacher - self.z_0_hat).mean((1, 2, 3))


def expected(student: Linear, fake: Linear, teacher: Linear, latents: Latents, draws: rsd.RSDDraws) -> Expected:
    lr, _, z_y, z_0 = (part.numpy() for part in latents)
    t_n, noise_n, epsilon, t, noise_t, _ = (part.numpy() for part in draws)
    z_0_hat = student.numpy(marginal(z_0, z_y, t_n, noise_n), lr, t_n, epsilon)
    z_t = marginal(z_0_hat, z_y, t, noise_t)
    return Expected(z_0_hat, z_t, teacher.numpy(z_t, lr, t), fake.numpy(z_t, lr, t))


def test_student_loss_is_eq_7(latents: Latents, draws: rsd.RSDDraws) -> None:
    players = linear(1), linear(2), linear(3)
    wanted = expected(*players, latents, draws)
    output = student_loss(*players, latents, draws, normalize=False)
    np.testing.assert_allclose(output.per_sample, wanted.per_sample, rtol=1e-4, atol=1e-5)
    assert output.loss.item() == pytest.approx(wanted.per_sample.mean(), rel=1e-5)
    assert output.metrics["teacher_gap"].item() == pytest.approx(wanted.gap.mean(), rel=1e-5)
    fake_gap = np.square(wanted.f_fake - wanted.f_teacher).mean()
    assert output.metrics["fake_gap"].item() == pytest.approx(fake_gap, rel=1e-5)


def test_normalisation_divides_each_sample_by_its_gap_to_the_teacher(latents: Latents, draws: rsd.RSDDraws) -> None:
    players = linear(1), linear(2), linear(3)
    wanted = expected(*players, latents, draws)
    output = student_loss(*players, latents, draws)
    np.testing.assert_allclose(output.per_sample, wanted.per_sample / wanted.gap, rtol=1e-4, atol=1e-5)
    assert output.loss.item() == pytest.approx((wanted.per_sample / wanted.gap).mean(), rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_student_gradient_runs_through_all_three_predictions(
    latents: Latents, draws: rsd.RSDDraws, normalize: bool
) -> None:
    student, fake, teacher = linear(1), linear(2), linear(3)
    divisor = expected(student, fake, teacher, latents, draws).gap if normalize else 1.0  # detached: a constant
    step, central = 1e-5, []
    for t in range(5):
        losses = []
        for sign in (1, -1):
            moved = Linear(student.slope.clone(), student.offset)
            moved.slope[t] += sign * step
            losses.append((expected(moved, fake, teacher, latents, draws).per_sample / divisor).mean())
        central.append((losses[0] - losses[1]) / (2 * step))
    student.slope.requires_grad_()
    student_loss(student, fake, teacher, latents, draws, normalize=normalize).loss.backward()
    assert student.slope.grad is not None
    assert np.count_nonzero(central) == len(TIMESTEPS)  # the other times are never asked for
    np.testing.assert_allclose(student.slope.grad, central, rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_vanish_where_fake_equals_teacher(latents: Latents, draws: rsd.RSDDraws) -> None:
    student, teacher = linear(1), linear(3)
    student.slope.requires_grad_()
    output = student_loss(student, linear(3), teacher, latents, draws)
    output.loss.backward()
    assert torch.equal(output.per_sample, torch.zeros_like(output.per_sample))
    assert student.slope.grad is not None
    np.testing.assert_allclose(student.slope.grad, 0, atol=1e-6)


def test_fake_loss_is_a_regression_on_the_students_output(latents: Latents, draws: rsd.RSDDraws) -> None:
    student, fake = linear(1), linear(2)
    wanted = expected(student, fake, fake, latents, draws)
    student.slope.requires_grad_()
    fake.slope.requires_grad_()
    output = fake_loss(fake, student, latents, draws)
    output.loss.backward()
    squared = np.square(wanted.f_fake - wanted.z_0_hat).mean((1, 2, 3))
    np.testing.assert_allclose(output.per_sample, squared, rtol=1e-5)
    assert output.loss.item() == pytest.approx(squared.mean(), rel=1e-5)
    assert fake.slope.grad is not None
    assert student.slope.grad is None


def best_fake(student: Linear, latents: Latents, draws: rsd.RSDDraws) -> Linear:
    """The affine regression of the student's output on z_t, for each t, on this very batch."""
    drawn = expected(student, student, student, latents, draws)
    slope, offset = np.zeros(5), np.zeros(5)
    for t in range(1, 5):
        chosen = draws.t.numpy() == t
        slope[t], offset[t] = np.polyfit(drawn.z_t[chosen].ravel(), drawn.z_0_hat[chosen].ravel(), 1)
    return Linear(torch.from_numpy(slope), torch.from_numpy(offset), gain=0.0)


def test_the_minimiser_of_fake_loss_is_the_conditional_mean(latents: Latents, draws: rsd.RSDDraws) -> None:
    student = linear(1)
    fake = best_fake(student, latents, draws)
    fake.slope.requires_grad_()
    fake.offset.requires_grad_()
    fake_loss(fake, student, latents, draws).loss.backward()
    assert fake.slope.grad is not None
    assert fake.offset.grad is not None
    np.testing.assert_allclose(fake.slope.grad, 0, atol=1e-6)
    np.testing.assert_allclose(fake.offset.grad, 0, atol=1e-6)


def test_at_the_best_fake_the_loss_is_the_squared_distance_of_fake_and_teacher(
    latents: Latents, draws: rsd.RSDDraws
) -> None:
    # Residuals of a regression are orthogonal to every affine function, so Eq. 7 = E |f_phi - f*|^2 holds exactly on
    # the batch itself for any affine teacher, with no Monte Carlo error.
    student, teacher = linear(1), linear(3, gain=0.0)
    fake = best_fake(student, latents, draws)
    wanted = expected(student, fake, teacher, latents, draws)
    distance = np.square(wanted.f_fake - wanted.f_teacher).mean()
    output = student_loss(student, fake, teacher, latents, draws, normalize=False)
    assert output.loss.item() == pytest.approx(distance, rel=1e-4)
    assert student_loss(student, linear(2), teacher, latents, draws, normalize=False).loss.item() < distance


def test_teacher_loss_is_the_squared_error_of_z_0(latents: Latents) -> None:
    teacher = linear(3)
    draws = resshift.draw(SCHEDULE, latents, noise_of(0))
    lr, _, z_y, z_0 = (part.numpy() for part in latents)
    t = draws.t.numpy()
    prediction = teacher.numpy(marginal(z_0, z_y, t, draws.noise.numpy()), lr, t)
    step = resshift.TeacherPass(teacher, latents, draws, decode=lambda z: z)
    output = weighted_sum(step, [WeightedTerm("z_0", 1.0, resshift.Denoising())])
    squared = np.square(prediction - z_0).mean((1, 2, 3))
    np.testing.assert_allclose(output.per_sample, squared, rtol=1e-5)
    assert output.loss.item() == pytest.approx(squared.mean(), rel=1e-5)


def test_draws_cover_exactly_the_times_there_are(latents: Latents) -> None:
    many = Latents(*(torch.zeros(4000, *part.shape[1:]) for part in latents))
    drawn = rsd.draw(SCHEDULE, TIMESTEPS, many, noise_of(0, 4000), noise_channels=3)
    teacher = resshift.draw(SCHEDULE, many, noise_of(0, 4000))
    for t, values in ((drawn.t, [1, 2, 3, 4]), (drawn.t_n, list(TIMESTEPS)), (teacher.t, [1, 2, 3, 4])):
        times, counts = t.unique(return_counts=True)
        assert times.tolist() == values
        assert (counts / 4000 - 1 / len(values)).abs().max() < 0.04  # uniform: 5 standard deviations
    assert drawn.epsilon.shape == (4000, 3, 4, 4)
    for noise in (drawn.noise_n, drawn.epsilon, drawn.noise_t, teacher.noise):
        assert noise.mean().abs() < 0.02
        assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(drawn.noise_n, drawn.noise_t)


def test_draws_belong_to_their_generator(latents: Latents) -> None:
    first, again, other = (rsd.draw(SCHEDULE, TIMESTEPS, latents, noise_of(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    teacher, teacher_again, teacher_other = (resshift.draw(SCHEDULE, latents, noise_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(teacher.t, teacher_again.t)
    assert torch.equal(teacher.noise, teacher_again.noise)
    assert not torch.equal(teacher.noise, teacher_other.noise)


class LinearAutoencoder:
    """Latent 0.5 x times the scale; decoded with a gain of 3 on red."""

    config = SimpleNamespace(latent_scale=2.5, latent_channels=3, factor=2)

    def encode(self, x: Tensor) -> Tensor:
        return 0.5 * x * self.config.latent_scale

    def decode(self, z: Tensor) -> Tensor:
        return torch.tensor([3.0, 2.0, 2.0])[:, None, None] * z / self.config.latent_scale


def test_autoencoder_loss_is_reconstruction_and_divergence_in_unscaled_latents() -> None:
    rng = np.random.default_rng(0)
    images, noise = rng.uniform(-1, 1, (4, 3, 4, 6)), rng.normal(size=(4, 3, 4, 6))
    step = autoencoder.ContinuousPass(
        LinearAutoencoder(),  # type: ignore[arg-type]
        torch.from_numpy(images),
        torch.from_numpy(noise),
        sigma=0.1,
    )
    terms = [("l1", 0.7, autoencoder.l1), ("mse", 1.3, autoencoder.mse), ("colour", 0.4, autoencoder.colour)]
    weighted = [WeightedTerm(*term) for term in (*terms, ("kl", 0.2, autoencoder.kl))]
    output = weighted_sum(step, weighted)
    error = np.array([3, 2, 2])[:, None, None] * (0.5 * images + 0.1 * noise) - images
    l1, mse = np.abs(error).mean((1, 2, 3)), np.square(error).mean((1, 2, 3))
    red, green, blue = error.reshape(4, 3, 2, 2, 3, 2).mean((3, 5)).transpose(1, 0, 2, 3)
    colour = np.stack((3.3 * (red - blue), 6.4 * (green - (red + blue) / 2)), axis=1)
    colour = np.square(colour).mean((1, 2, 3))
    kl = np.square(0.5 * images).mean((1, 2, 3)) / 2
    wanted = 0.7 * l1 + 1.3 * mse + 0.4 * colour + 0.2 * kl
    np.testing.assert_allclose(output.per_sample, wanted, rtol=1e-5)
    assert output.loss.item() == pytest.approx(wanted.mean(), rel=1e-5)
    metrics = {name: value.mean().item() for name, value in output.terms.items()}
    means = {"l1": l1.mean(), "mse": mse.mean(), "colour": colour.mean(), "kl": kl.mean()}
    assert metrics == pytest.approx(means, rel=1e-5)


def test_a_balanced_encoder_sees_brightness_and_the_two_colour_axes() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 3)
    network = SimpleNamespace(encoder=SimpleNamespace(conv_in=convolution))
    red, green, blue = images = torch.rand(3, 2, 8, 8) * 2 - 1
    axes = torch.stack((0.5 * (red + green + blue), 3.3 * (red - blue), 6.4 * (green - (red + blue) / 2)), dim=1)
    wanted = convolution(axes)
    autoencoder.balance_colours_(network)  # type: ignore[arg-type]
    assert torch.allclose(convolution(images.transpose(0, 1)), wanted, atol=1e-5)
    assert convolution.weight.requires_grad


def test_autoencoder_noise_has_the_latents_shape_and_belongs_to_its_generator() -> None:
    network = SimpleNamespace(config=SimpleNamespace(latent_channels=5, factor=4))
    first, again, other = (
        autoencoder.noise_for(network, torch.zeros(2, 3, 16, 24), noise_of(seed, 2))  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 5, 4, 6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
