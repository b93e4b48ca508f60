"""The distributions of the ResShift chain and the straight path of flow matching, one function for one equation.

Those of the chain take the schedule first and the paper's t in 1..T (an int, or an integer array of shape (B,)).
They raise ValueError for another t, arrays of different shapes or a dtype that is not floating; the range of t is
checked on the host only (`check_time` says why). Results keep dtype and device. Coefficients are computed in
float64 and rounded once. x stands for pixels or latents alike.

Those of flow matching take the noise level sigma in 0..1: a number, an array (B,) with one level per sample, or one
that broadcasts as (B, 1, ..., 1); of the other arguments' library, or numpy. The path is z_t = (1 - sigma) x_0 +
sigma noise and the velocity along it noise - x_0. They raise ValueError for a number out of 0..1 or where the
conversion divides by 0, and for shapes and dtypes as above; an array's values are not read and give inf or nan there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import array_api_compat
import numpy as np

from resshift_core._arrays import Array, Time, check_time, coefficient, from_host, namespace_of
from resshift_core.gaussian import Gaussian

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resshift_core.schedule import ResShiftSchedule

# A number, or a floating array of shape (B,) or (B, 1, ..., 1).
Sigma: TypeAlias = Any


def marginal(schedule: ResShiftSchedule, x_0: Array, y_0: Array, t: Time) -> Gaussian:
    """Return q(x_t | x_0, y_0) = N(x_0 + eta_t (y_0 - x_0), kappa^2 eta_t I).

    Args:
        schedule: etas and kappa.
        x_0: (B, ...) high-resolution pixels or latents.
        y_0: (B, ...) low-resolution pixels or latents, of x_0's size.
        t: 1..T.

    Source: RSD Eq. 20
    """
    xp = namespace_of(x_0=x_0, y_0=y_0)
    dtype = xp.result_type(x_0, y_0)
    eta_t = coefficient(schedule.etas, t, x_0, dtype)
    variance = coefficient(schedule.kappa**2 * schedule.etas, t, x_0, dtype)
    return Gaussian(x_0 + eta_t * (y_0 - x_0), variance)


def prior(schedule: ResShiftSchedule, y_0: Array) -> Gaussian:
    """Return the start of sampling, N(y_0, kappa^2 eta_T I).

    The paper writes kappa^2 I, the published sampler uses kappa^2 eta_T I, which is the variance of
    q(x_T | x_0, y_0); this follows the sampler.

    Args:
        schedule: etas and kappa.
        y_0: (B, ...) low-resolution pixels or latents.

    Source: RSD Eq. 3, Algorithm 2
    """
    namespace_of(y_0=y_0)
    table = schedule.kappa**2 * schedule.etas
    return Gaussian(y_0, coefficient(table, schedule.num_steps, y_0, y_0.dtype))


def forward_step(schedule: ResShiftSchedule, x_prev: Array, x_0: Array, y_0: Array, t: Time) -> Gaussian:
    """Return the one-step kernel q(x_t | x_{t-1}, y_0) = N(x_{t-1} + alpha_t (y_0 - x_0), kappa^2 alpha_t I).

    Args:
        schedule: etas and kappa.
        x_prev: (B, ...) x_{t-1}, where x_0 is the start.
        x_0: (B, ...) high-resolution pixels or latents.
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T.

    Source: RSD Eq. 1
    """
    xp = namespace_of(x_prev=x_prev, x_0=x_0, y_0=y_0)
    dtype = xp.result_type(x_prev, x_0, y_0)
    alpha_t = coefficient(schedule.alphas, t, x_0, dtype)
    variance = coefficient(schedule.kappa**2 * schedule.alphas, t, x_0, dtype)
    return Gaussian(x_prev + alpha_t * (y_0 - x_0), variance)


def posterior(schedule: ResShiftSchedule, x_t: Array, x_0: Array, t: Time) -> Gaussian:
    """Return q(x_{t-1} | x_t, x_0) = N(r x_t + (1 - r) x_0, kappa^2 r alpha_t I) with r = eta_{t-1} / eta_t.

    1 - r is alpha_t / eta_t. Given x_t, y_0 adds nothing. At t=1 it is the point x_0: variance exactly 0.

    Args:
        schedule: etas and kappa.
        x_t: (B, ...) noisy pixels or latents.
        x_0: (B, ...) high-resolution pixels or latents, or a network's prediction of them.
        t: 1..T.

    Source: RSD Eq. 21
    """
    xp = namespace_of(x_t=x_t, x_0=x_0)
    dtype = xp.result_type(x_t, x_0)
    r = _eta_ratio(schedule)
    mean = coefficient(r, t, x_0, dtype) * x_t + coefficient(1 - r, t, x_0, dtype) * x_0
    variance = coefficient(schedule.kappa**2 * r * schedule.alphas, t, x_0, dtype)
    return Gaussian(mean, variance)


def deterministic_step(schedule: ResShiftSchedule, x_t: Array, x_0: Array, y_0: Array, t: Time) -> Array:
    """Return x_{t-1} = k x_0 + m x_t + j y_0, the marginal's sample at t-1 with the noise that x_t carries.

    m = sqrt(eta_{t-1}/eta_t), j = eta_{t-1} - sqrt(eta_{t-1} eta_t), k = 1 - m - j. At t=1 it is x_0.

    Args:
        schedule: etas and kappa.
        x_t: (B, ...) noisy pixels or latents.
        x_0: (B, ...) high-resolution pixels or latents, or a network's prediction of them.
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T.

    Source: SinSR's deterministic sampler, by derivation from RSD Eq. 20
    """
    xp = namespace_of(x_t=x_t, x_0=x_0, y_0=y_0)
    dtype = xp.result_type(x_t, x_0, y_0)
    m = np.sqrt(_eta_ratio(schedule))
    j = _previous(schedule) - np.sqrt(_previous(schedule) * schedule.etas)
    k = 1 - m - j
    return (
        coefficient(k, t, x_0, dtype) * x_0 + coefficient(m, t, x_0, dtype) * x_t + coefficient(j, t, x_0, dtype) * y_0
    )


def scale_input(schedule: ResShiftSchedule, x_t: Array, t: Time) -> Array:
    """Return x_t / sqrt(kappa^2 eta_t + 1), what networks on latents of unit variance see.

    Args:
        schedule: etas and kappa.
        x_t: (B, ...) noisy latents.
        t: 1..T.
    """
    namespace_of(x_t=x_t)
    return x_t / coefficient(np.sqrt(schedule.kappa**2 * schedule.etas + 1), t, x_t, x_t.dtype)


def time_index(schedule: ResShiftSchedule, t: Time) -> Time:
    """Return t - 1, the 0-based index 0..T-1 that networks take as their time embedding.

    Args:
        schedule: gives T.
        t: 1..T.
    """
    check_time(t, schedule.num_steps)
    return t - 1


def flow_interpolate(x_0: Array, noise: Array, sigma: Sigma) -> Array:
    """Return z_t = (1 - sigma) x_0 + sigma noise; x_0, noise: (B, ...). Source: TSD-SR Section 3.4."""
    dtype, keep, sigma = _levels(sigma, x_0=x_0, noise=noise)
    return _cast(keep, dtype) * x_0 + _cast(sigma, dtype) * noise


def euler_step(z_t: Array, velocity: Array, sigma: Sigma, sigma_next: Sigma) -> Array:
    """Return z at sigma_next, z_t + (sigma_next - sigma) velocity; z_t, velocity: (B, ...). Source: TSD-SR Eq. 6."""
    dtype, _, sigma = _levels(sigma, z_t=z_t, velocity=velocity)
    _, _, sigma_next = _levels(sigma_next, z_t=z_t, velocity=velocity)
    return z_t + _cast(sigma_next - sigma, dtype) * velocity


def velocity_to_noise(velocity: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return noise = z_t + (1 - sigma) velocity; velocity, z_t: (B, ...)."""
    dtype, keep, _ = _levels(sigma, velocity=velocity, z_t=z_t)
    return z_t + _cast(keep, dtype) * velocity


def velocity_to_x_0(velocity: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return x_0 = z_t - sigma velocity; velocity, z_t: (B, ...)."""
    dtype, _, sigma = _levels(sigma, velocity=velocity, z_t=z_t)
    return z_t - _cast(sigma, dtype) * velocity


def noise_to_velocity(noise: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return velocity = (noise - z_t) / (1 - sigma); noise, z_t: (B, ...). Singular at sigma = 1."""
    dtype, keep, _ = _levels(sigma, singular=1.0, noise=noise, z_t=z_t)
    return (noise - z_t) / _cast(keep, dtype)


def x_0_to_velocity(x_0: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return velocity = (z_t - x_0) / sigma; x_0, z_t: (B, ...). Singular at sigma = 0."""
    dtype, _, sigma = _levels(sigma, singular=0.0, x_0=x_0, z_t=z_t)
    return (z_t - x_0) / _cast(sigma, dtype)


def noise_to_x_0(noise: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return x_0 = (z_t - sigma noise) / (1 - sigma); noise, z_t: (B, ...). Singular at sigma = 1."""
    dtype, keep, sigma = _levels(sigma, singular=1.0, noise=noise, z_t=z_t)
    return (z_t - _cast(sigma, dtype) * noise) / _cast(keep, dtype)


def x_0_to_noise(x_0: Array, z_t: Array, sigma: Sigma) -> Array:
    """Return noise = (z_t - (1 - sigma) x_0) / sigma; x_0, z_t: (B, ...). Singular at sigma = 0."""
    dtype, keep, sigma = _levels(sigma, singular=0.0, x_0=x_0, z_t=z_t)
    return (z_t - _cast(keep, dtype) * x_0) / _cast(sigma, dtype)


def _levels(sigma: Sigma, *, singular: float | None = None, **arrays: Array) -> tuple[Any, Sigma, Sigma]:
    """Return the dtype of results, and 1 - sigma and sigma: numbers, or arrays that broadcast, not yet rounded to it.

    Raises:
        ValueError: when sigma is a number that is singular or not in 0..1, or an array of another shape or kind.
    """
    xp = namespace_of(**arrays)
    like = next(iter(arrays.values()))
    dtype, ndim = xp.result_type(*arrays.values()), like.ndim
    if isinstance(sigma, int | float | np.floating | np.integer):
        sigma = float(sigma)
        if not 0 <= sigma <= 1 or sigma == singular:
            but = "" if singular is None else f" but not {singular:g}"
            raise ValueError(f"expected sigma in 0..1{but}, got {sigma}; choose another noise level")
        return dtype, 1 - sigma, sigma
    if isinstance(sigma, np.ndarray) and not array_api_compat.is_numpy_array(like):
        table = np.asarray(sigma, dtype=np.float64)
        wide = xp.result_type(dtype, xp.float32)
        sigma = xp.reshape(from_host(xp, table.reshape(-1), wide, array_api_compat.device(like)), table.shape)
    array_api_compat.array_namespace(sigma, like)  # refuses mixed libraries
    if not xp.isdtype(sigma.dtype, "real floating"):
        raise ValueError(f"expected sigma of a floating dtype, got {sigma.dtype}; pass noise levels, not indices")
    sizes = tuple(sigma.shape) or (1,)
    if sizes[0] not in (1, *like.shape[:1]) or sizes[1:] not in ((), (1,) * (ndim - 1)):
        raise ValueError(
            f"expected sigma of shape (B,) or (B, 1, ..., 1) for arrays {tuple(like.shape)}, got {sizes}; "
            "pass one level per sample, or a number for all"
        )
    sigma = xp.reshape(sigma, ((sizes[0],) + (1,) * (ndim - 1))[:ndim])
    return dtype, 1 - sigma, sigma


def _cast(value: Sigma, dtype: Any) -> Array | float:
    """Round a coefficient to the dtype of results; numbers stay as they are."""
    if isinstance(value, float):
        return value
    return array_api_compat.array_namespace(value).astype(value, dtype, copy=False)


def _previous(schedule: ResShiftSchedule) -> NDArray[np.float64]:
    """Return eta_{t-1} at index t, nan at index 0."""
    return np.concatenate([[np.nan], schedule.etas[:-1]])


def _eta_ratio(schedule: ResShiftSchedule) -> NDArray[np.float64]:
    """Return eta_{t-1} / eta_t at index t, nan at index 0."""
    ratio = np.full_like(schedule.etas, np.nan)
    ratio[1:] = schedule.etas[:-1] / schedule.etas[1:]
    return ratio
