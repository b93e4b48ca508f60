"""What formulas need from an array library: namespace, per-sample sums, coefficients looked up by time."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

# numpy.ndarray, torch.Tensor or jax.Array: array libraries share behaviour, but no common static type.
Array: TypeAlias = Any
# The paper's t in 1..T: an int for the whole batch, or an integer array of shape (B,).
Time: TypeAlias = Any
Reduction: TypeAlias = Literal["mean", "sum"]


def namespace_of(**arrays: Array) -> Any:
    """Return the array namespace of floating arrays of one shape.

    Args:
        **arrays: name -> array, all of one library and one shape, any floating dtypes.

    Raises:
        TypeError: when an array is of no known library, or libraries are mixed.
        ValueError: when dtypes are not floating or shapes differ.
    """
    xp = array_api_compat.array_namespace(*arrays.values())
    (first, reference), *_ = arrays.items()
    for name, array in arrays.items():
        if not xp.isdtype(array.dtype, "real floating"):
            raise ValueError(f"expected {name} of a floating dtype, got {array.dtype}; convert it to float32")
        if tuple(array.shape) != tuple(reference.shape):
            raise ValueError(
                f"expected {name} of the shape of {first} {tuple(reference.shape)}, "
                f"got {tuple(array.shape)}; expand or resize it first"
            )
    return xp


def per_sample(xp: Any, values: Array, reduction: Reduction) -> Array:
    """Reduce values (B, ...) over everything but the batch, to (B,).

    Raises:
        ValueError: when values have no batch dimension or the reduction is unknown.
    """
    if values.ndim == 0:
        raise ValueError("expected arrays of shape (B, ...), got 0 dimensions; add a batch dimension")
    # Reshaping instead of axis=(1, 2, ...) also covers shape (B,), where torch reads an empty axis as "all".
    flat = xp.reshape(values, (values.shape[0], math.prod(values.shape[1:])))
    if reduction == "mean":
        return xp.mean(flat, axis=1)
    if reduction == "sum":
        return xp.sum(flat, axis=1, dtype=flat.dtype)
    raise ValueError(f"expected reduction 'mean' or 'sum', got {reduction!r}; choose one of the two")


def check_time(t: Time, num_steps: int, *, first: int = 1) -> None:
    """Refuse a time that is not an integer in first..num_steps.

    The range is checked for ints, numpy arrays and torch tensors on the CPU only: reading an accelerator's
    values would make the host wait for it. There, tables hold nan or inf where a formula is undefined.

    Args:
        t: an int, or an integer array of shape (B,).
        num_steps: T, the last allowed time.
        first: the first allowed time.

    Raises:
        ValueError: when t is not an integer, not of shape (B,), or out of range.
    """
    if isinstance(t, bool) or not (isinstance(t, int | np.integer) or array_api_compat.is_array_api_obj(t)):
        raise ValueError(
            f"expected t as an int or an integer array of shape (B,), got {type(t).__name__}; "
            "convert it to an integer array"
        )
    if not isinstance(t, int | np.integer):
        xp = array_api_compat.array_namespace(t)
        if not xp.isdtype(t.dtype, "integral"):
            raise ValueError(f"expected t of an integer dtype, got {t.dtype}; convert it to int64")
        if t.ndim != 1:
            raise ValueError(
                f"expected t of shape (B,), got {tuple(t.shape)}; pass one time per sample, or an int for all"
            )
        if not on_host(t):
            return
    times = np.asarray(t)
    if times.size and not (first <= times.min() and times.max() <= num_steps):
        raise ValueError(
            f"expected t in {first}..{num_steps}, got {times.min()}..{times.max()}; "
            "t is the paper's time, the network's 0-based index is time_index(t)"
        )


def coefficient(table: NDArray[np.float64], t: Time, like: Array, dtype: Any, *, first: int = 1) -> Array:
    """Look table[t] up and shape it to broadcast over an array of shape (B, ...).

    Args:
        table: float64 of length T+1, indexed by the paper's t.
        t: an int, or an integer array of shape (B,).
        like: array (B, ...) that gives library, device, B and the number of dimensions.
        dtype: dtype of the result, of like's library.
        first: the first time for which the table is defined.

    Returns:
        Array of shape (B, 1, ..., 1), or (1, ..., 1) for an int t.

    Raises:
        ValueError: when t is out of range or not of like's batch size.
    """
    check_time(t, len(table) - 1, first=first)
    xp = array_api_compat.array_namespace(like)
    device = array_api_compat.device(like)
    if isinstance(t, int | np.integer):
        return xp.full((1,) * like.ndim, float(table[int(t)]), dtype=dtype, device=device)
    if like.ndim == 0 or t.shape[0] != like.shape[0]:
        raise ValueError(
            f"expected t of shape (B,) for arrays (B, ...), got t {tuple(t.shape)} and {tuple(like.shape)}; "
            "pass one time per sample, or an int for all"
        )
    if on_host(t):
        values = from_host(xp, table[np.asarray(t)], dtype, device)
    else:
        values = xp.take(from_host(xp, table, dtype, array_api_compat.device(t)), t, axis=0)
        values = array_api_compat.to_device(values, device)
    return xp.reshape(values, (like.shape[0],) + (1,) * (like.ndim - 1))


def on_host(t: Array) -> bool:
    """Tell whether reading t's values costs no wait for an accelerator."""
    if array_api_compat.is_torch_array(t):
        return bool(t.device.type == "cpu")
    return isinstance(t, np.ndarray)


def from_host(xp: Any, values: NDArray[np.float64], dtype: Any, device: Any) -> Array:
    """Copy a few float64 values to a device, rounding once, on the host."""
    # A list instead of the array: every library takes it without a warning about read-only memory.
    if array_api_compat.is_torch_namespace(xp):
        # torch's ordinary copy waits for all work queued on the device. CUDA has taken the values when the
        # call returns, so that not waiting is safe there; other devices do not promise that.
        return xp.asarray(values.tolist(), dtype=dtype).to(device, non_blocking=device.type == "cuda")
    return xp.asarray(values.tolist(), dtype=dtype, device=device)
