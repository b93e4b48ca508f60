"""TSM, VSD and TSD directions: identities, closed forms on Gaussian latents, and where TSD-SR's print is ambiguous.

Everything is float64. The independent reference is `_best_velocity`: conditioning in a dense joint covariance.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resshift_core import (
    FlowMatchingSchedule,
    Gaussian,
    distillation_normalizer,
    flow_interpolate,
    tsd_direction,
    tsd_weights,
    tsm_direction,
    velocity_to_noise,
    velocity_to_x_0,
    vsd_direction,
    x_0_normalized_vsd_direction,
)
from resshift_core.analytic import ideal_velocity, tsm_factor, vsd_factor

Floats = NDArray[np.float64]
Parameterisation = Literal["noise", "velocity"]
SD3 = FlowMatchingSchedule.shifted()
DRAWN = SD3.sigmas[50:950]  # TSD-SR's draw of indices, 50..949
WEIGHTS = tsd_weights(SD3)[50:950]
both = pytest.mark.parametrize("parameterisation", ["noise", "velocity"])
levels = st.floats(0.003, 0.999)
variances = st.floats(0.01, 1000)
SEEDS = st.integers(0, 2**32 - 1)


def _draw(seed: int, count: int, shape: tuple[int, ...] = (3, 4)) -> Any:
    return np.random.default_rng(seed).normal(size=(count, *shape))


def _best_velocity(covariance: Floats, sigma: float, target: Floats | None = None) -> Floats:
    """Return the matrix G of E[v | z_t] = G z_t by conditioning (v, z_t), linear images of independent sources.

    Args:
        covariance: (K, K) of the sources without the noise, of which the first D are the latent that is noised.
        sigma: noise level.
        target: (D, K) the latent in v = noise - target @ sources; the noised one by default.
    """
    d = len(covariance) if target is None else len(target)
    sources = np.block([[covariance, np.zeros((len(covariance), d))], [np.zeros((d, len(covariance))), np.eye(d)]])
    latent = np.eye(d, len(covariance))
    z_t = np.hstack([(1 - sigma) * latent, sigma * np.eye(d)])
    velocity = np.hstack([-(latent if target is None else target), np.eye(d)])
    joint = np.vstack([velocity, z_t]) @ sources @ np.vstack([velocity, z_t]).T
    return np.asarray(np.linalg.solve(joint[d:, d:], joint[d:, :d]).T)


def _as_noise(velocity_map: Floats, sigma: float, parameterisation: Parameterisation) -> Floats:
    """Return the linear map to what the parameterisation predicts."""
    if parameterisation == "velocity":
        return velocity_map
    return np.eye(len(velocity_map)) + (1 - sigma) * velocity_map


@both
@settings(deadline=None)
@given(SEEDS, st.lists(levels, min_size=3, max_size=3), st.floats(0, 1))
def test_eq_5_is_its_print(parameterisation: Parameterisation, seed: int, sigmas: list[float], weight: float) -> None:
    v_hat, v, v_fake, z_hat_t, z_t = _draw(seed, 5)
    sigma = np.array(sigmas)
    if parameterisation == "noise":
        at_hat, at, fake = (velocity_to_noise(*pair, sigma) for pair in ((v_hat, z_hat_t), (v, z_t), (v_fake, z_hat_t)))
    else:
        at_hat, at, fake = v_hat, v, v_fake
    tsm = tsm_direction(v_hat, v, z_hat_t, z_t, sigma, parameterisation)
    vsd = vsd_direction(v_hat, v_fake, sigma, parameterisation)
    np.testing.assert_allclose(tsm, at_hat - at, atol=1e-13)
    np.testing.assert_allclose(vsd, at_hat - fake, atol=1e-13)

    def tsd(weight: float) -> Floats:
        result = tsd_direction(v_hat, v, v_fake, z_hat_t, z_t, sigma, weight, parameterisation)
        return np.asarray(result)

    np.testing.assert_allclose(tsd(weight), at_hat - at + weight * (at - fake), atol=1e-13)
    np.testing.assert_array_equal(tsd(0.0), tsm)
    np.testing.assert_array_equal(tsd(1.0), vsd)
    np.testing.assert_allclose(tsm_direction(v_hat, v_hat, z_t, z_t, sigma, parameterisation), 0)
    np.testing.assert_allclose(vsd_direction(v_hat, v_hat, sigma, parameterisation), 0)
    np.testing.assert_allclose(tsd_direction(v, v, v, z_t, z_t, sigma, weight, parameterisation), 0)


def test_noise_is_the_default_and_samples_keep_to_themselves() -> None:
    v_hat, v, v_fake, z_hat_t, z_t = _draw(0, 5)
    sigma = np.array([0.2, 0.5, 0.9])
    together = tsd_direction(v_hat, v, v_fake, z_hat_t, z_t, sigma, 0.7)
    for i, level in enumerate(sigma.tolist()):
        one = slice(i, i + 1)
        arrays = [array[one] for array in (v_hat, v, v_fake, z_hat_t, z_t)]
        np.testing.assert_allclose(tsd_direction(*arrays, level, 0.7, "noise"), together[one], atol=1e-15)
    for function in (tsm_direction, vsd_direction, tsd_direction, tsm_factor, vsd_factor):
        assert inspect.signature(function).parameters["parameterisation"].default == "noise"


def test_weights_are_the_squared_levels() -> None:
    np.testing.assert_array_equal(tsd_weights(SD3), SD3.sigmas**2)
    assert tsd_weights(SD3).dtype == np.float64


def test_osediff_direction_is_vsd_in_another_unit() -> None:
    """Fake minus teacher in x_0 has the sign of teacher minus fake in velocity: x_0 = z_t - sigma v."""
    v_teacher, v_fake, z_t, x_0_hat = _draw(0, 4, (3, 2, 5))
    sigma = np.array([0.3, 0.6, 1.0])
    fake, teacher = (velocity_to_x_0(v, z_t, sigma) for v in (v_fake, v_teacher))
    direction = x_0_normalized_vsd_direction(fake, teacher, x_0_hat)
    scale = np.abs(x_0_hat - teacher).mean(axis=(1, 2), keepdims=True)
    expected = sigma[:, None, None] * vsd_direction(v_teacher, v_fake, sigma, "velocity") / scale
    np.testing.assert_allclose(direction, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        x_0_normalized_vsd_direction(fake, teacher, x_0_hat, eps=0.5),
        (fake - teacher) / distillation_normalizer(teacher, x_0_hat, eps=0.5)[:, None, None],
    )
    perfect = x_0_normalized_vsd_direction(
        fake.astype(np.float16), teacher.astype(np.float16), teacher.astype(np.float16)
    )
    assert np.isfinite(perfect[np.abs(fake - teacher) < 1e-3]).all()
    same = x_0_normalized_vsd_direction(teacher, teacher, teacher)
    np.testing.assert_array_equal(same, 0)


def test_bad_arguments_are_refused() -> None:
    x, other = np.zeros((2, 3)), np.zeros((1, 3))
    for call in (
        lambda name: tsm_direction(x, x, x, x, 0.5, name),
        lambda name: vsd_direction(x, x, 0.5, name),
        lambda name: tsd_direction(x, x, x, x, x, 0.5, 0.5, name),
        lambda name: tsm_factor(1.0, 0.5, name),
        lambda name: vsd_factor(1.0, 2.0, 0.5, name),
    ):
        with pytest.raises(ValueError, match="'noise' or 'velocity', got 'x_0'"):
            call("x_0")
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="vsd_weight"):
            tsd_direction(x, x, x, x, x, 0.5, weight)
    for position in range(1, 5):
        arrays = [x] * 5
        arrays[position] = other
        with pytest.raises(ValueError, match="expand or resize"):
            tsd_direction(*arrays, 0.5, 0.5)
    with pytest.raises(ValueError, match="expand or resize"):
        x_0_normalized_vsd_direction(x, other, x)
    with pytest.raises(ValueError, match="one level per sample"):
        vsd_direction(x, x, np.array([0.1, 0.2, 0.3]), "velocity")


@settings(deadline=None)
@given(SEEDS, variances, st.floats(0, 1))
def test_ideal_velocity_is_the_regression_on_z_t(seed: int, variance: float, sigma: float) -> None:
    mean, z_t = _draw(seed, 2, (1, 2))
    f = ideal_velocity(Gaussian(mean, np.full((1, 1), variance)), sigma)
    matrix = _best_velocity(np.eye(2) * variance, sigma)
    expected = -mean + (z_t - (1 - sigma) * mean) @ matrix.T
    np.testing.assert_allclose(f(z_t), expected, rtol=1e-9, atol=1e-9)


@both
@settings(deadline=None)
@given(SEEDS, st.lists(variances, min_size=4, max_size=4), levels)
def test_eq_4_is_a_factor_of_the_latents_difference(
    parameterisation: Parameterisation, seed: int, spectrum: list[float], sigma: float
) -> None:
    """Diagonal latents through `ideal_velocity`, correlated ones through dense conditioning."""
    z_hat, z, noise = _draw(seed, 3)
    z_hat_t, z_t = flow_interpolate(z_hat, noise, sigma), flow_interpolate(z, noise, sigma)
    factor = tsm_factor(np.array(spectrum), sigma, parameterisation)
    teacher = ideal_velocity(Gaussian(z * 0, np.array([spectrum])), sigma)
    direction = tsm_direction(teacher(z_hat_t), teacher(z_t), z_hat_t, z_t, sigma, parameterisation)
    np.testing.assert_allclose(direction, factor * (z_hat - z), rtol=0, atol=1e-10)

    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))
    matrix = _best_velocity(rotation @ np.diag(spectrum) @ rotation.T, sigma)
    dense = tsm_direction(z_hat_t @ matrix.T, z_t @ matrix.T, z_hat_t, z_t, sigma, parameterisation)
    np.testing.assert_allclose(dense @ rotation, factor * ((z_hat - z) @ rotation), rtol=0, atol=1e-7)


@both
@settings(deadline=None)
@given(SEEDS, variances, variances, levels)
def test_vsd_is_a_factor_of_the_noised_latent(
    parameterisation: Parameterisation, seed: int, prior: float, student: float, sigma: float
) -> None:
    (z_t,) = _draw(seed, 1)
    factor = vsd_factor(prior, student, sigma, parameterisation)
    teacher, fake = (
        ideal_velocity(Gaussian(0 * z_t, np.full((1, 1), variance)), sigma) for variance in (prior, student)
    )
    direction = vsd_direction(teacher(z_t), fake(z_t), sigma, parameterisation)
    np.testing.assert_allclose(direction, factor * z_t, rtol=0, atol=1e-10)
    dense = [_as_noise(_best_velocity(np.eye(1) * v, sigma), sigma, parameterisation)[0, 0] for v in (prior, student)]
    assert factor == pytest.approx(dense[0] - dense[1], rel=1e-6, abs=1e-10)
    assert np.sign(factor) == np.sign(student - prior)


@both
@pytest.mark.parametrize("start", [0.1, 8.0])
def test_descent_along_vsd_brings_the_students_variance_to_the_teachers(
    parameterisation: Parameterisation, start: float
) -> None:
    """For a student a n, n ~ N(0, 1), the gradient in a is E[factor z_hat_t n] = factor (1 - sigma) a."""
    prior, a = 2.0, start**0.5
    for _ in range(3000):
        a -= 0.2 * float((WEIGHTS * vsd_factor(prior, a**2, DRAWN, parameterisation) * (1 - DRAWN)).mean()) * a
    assert a**2 == pytest.approx(prior, rel=1e-6)


@settings(deadline=None)
@given(levels)
def test_velocity_tsm_changes_sign_and_noise_tsm_does_not(sigma: float) -> None:
    threshold = sigma / (1 - sigma)
    assert tsm_factor(threshold, sigma, "velocity") == pytest.approx(0, abs=1e-9)
    assert tsm_factor(0.9 * threshold, sigma, "velocity") > 0 > tsm_factor(1.1 * threshold, sigma, "velocity")
    assert (tsm_factor(threshold * np.logspace(-4, 4, 33), sigma, "noise") > 0).all()


@pytest.mark.parametrize(
    ("variance", "expected"), [(1, 0.052), (2, 0.010), (3, -0.018), (10, -0.116), (50, -0.260), (1000, -0.462)]
)
def test_velocity_tsm_averaged_over_the_published_draw(variance: float, expected: float) -> None:
    assert (WEIGHTS * tsm_factor(variance, DRAWN, "velocity")).mean() == pytest.approx(expected, abs=6e-4)
    assert (WEIGHTS * tsm_factor(variance, DRAWN, "noise")).mean() > 0
    levels_by_hand = (3 * u / (1 + 2 * u) for u in (1 - index / 1000 for index in range(50, 950)))
    by_hand = [s**2 * (1 - s) * _best_velocity(np.eye(1) * variance, s)[0, 0] for s in levels_by_hand]
    assert np.mean(by_hand) == pytest.approx(expected, abs=6e-4)


def test_velocity_tsm_averages_to_0_near_a_variance_of_2_3() -> None:
    averages = [(WEIGHTS * tsm_factor(variance, DRAWN, "velocity")).mean() for variance in (2.32, 2.33)]
    assert averages[0] > 0 > averages[1]


@settings(deadline=None)
@given(SEEDS, levels)
def test_velocity_tsm_is_noise_tsm_less_a_latent_mse(seed: int, sigma: float) -> None:
    """For any networks: direction_v = direction_noise / (1 - sigma) - (z_hat - z)."""
    v_hat, v, z_hat, z, noise = _draw(seed, 5)
    inputs = (v_hat, v, flow_interpolate(z_hat, noise, sigma), flow_interpolate(z, noise, sigma), sigma)
    difference = tsm_direction(*inputs, "noise") / (1 - sigma) - tsm_direction(*inputs, "velocity")
    np.testing.assert_allclose(difference, z_hat - z, rtol=1e-8, atol=1e-10)


def test_the_latent_mse_that_velocity_tsm_takes_away() -> None:
    """E w = .532 over the published draw: the limit of the push at large variance."""
    assert WEIGHTS.mean() == pytest.approx(0.532, abs=5e-4)
    push = (WEIGHTS * tsm_factor(1e9, DRAWN, "velocity")).mean()
    assert push == pytest.approx(-WEIGHTS.mean(), rel=1e-6)


@both
def test_eq_9_needs_the_students_own_latent_as_target(parameterisation: Parameterisation) -> None:
    """A fake model trained towards z_H pushes a student of the teacher's law to a larger variance."""
    variance, correlation, sigma = 2.0, 0.6, 0.7
    joint = variance * np.array([[1, correlation], [correlation, 1]])  # of (z_hat, z_H)
    teacher = _best_velocity(np.eye(1) * variance, sigma)
    own = _best_velocity(joint, sigma, target=np.array([[1.0, 0.0]]))
    towards_real = _best_velocity(joint, sigma, target=np.array([[0.0, 1.0]]))
    z_t = np.ones((1, 1))
    right, wrong = (
        vsd_direction(teacher @ z_t, fake @ z_t, sigma, parameterisation).item() for fake in (own, towards_real)
    )
    assert right == pytest.approx(0, abs=1e-12)
    assert wrong < -0.05
    gain = (1 - sigma) * variance / ((1 - sigma) ** 2 * variance + sigma**2)
    scale = 1 - sigma if parameterisation == "noise" else 1
    assert wrong == pytest.approx(-scale * (1 - correlation) * gain, rel=1e-12)
