"""The schedule: its values, its checks, and its behaviour as a value."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_core import ResShiftSchedule, student_timesteps


def test_exponential_follows_the_definition_with_beta_and_b() -> None:
    num_steps, kappa, power, noise, end = 7, 1.5, 0.6, 0.03, 0.95
    first = noise / kappa
    b = math.exp(math.log(end / first) / (num_steps - 1))
    beta = (np.arange(num_steps) / (num_steps - 1)) ** power * (num_steps - 1)
    schedule = ResShiftSchedule.exponential(num_steps, kappa, power, noise, end)
    np.testing.assert_allclose(schedule.etas[1:], (first * b**beta) ** 2, rtol=1e-13)
    np.testing.assert_allclose(schedule.alphas, np.r_[0, schedule.etas[1:] - schedule.etas[:-1]])
    assert schedule.etas[0] == schedule.alphas[0] == 0
    assert schedule.num_steps == num_steps
    assert schedule.etas.dtype == schedule.alphas.dtype == np.float64


def test_published_defaults() -> None:
    schedule = ResShiftSchedule.exponential()
    assert schedule.num_steps == 15
    assert schedule.kappa == 2.0
    assert math.sqrt(schedule.etas[1]) == pytest.approx(0.02)
    assert math.sqrt(schedule.etas[-1]) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("kappa", "noise", "cap", "expected"),
    [
        (2.0, 0.04, math.sqrt(0.001), 0.02),  # noise / kappa
        (0.5, 0.02, math.sqrt(0.001), 0.02),  # noise itself, as kappa < 1 would raise it
        (1.0, 0.1, math.sqrt(0.001), math.sqrt(0.001)),  # the cap
        (1.0, 0.1, None, 0.1),
        (1.0, 0.1, 0.05, 0.05),
    ],
)
def test_first_level_is_the_smallest_of_three(kappa: float, noise: float, cap: float | None, expected: float) -> None:
    schedule = ResShiftSchedule.exponential(5, kappa, min_noise_level=noise, max_sqrt_eta_1=cap)
    assert math.sqrt(schedule.etas[1]) == pytest.approx(expected, rel=1e-14)


def test_one_step_takes_the_end_value() -> None:
    schedule = ResShiftSchedule.exponential(1, sqrt_eta_end=0.9)
    np.testing.assert_array_equal(schedule.etas, [0.0, 0.9**2])
    assert schedule.num_steps == 1


@settings(deadline=None)
@given(num_steps=st.integers(1, 200), power=st.floats(0.1, 3))
def test_full_shift_stays_in_range(num_steps: int, power: float) -> None:
    assert ResShiftSchedule.exponential(num_steps, power=power, sqrt_eta_end=1.0).etas[-1] == 1.0


def test_schedule_is_frozen_and_its_table_read_only() -> None:
    given_etas = np.array([0.0, 0.2, 0.7])
    schedule = ResShiftSchedule(given_etas, 2)
    given_etas[1] = 0.5
    assert schedule.etas[1] == 0.2
    with pytest.raises(ValueError, match="read-only"):
        schedule.etas[1] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.kappa = 1.0  # type: ignore[misc]


def test_schedule_is_a_value() -> None:
    one, same = ResShiftSchedule.exponential(5), ResShiftSchedule.exponential(5)
    assert one == same
    assert hash(one) == hash(same)
    assert one != ResShiftSchedule(one.etas, 1.0)
    assert one != ResShiftSchedule.exponential(6)
    assert one != "schedule"
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert twin == one
        assert not twin.etas.flags.writeable


@pytest.mark.parametrize(
    ("etas", "kappa", "message"),
    [
        ([0.0], 1.0, "T >= 1"),
        ([[0.0, 1.0]], 1.0, "shape"),
        ([0.1, 0.2], 1.0, "prepend eta_0"),
        ([0.0, 0.0, 0.2], 1.0, "strictly increasing"),
        ([0.0, 0.3, 0.2], 1.0, "strictly increasing"),
        ([0.0, 0.3, 1.1], 1.0, r"\(0, 1\]"),
        ([0.0, 0.3, math.nan], 1.0, "strictly increasing"),
        ([0.0, 0.3], 0.0, "kappa"),
        ([0.0, 0.3], math.nan, "kappa"),
        ([0.0, 0.3], math.inf, "kappa"),
    ],
)
def test_constructor_refuses(etas: list[float], kappa: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResShiftSchedule(np.array(etas), kappa)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2.0}, "num_steps"),
        ({"num_steps": True}, "num_steps"),
        ({"kappa": -1.0}, "kappa"),
        ({"power": 0.0}, "power"),
        ({"min_noise_level": 0.0}, "min_noise_level"),
        ({"sqrt_eta_end": 1.01}, "sqrt_eta_end"),
        ({"sqrt_eta_end": 0.0}, "sqrt_eta_end"),
        ({"max_sqrt_eta_1": 0.0}, "max_sqrt_eta_1"),
        ({"num_steps": 1, "max_sqrt_eta_1": -1.0}, "max_sqrt_eta_1"),
        ({"sqrt_eta_end": 0.02}, "lower min_noise_level"),
    ],
)
def test_exponential_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResShiftSchedule.exponential(**arguments)  # type: ignore[arg-type]


def test_student_timesteps_of_the_published_setting() -> None:
    assert student_timesteps(15, 4) == (4, 8, 12, 15)
    assert student_timesteps(15, 1) == (15,)
    assert student_timesteps(15, 2) == (8, 15)
    assert student_timesteps(15, 15) == tuple(range(1, 16))
    assert student_timesteps(1, 1) == (1,)


@settings(deadline=None)
@given(st.integers(1, 60).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(1, steps))))
def test_student_timesteps_are_distinct_even_and_end_in_the_last(sizes: tuple[int, int]) -> None:
    num_steps, count = sizes
    times = student_timesteps(num_steps, count)
    assert len(times) == count
    assert times[-1] == num_steps
    assert times[0] > (0 if count == num_steps else 1)
    gaps = np.diff((0, *times))
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("count", [0, -1, 16])
def test_student_timesteps_refuses(count: int) -> None:
    with pytest.raises(ValueError, match="count"):
        student_timesteps(15, count)
