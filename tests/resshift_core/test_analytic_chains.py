"""The chains of RSD and SinSR on Gaussian problems: Eq. 18 by dense linear algebra, and what T steps lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resshift_core import Gaussian, ResShiftSchedule, kl_divergence
from resshift_core.analytic import (
    Affine,
    Denoiser,
    deterministic_chain,
    ideal_denoiser,
    noised,
    reverse_chain,
    rsd_loss,
    vsd_loss,
)

Array = NDArray[np.float64]
SEEDS = [0, 1, 2, 3]
PUBLISHED = ResShiftSchedule.exponential()
# The example of docs/errata.md: one pixel.
Y_0 = np.array([[0.4]])
DATA = Gaussian(np.array([[-0.3]]), np.array([[0.5]]))
STUDENT = Gaussian(np.array([[-0.1]]), np.array([[0.3]]))


def _denoiser(schedule: ResShiftSchedule, x_0: Gaussian, y_0: Array = Y_0) -> Denoiser:
    return lambda t: ideal_denoiser(schedule, x_0, y_0, t)


def _draw(seed: int) -> tuple[ResShiftSchedule, Gaussian, Gaussian, Array]:
    """A schedule (the published one for seed 0), two laws of images and y_0, arrays (1, 1)."""
    rng = np.random.default_rng(seed)
    schedule = PUBLISHED if seed == 0 else ResShiftSchedule.exponential(int(rng.integers(2, 12)), rng.uniform(0.5, 3))
    m, n, y_0 = rng.normal(size=(3, 1, 1))
    v, w = rng.uniform(0.2, 1.5, size=(2, 1, 1))
    return schedule, Gaussian(m, v), Gaussian(n, w), y_0


def _path_law(schedule: ResShiftSchedule, f: Denoiser, x_T: Gaussian) -> tuple[Array, Array]:
    """Return mean (T,) and covariance (T, T) of (x_1, ..., x_T), written as a matrix times independent noises."""
    etas, steps = schedule.etas, schedule.num_steps
    mean, rows = np.zeros(steps + 1), np.zeros((steps + 1, steps + 1))
    mean[steps] = x_T.mean.item()
    rows[steps, steps] = np.sqrt(x_T.variance.item())
    for t in range(steps, 1, -1):
        share = (etas[t] - etas[t - 1]) / etas[t]
        slope = etas[t - 1] / etas[t] + share * f(t).slope.item()
        mean[t - 1] = slope * mean[t] + share * f(t).offset.item()
        rows[t - 1] = slope * rows[t]
        rows[t - 1, t - 1] = schedule.kappa * np.sqrt(share * etas[t - 1])
    return mean[1:], (rows @ rows.T)[1:, 1:]


def _dense_kl(p: tuple[Array, Array], q: tuple[Array, Array]) -> float:
    (m_p, s_p), (m_q, s_q) = p, q
    trace = np.trace(np.linalg.solve(s_q, s_p))
    distance = (m_p - m_q) @ np.linalg.solve(s_q, m_p - m_q)
    return float(0.5 * (trace - len(m_p) + distance + np.linalg.slogdet(s_q)[1] - np.linalg.slogdet(s_p)[1]))


def _path_terms(schedule: ResShiftSchedule, student: Gaussian, data: Gaussian, y_0: Array, x_T: Gaussian) -> Array:
    """Return Eq. 18's terms at index t = 2..T, (T+1,): w_t E ||f - f*||^2 over the student's reverse chain."""
    f, f_teacher = _denoiser(schedule, student, y_0), _denoiser(schedule, data, y_0)
    chain, terms = reverse_chain(schedule, f, x_T), np.zeros(schedule.num_steps + 1)
    for t in range(2, schedule.num_steps + 1):
        terms[t] = schedule.kl_weights()[t] * (f(t) - f_teacher(t)).mean_square(chain[t]).item()
    return terms


def _eq_6_terms(schedule: ResShiftSchedule, student: Gaussian, data: Gaussian, y_0: Array) -> Array:
    """Return Eq. 6's terms at index t = 2..T with the weights of Eq. 27."""
    terms = np.zeros(schedule.num_steps + 1)
    for t in range(2, schedule.num_steps + 1):
        terms[t] = schedule.kl_weights()[t] * rsd_loss(schedule, student, data, y_0, t).item()
    return terms


@pytest.mark.parametrize("forward_start", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_eq_18_is_the_divergence_of_paths_over_the_reverse_chain(seed: int, forward_start: bool) -> None:
    schedule, student, data, y_0 = _draw(seed)
    x_T = noised(schedule, student, y_0, schedule.num_steps) if forward_start else schedule.prior(y_0)
    f, f_teacher = _denoiser(schedule, student, y_0), _denoiser(schedule, data, y_0)
    p, q = _path_law(schedule, f, x_T), _path_law(schedule, f_teacher, x_T)
    chain = reverse_chain(schedule, f, x_T)
    np.testing.assert_allclose([law.mean.item() for law in chain[1:]], p[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose([law.variance.item() for law in chain[1:]], np.diag(p[1]), rtol=1e-10)
    terms = _path_terms(schedule, student, data, y_0, x_T)
    assert terms.sum() == pytest.approx(_dense_kl(p, q), rel=1e-9)
    # Printed sum: t = 1..T-1. The first is infinite, and T belongs to it.
    assert np.isinf(schedule.kl_weights()[1])
    assert terms[-1] > 1e-6 * terms.sum()
    # Eq. 6 averages over other x_t.
    assert abs(_eq_6_terms(schedule, student, data, y_0).sum() / terms.sum() - 1) > 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_eq_18_is_eq_6_for_a_student_without_variance(seed: int) -> None:
    schedule, student, data, y_0 = _draw(seed)
    point = Gaussian(student.mean, 0 * student.variance)
    eq_6 = _eq_6_terms(schedule, point, data, y_0)
    x_T = noised(schedule, point, y_0, schedule.num_steps)
    np.testing.assert_allclose(_path_terms(schedule, point, data, y_0, x_T), eq_6, rtol=1e-10)
    assert not np.allclose(_path_terms(schedule, point, data, y_0, schedule.prior(y_0)), eq_6, rtol=1e-5, atol=0)


def test_eq_18_differs_from_eq_6_for_the_published_schedule() -> None:
    """The figures of docs/errata.md, and that the gap closes with more steps."""
    gaps = []
    for steps in (15, 30, 60, 120):
        schedule = ResShiftSchedule.exponential(steps)
        eq_6 = _eq_6_terms(schedule, STUDENT, DATA, Y_0).sum()
        eq_18 = _path_terms(schedule, STUDENT, DATA, Y_0, noised(schedule, STUDENT, Y_0, steps)).sum()
        gaps.append(1 - eq_18 / eq_6)
        if steps == 15:
            assert eq_6 == pytest.approx(0.5855, abs=5e-5)
            assert eq_18 == pytest.approx(0.5076, abs=5e-5)
            eq_18 = _path_terms(schedule, STUDENT, DATA, Y_0, schedule.prior(Y_0)).sum()
            assert eq_18 == pytest.approx(0.5069, abs=5e-5)
    np.testing.assert_allclose(gaps, [0.133, 0.072, 0.033, 0.014], atol=5e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_of_one_image_follow_its_marginals_exactly(seed: int) -> None:
    """For one x_0, T steps carry q(x_T | x_0, y_0) to q(x_t | x_0, y_0), by posterior and by deterministic step."""
    schedule, student, _, y_0 = _draw(seed)
    image = Gaussian(student.mean, 0 * student.variance)
    f, x_T = _denoiser(schedule, image, y_0), schedule.marginal(image.mean, y_0, schedule.num_steps)
    for chain in (reverse_chain(schedule, f, x_T), deterministic_chain(schedule, f, x_T, y_0)):
        assert len(chain) == schedule.num_steps + 1
        for t in range(1, schedule.num_steps + 1):
            expected = schedule.marginal(image.mean, y_0, t)
            np.testing.assert_allclose(chain[t].mean, expected.mean, rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(chain[t].variance, expected.variance, rtol=1e-11)
        np.testing.assert_allclose(chain[0].mean, image.mean, rtol=1e-11)
        np.testing.assert_array_equal(chain[0].variance, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_deterministic_chain_is_the_step_applied_to_samples(seed: int) -> None:
    """Moments of x_T's three quadrature nodes, carried through the step itself; any affine networks."""
    schedule, _, _, y_0 = _draw(seed)
    rng = np.random.default_rng(seed)
    networks = [Affine(rng.normal(size=(1, 1)), rng.normal(size=(1, 1))) for _ in range(schedule.num_steps + 1)]
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights /= weights.sum()
    x_T = schedule.prior(y_0)
    x = x_T.mean + np.sqrt(x_T.variance) * nodes[:, None]
    chain = deterministic_chain(schedule, lambda t: networks[t], x_T, y_0)
    for t in range(schedule.num_steps, 0, -1):
        x = schedule.deterministic_step(x, networks[t](x), np.broadcast_to(y_0, x.shape), t)
        mean = weights @ x
        np.testing.assert_allclose(chain[t - 1].mean[0], mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(chain[t - 1].variance[0], weights @ (x - mean) ** 2, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_step_loses_the_variance_that_the_network_cannot_know(seed: int) -> None:
    """The network's mean replaces x_0: Var(x_0 | x_t) is lost, times the step's squared coefficient of x_0."""
    schedule, _, data, y_0 = _draw(seed)
    t, etas = schedule.num_steps, schedule.etas
    x_T, f = noised(schedule, data, y_0, t), _denoiser(schedule, data, y_0)
    unknown = data.variance * schedule.kappa**2 * etas[t] / x_T.variance
    expected = noised(schedule, data, y_0, t - 1)
    m = np.sqrt(etas[t - 1] / etas[t])
    k = 1 - m - etas[t - 1] + np.sqrt(etas[t - 1] * etas[t])
    for chain, share in (
        (reverse_chain(schedule, f, x_T), schedule.alphas[t] / etas[t]),
        (deterministic_chain(schedule, f, x_T, y_0), k),
    ):
        np.testing.assert_allclose(chain[t - 1].mean, expected.mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(chain[t - 1].variance, expected.variance - share**2 * unknown, rtol=1e-10)


def _lost_variance(num_steps: int, eta: float, power: float = 0.3) -> tuple[float, float]:
    """Return the share of the variance of p(x_t | y_0), eta_t nearest eta, that each chain misses; 0 for images."""
    schedule = ResShiftSchedule.exponential(num_steps, power=power)
    t = int(np.argmin(abs(schedule.etas - eta)))
    expected = noised(schedule, DATA, Y_0, t) if t else DATA
    x_T, f = noised(schedule, DATA, Y_0, num_steps), _denoiser(schedule, DATA)
    chains = reverse_chain(schedule, f, x_T), deterministic_chain(schedule, f, x_T, Y_0)
    for chain in chains:  # the mean is right for any T
        np.testing.assert_allclose(chain[t].mean, expected.mean, rtol=1e-12)
    ancestral, deterministic = (1 - (chain[t].variance / expected.variance).item() for chain in chains)
    return ancestral, deterministic


def test_chains_of_many_images_lose_variance_like_one_over_the_steps() -> None:
    lost = np.array([_lost_variance(steps, 0.25) for steps in (15, 30, 60, 120, 240)])
    assert (lost > 0).all()
    np.testing.assert_allclose(lost[:-1] / lost[1:], 2, rtol=0.1)


def test_fifteen_published_steps_lose_a_fifth_of_the_variance_of_images() -> None:
    """The figures of docs/errata.md: (ancestral, deterministic)."""
    np.testing.assert_allclose(_lost_variance(15, 0), [0.280, 0.185], atol=5e-4)
    np.testing.assert_allclose(_lost_variance(120, 0), [0.058, 0.030], atol=5e-4)
    np.testing.assert_allclose(_lost_variance(15, 0.25), [0.046, 0.038], atol=5e-4)
    np.testing.assert_allclose(_lost_variance(120, 0.25), [0.0050, 0.0041], atol=5e-5)


def test_forward_marginals_at_the_end_are_not_the_common_prior() -> None:
    """The marginal of Eq. 20 keeps (1 - eta_T) of the image; figures of docs/errata.md."""
    x_0, y_0 = np.array([[0.0]]), np.array([[1.0]])
    q, variance = PUBLISHED.marginal(x_0, y_0, 15), np.array([[PUBLISHED.kappa**2]])
    assert vsd_loss(PUBLISHED, STUDENT, DATA, Y_0, 15).item() == pytest.approx(2.0e-6, abs=5e-8)
    assert kl_divergence(q, PUBLISHED.prior(y_0)).item() == pytest.approx(5.05e-5, abs=5e-8)
    assert kl_divergence(q, Gaussian(y_0, variance)).item() == pytest.approx(1.498e-4, abs=5e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_torch_agree_and_keep_the_dtype(dtype: type) -> None:
    m, n, y_0 = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(dtype)
    v, w = (np.full((2, 1), value, dtype=dtype) for value in (0.5, 0.3))
    tensors = [Gaussian(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((m, v), (n, w))]
    t, y = np.array([4, 15]), torch.from_numpy(y_0)
    for loss in (rsd_loss, vsd_loss):
        ours = loss(PUBLISHED, Gaussian(m, v), Gaussian(n, w), y_0, t)
        theirs = loss(PUBLISHED, tensors[0], tensors[1], y, torch.from_numpy(t))
        last = loss(PUBLISHED, Gaussian(m[1:], v[1:]), Gaussian(n[1:], w[1:]), y_0[1:], 15)
        assert ours.shape == (2,)
        assert ours.dtype == dtype
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-4 if dtype == np.float32 else 1e-12)
        np.testing.assert_allclose(ours[1:], last, rtol=1e-4 if dtype == np.float32 else 1e-12)
    f, start = ideal_denoiser(PUBLISHED, tensors[0], y, 4), PUBLISHED.prior(y)
    for chain in (reverse_chain(PUBLISHED, lambda _: f, start), deterministic_chain(PUBLISHED, lambda _: f, start, y)):
        assert {law.mean.dtype for law in chain} == {y.dtype}
        assert {law.variance.dtype for law in chain} == {y.dtype}


def test_affine_maps_of_other_shapes_are_refused() -> None:
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="expand or resize"):
        Affine(x[:1], x)
    with pytest.raises(ValueError, match="floating dtype"):
        Affine(x.astype(int), x)
