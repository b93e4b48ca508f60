"""Weights and objectives have the values of their formulas; test_analytic proves the paper's propositions on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_core import (
    Gaussian,
    ResShiftSchedule,
    distillation_normalizer,
    fake_objective,
    kl_divergence,
    kl_weights,
    path_kl,
    rsd_objective,
    vsd_weights,
)

T = torch.float64


@settings(deadline=None)
@given(
    num_steps=st.integers(2, 20),
    kappa=st.floats(0.1, 4),
    power=st.floats(0.2, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_kl_weights_are_the_divergence_of_two_posteriors(num_steps: int, kappa: float, power: float, seed: int) -> None:
    schedule = ResShiftSchedule.exponential(num_steps, kappa, power)
    rng = np.random.default_rng(seed)
    x_t, one, other = rng.normal(size=(3, num_steps - 1, 3, 2))
    times = np.arange(2, num_steps + 1)
    expected = kl_divergence(schedule.posterior(x_t, one, times), schedule.posterior(x_t, other, times))
    squared = ((one - other) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(schedule.kl_weights()[2:] * squared, expected, rtol=1e-9)
    np.testing.assert_allclose(path_kl(schedule, one, other, times), expected, rtol=1e-9)
    np.testing.assert_allclose(path_kl(schedule, one, other, num_steps)[-1], expected[-1], rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 15])
def test_kl_weights_are_infinite_where_the_posterior_is_a_point(num_steps: int) -> None:
    weights = kl_weights(ResShiftSchedule.exponential(num_steps))
    assert weights.shape == (num_steps + 1,)
    assert weights.dtype == np.float64
    assert np.isinf(weights[:2]).all()
    assert np.isfinite(weights[2:]).all()


@pytest.mark.parametrize("num_steps", [2, 15])
def test_clipped_kl_weights_give_the_first_step_the_variance_of_the_second(num_steps: int) -> None:
    schedule = ResShiftSchedule.exponential(num_steps)
    x_t, one, other = np.random.default_rng(0).normal(size=(3, 1, 4))
    variance = schedule.posterior(x_t, one, 2).variance
    laws = (Gaussian(schedule.posterior(x_t, f, 1).mean, variance) for f in (one, other))
    weights = schedule.kl_weights(clipped=True)
    np.testing.assert_allclose(weights[1] * ((one - other) ** 2).sum(), kl_divergence(*laws), rtol=1e-12)
    np.testing.assert_array_equal(weights[2:], schedule.kl_weights()[2:])
    np.testing.assert_array_equal(weights, kl_weights(schedule, clipped=True))
    assert np.isinf(weights[0])


def test_clipped_kl_weights_need_two_steps() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        kl_weights(ResShiftSchedule.exponential(1), clipped=True)


def test_vsd_weights_scale_predictions_to_scores_and_back_to_images() -> None:
    schedule = ResShiftSchedule.exponential(4, sqrt_eta_end=1.0)
    weights, etas = schedule.vsd_weights(), schedule.etas[1:]
    assert weights.shape == (5,)
    assert weights.dtype == np.float64
    assert np.isinf(weights[0])
    assert weights[-1] == 0
    np.testing.assert_array_equal(weights, vsd_weights(schedule))
    np.testing.assert_allclose(weights[1:], (1 - etas) ** 2 / (4 * etas), rtol=1e-12)


def test_path_kl_refuses_the_first_time() -> None:
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"t in 2\.\.15, got 1"):
        path_kl(ResShiftSchedule.exponential(), x, x, 1)


def test_detached_predictions_leave_the_gradient_of_vsd() -> None:
    generator = torch.Generator().manual_seed(0)
    f_teacher, f_fake, x = (torch.randn(2, 3, 4, dtype=T, generator=generator) for _ in range(3))
    x.requires_grad_()
    rsd_objective(f_teacher, f_fake, x, reduction="sum").sum().backward()
    torch.testing.assert_close(x.grad, -2 * (f_teacher - f_fake))


def test_objectives_match_their_formulas_for_both_reductions() -> None:
    f_teacher, f_fake, x = np.random.default_rng(0).normal(size=(3, 2, 3, 4))
    inner = ((f_teacher - f_fake) * x).sum(axis=(1, 2))
    expected = -((f_fake**2).sum(axis=(1, 2)) - (f_teacher**2).sum(axis=(1, 2)) + 2 * inner)
    np.testing.assert_allclose(rsd_objective(f_teacher, f_fake, x, reduction="sum"), expected)
    np.testing.assert_allclose(rsd_objective(f_teacher, f_fake, x), expected / 12)
    squared = ((f_fake - x) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(fake_objective(f_fake, x, reduction="sum"), squared)
    np.testing.assert_allclose(fake_objective(f_fake, x), squared / 12)


def test_rsd_objective_keeps_small_differences_of_large_predictions() -> None:
    f_teacher = np.full((1, 4), 1000.0, dtype=np.float32)
    f_fake = f_teacher + np.float32(0.125)
    np.testing.assert_array_equal(rsd_objective(f_teacher, f_fake, f_fake), [0.125**2])


def test_fake_objective_and_negative_rsd_objective_train_the_same_fake_model() -> None:
    generator = torch.Generator().manual_seed(0)
    f_teacher, f_fake, x = (torch.randn(2, 3, dtype=T, generator=generator) for _ in range(3))
    f_fake.requires_grad_()
    (one,) = torch.autograd.grad(fake_objective(f_fake, x).sum(), f_fake)
    (other,) = torch.autograd.grad(-rsd_objective(f_teacher, f_fake, x).sum(), f_fake)
    torch.testing.assert_close(one, other)


def test_distillation_normalizer_is_the_mean_distance_of_a_sample() -> None:
    teacher = np.array([[[1.0, -3.0]], [[2.0, 2.0]]])
    student = np.array([[[0.0, 0.0]], [[2.0, 2.0]]])
    np.testing.assert_allclose(distillation_normalizer(teacher, student), [2.0, 1e-8])
    np.testing.assert_allclose(distillation_normalizer(teacher, student, eps=0.5), [2.5, 0.5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distillation_normalizer_is_never_zero(dtype: torch.dtype) -> None:
    same = torch.ones(2, 3, dtype=dtype)
    result = distillation_normalizer(same, same)
    assert result.dtype == dtype
    assert (result > 0).all()


def test_bad_arguments_are_refused() -> None:
    x, other = np.zeros((2, 3)), np.zeros((1, 3))
    for call in (
        lambda: rsd_objective(x, other, x),
        lambda: rsd_objective(x, x, other),
        lambda: fake_objective(x, other),
        lambda: distillation_normalizer(x, other),
        lambda: path_kl(ResShiftSchedule.exponential(), x, other, 2),
    ):
        with pytest.raises(ValueError, match="expand or resize"):
            call()
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        fake_objective(x, x, reduction="none")  # type: ignore[arg-type]
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="eps"):
            distillation_normalizer(x, x, eps=eps)
