"""The objectives on a Gaussian problem, where value and gradient are known in closed form, in float64.

Teacher, fake model and student are affine, so every loss is a polynomial of degree 4 at most in the Gaussian noises: a
batch whose samples are the nodes of a Gauss-Hermite rule, weighted, gives its expectation exactly. What it is compared
with comes from :mod:`resshift_core.analytic` by another way: laws of x_t, ideal denoisers and divergences,
differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.objectives import resshift, rsd, sinsr, vsd
from distill.objectives.output import Latents
from resshift_core import Gaussian, ResShiftSchedule
from resshift_core.analytic import Affine, deterministic_chain, ideal_denoiser, noised, rsd_loss, vsd_loss

SCHEDULE = ResShiftSchedule.exponential(num_steps=5, kappa=0.8, min_noise_level=0.2)
T = SCHEDULE.num_steps
Y_0 = 0.4
TEACHER_MEAN, TEACHER_VARIANCE = -0.3, 0.5
STUDENT = (0.55, 0.2, 0.35)  # slope, offset, gain of the noise
TOLERANCE = 1e-10


def point(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(1, 1)


def law(mean: float | Tensor, variance: float | Tensor) -> Gaussian:
    return Gaussian(point(mean), point(variance))


TEACHER = law(TEACHER_MEAN, TEACHER_VARIANCE)


@dataclass
class Predictor:
    """Affine in z_t with coefficients for each t, and in the noise."""

    map_at: Callable[[int], Affine]
    noise_gain: Tensor | float = 0.0
    schedule: ResShiftSchedule = SCHEDULE

    def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        maps = {int(time): self.map_at(int(time)) for time in t.unique()}
        slope = torch.stack([maps[int(time)].slope.reshape(()) for time in t]).view(-1, 1, 1, 1)
        offset = torch.stack([maps[int(time)].offset.reshape(()) for time in t]).view(-1, 1, 1, 1)
        out = slope * z_t + offset
        return out if noise is None else out + self.noise_gain * noise

    def deterministic_sample(self, z_T: Tensor, z_y: Tensor, lr: Tensor) -> Tensor:
        z = z_T
        for t in range(T, 0, -1):
            eta, previous = SCHEDULE.etas[t], SCHEDULE.etas[t - 1]
            m, j = np.sqrt(previous / eta), previous - np.sqrt(previous * eta)
            f = self.map_at(t)
            z = (1 - j - m) * (f.slope.reshape(()) * z + f.offset.reshape(())) + m * z + j * z_y
        return z


def ideal(images: Gaussian) -> Predictor:
    """The network that is trained to its optimum on these images."""
    return Predictor(lambda t: ideal_denoiser(SCHEDULE, images, point(Y_0), t))


def fixed(images: Gaussian) -> Predictor:
    """The same with no gradient into the images: what training has found."""
    return ideal(Gaussian(images.mean.detach(), images.variance.detach()))


@dataclass
class Student:
    """theta = (slope, offset, noise gain), the same at all times."""

    theta: Tensor

    @classmethod
    def fresh(cls) -> Student:
        return cls(torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True))

    @property
    def predictor(self) -> Predictor:
        slope, offset, gain = self.theta
        return Predictor(lambda t: Affine(point(slope), point(offset)), gain)

    def images(self, z_T: Gaussian, *, noise: bool) -> Gaussian:
        """The law of the output."""
        slope, offset, gain = self.theta
        return Affine(point(slope), point(offset)).push(z_T, point(gain) ** 2 if noise else 0.0)


@dataclass
class Nodes:
    """A Gauss-Hermite rule over independent standard normals: ``values`` (nodes, noises) and ``weights``."""

    values: Tensor
    weights: Tensor

    @classmethod
    def over(cls, noises: int) -> Nodes:
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # exact up to degree 7
        grid = torch.tensor(list(product(nodes, repeat=noises)))
        joint = torch.tensor([np.prod(w) for w in product(weights / weights.sum(), repeat=noises)])
        return cls(grid, joint)

    def __getitem__(self, index: int) -> Tensor:
        return self.values[:, index].view(-1, 1, 1, 1)

    def latents(self, z_0: Tensor | None = None) -> Latents:
        count = len(self.weights)
        y = torch.full((count, 1, 1, 1), Y_0, dtype=torch.float64)
        return Latents(torch.zeros(count, 3, 1, 1), torch.zeros(count, 3, 4, 4), y, y if z_0 is None else z_0)

    def times(self, t: int) -> Tensor:
        return torch.full((len(self.weights),), t, dtype=torch.int64)


PRIOR = SCHEDULE.prior(point(Y_0))


def gradient(value: Tensor, student: Student) -> Tensor:
    (found,) = torch.autograd.grad(value, student.theta)
    return found


def rsd_value(student: Student, fake: Predictor, t: int, t_n: int = T) -> Tensor:
    """Expectation of the term of Eq. 7 at t, as the package computes it, over HR latents like the teacher's images."""
    nodes = Nodes.over(4)
    z_0 = TEACHER_MEAN + TEACHER_VARIANCE**0.5 * nodes[3]
    zero = torch.zeros_like(z_0)
    draws = rsd.RSDDraws(nodes.times(t_n), nodes[0], nodes[1], nodes.times(t), nodes[2], zero)
    step = rsd.StudentPass(student.predictor, fake, ideal(TEACHER), nodes.latents(z_0), draws, decode=lambda z: z)
    return (nodes.weights * rsd.Distillation(normalize=False)(step).values).sum()


def vsd_value(student: Student, fake: Predictor, t: int) -> Tensor:
    """Expectation of the same term in Algorithm 2."""
    nodes = Nodes.over(2)
    wrong = torch.full_like(nodes[0], 99.0)  # of t_n: not used
    draws = rsd.RSDDraws(nodes.times(T), wrong, None, nodes.times(t), nodes[1], nodes[0])
    latents = nodes.latents(wrong)  # nor is the ground truth
    step = vsd.StudentPass(student.predictor, fake, ideal(TEACHER), latents, draws, decode=lambda z: z)
    return (nodes.weights * vsd.Distillation(normalize=False)(step).values).sum()


@pytest.mark.parametrize("t", range(1, T + 1))
@pytest.mark.parametrize("t_n", [2, T])
def test_rsd_has_value_and_gradient_of_eq_6(t: int, t_n: int) -> None:
    """Proposition 3.1: with the fake model trained to its optimum and held there."""
    student = Student.fresh()
    images = student.images(noised(SCHEDULE, TEACHER, point(Y_0), t_n), noise=True)
    wanted = rsd_loss(SCHEDULE, images, TEACHER, point(Y_0), t).sum()
    value = rsd_value(student, fixed(images), t, t_n)
    torch.testing.assert_close(value, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(gradient(value, student), gradient(wanted, student), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("t", range(1, T + 1))
def test_vsd_has_the_gradient_of_the_divergence_of_marginals(t: int) -> None:
    """Eq. 17, with the constant 2 kappa^2 eta_t / (1 - eta_t)^2 between the two (docs/errata.md, 2)."""
    student = Student.fresh()
    images = student.images(PRIOR, noise=False)
    divergence = vsd_loss(SCHEDULE, images, TEACHER, point(Y_0), t).sum()
    eta = SCHEDULE.etas[t]
    wanted = 2 * SCHEDULE.kappa**2 * eta / (1 - eta) ** 2 * gradient(divergence, student)
    found = gradient(vsd_value(student, fixed(images), t), student)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert found[2] == 0  # no noise input
    assert found[:2].abs().min() > 1e-4


@pytest.mark.parametrize("t", range(1, T + 1))
def test_vsd_and_rsd_of_one_time_have_the_same_value_and_other_gradients(t: int) -> None:
    student = Student.fresh()
    with torch.no_grad():
        student.theta[2] = 0
    from_truth = student.images(noised(SCHEDULE, TEACHER, point(Y_0), T), noise=False)
    from_prior = student.images(PRIOR, noise=False)
    full = gradient(rsd_value(student, fixed(from_truth), t), student)[:2]
    stopped = gradient(vsd_value(student, fixed(from_prior), t), student)[:2]
    for images, value in ((from_truth, rsd_value), (from_prior, vsd_value)):
        wanted = rsd_loss(SCHEDULE, images, TEACHER, point(Y_0), t).sum()
        torch.testing.assert_close(value(student, fixed(images), t), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert (full - stopped).abs().max() > 1e-3


@pytest.mark.parametrize("method", [rsd_value, vsd_value])
def test_a_perfect_student_stays(method: Callable[..., Tensor]) -> None:
    """A student that makes the teacher's images has no gradient, and nothing is lost."""
    start = noised(SCHEDULE, TEACHER, point(Y_0), T) if method is rsd_value else PRIOR
    slope = (TEACHER_VARIANCE / start.variance.item()) ** 0.5
    theta = torch.tensor([slope, TEACHER_MEAN - slope * start.mean.item(), 0.0], dtype=torch.float64)
    student = Student(theta.requires_grad_())
    for t in range(1, T + 1):
        value = method(student, fixed(student.images(start, noise=False)), t)
        assert abs(value.item()) < TOLERANCE
        assert gradient(value, student).abs().max() < TOLERANCE


@pytest.mark.parametrize("method", ["rsd", "vsd"])
@pytest.mark.parametrize("t", range(1, T + 1))
def test_the_fake_model_learns_the_ideal_denoiser_of_the_students_images(method: str, t: int) -> None:
    student = Student.fresh()
    start = noised(SCHEDULE, TEACHER, point(Y_0), T) if method == "rsd" else PRIOR
    images = student.images(start, noise=method == "rsd")
    wanted = ideal_denoiser(SCHEDULE, images, point(Y_0), t)
    phi = torch.stack([wanted.slope.detach().reshape(()), wanted.offset.detach().reshape(())]).requires_grad_()
    fake = Predictor(lambda t: Affine(point(phi[0]), point(phi[1])))
    nodes = Nodes.over(4)
    z_0 = TEACHER_MEAN + TEACHER_VARIANCE**0.5 * nodes[3]
    epsilon = nodes[1] if method == "rsd" else None
    draws = rsd.RSDDraws(nodes.times(T), nodes[0], epsilon, nodes.times(t), nodes[2], nodes[0])
    kind = rsd.FakePass if method == "rsd" else vsd.FakePass
    step = kind(fake, student.predictor, nodes.latents(z_0), draws)
    value = (nodes.weights * rsd.fake_mse(step).values).sum()
    (slope, curvature) = _first_and_second_derivative(value, phi)
    assert slope.abs().max() < TOLERANCE
    assert torch.linalg.eigvalsh(curvature).min() > 0
    assert student.theta.grad is None
    assert not step.sample.z_0_hat.requires_grad


def _first_and_second_derivative(value: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    (first,) = torch.autograd.grad(value, at, create_graph=True)
    return first.detach(), torch.stack([torch.autograd.grad(part, at, retain_graph=True)[0] for part in first])


def test_the_teacher_learns_the_ideal_denoiser_with_and_without_weights() -> None:
    """Eq. 5; the weights scale the loss at each t and move no optimum."""
    weights = resshift.kl_weights(SCHEDULE)
    assert weights[1:].mean() == pytest.approx(1)
    assert weights[2:] / weights[2] == pytest.approx(SCHEDULE.kl_weights()[2:] / SCHEDULE.kl_weights()[2])
    for t in range(1, T + 1):
        best = ideal_denoiser(SCHEDULE, TEACHER, point(Y_0), t)
        phi = torch.stack([best.slope.reshape(()), best.offset.reshape(())]).requires_grad_()
        nodes = Nodes.over(2)
        z_0 = TEACHER_MEAN + TEACHER_VARIANCE**0.5 * nodes[0]
        draws = resshift.ResShiftDraws(nodes.times(t), nodes[1])
        network = Predictor(lambda t, phi=phi: Affine(point(phi[0]), point(phi[1])))  # type: ignore[misc]
        step = resshift.TeacherPass(network, nodes.latents(z_0), draws, decode=lambda z: z)
        kinds = (resshift.Denoising(), resshift.Denoising(weights))
        plain, weighted = ((nodes.weights * kind(step).values).sum() for kind in kinds)
        (slope,) = torch.autograd.grad(plain, phi, retain_graph=True)
        assert slope.abs().max() < TOLERANCE
        variance_left = TEACHER_VARIANCE * SCHEDULE.kappa**2 * SCHEDULE.etas[t]
        variance_left /= (1 - SCHEDULE.etas[t]) ** 2 * TEACHER_VARIANCE + SCHEDULE.kappa**2 * SCHEDULE.etas[t]
        assert plain.item() == pytest.approx(variance_left, rel=TOLERANCE)
        assert weighted.item() == pytest.approx(weights[t] * variance_left, rel=TOLERANCE)


def sinsr_pass(student: Student, z_0: Tensor, nodes: Nodes) -> sinsr.SinSRPass:
    draws = sinsr.SinSRDraws(nodes[0])
    return sinsr.SinSRPass(student.predictor, ideal(TEACHER), nodes.latents(z_0), draws, decode=lambda z: z)


def test_sinsr_is_least_where_the_student_is_the_deterministic_chain() -> None:
    """The chain of an affine teacher is one affine map, of which the law at t = 0 knows slope and offset."""
    nodes = Nodes.over(1)
    at_0 = deterministic_chain(SCHEDULE, ideal(TEACHER).map_at, PRIOR, point(Y_0))[0]
    slope = (at_0.variance / PRIOR.variance).sqrt().item()
    offset = at_0.mean.item() - slope * Y_0
    student = Student(torch.tensor([slope, offset, 0.0], dtype=torch.float64, requires_grad=True))
    step = sinsr_pass(student, torch.zeros_like(nodes[0]), nodes)
    value = (nodes.weights * sinsr.distillation(step).values).sum()
    assert value.item() < TOLERANCE
    assert gradient(value, student).abs().max() < TOLERANCE
    worse = Student(torch.tensor([slope, offset + 0.3, 0.0], dtype=torch.float64, requires_grad=True))
    value = (nodes.weights * sinsr.distillation(sinsr_pass(worse, torch.zeros_like(nodes[0]), nodes)).values).sum()
    assert value.item() == pytest.approx(0.09, rel=1e-9)
    torch.testing.assert_close(gradient(value, worse)[:2], torch.tensor([0.6 * Y_0, 0.6], dtype=torch.float64))


def test_the_end_of_the_teachers_chain_is_a_constant() -> None:
    """Also for a teacher whose weights still ask for gradients."""
    nodes, slope = Nodes.over(1), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    teacher = Predictor(lambda t: Affine(point(slope), point(0.1)))
    step = sinsr.SinSRPass(
        Student.fresh().predictor, teacher, nodes.latents(), sinsr.SinSRDraws(nodes[0]), decode=lambda z: z
    )
    assert not step.target.requires_grad


def test_sinsr_terms_and_their_gradients_by_hand() -> None:
    """With f(z) = a z + b: F from the chain, z_T and z_0 given; the found noise of the third term is a constant."""
    student, nodes = Student.fresh(), Nodes.over(1)
    a, b, _ = STUDENT
    z_T = Y_0 + SCHEDULE.kappa * SCHEDULE.etas[T] ** 0.5 * nodes[0]
    z_0 = torch.linspace(-1, 1, len(nodes.weights), dtype=torch.float64).view(-1, 1, 1, 1)
    target = ideal(TEACHER).deterministic_sample(z_T, torch.full_like(z_T, Y_0), z_T)
    found = a * z_0 + b
    errors = {  # error, and what it is linear in: d error / d (slope, offset) = (input, 1)
        sinsr.distillation: (a * z_T + b - target, z_T),
        sinsr.inverse: (a * target + b - z_T, target),
        sinsr.consistency: (a * found + b - z_0, found),
    }
    for term, (error, inputs) in errors.items():
        values = term(sinsr_pass(student, z_0, nodes)).values
        torch.testing.assert_close(values, error.flatten() ** 2, rtol=TOLERANCE, atol=TOLERANCE)
        wanted = torch.stack([(2 * error * inputs).sum(), (2 * error).sum()])
        torch.testing.assert_close(gradient(values.sum(), student)[:2], wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_sinsr_restores_at_t_T_and_inverts_at_t_1() -> None:
    asked: list[int] = []

    def map_at(t: int) -> Affine:
        asked.append(t)
        return Affine(point(1.0), point(0.0))

    nodes = Nodes.over(1)
    draws = sinsr.SinSRDraws(nodes[0])
    step = sinsr.SinSRPass(Predictor(map_at), ideal(TEACHER), nodes.latents(), draws, decode=lambda z: z)
    for term, times in ((sinsr.distillation, [T]), (sinsr.inverse, [1]), (sinsr.consistency, [1, T])):
        asked.clear()
        term(step)
        assert asked == times
