"""Agreement with the golden tables and tensors of the reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resshift_core import ResShiftSchedule

Case = tuple[ResShiftSchedule, dict[str, Any]]
# Tables are float64. Tensors were stored in float32 and computed in it: a few units in its last place.
TABLE = {"rtol": 1e-12, "atol": 1e-12}
TENSOR = {"rtol": 2e-6, "atol": 2e-6}


@pytest.fixture(scope="module")
def cases(shared_dir: Path) -> list[Case]:
    with np.load(shared_dir / "golden" / "resshift_schedule.npz") as file:
        arrays = dict(file)
    found = []
    for name in sorted({key.split(".")[0] for key in arrays}):
        values = {key.split(".")[1]: array for key, array in arrays.items() if key.split(".")[0] == name}
        num_steps, *rest = values["params"].tolist()
        found.append((ResShiftSchedule.exponential(int(num_steps), *rest, math.sqrt(0.001)), values))
    assert found
    return found


def test_tables(cases: list[Case]) -> None:
    for schedule, golden in cases:
        np.testing.assert_allclose(np.sqrt(schedule.etas[1:]), golden["sqrt_etas"], **TABLE)
        np.testing.assert_allclose(schedule.etas[1:], golden["etas"], **TABLE)
        np.testing.assert_allclose(schedule.alphas[1:], golden["alpha"], **TABLE)
        # The reference clips the variance at t=1, where the weight is infinite.
        np.testing.assert_allclose(schedule.kl_weights()[2:], golden["weight_x0_mse"][1:], **TABLE)


def test_posterior_coefficients(cases: list[Case]) -> None:
    for schedule, golden in cases:
        times = np.arange(1, schedule.num_steps + 1)
        one, zero = np.ones(len(times)), np.zeros(len(times))
        from_x_t, from_x_0 = schedule.posterior(one, zero, times), schedule.posterior(zero, one, times)
        np.testing.assert_allclose(from_x_t.mean, golden["posterior_mean_coef_xt"], **TABLE)
        np.testing.assert_allclose(from_x_0.mean, golden["posterior_mean_coef_x0"], **TABLE)
        np.testing.assert_allclose(from_x_t.variance, golden["posterior_variance"], **TABLE)


def test_deterministic_coefficients(cases: list[Case]) -> None:
    for schedule, golden in cases:
        times = np.arange(1, schedule.num_steps + 1)
        one, zero = np.ones(len(times)), np.zeros(len(times))
        np.testing.assert_allclose(schedule.deterministic_step(one, zero, zero, times), golden["ddim_m"], **TABLE)
        np.testing.assert_allclose(schedule.deterministic_step(zero, one, zero, times), golden["ddim_k"], **TABLE)
        np.testing.assert_allclose(schedule.deterministic_step(zero, zero, one, times), golden["ddim_j"], **TABLE)


def test_tensors(cases: list[Case]) -> None:
    for schedule, golden in cases:
        x_0, y_0, noise, x_t = golden["x0"], golden["y0"], golden["eps"], golden["x_t"]
        times = np.arange(1, schedule.num_steps + 1)
        posterior = schedule.posterior(x_t, x_0, times)
        np.testing.assert_allclose(schedule.marginal(x_0, y_0, times).sample(noise), x_t, **TENSOR)
        np.testing.assert_allclose(posterior.mean, golden["posterior_mean"], **TENSOR)
        np.testing.assert_allclose(np.broadcast_to(posterior.variance, x_t.shape), golden["posterior_var"], **TENSOR)
        np.testing.assert_allclose(schedule.scale_input(x_t, times), golden["scaled_input"], **TENSOR)
        np.testing.assert_allclose(schedule.prior(y_0).sample(noise), golden["prior_sample"], **TENSOR)
