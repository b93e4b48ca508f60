"""Flow matching on torch tensors: the values of numpy, dtype, device and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import resshift_core as core
from resshift_core import DiffusionSchedule, FlowMatchingSchedule, analytic

FLOW = FlowMatchingSchedule.shifted(9)
DIFFUSION = DiffusionSchedule.scaled_linear(9, beta_start=0.05, beta_end=0.3)
Function = Callable[[Any, Any, Any, Any], Any]

# Functions of three arrays (B, ...) and indices (B,), all of them 1..8: the first sigma is 1.
FUNCTIONS: dict[str, Function] = {
    "interpolate": lambda a, b, c, i: FLOW.interpolate(a, b, i),
    "euler_step": lambda a, b, c, i: FLOW.euler_step(a, b, i, 8),
    "sigma": lambda a, b, c, i: FLOW.sigma(i, a) * b,
    "flow_interpolate": lambda a, b, c, i: core.flow_interpolate(a, b, FLOW.sigma(i, a)),
    "numpy sigma": lambda a, b, c, i: core.flow_interpolate(a, b, FLOW.sigmas[[3, 1, 8, 5]]),
    "numpy sigma_next": lambda a, b, c, i: core.euler_step(a, b, FLOW.sigma(i, a), FLOW.sigmas[[3, 1, 8, 5]]),
    "number": lambda a, b, c, i: core.euler_step(a, b, 0.7, 0.2),
    "number and array": lambda a, b, c, i: core.euler_step(a, b, FLOW.sigma(i, a), 0.2),
    "velocity_to_noise": lambda a, b, c, i: core.velocity_to_noise(a, b, FLOW.sigma(i, a)),
    "velocity_to_x_0": lambda a, b, c, i: core.velocity_to_x_0(a, b, FLOW.sigma(i, a)),
    "noise_to_velocity": lambda a, b, c, i: core.noise_to_velocity(a, b, FLOW.sigma(i, a)),
    "x_0_to_velocity": lambda a, b, c, i: core.x_0_to_velocity(a, b, FLOW.sigma(i, a)),
    "noise_to_x_0": lambda a, b, c, i: core.noise_to_x_0(a, b, FLOW.sigma(i, a)),
    "x_0_to_noise": lambda a, b, c, i: core.x_0_to_noise(a, b, FLOW.sigma(i, a)),
    "add_noise": lambda a, b, c, i: DIFFUSION.add_noise(a, b, i),
    "diffusion noise_to_x_0": lambda a, b, c, i: DIFFUSION.noise_to_x_0(a, b, i),
    "diffusion x_0_to_noise": lambda a, b, c, i: DIFFUSION.x_0_to_noise(a, b, i),
    "v_to_noise": lambda a, b, c, i: DIFFUSION.v_to_noise(a, b, i),
    "tsm noise": lambda a, b, c, i: core.tsm_direction(a, b, c, a, FLOW.sigma(i, a)),
    "tsm velocity": lambda a, b, c, i: core.tsm_direction(a, b, c, a, FLOW.sigma(i, a), "velocity"),
    "vsd": lambda a, b, c, i: core.vsd_direction(a, b, FLOW.sigma(i, a)),
    "tsd": lambda a, b, c, i: core.tsd_direction(a, b, c, b, c, FLOW.sigma(i, a), 0.3),
    "osediff": lambda a, b, c, i: core.x_0_normalized_vsd_direction(a, b, c),
    "ideal_velocity": lambda a, b, c, i: analytic.ideal_velocity(core.Gaussian(a, b**2 + 1), FLOW.sigma(i, a))(c),
    "tsm_factor": lambda a, b, c, i: analytic.tsm_factor(a**2 + 1, FLOW.sigma(i, a)),
    "vsd_factor": lambda a, b, c, i: analytic.vsd_factor(a**2 + 1, b**2 + 1, FLOW.sigma(i, a)),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


def _inputs() -> tuple[list[np.ndarray], np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(3, 4, 2, 3))), np.array([1, 8, 3, 2])


@every_function
def test_torch_agrees_with_numpy(function: Function) -> None:
    arrays, index = _inputs()
    expected = function(*arrays, index)
    tensors = [torch.tensor(array) for array in arrays]
    for torch_index in (torch.tensor(index), torch.tensor(index, dtype=torch.int32), index):
        actual = function(*tensors, torch_index)
        assert isinstance(actual, torch.Tensor)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(function: Function, dtype: torch.dtype) -> None:
    arrays, index = _inputs()
    tensors = [torch.tensor(array).to(dtype) for array in arrays]
    actual = function(*tensors, torch.tensor(index))
    expected = function(*(tensor.double() for tensor in tensors), torch.tensor(index))
    assert actual.dtype == dtype
    scale = max(1.0, expected.abs().max().item())
    assert (actual.double() - expected).abs().max().item() <= 16 * torch.finfo(dtype).eps * scale


@every_function
def test_numpy_dtype_is_kept(function: Function) -> None:
    arrays, index = _inputs()
    if function is not FUNCTIONS["numpy sigma"]:
        assert function(*(array.astype(np.float32) for array in arrays), index).dtype == np.float32
    assert function(*arrays, index).dtype == np.float64


def test_a_wider_sigma_does_not_widen_the_result() -> None:
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    near_one = torch.tensor([0.999, 0.5], dtype=torch.float64)
    for sigma in (near_one, near_one.numpy(), near_one.to(torch.float32)[:, None]):
        noise = core.velocity_to_noise(half, 0 * half, sigma)
        assert noise.dtype == torch.bfloat16
        # 1 - sigma is taken before rounding: bfloat16 has no .999.
        torch.testing.assert_close(noise[:, 0].double(), 1 - near_one, rtol=4e-3, atol=0)
        assert core.flow_interpolate(np.ones((2, 1), np.float32), np.ones((2, 1)), near_one.numpy()).dtype == np.float64
    single = np.ones((2, 1), np.float32)
    assert core.flow_interpolate(single, single, near_one.numpy()).dtype == np.float32
    step = FLOW.euler_step(0 * half, half, torch.tensor([0, 7]), torch.tensor([1, 8]))
    expected = FLOW.sigmas[[1, 8]] - FLOW.sigmas[[0, 7]]
    np.testing.assert_allclose(step[:, 0].double().numpy(), expected, rtol=4e-3)
    # 0.999 and 0.998 round to one bfloat16.
    step = core.euler_step(0 * half, half, near_one, torch.tensor([0.998, 0.5], dtype=torch.float64))
    np.testing.assert_allclose(step[:, 0].double().numpy(), [-0.001, 0], rtol=4e-3)


@every_function
def test_gradients_flow(function: Function) -> None:
    arrays, index = _inputs()
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        return function(*inputs, torch.tensor(index))  # type: ignore[no-any-return]

    assert call(*tensors).requires_grad
    assert torch.autograd.gradcheck(call, tensors)


@every_function
def test_device_is_kept_and_values_are_not_read(function: Function) -> None:
    # The meta device has shapes but no values: whatever reads them raises.
    arrays, index = _inputs()
    tensors = [torch.tensor(array, device="meta") for array in arrays]
    actual = function(*tensors, torch.tensor(index, device="meta"))
    assert actual.device.type == "meta"
    assert actual.dtype == torch.float64


def test_times_and_nearest_indices_stay_on_their_device() -> None:
    like = torch.zeros(2, 3, device="meta", dtype=torch.float16)
    index = torch.tensor([1, 2], device="meta")
    for times in (FLOW.t(index, like), FLOW.t(index), FLOW.t(3, like)):
        assert times.device.type == "meta"
        assert times.shape == (2,)
        assert times.dtype == torch.float32
    nearest = FLOW.nearest_index(FLOW.sigma(index, like))
    assert nearest.device.type == "meta"
    assert nearest.dtype == torch.int64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_function
def test_cuda_agrees_without_a_wait(function: Function) -> None:
    arrays, index = _inputs()
    tensors = [torch.tensor(array, device="cuda") for array in arrays]
    on_device = torch.tensor(index, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = function(*tensors, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(actual.cpu().numpy(), function(*arrays, index), rtol=1e-12, atol=1e-14)


def test_mixed_libraries_are_refused() -> None:
    x = np.zeros((2, 3))
    for call in (
        lambda: core.flow_interpolate(torch.zeros(2, 3), x, 0.5),
        lambda: core.flow_interpolate(x, x, torch.tensor([0.5, 0.5])),
    ):
        with pytest.raises(TypeError):
            call()
