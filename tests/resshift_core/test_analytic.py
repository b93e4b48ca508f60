"""Propositions of the RSD paper on Gaussian problems: closed forms against quadrature, and where its print is wrong.

Everything is float64. Gauss-Hermite quadrature with 3 nodes is exact for the quadratic integrands here, and it goes
through the library's sampling and objectives, not through the closed forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from resshift_core import Gaussian, ResShiftSchedule, fake_objective, kl_divergence, rsd_objective
from resshift_core.analytic import Affine, ideal_denoiser, noised, rsd_loss, vsd_loss

SEEDS = [0, 1, 2, 3]


@dataclass
class Problem:
    """A linear student x_0_hat = slope x_T + offset + noise_scale epsilon against a teacher of Gaussian data.

    Arrays are (1, 3). `quadrature` has one row for each node of (x_T, epsilon, noise of x_t).
    """

    schedule: ResShiftSchedule
    y_0: Tensor
    data: Gaussian
    parameters: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def random(cls, seed: int) -> Problem:
        """The published schedule for seed 0, others for other seeds."""
        rng = np.random.default_rng(seed)
        steps, kappa = (15, 2.0) if seed == 0 else (int(rng.integers(2, 12)), rng.uniform(0.5, 3))
        y_0, mean, offset, slope = (torch.from_numpy(rng.normal(size=(1, 3))) for _ in range(4))
        variance, noise_scale = (torch.from_numpy(rng.uniform(0.2, 1.5, size=(1, 3))) for _ in range(2))
        for parameter in (parameters := (slope, offset, noise_scale)):
            parameter.requires_grad_()
        return cls(ResShiftSchedule.exponential(steps, kappa), y_0, Gaussian(mean, variance), parameters)

    @property
    def times(self) -> range:
        return range(1, self.schedule.num_steps + 1)

    @property
    def x_0_hat(self) -> Gaussian:
        """The law of the student's output, differentiable in the parameters."""
        slope, offset, noise_scale = self.parameters
        return Affine(slope, offset).push(self.schedule.prior(self.y_0), noise_scale**2)

    def teacher(self, t: int) -> Affine:
        return ideal_denoiser(self.schedule, self.data, self.y_0, t)

    def fake(self, t: int) -> Affine:
        """The ideal fake model, its parameters phi held fixed."""
        f = ideal_denoiser(self.schedule, self.x_0_hat, self.y_0, t)
        return Affine(f.slope.detach(), f.offset.detach())

    def quadrature(self, t: int, noise_scale_t: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities (27,), x_0_hat (27, 3) and x_t (27, 3); noise_scale_t replaces kappa sqrt(eta_t)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(3)
        z = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(27, 3, 1))
        w = (
            np.stack(np.meshgrid(weights, weights, weights), -1).reshape(27, 3).prod(axis=1)
            / math.sqrt(2 * math.pi) ** 3
        )
        slope, offset, noise_scale = self.parameters
        y_0 = self.y_0.expand(27, 3)
        x_0_hat = slope * self.schedule.prior(y_0).sample(z[:, 0].expand(27, 3)) + offset + noise_scale * z[:, 1]
        q = self.schedule.marginal(x_0_hat, y_0, t)
        noise = z[:, 2].expand(27, 3)
        x_t = q.sample(noise) if noise_scale_t is None else q.mean + noise_scale_t * noise
        return torch.from_numpy(w), x_0_hat, x_t

    def grad(self, value: Tensor) -> Tensor:
        """Return the gradient in (slope, offset, noise_scale), (3, 1, 3)."""
        return torch.stack(torch.autograd.grad(value.sum(), self.parameters, retain_graph=True))


def _close(actual: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    """Compare arrays relative to the largest entry: entries may be 0 by symmetry."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


def _differ(actual: Tensor, expected: Tensor, by: float = 5e-3) -> bool:
    return bool((actual - expected).abs().max() > by * expected.abs().max())


@pytest.mark.parametrize("seed", SEEDS)
def test_noised_and_ideal_denoiser_are_the_regression_of_x_0_on_x_t(seed: int) -> None:
    problem = Problem.random(seed)
    for t in problem.times:
        p, x_0, x_t = problem.quadrature(t)
        mean_0, mean_t = p @ x_0, p @ x_t
        variance, covariance = p @ (x_t - mean_t) ** 2, p @ ((x_t - mean_t) * (x_0 - mean_0))
        law, f = noised(problem.schedule, problem.x_0_hat, problem.y_0, t), problem.fake(t)
        _close(problem.x_0_hat.mean[0], mean_0)
        _close(law.mean[0], mean_t)
        _close(law.variance[0], variance)
        _close(f.slope[0], covariance / variance)
        _close(f(law.mean)[0], mean_0)
        _close(f.mean_square(law), (p @ f(x_t) ** 2).sum()[None])


@pytest.mark.parametrize("seed", SEEDS)
def test_proposition_3_1_value_and_gradient(seed: int) -> None:
    """Eq. 7 at its minimising phi is Eq. 6; so is its gradient in theta with phi fixed, by Danskin's theorem."""
    problem = Problem.random(seed)
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        objective = p @ rsd_objective(problem.teacher(t)(x_t), problem.fake(t)(x_t), x_0_hat, reduction="sum")
        loss = rsd_loss(problem.schedule, problem.x_0_hat, problem.data, problem.y_0, t)
        _close(objective, loss[0])
        _close(problem.grad(objective), problem.grad(loss))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ideal_fake_model_minimises_eq_7(seed: int) -> None:
    """Another fake model f_phi + d has an objective that is higher by E ||d(x_t)||^2, exactly."""
    problem = Problem.random(seed)
    generator = torch.Generator().manual_seed(seed)
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        f, law = problem.fake(t), noised(problem.schedule, problem.x_0_hat, problem.y_0, t)
        teacher = problem.teacher(t)(x_t)
        best = -p @ rsd_objective(teacher, f(x_t), x_0_hat, reduction="sum")
        for sign in (1, -1):
            d = Affine(*(sign * 0.3 * torch.randn(2, 1, 3, dtype=torch.float64, generator=generator)))
            other = -p @ rsd_objective(teacher, (f - d)(x_t), x_0_hat, reduction="sum")
            _close((other - best)[None], d.mean_square(law), rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_eq_17_is_the_gradient_of_the_divergence_of_marginals(seed: int) -> None:
    problem = Problem.random(seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2, problem.schedule.num_steps + 1)
    eq_12, eq_17 = torch.zeros(3, 1, 3, dtype=torch.float64), torch.zeros(3, 1, 3, dtype=torch.float64)
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        difference = (problem.fake(t) - problem.teacher(t))(x_t).detach()
        eq_12 += weights[t] * problem.grad(vsd_loss(problem.schedule, problem.x_0_hat, problem.data, problem.y_0, t))
        w = weights[t] * problem.schedule.vsd_weights()[t]
        eq_17 += w * problem.grad(p @ (difference * x_0_hat))
        _close(eq_17, eq_12)


@pytest.mark.parametrize("seed", SEEDS)
def test_appendix_a_constant_between_the_gradients_of_rsd_and_vsd(seed: int) -> None:
    """With f* and f_phi held fixed, term t of RSD has c_t times VSD's gradient, c_t = 2 kappa^2 eta_t/(1-eta_t)^2."""
    problem = Problem.random(seed)
    schedule, etas = problem.schedule, problem.schedule.etas
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        f_teacher, f_fake = problem.teacher(t)(x_t), problem.fake(t)(x_t)
        stopped = problem.grad(p @ rsd_objective(f_teacher.detach(), f_fake.detach(), x_0_hat, reduction="sum"))
        vsd = problem.grad(vsd_loss(schedule, problem.x_0_hat, problem.data, problem.y_0, t))
        _close(stopped, 2 * schedule.kappa**2 * etas[t] / (1 - etas[t]) ** 2 * vsd)
        assert _differ(stopped, 2 * schedule.alphas[t] * vsd)
        if t > 1:
            constant = schedule.alphas[t] / (etas[t - 1] * (1 - etas[t]) ** 2)
            _close(schedule.kl_weights()[t] * stopped, constant * vsd)
            assert _differ(schedule.kl_weights()[t] * stopped, 2 * schedule.alphas[t] * vsd)


def test_appendix_a_constant_for_the_published_schedule() -> None:
    """The figures of docs/errata.md."""
    schedule = ResShiftSchedule.exponential()
    constant, printed = 2 / schedule.vsd_weights()[1:], 2 * schedule.alphas[1:]
    np.testing.assert_allclose(constant[[0, -1]], [0.0032, 19799], rtol=1e-3)
    np.testing.assert_allclose((constant / printed)[[0, -1]], [4.0, 64062], rtol=1e-3)
    weighted = (schedule.kl_weights()[1:] * constant)[1:]
    np.testing.assert_allclose([weighted.min(), weighted.max()], [0.552, 472.7], rtol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_appendix_a_additional_gradients_are_not_zero(seed: int) -> None:
    """Through x_t they scale the gradient in offset and noise scale; g, g* are the slopes of f_G and f*."""
    problem = Problem.random(seed)
    ratios = []
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        f, f_teacher = problem.fake(t), problem.teacher(t)
        one, other = f_teacher(x_t), f(x_t)
        full = problem.grad(p @ rsd_objective(one, other, x_0_hat, reduction="sum"))
        stopped = problem.grad(p @ rsd_objective(one.detach(), other.detach(), x_0_hat, reduction="sum"))
        assert _differ(full, stopped, by=1e-4)
        shrink = 1 - problem.schedule.etas[t]
        ratios.append(torch.stack([1 - shrink * f_teacher.slope, 2 - shrink * (f.slope + f_teacher.slope)]))
        _close(full[1:], ratios[-1] * stopped[1:], rtol=1e-9)
    assert (ratios[0] < 0.1).all()
    assert (ratios[-1] > torch.tensor([0.9, 1.9])[:, None, None]).all()


PRINTED_TIMES = [2, 9, 15]


@pytest.mark.parametrize("t", PRINTED_TIMES)
def test_eq_13_needs_noise_of_scale_kappa_sqrt_eta(t: int) -> None:
    """log p / p* averaged over x_t with noise kappa^2 eta_t, as printed, is not the divergence of Eq. 12."""
    problem = Problem.random(0)
    schedule = problem.schedule
    one = noised(schedule, problem.x_0_hat, problem.y_0, t)
    other = noised(schedule, problem.data, problem.y_0, t)
    expected = vsd_loss(schedule, problem.x_0_hat, problem.data, problem.y_0, t)[0]

    def eq_13(noise_scale_t: float) -> Tensor:
        p, _, x_t = problem.quadrature(t, noise_scale_t)
        log_p, log_p_teacher = (
            Gaussian(law.mean.expand(27, 3), law.variance.expand(27, 3)).log_prob(x_t) for law in (one, other)
        )
        value: Tensor = p @ (log_p - log_p_teacher)
        return value

    _close(eq_13(schedule.kappa * math.sqrt(schedule.etas[t])), expected)
    assert _differ(eq_13(schedule.kappa**2 * schedule.etas[t]), expected)


@pytest.mark.parametrize("t", PRINTED_TIMES)
def test_eq_17_with_the_printed_noise_moves_a_perfect_student(t: int) -> None:
    """With a fake model trained on that noise the gradient is not 0 where the student makes the teacher's images."""
    problem = Problem.random(0)
    schedule, eta = problem.schedule, problem.schedule.etas[t]
    problem.data = Gaussian(problem.x_0_hat.mean.detach(), problem.x_0_hat.variance.detach())
    sizes = []
    for noise_scale_t in (schedule.kappa * math.sqrt(eta), schedule.kappa**2 * eta):
        p, x_0_hat, x_t = problem.quadrature(t, noise_scale_t)
        mean, variance = noised(schedule, problem.data, problem.y_0, t).mean, None
        variance = (1 - eta) ** 2 * problem.data.variance + noise_scale_t**2
        f_fake = problem.data.mean + (1 - eta) * problem.data.variance / variance * (x_t - mean)
        sizes.append(problem.grad(p @ ((f_fake - problem.teacher(t)(x_t)).detach() * x_0_hat)).abs().max().item())
    assert sizes[0] < 1e-12
    assert sizes[1] > 1e-3


@pytest.mark.parametrize("t", PRINTED_TIMES)
def test_eq_17_with_the_printed_noise_everywhere_has_another_weight(t: int) -> None:
    """Were all models trained on noise kappa^2 eta_t, Eq. 17 would miss a factor 1 / (kappa^2 eta_t)."""
    problem = Problem.random(0)
    schedule, eta = problem.schedule, problem.schedule.etas[t]
    scale = schedule.kappa**2 * eta
    laws = []
    for x_0 in (problem.x_0_hat, problem.data):
        mean = noised(schedule, x_0, problem.y_0, t).mean
        laws.append(Gaussian(mean, (1 - eta) ** 2 * x_0.variance + scale**2))
    p, x_0_hat, x_t = problem.quadrature(t, scale)
    f_fake, f_teacher = (
        x_0.mean + (1 - eta) * x_0.variance / law.variance * (x_t - law.mean)
        for x_0, law in zip((problem.x_0_hat, problem.data), laws, strict=True)
    )
    eq_17 = schedule.vsd_weights()[t] * problem.grad(p @ ((f_fake - f_teacher).detach() * x_0_hat))
    _close(eq_17 / scale, problem.grad(kl_divergence(laws[0], laws[1])))
    assert abs(scale - 1) > 1e-2


def test_eq_28_as_printed_gives_the_norm_of_a_sum() -> None:
    """With f_phi + f* in place of f_phi - f* the same phi is best, but the value is E ||f_G + f*||^2, not Eq. 6."""
    problem = Problem.random(0)
    for t in problem.times:
        p, x_0_hat, x_t = problem.quadrature(t)
        f, f_teacher = problem.fake(t), problem.teacher(t)
        minus = Affine(-f_teacher.slope, -f_teacher.offset)
        printed = p @ rsd_objective(minus(x_t), f(x_t), x_0_hat, reduction="sum")
        law = noised(problem.schedule, problem.x_0_hat, problem.y_0, t)
        _close(printed, (f - minus).mean_square(law)[0])
        assert _differ(printed, (f - f_teacher).mean_square(law)[0])


def test_eq_10_needs_the_squared_norm() -> None:
    """For student images that are 0 or 1, the norm's minimiser is the likelier image, not the mean of Eq. 11."""
    schedule, t = ResShiftSchedule.exponential(), 9
    images = np.array([[0.0], [1.0]])
    likelihood = np.exp(schedule.marginal(images, 0 * images, t).log_prob(np.full((2, 1), 0.3)))
    p = np.array([0.3, 0.7]) * likelihood / (np.array([0.3, 0.7]) @ likelihood)  # p(x_0_hat | x_t)
    f = np.linspace(0, 1, 1001)
    squared = sum(p[i] * fake_objective(f[:, None], np.full((1001, 1), images[i, 0])) for i in range(2))
    norm = sum(p[i] * abs(f - images[i, 0]) for i in range(2))
    assert f[np.argmin(squared)] == pytest.approx(p[1], abs=1e-3)
    assert 0.1 < p[1] < 0.9
    assert f[np.argmin(norm)] in (0, 1)
