"""Flow-matching and DDPM schedules: values, checks, and conversions between velocity, noise and clean latents."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import resshift_core
from resshift_core import DiffusionSchedule, FlowMatchingSchedule, euler_step, flow_interpolate

SD3 = FlowMatchingSchedule.shifted()
SD2 = DiffusionSchedule.scaled_linear()
FLOW_SCHEDULES = st.builds(FlowMatchingSchedule.shifted, st.integers(1, 40), st.floats(0.1, 10))
SEEDS = st.integers(0, 2**32 - 1)


def _draw(seed: int, count: int, shape: tuple[int, ...] = (3, 2, 2)) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for _ in range(count)]


def test_published_flow_matching_table() -> None:
    assert SD3.num_steps == 1000
    assert SD3.sigmas.dtype == np.float64
    assert SD3.sigmas[0] == 1
    np.testing.assert_allclose(SD3.sigmas[[50, 500, 949, 999]], [0.9828, 0.75, 0.1388, 0.0030], atol=5e-5)
    like = np.zeros((2, 1))
    np.testing.assert_allclose(SD3.t(np.array([0, 999]), like), [1000, 2.994], atol=5e-4)


def test_fifty_to_950_are_indices_not_times() -> None:
    """TSD-SR's draw is of indices: its mean noise level is .693, where times 50..950 would give .5."""
    drawn = np.arange(50, 950)
    assert SD3.sigmas[drawn].mean() == pytest.approx(0.693, abs=5e-4)
    assert (SD3.sigmas[drawn] > 0.5).mean() == pytest.approx(0.78, abs=5e-3)
    assert SD3.t_to_sigma(drawn).mean() == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(SD3.t(np.array([50, 500, 949])), [982.76, 750, 138.84], atol=5e-3)


def test_algorithm_1_steps_off_the_table() -> None:
    """N steps of s = 50 have N + 1 points; the last one is no index from 800 on, unless the steps shrink."""
    x, count, size = np.zeros((1, 2)), 4, 50
    for first in (799, 800, 949):
        points = first + size * np.arange(count + 1)
        assert (points[-1] > SD3.num_steps - 1) == (first >= 800)
        if first >= 800:
            with pytest.raises(ValueError, match=r"index in 0\.\.999"):
                SD3.euler_step(x, x, int(points[-2]), int(points[-1]))
        clamped = np.linspace(first, min(first + size * count, 999), count + 1).astype(int)
        assert clamped[-1] == min(points[-1], 999)
        for here, there in zip(clamped[:-1].tolist(), clamped[1:].tolist(), strict=True):
            assert SD3.euler_step(x, x + 1, here, there).max() < 0  # still towards less noise


@settings(deadline=None)
@given(num_steps=st.integers(1, 300), shift=st.floats(0.01, 100))
def test_shifted_follows_its_formula_and_starts_at_pure_noise(num_steps: int, shift: float) -> None:
    schedule = FlowMatchingSchedule.shifted(num_steps, shift)
    u = np.linspace(1, 1 / num_steps, num_steps)
    np.testing.assert_allclose(schedule.sigmas, shift * u / (1 + (shift - 1) * u), rtol=1e-9)
    assert schedule.sigmas[0] == 1
    assert schedule.num_steps == num_steps


@pytest.mark.parametrize("num_steps", [1, 4, 1000])
def test_a_shift_of_1_is_linear(num_steps: int) -> None:
    sigmas = FlowMatchingSchedule.shifted(num_steps, 1.0).sigmas
    np.testing.assert_array_equal(sigmas, np.arange(num_steps, 0, -1) / num_steps)


def test_published_diffusion_table() -> None:
    assert SD2.num_steps == 1000
    assert SD2.alphas_cumprod[999] == pytest.approx(0.0046601, abs=5e-8)
    assert math.sqrt(SD2.alphas_cumprod[999]) == pytest.approx(0.0682649, abs=5e-7)
    assert math.sqrt(1 - SD2.alphas_cumprod[999]) == pytest.approx(0.9976672, abs=5e-8)
    assert SD2.alphas_cumprod[0] == 1 - 0.00085


def test_tables_agree_with_diffusers() -> None:
    # The modules, not the package: it loads the pipelines too, which takes twice as long.
    reason, folder = "diffusers is not installed", "diffusers.schedulers.scheduling"
    flow_module = pytest.importorskip(f"{folder}_flow_match_euler_discrete", reason=reason)
    ddpm_module = pytest.importorskip(f"{folder}_ddpm", reason=reason)
    flow = flow_module.FlowMatchEulerDiscreteScheduler(shift=3.0)
    np.testing.assert_allclose(SD3.sigmas, flow.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(SD3.t(np.arange(1000)), flow.timesteps.numpy(), rtol=1e-6)
    ddpm = ddpm_module.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(SD2.alphas_cumprod, ddpm.alphas_cumprod.numpy(), rtol=2e-6)
    x_0, noise = (torch.from_numpy(array) for array in _draw(0, 2))
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(SD2.add_noise(x_0, noise, t), ddpm.add_noise(x_0, noise, t), rtol=0, atol=1e-5)
    v = ddpm.get_velocity(x_0, noise, t)
    torch.testing.assert_close(SD2.v_to_noise(v, SD2.add_noise(x_0, noise, t), t), noise, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", [SD3, SD2], ids=["flow", "diffusion"])
def test_schedules_are_frozen_values(schedule: FlowMatchingSchedule | DiffusionSchedule) -> None:
    (field,) = dataclasses.fields(schedule)
    table = getattr(schedule, field.name)
    mine = table.copy()
    same, other = type(schedule)(mine), type(schedule)(table[1:])
    mine[-1] = 0
    assert same == schedule
    assert hash(same) == hash(schedule)
    assert other != schedule
    assert schedule != "schedule"
    assert SD3 != SD2
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, field.name, table)
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert not getattr(twin, field.name).flags.writeable


@pytest.mark.parametrize("kind", [FlowMatchingSchedule, DiffusionSchedule])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "T >= 1"),
        ([[0.5, 0.2]], "shape"),
        ([0.2, 0.5], "strictly decreasing"),
        ([0.5, 0.5], "strictly decreasing"),
        ([0.5, 0.0], "strictly decreasing"),
        ([1.1, 0.5], "strictly decreasing"),
        ([math.nan], "strictly decreasing"),
    ],
)
def test_constructors_refuse(kind: Any, table: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(np.array(table))


def test_a_diffusion_schedule_has_noise_everywhere() -> None:
    with pytest.raises(ValueError, match="below 1"):
        DiffusionSchedule(np.array([1.0, 0.5]))
    assert FlowMatchingSchedule(np.array([1.0, 0.5])).num_steps == 2


@pytest.mark.parametrize("bad", [0, 2.0, True, -1])
def test_num_steps_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        FlowMatchingSchedule.shifted(bad)
    with pytest.raises(ValueError, match="num_steps"):
        DiffusionSchedule.scaled_linear(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_other_arguments_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="shift"):
        FlowMatchingSchedule.shifted(10, bad)
    with pytest.raises(ValueError, match="beta_start"):
        DiffusionSchedule.scaled_linear(10, bad)
    with pytest.raises(ValueError, match="beta_end"):
        DiffusionSchedule.scaled_linear(10, beta_end=bad)


@settings(deadline=None)
@given(FLOW_SCHEDULES)
def test_index_sigma_and_time_convert_into_each_other(schedule: FlowMatchingSchedule) -> None:
    index = np.arange(schedule.num_steps)
    like = np.zeros((len(index), 2, 1))
    sigma = schedule.sigma(index, like)
    assert sigma.shape == (len(index), 1, 1)
    np.testing.assert_array_equal(sigma[:, 0, 0], schedule.sigmas)
    np.testing.assert_array_equal(schedule.nearest_index(sigma)[:, 0, 0], index)
    np.testing.assert_array_equal(schedule.nearest_index(schedule.t_to_sigma(schedule.t(index, like))), index)
    np.testing.assert_allclose(schedule.t(index, like), schedule.num_steps * schedule.sigmas)
    for i in (0, schedule.num_steps - 1):
        assert schedule.nearest_index(float(schedule.sigmas[i])) == i
        assert schedule.sigma(i, like).shape == (1, 1, 1)
        np.testing.assert_array_equal(schedule.t(i, like), np.full(len(index), schedule.num_steps * schedule.sigmas[i]))


def test_nearest_index_of_a_level_between_two() -> None:
    schedule = FlowMatchingSchedule(np.array([1.0, 0.5, 0.25]))
    assert [schedule.nearest_index(s) for s in (0.76, 0.75, 0.74, 0, 1)] == [0, 0, 1, 2, 0]
    assert isinstance(schedule.nearest_index(0.3), int)
    np.testing.assert_array_equal(schedule.nearest_index(np.array([[0.76], [0.3]], dtype=np.float32)), [[0], [2]])
    for bad in (-0.1, 750, math.nan):
        with pytest.raises(ValueError, match="t_to_sigma"):
            schedule.nearest_index(bad)


def test_half_precision_does_not_move_the_networks_time() -> None:
    like = torch.zeros(1000, 2, dtype=torch.bfloat16)
    times = SD3.t(torch.arange(1000), like)
    assert times.dtype == torch.float32
    assert SD3.nearest_index(SD3.t_to_sigma(times)).tolist() == list(range(1000))
    assert SD3.t(7).shape == (1,)
    assert SD3.t(torch.tensor([7])).dtype == SD3.t(7, torch.zeros(1)).dtype == torch.float32


@settings(deadline=None)
@given(FLOW_SCHEDULES, SEEDS)
def test_the_exact_velocity_moves_one_level_to_another(schedule: FlowMatchingSchedule, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_0, noise = _draw(seed, 2)
    index, next_index = rng.integers(0, schedule.num_steps, size=(2, 3))
    z_t = schedule.interpolate(x_0, noise, index)
    moved = schedule.euler_step(z_t, noise - x_0, index, next_index)
    np.testing.assert_allclose(moved, schedule.interpolate(x_0, noise, next_index), atol=1e-13)
    np.testing.assert_allclose(euler_step(z_t, noise - x_0, schedule.sigmas[index], 0.0), x_0, atol=1e-13)
    np.testing.assert_array_equal(z_t, flow_interpolate(x_0, noise, schedule.sigmas[index]))


def test_every_sample_has_its_own_level() -> None:
    x_0, noise = _draw(0, 2)
    index, after = np.array([999, 0, 500]), np.array([3, 999, 7])
    together = SD3.interpolate(x_0, noise, index), SD3.euler_step(x_0, noise, index, after)
    for i in range(3):
        one = slice(i, i + 1)
        sigma, sigma_next = float(SD3.sigmas[index[i]]), float(SD3.sigmas[after[i]])
        np.testing.assert_allclose(together[0][one], (1 - sigma) * x_0[one] + sigma * noise[one], atol=1e-15)
        np.testing.assert_allclose(together[1][one], x_0[one] + (sigma_next - sigma) * noise[one], atol=1e-15)
        # A schedule's and a function's shapes of sigma: an int, (B,), (B, 1, 1), a number, an array without shape.
        for shape in (np.array([sigma]), np.full((1, 1, 1), sigma), sigma, np.float32(sigma), np.array(sigma)):
            same = flow_interpolate(x_0[one], noise[one], shape)
            np.testing.assert_allclose(same, together[0][one], atol=1e-6)
        np.testing.assert_array_equal(SD3.interpolate(x_0[one], noise[one], int(index[i])), together[0][one])
    assert flow_interpolate(np.array(4.0), np.array(0.0), np.array(0.25)).shape == ()


def test_eq_7_on_noised_latents_is_a_fraction_of_the_latent_mse() -> None:
    """With the noise of Algorithm 1 it is (1 - sigma)^2 of the MSE of clean latents, 0.147 on average of the draw."""
    z, z_hat, noise = _draw(0, 3)
    ratios = [
        ((SD3.interpolate(z, noise, i) - SD3.interpolate(z_hat, noise, i)) ** 2).mean() / ((z - z_hat) ** 2).mean()
        for i in range(50, 950)
    ]
    np.testing.assert_allclose(ratios, (1 - SD3.sigmas[50:950]) ** 2, rtol=1e-9)
    assert np.mean(ratios) == pytest.approx(0.147, abs=5e-4)


# a_to_b: (function, the quantity it takes, the one it returns, sigma where it divides by 0).
CONVERSIONS = [
    ("velocity_to_noise", "velocity", "noise", None),
    ("velocity_to_x_0", "velocity", "x_0", None),
    ("noise_to_velocity", "noise", "velocity", 1.0),
    ("x_0_to_velocity", "x_0", "velocity", 0.0),
    ("noise_to_x_0", "noise", "x_0", 1.0),
    ("x_0_to_noise", "x_0", "noise", 0.0),
]


@settings(deadline=None)
@given(SEEDS, st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3))
def test_conversions_agree_with_the_path_and_invert_each_other(seed: int, levels: list[float]) -> None:
    x_0, noise = _draw(seed, 2)
    for sigma in (np.array(levels), levels[0]):
        truth = {"x_0": x_0, "noise": noise, "velocity": noise - x_0}
        z_t = flow_interpolate(x_0, noise, sigma)
        for name, source, target, _ in CONVERSIONS:
            result = getattr(resshift_core, name)(truth[source], z_t, sigma)
            np.testing.assert_allclose(result, truth[target], atol=1e-10)
            back = getattr(resshift_core, f"{target}_to_{source}")(result, z_t, sigma)
            np.testing.assert_allclose(back, truth[source], atol=1e-10)


@pytest.mark.parametrize(("name", "source", "target", "singular"), CONVERSIONS)
def test_ends_of_the_path(name: str, source: str, target: str, singular: float | None) -> None:
    convert = getattr(resshift_core, name)
    x_0, noise = _draw(0, 2)
    truth = {"x_0": x_0, "noise": noise, "velocity": noise - x_0}
    for sigma in (0.0, 1.0):
        z_t = flow_interpolate(x_0, noise, sigma)
        np.testing.assert_array_equal(z_t, noise if sigma else x_0)
        if sigma == singular:
            with pytest.raises(ValueError, match=f"but not {sigma:g}"):
                convert(truth[source], z_t, sigma)
            with np.errstate(divide="ignore", invalid="ignore"):
                assert not np.isfinite(convert(truth[source], z_t, np.full(3, sigma))).any()
        else:
            np.testing.assert_allclose(convert(truth[source], z_t, sigma), truth[target], atol=1e-15)


def test_one_step_from_pure_noise_level_is_z_minus_velocity() -> None:
    z, velocity = _draw(0, 2)
    index = np.zeros(3, dtype=np.int64)
    np.testing.assert_array_equal(resshift_core.velocity_to_x_0(velocity, z, SD3.sigma(index, z)), z - velocity)
    np.testing.assert_array_equal(SD3.t(index, z), [1000, 1000, 1000])


@settings(deadline=None)
@given(SEEDS, st.lists(st.integers(0, 999), min_size=3, max_size=3))
def test_diffusion_conversions_invert_each_other(seed: int, times: list[int]) -> None:
    x_0, noise = _draw(seed, 2)
    for t in (np.array(times), times[0]):
        z_t = SD2.add_noise(x_0, noise, t)
        ab = SD2.alphas_cumprod[np.broadcast_to(t, 3)].reshape(3, 1, 1)
        v = np.sqrt(ab) * noise - np.sqrt(1 - ab) * x_0
        np.testing.assert_allclose(z_t, np.sqrt(ab) * x_0 + np.sqrt(1 - ab) * noise, atol=1e-14)
        np.testing.assert_allclose(SD2.noise_to_x_0(noise, z_t, t), x_0, atol=1e-12)
        np.testing.assert_allclose(SD2.x_0_to_noise(x_0, z_t, t), noise, atol=1e-12)
        np.testing.assert_allclose(SD2.v_to_noise(v, z_t, t), noise, atol=1e-12)


BAD_INDICES = [
    (-1, r"index in 0\.\.3, got -1"),
    (4, r"index in 0\.\.3, got 4"),
    (np.array([0, 4]), r"index in 0\.\.3, got 0\.\.4"),
    (np.array([-1, 0]), "index in"),
    (torch.tensor([0, 4]), "index in"),
    (1.0, "got float"),
    (True, "got bool"),
    ([0, 1], "got list"),
    (np.array([0.0, 1.0]), "integer dtype"),
    (np.array([True, True]), "integer dtype"),
    (np.array(1), r"shape \(B,\)"),
    (np.array([[0, 1]]), r"shape \(B,\)"),
    (np.array([0]), "one time per sample"),
]


@pytest.mark.parametrize(("index", "message"), BAD_INDICES)
def test_bad_indices_are_refused(index: Any, message: str) -> None:
    flow, diffusion = FlowMatchingSchedule.shifted(4), DiffusionSchedule.scaled_linear(4)
    x = torch.zeros(2, 5) if isinstance(index, torch.Tensor) else np.zeros((2, 5))
    calls = [
        lambda: flow.sigma(index, x),
        lambda: flow.t(index, x),
        lambda: flow.interpolate(x, x, index),
        lambda: flow.euler_step(x, x, index, 0),
        lambda: flow.euler_step(x, x, 0, index),
        lambda: diffusion.add_noise(x, x, index),
        lambda: diffusion.noise_to_x_0(x, x, index),
        lambda: diffusion.x_0_to_noise(x, x, index),
        lambda: diffusion.v_to_noise(x, x, index),
    ]
    if message != "one time per sample":
        calls.append(lambda: flow.t(index))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (-0.1, r"in 0\.\.1"),
        (750, r"in 0\.\.1"),
        (math.nan, r"in 0\.\.1"),
        (np.array([1, 0]), "floating dtype"),
        (np.array([0.5, 0.5, 0.5]), "one level per sample"),
        (np.full((2, 5), 0.5), "one level per sample"),
        (np.full((2, 1, 1), 0.5), "one level per sample"),
        (np.full((1, 2), 0.5), "one level per sample"),
    ],
)
def test_bad_levels_and_arrays_are_refused(sigma: Any, message: str) -> None:
    x, other, whole = np.zeros((2, 5)), np.zeros((1, 5)), np.zeros((2, 5), dtype=np.int64)
    functions: list[Any] = [getattr(resshift_core, name) for name, *_ in CONVERSIONS] + [flow_interpolate]
    functions += [lambda a, b, s: euler_step(a, b, s, 0.5), lambda a, b, s: euler_step(a, b, 0.5, s)]
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(x, x, sigma)
        for bad, why in ((other, "expand or resize"), (whole, "floating dtype")):
            with pytest.raises(ValueError, match=why):
                function(x, bad, 0.5)
    with pytest.raises(ValueError, match="floating dtype"):
        SD3.sigma(0, whole)
