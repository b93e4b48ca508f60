"""The chain's distributions fit together: composition, Bayes' rule, and the deterministic step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resshift_core import Gaussian, ResShiftSchedule

schedules = st.builds(
    ResShiftSchedule.exponential,
    num_steps=st.integers(1, 24),
    kappa=st.floats(0.1, 4),
    power=st.floats(0.2, 2),
    min_noise_level=st.floats(0.01, 0.2),
    sqrt_eta_end=st.floats(0.5, 1),
    max_sqrt_eta_1=st.sampled_from([None, math.sqrt(0.001)]),
)
seeds = st.integers(0, 2**32 - 1)


def _draw(seed: int, count: int, shape: tuple[int, ...] = (3, 2, 2)) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for _ in range(count)]


@settings(deadline=None)
@given(schedules, seeds)
def test_composed_steps_give_the_marginal(schedule: ResShiftSchedule, seed: int) -> None:
    x_0, y_0 = _draw(seed, 2)
    mean, variance = x_0, np.zeros((1, 1, 1))
    for t in range(1, schedule.num_steps + 1):
        step = schedule.forward_step(mean, x_0, y_0, t)
        mean, variance = step.mean, variance + step.variance
        marginal = schedule.marginal(x_0, y_0, t)
        np.testing.assert_allclose(mean, marginal.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(variance, marginal.variance, rtol=1e-9)


@settings(deadline=None)
@given(schedules, seeds, st.data())
def test_posterior_is_bayes_rule(schedule: ResShiftSchedule, seed: int, data: st.DataObject) -> None:
    if schedule.num_steps == 1:
        return  # its only posterior is a point
    t = data.draw(st.integers(2, schedule.num_steps))
    x_0, y_0, noise, step_noise = _draw(seed, 4)
    before = schedule.marginal(x_0, y_0, t - 1)
    x_prev = before.sample(noise)
    step = schedule.forward_step(x_prev, x_0, y_0, t)
    x_t = step.sample(step_noise)
    evidence = schedule.marginal(x_0, y_0, t).log_prob(x_t)
    expected = before.log_prob(x_prev) + step.log_prob(x_t) - evidence
    actual = schedule.posterior(x_t, x_0, t).log_prob(x_prev)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-7)


def test_posterior_is_bayes_rule_on_a_grid() -> None:
    schedule = ResShiftSchedule.exponential(4, kappa=1.5, min_noise_level=0.04)
    x_0, y_0, x_t = (np.array([value]) for value in (0.3, -0.8, 0.1))
    for t in range(2, 5):
        grid = np.linspace(-12, 12, 400_001)[:, None]
        same = np.ones_like(grid)
        prior = schedule.marginal(x_0 * same, y_0 * same, t - 1).log_prob(grid)
        likelihood = schedule.forward_step(grid, x_0 * same, y_0 * same, t).log_prob(x_t * same)
        density = np.exp(prior + likelihood)
        density /= density.sum()
        mean = (density * grid[:, 0]).sum()
        variance = (density * (grid[:, 0] - mean) ** 2).sum()
        posterior = schedule.posterior(x_t, x_0, t)
        np.testing.assert_allclose(posterior.mean, [mean], rtol=1e-8)
        np.testing.assert_allclose(posterior.variance, [variance], rtol=1e-8)


@settings(deadline=None)
@given(schedules, seeds)
def test_first_posterior_is_the_point_x_0(schedule: ResShiftSchedule, seed: int) -> None:
    x_t, x_0, noise = _draw(seed, 3)
    posterior = schedule.posterior(x_t, x_0, 1)
    np.testing.assert_array_equal(posterior.variance, 0.0)
    np.testing.assert_array_equal(posterior.mean, x_0)
    np.testing.assert_array_equal(posterior.sample(noise), x_0)
    np.testing.assert_array_equal(schedule.deterministic_step(x_t, x_0, noise, 1), x_0)


@settings(deadline=None)
@given(schedules, seeds)
def test_deterministic_step_keeps_the_marginal_and_its_noise(schedule: ResShiftSchedule, seed: int) -> None:
    x_0, y_0, noise = _draw(seed, 3)
    for t in range(1, schedule.num_steps + 1):
        x_t = schedule.marginal(x_0, y_0, t).sample(noise)
        expected = schedule.marginal(x_0, y_0, t - 1).sample(noise) if t > 1 else x_0
        actual = schedule.deterministic_step(x_t, x_0, y_0, t)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(schedules, seeds)
def test_posterior_keeps_the_marginal(schedule: ResShiftSchedule, seed: int) -> None:
    x_0, y_0 = _draw(seed, 2)
    for t in range(2, schedule.num_steps + 1):
        here, before = schedule.marginal(x_0, y_0, t), schedule.marginal(x_0, y_0, t - 1)
        step = schedule.posterior(here.mean, x_0, t)
        slope = schedule.posterior(np.ones((1, 1)), np.zeros((1, 1)), t).mean.item()
        np.testing.assert_allclose(step.mean, before.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(step.variance + slope**2 * here.variance, before.variance, rtol=1e-9)


@settings(deadline=None)
@given(schedules, seeds)
def test_prior_has_the_variance_of_the_last_marginal(schedule: ResShiftSchedule, seed: int) -> None:
    x_0, y_0 = _draw(seed, 2)
    prior = schedule.prior(y_0)
    np.testing.assert_array_equal(prior.mean, y_0)
    np.testing.assert_array_equal(prior.variance, schedule.marginal(x_0, y_0, schedule.num_steps).variance)
    np.testing.assert_allclose(prior.variance, schedule.kappa**2 * schedule.etas[-1])


@settings(deadline=None)
@given(schedules, seeds)
def test_scaled_input_of_unit_data_has_unit_variance(schedule: ResShiftSchedule, seed: int) -> None:
    (x_t,) = _draw(seed, 1)
    for t in range(1, schedule.num_steps + 1):
        deviation = math.sqrt(1 + schedule.kappa**2 * schedule.etas[t])
        np.testing.assert_allclose(schedule.scale_input(x_t, t) * deviation, x_t)


def test_an_array_of_times_acts_sample_by_sample() -> None:
    schedule = ResShiftSchedule.exponential(4)
    x_t, x_0, y_0, noise = _draw(0, 4)
    times = np.array([4, 1, 3])
    together = (
        schedule.marginal(x_0, y_0, times).sample(noise),
        schedule.forward_step(x_t, x_0, y_0, times).sample(noise),
        schedule.posterior(x_t, x_0, times).sample(noise),
        schedule.deterministic_step(x_t, x_0, y_0, times),
        schedule.scale_input(x_t, times),
    )
    for i, t in enumerate(times.tolist()):
        one = slice(i, i + 1)  # B=1
        alone = (
            schedule.marginal(x_0[one], y_0[one], t).sample(noise[one]),
            schedule.forward_step(x_t[one], x_0[one], y_0[one], t).sample(noise[one]),
            schedule.posterior(x_t[one], x_0[one], np.array([t])).sample(noise[one]),
            schedule.deterministic_step(x_t[one], x_0[one], y_0[one], np.int64(t)),
            schedule.scale_input(x_t[one], np.array([t])),
        )
        for all_samples, sample in zip(together, alone, strict=True):
            np.testing.assert_array_equal(all_samples[one], sample)


def test_batch_without_further_dimensions() -> None:
    schedule = ResShiftSchedule.exponential(3)
    x_0, y_0 = _draw(0, 2, (2,))
    expected = schedule.etas[[1, 3]] * (y_0 - x_0) + x_0
    np.testing.assert_allclose(schedule.marginal(x_0, y_0, np.array([1, 3])).mean, expected)


def test_time_index_counts_from_zero() -> None:
    schedule = ResShiftSchedule.exponential(3)
    assert schedule.time_index(1) == 0
    np.testing.assert_array_equal(schedule.time_index(np.array([3, 1])), [2, 0])


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (0, r"t in 1\.\.3, got 0"),
        (4, r"t in 1\.\.3"),
        (np.array([1, 0]), "t in 1"),
        (np.array([4, 1]), "t in 1"),
        (1.0, "got float"),
        (True, "got bool"),
        ([1, 2], "got list"),
        (np.array([1.0, 2.0]), "integer dtype"),
        (np.array([True, True]), "integer dtype"),
        (np.array(1), r"shape \(B,\)"),
        (np.array([[1, 2]]), r"shape \(B,\)"),
        (np.array([1]), "one time per sample"),
        (np.array([1, 2, 3]), "one time per sample"),
    ],
)
def test_bad_times_are_refused(t: object, message: str) -> None:
    schedule = ResShiftSchedule.exponential(3)
    x = np.zeros((2, 5))
    calls = [
        lambda: schedule.marginal(x, x, t),
        lambda: schedule.forward_step(x, x, x, t),
        lambda: schedule.posterior(x, x, t),
        lambda: schedule.deterministic_step(x, x, x, t),
        lambda: schedule.scale_input(x, t),
    ]
    if message != "one time per sample":
        calls.append(lambda: schedule.time_index(t))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_arrays_are_refused() -> None:
    schedule = ResShiftSchedule.exponential(3)
    x, other, whole = np.zeros((2, 5)), np.zeros((1, 5)), np.zeros((2, 5), dtype=np.int64)
    for call in (
        lambda bad: schedule.marginal(x, bad, 1),
        lambda bad: schedule.forward_step(x, bad, x, 1),
        lambda bad: schedule.forward_step(x, x, bad, 1),
        lambda bad: schedule.posterior(x, bad, 1),
        lambda bad: schedule.deterministic_step(x, bad, x, 1),
        lambda bad: schedule.deterministic_step(x, x, bad, 1),
    ):
        with pytest.raises(ValueError, match="expand or resize"):
            call(other)
        with pytest.raises(ValueError, match="floating dtype"):
            call(whole)
    with pytest.raises(ValueError, match="floating dtype"):
        schedule.prior(whole)
    with pytest.raises(ValueError, match="floating dtype"):
        schedule.scale_input(whole, 1)
    with pytest.raises(ValueError, match="one time per sample"):
        schedule.scale_input(np.array(0.0), np.array([1]))


def test_results_are_gaussians() -> None:
    schedule = ResShiftSchedule.exponential(3)
    x = np.zeros((2, 5))
    for result in (
        schedule.marginal(x, x, 1),
        schedule.prior(x),
        schedule.forward_step(x, x, x, 1),
        schedule.posterior(x, x, 1),
    ):
        assert isinstance(result, Gaussian)
