"""The schedules of text-to-image teachers: flow matching (SD3, TSD-SR) and DDPM (SD2.1, OSEDiff).

Both count from 0, as their networks do: index 0..T-1, an int for the whole batch or an integer array (B,), so that
every sample has its own noise level. The range is checked on the host only (`check_time` says why). Coefficients are
computed in float64 and rounded once. z stands for latents or pixels alike, (B, ...), floating.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from resshift_core._arrays import Array, Time, check_time, coefficient, from_host, namespace_of, on_host


@dataclass(frozen=True, eq=False)
class FlowMatchingSchedule:
    """Noise levels sigma of z_t = (1 - sigma) x_0 + sigma noise, from the noisiest at index 0 to the cleanest.

    Equal by value, hashable, picklable. The network's time is t = T sigma, not the index.

    Args:
        sigmas: float64 (T,), strictly decreasing in (0, 1]; kept as a read-only copy.

    Raises:
        ValueError: when sigmas are not so.

    Source: TSD-SR Section 3.4, after Stable Diffusion 3
    """

    sigmas: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", _decreasing("sigmas", self.sigmas))

    @classmethod
    def shifted(cls, num_steps: int = 1000, shift: float = 3.0) -> FlowMatchingSchedule:
        """Return the schedule of Stable Diffusion 3: sigma = shift u / (1 + (shift - 1) u) with u = (T - index) / T.

        Args:
            num_steps: T >= 1.
            shift: > 0; 1 is linear, above 1 there are more noisy levels.

        Raises:
            ValueError: when an argument is out of its range.
        """
        _check_num_steps(num_steps)
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"expected shift finite and > 0, got {shift}; the published value is 3")
        u = np.arange(num_steps, 0, -1) / num_steps
        # This form of the denominator is exact at u = 1: the first sigma is 1.
        return cls(shift * u / (shift * u + (1 - u)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FlowMatchingSchedule):
            return NotImplemented
        return np.array_equal(self.sigmas, other.sigmas)

    def __hash__(self) -> int:
        return hash(self.sigmas.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor: numpy's own pickling would return sigmas writeable.
        return type(self), (self.sigmas,)

    @property
    def num_steps(self) -> int:
        """T, the number of noise levels."""
        return len(self.sigmas)

    def sigma(self, index: Time, like: Array) -> Array:
        """Return sigma of an index, ready to multiply `like`.

        Args:
            index: 0..T-1, an int or an integer array (B,).
            like: (B, ...) gives library, dtype and device. Half precision rounds sigma to 2-3 digits.

        Returns:
            (B, 1, ..., 1), or (1, ..., 1) for an int.
        """
        return _look_up(self.sigmas, index, like, like.dtype)

    def t(self, index: Time, like: Array | None = None) -> Array:
        """Return the time that networks see, T sigma.

        Args:
            index: 0..T-1, an int or an integer array (B,).
            like: (B, ...) gives library and device, and the batch of an int; without it the index does, and an
                int gives a numpy array of one.

        Returns:
            (B,) float32, or float64 when `like` is: in half precision T sigma would move to another index.
        """
        if like is None:
            index = np.asarray([index]) if isinstance(index, int | np.integer) else index
            check_index(index, self.num_steps)
            xp = array_api_compat.array_namespace(index)
            like = xp.zeros(index.shape, dtype=xp.float32, device=array_api_compat.device(index))
        xp = array_api_compat.array_namespace(like)
        values = _look_up(self.num_steps * self.sigmas, index, like, xp.result_type(like.dtype, xp.float32))
        return xp.broadcast_to(xp.reshape(values, (values.shape[0],)), (like.shape[0],))

    def t_to_sigma(self, t: Array | float) -> Array | float:
        """Return t / T, the noise level of a network's time."""
        return t / self.num_steps

    def nearest_index(self, sigma: Array | float) -> Any:
        """Return the index whose sigma is nearest, the noisier one of two equally near.

        Args:
            sigma: in 0..1 (checked for numbers), a number or a floating array of any shape.

        Returns:
            int for a number, else an integer array of sigma's shape, library and device.

        Raises:
            ValueError: when a number is not in 0..1.
        """
        if isinstance(sigma, int | float | np.floating | np.integer):
            if not 0 <= sigma <= 1:
                raise ValueError(f"expected sigma in 0..1, got {sigma}; convert a network's time with t_to_sigma")
            return int(np.argmin(np.abs(self.sigmas - float(sigma))))
        xp = namespace_of(sigma=sigma)
        table = from_host(xp, self.sigmas, sigma.dtype, array_api_compat.device(sigma))
        return xp.argmin(xp.abs(sigma[..., None] - table), axis=-1)

    def interpolate(self, x_0: Array, noise: Array, index: Time) -> Array:
        """Return z_t = (1 - sigma) x_0 + sigma noise; x_0, noise: (B, ...), index 0..T-1."""
        xp = namespace_of(x_0=x_0, noise=noise)
        dtype = xp.result_type(x_0, noise)
        keep = _look_up(1 - self.sigmas, index, x_0, dtype)
        return keep * x_0 + _look_up(self.sigmas, index, x_0, dtype) * noise

    def euler_step(self, z_t: Array, velocity: Array, index: Time, next_index: Time) -> Array:
        """Return z at next_index, z_t + (sigma_next - sigma) velocity [TSD-SR Eq. 6]; the indices are 0..T-1.

        The last step to sigma = 0 has no index: `transitions.euler_step` takes sigmas.
        """
        xp = namespace_of(z_t=z_t, velocity=velocity)
        dtype = xp.result_type(z_t, velocity)
        # Subtracted before half precision rounds: neighbouring levels are close.
        wide = xp.result_type(dtype, xp.float32)
        step = _look_up(self.sigmas, next_index, z_t, wide) - _look_up(self.sigmas, index, z_t, wide)
        return z_t + xp.astype(step, dtype, copy=False) * velocity


@dataclass(frozen=True, eq=False)
class DiffusionSchedule:
    """Signal levels of z_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise (DDPM), with ab_t = alphas_cumprod[t].

    Equal by value, hashable, picklable. t is 0..T-1, the time that networks see; T-1 is the noisiest.

    Args:
        alphas_cumprod: float64 (T,), strictly decreasing in (0, 1), both ends excluded; kept as a read-only copy.

    Raises:
        ValueError: when alphas_cumprod are not so.

    Source: OSEDiff, after Stable Diffusion 2.1
    """

    alphas_cumprod: NDArray[np.float64]

    def __post_init__(self) -> None:
        table = _decreasing("alphas_cumprod", self.alphas_cumprod)
        if table[0] == 1:
            raise ValueError("expected alphas_cumprod below 1, got 1 at t=0; leave the clean image out of the table")
        object.__setattr__(self, "alphas_cumprod", table)

    @classmethod
    def scaled_linear(
        cls, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> DiffusionSchedule:
        """Return the schedule of Stable Diffusion 1 and 2: the roots of beta_t run linearly.

        Args:
            num_steps: T >= 1.
            beta_start: beta_0 in (0, 1).
            beta_end: beta_{T-1} in (0, 1).

        Raises:
            ValueError: when an argument is out of its range.
        """
        _check_num_steps(num_steps)
        for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 < beta < 1:
                raise ValueError(f"expected {name} in (0, 1), got {beta}; the published range is 0.00085..0.012")
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2
        return cls(np.cumprod(1 - betas))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DiffusionSchedule):
            return NotImplemented
        return np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash(self.alphas_cumprod.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.alphas_cumprod,)

    @property
    def num_steps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alphas_cumprod)

    def add_noise(self, x_0: Array, noise: Array, t: Time) -> Array:
        """Return z_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise; x_0, noise: (B, ...), t in 0..T-1."""
        signal, spread = self._scales(t, x_0=x_0, noise=noise)
        return signal * x_0 + spread * noise

    def noise_to_x_0(self, noise: Array, z_t: Array, t: Time) -> Array:
        """Return x_0 = (z_t - sqrt(1 - ab_t) noise) / sqrt(ab_t); noise, z_t: (B, ...), t in 0..T-1."""
        signal, spread = self._scales(t, noise=noise, z_t=z_t)
        return (z_t - spread * noise) / signal

    def x_0_to_noise(self, x_0: Array, z_t: Array, t: Time) -> Array:
        """Return noise = (z_t - sqrt(ab_t) x_0) / sqrt(1 - ab_t); x_0, z_t: (B, ...), t in 0..T-1."""
        signal, spread = self._scales(t, x_0=x_0, z_t=z_t)
        return (z_t - signal * x_0) / spread

    def v_to_noise(self, v: Array, z_t: Array, t: Time) -> Array:
        """Return noise = sqrt(ab_t) v + sqrt(1 - ab_t) z_t, for v = sqrt(ab_t) noise - sqrt(1 - ab_t) x_0."""
        signal, spread = self._scales(t, v=v, z_t=z_t)
        return signal * v + spread * z_t

    def _scales(self, t: Time, **arrays: Array) -> tuple[Array, Array]:
        """Return sqrt(ab_t) and sqrt(1 - ab_t), each (B, 1, ..., 1) or (1, ..., 1)."""
        xp = namespace_of(**arrays)
        like, dtype = next(iter(arrays.values())), xp.result_type(*arrays.values())
        signal = _look_up(np.sqrt(self.alphas_cumprod), t, like, dtype)
        return signal, _look_up(np.sqrt(1 - self.alphas_cumprod), t, like, dtype)


def check_index(index: Time, num_steps: int) -> None:
    """Refuse an index that is not an integer in 0..num_steps-1; values on an accelerator are not read.

    Args:
        index: an int, or an integer array of shape (B,).
        num_steps: T.

    Raises:
        ValueError: when index is not an integer, not of shape (B,), or out of range.
    """
    if isinstance(index, int | np.integer) or (array_api_compat.is_array_api_obj(index) and on_host(index)):
        values = np.asarray(index)
        if values.dtype.kind in "iu" and values.size and not (values.min() >= 0 and values.max() < num_steps):
            raise ValueError(
                f"expected an index in 0..{num_steps - 1}, got {values.min()}..{values.max()}; these schedules count "
                "from 0, and nearest_index finds the index of a noise level"
            )
    check_time(index, num_steps - 1, first=0)


def _look_up(table: NDArray[np.float64], index: Time, like: Array, dtype: Any) -> Array:
    """Return table[index] as (B, 1, ..., 1), or (1, ..., 1) for an int."""
    namespace_of(like=like)
    check_index(index, len(table))
    return coefficient(table, index, like, dtype, first=0)


def _decreasing(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a read-only float64 copy of a table (T,), refused when not strictly decreasing in (0, 1]."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or len(table) < 1:
        raise ValueError(f"expected {name} of shape (T,) with T >= 1, got {table.shape}; give one value per index")
    if not (np.all(np.diff(table) < 0) and table[-1] > 0 and table[0] <= 1):
        raise ValueError(f"expected {name} strictly decreasing in (0, 1], got {table}; check the schedule")
    table.flags.writeable = False
    return table


def _check_num_steps(num_steps: int) -> None:
    """Refuse what is not an integer >= 1."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"expected num_steps as an integer >= 1, got {num_steps!r}; the published T is 1000")
