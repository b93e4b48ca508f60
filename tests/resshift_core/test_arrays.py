"""One set of formulas serves numpy and torch: values, dtype, device and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from resshift_core import (
    Gaussian,
    ResShiftSchedule,
    _arrays,
    distillation_normalizer,
    fake_objective,
    kl_divergence,
    path_kl,
    rsd_objective,
)

SCHEDULE = ResShiftSchedule.exponential(5)
Function = Callable[[Any, Any, Any, Any], Any]

# Every public function of arrays, as a function of three arrays (B, ...) and times (B,), all of them 2..T.
FUNCTIONS: dict[str, Function] = {
    "marginal mean": lambda a, b, c, t: SCHEDULE.marginal(a, b, t).mean,
    "marginal variance": lambda a, b, c, t: SCHEDULE.marginal(a, b, t).variance,
    "marginal sample": lambda a, b, c, t: SCHEDULE.marginal(a, b, t).sample(c),
    "marginal log_prob": lambda a, b, c, t: SCHEDULE.marginal(a, b, t).log_prob(c),
    "prior sample": lambda a, b, c, t: SCHEDULE.prior(a).sample(b),
    "forward_step sample": lambda a, b, c, t: SCHEDULE.forward_step(a, b, c, t).sample(a),
    "posterior sample": lambda a, b, c, t: SCHEDULE.posterior(a, b, t).sample(c),
    "posterior kl": lambda a, b, c, t: kl_divergence(SCHEDULE.posterior(a, b, t), SCHEDULE.posterior(a, c, t)),
    "deterministic_step": lambda a, b, c, t: SCHEDULE.deterministic_step(a, b, c, t),
    "scale_input": lambda a, b, c, t: SCHEDULE.scale_input(a, t),
    "int t": lambda a, b, c, t: SCHEDULE.deterministic_step(a, b, c, 3),
    "path_kl": lambda a, b, c, t: path_kl(SCHEDULE, a, b, t),
    "rsd_objective": lambda a, b, c, t: rsd_objective(a, b, c),
    "fake_objective": lambda a, b, c, t: fake_objective(a, b),
    "distillation_normalizer": lambda a, b, c, t: distillation_normalizer(a, b),
}
NEEDS_NO_GRADIENT = {"marginal variance"}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


def _inputs() -> tuple[list[np.ndarray], np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(3, 4, 2, 3))), np.array([2, 5, 3, 2])


@every_function
def test_torch_agrees_with_numpy(function: Function) -> None:
    arrays, times = _inputs()
    expected = function(*arrays, times)
    tensors = [torch.tensor(array) for array in arrays]
    for torch_times in (torch.tensor(times), torch.tensor(times, dtype=torch.int32), times):
        actual = function(*tensors, torch_times)
        assert isinstance(actual, torch.Tensor)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_dtype_is_kept(function: Function, dtype: torch.dtype) -> None:
    arrays, times = _inputs()
    tensors = [torch.tensor(array).to(dtype) for array in arrays]
    actual = function(*tensors, torch.tensor(times))
    expected = function(*(tensor.double() for tensor in tensors), torch.tensor(times))
    assert actual.dtype == dtype
    # The two sides share the rounded inputs; a dozen roundings of the arithmetic remain.
    scale = max(1.0, expected.abs().max().item())
    assert (actual.double() - expected).abs().max().item() <= 12 * torch.finfo(dtype).eps * scale


@every_function
def test_numpy_dtype_is_kept(function: Function) -> None:
    arrays, times = _inputs()
    assert function(*(array.astype(np.float32) for array in arrays), times).dtype == np.float32
    assert function(*arrays, times).dtype == np.float64


def test_mixed_dtypes_are_promoted() -> None:
    half, single = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3)
    assert SCHEDULE.posterior(single, half, 2).mean.dtype == torch.float32
    assert SCHEDULE.posterior(half, single, 2).variance.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in NEEDS_NO_GRADIENT])
def test_gradients_flow(name: str) -> None:
    arrays, times = _inputs()
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[name](*inputs, torch.tensor(times))  # type: ignore[no-any-return]

    assert call(*tensors).requires_grad
    assert torch.autograd.gradcheck(call, tensors)


@every_function
def test_device_is_kept_and_values_of_t_are_not_read(function: Function) -> None:
    # The meta device has shapes but no values: whatever reads them raises.
    arrays, times = _inputs()
    tensors = [torch.tensor(array, device="meta") for array in arrays]
    actual = function(*tensors, torch.tensor(times, device="meta"))
    assert actual.device.type == "meta"
    assert actual.dtype == torch.float64
    assert actual.shape[0] in (1, 4)
    assert function(*tensors, times).device.type == "meta"


@every_function
def test_times_on_an_accelerator_give_the_same_values(function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, times = _inputs()
    tensors = [torch.tensor(array) for array in arrays]
    expected = function(*tensors, torch.tensor(times))
    monkeypatch.setattr(_arrays, "on_host", lambda _: False)
    torch.testing.assert_close(function(*tensors, torch.tensor(times)), expected, rtol=0, atol=0)


def test_undefined_times_on_an_accelerator_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arrays, "on_host", lambda _: False)
    x, zero = torch.zeros(1, 2), torch.tensor([0])
    assert SCHEDULE.posterior(x, x, zero).mean.isnan().all()
    assert SCHEDULE.deterministic_step(x, x, x, zero).isnan().all()
    assert path_kl(SCHEDULE, x + 1, x, torch.tensor([1])).isinf().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_function
def test_cuda_agrees_without_a_wait(function: Function) -> None:
    arrays, times = _inputs()
    tensors = [torch.tensor(array, device="cuda") for array in arrays]
    on_device = torch.tensor(times, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = function(*tensors, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(actual.cpu().numpy(), function(*arrays, times), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("t", [torch.tensor([0, 1]), torch.tensor([1, 6])])
def test_torch_times_out_of_range_are_refused(t: torch.Tensor) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"t in 1\.\.5"):
        SCHEDULE.marginal(x, x, t)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([1.0, 2.0]), "integer dtype"),
        (torch.tensor([True, True]), "integer dtype"),
        (torch.tensor(1), r"shape \(B,\)"),
        (torch.tensor([1]), "one time per sample"),
    ],
)
def test_torch_times_of_another_kind_are_refused(device: str, t: torch.Tensor, message: str) -> None:
    x = torch.zeros(2, 3, device=device)
    with pytest.raises(ValueError, match=message):
        SCHEDULE.marginal(x, x, t.to(device))


def test_mixed_libraries_are_refused() -> None:
    with pytest.raises(TypeError):
        SCHEDULE.marginal(torch.zeros(2, 3), np.zeros((2, 3)), 1)
    with pytest.raises(TypeError):
        Gaussian(torch.zeros(2, 3), torch.ones(1)).sample(np.zeros((2, 3)))


def test_time_index_keeps_library_dtype_and_device() -> None:
    t = torch.tensor([1, 5], dtype=torch.int32)
    index = SCHEDULE.time_index(t)
    assert index.dtype == torch.int32
    assert index.tolist() == [0, 4]
    assert SCHEDULE.time_index(t.to("meta")).device.type == "meta"
