"""The ResShift noise schedule and the times at which a student is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resshift_core import divergence, transitions
from resshift_core._arrays import Array, Time
from resshift_core.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class ResShiftSchedule:
    """Shifting sequence eta_0..eta_T and noise scale kappa; every formula of the chain follows from the two.

    Equal by value, hashable, picklable. Methods take the paper's t in 1..T; `transitions` has their formulas.

    Args:
        etas: float64 (T+1,), etas[0] = 0, strictly increasing, at most 1; kept as a read-only copy.
        kappa: noise scale > 0.

    Raises:
        ValueError: when etas or kappa are not so.

    Source: RSD Section 3.1
    """

    etas: NDArray[np.float64]
    kappa: float

    def __post_init__(self) -> None:
        etas = np.array(self.etas, dtype=np.float64)
        if etas.ndim != 1 or len(etas) < 2:
            raise ValueError(f"expected etas of shape (T+1,) with T >= 1, got {etas.shape}; give eta_0..eta_T")
        if etas[0] != 0:
            raise ValueError(f"expected etas[0] = 0, got {etas[0]}; prepend eta_0 = 0 to eta_1..eta_T")
        if not (np.all(np.diff(etas) > 0) and etas[-1] <= 1):
            raise ValueError(f"expected etas strictly increasing in (0, 1], got {etas[1:]}; check the schedule")
        etas.flags.writeable = False
        _check_positive("kappa", self.kappa)
        object.__setattr__(self, "etas", etas)
        object.__setattr__(self, "kappa", float(self.kappa))

    @classmethod
    def exponential(
        cls,
        num_steps: int = 15,
        kappa: float = 2.0,
        power: float = 0.3,
        min_noise_level: float = 0.04,
        sqrt_eta_end: float = 0.99,
        max_sqrt_eta_1: float | None = math.sqrt(0.001),
    ) -> ResShiftSchedule:
        """Return the published schedule: sqrt(eta_t) runs geometrically from sqrt(eta_1) to sqrt(eta_T).

        sqrt(eta_t) = sqrt(eta_1)^(1-u) sqrt(eta_T)^u with u = ((t-1)/(T-1))^power, and
        sqrt(eta_1) = min(min_noise_level / kappa, min_noise_level, max_sqrt_eta_1).

        Args:
            num_steps: T >= 1; at T=1 the one eta is sqrt_eta_end^2.
            kappa: noise scale > 0.
            power: growth p > 0; below 1 the sequence rises early.
            min_noise_level: upper bound of the first noise level kappa sqrt(eta_1), > 0.
            sqrt_eta_end: sqrt(eta_T) in (0, 1]; the end of the root, not of eta.
            max_sqrt_eta_1: upper bound of sqrt(eta_1), or None for no bound; the published ResShift code has
                none. It only matters where min_noise_level / kappa exceeds it.

        Raises:
            ValueError: when an argument is out of its range, or sqrt(eta_1) is not below sqrt(eta_T).
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
            raise ValueError(f"expected num_steps as an integer >= 1, got {num_steps!r}; the published T is 15")
        _check_positive("kappa", kappa)
        _check_positive("power", power)
        _check_positive("min_noise_level", min_noise_level)
        _check_positive("sqrt_eta_end", sqrt_eta_end)
        if sqrt_eta_end > 1:
            raise ValueError(f"expected sqrt_eta_end in (0, 1], got {sqrt_eta_end}; the published value is 0.99")
        if max_sqrt_eta_1 is not None:
            _check_positive("max_sqrt_eta_1", max_sqrt_eta_1)
        if num_steps == 1:
            return cls(np.array([0.0, sqrt_eta_end**2]), kappa)
        sqrt_eta_1 = min(min_noise_level / kappa, min_noise_level, max_sqrt_eta_1 or math.inf)
        if sqrt_eta_1 >= sqrt_eta_end:
            raise ValueError(
                f"expected sqrt(eta_1) below sqrt_eta_end {sqrt_eta_end}, got {sqrt_eta_1}; lower min_noise_level"
            )
        u = np.linspace(0.0, 1.0, num_steps) ** power
        # This form of sqrt(eta_1) b^beta_t meets both ends exactly: sqrt_eta_end = 1 stays within (0, 1].
        sqrt_etas = sqrt_eta_1 ** (1 - u) * sqrt_eta_end**u
        return cls(np.concatenate([[0.0], sqrt_etas**2]), kappa)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResShiftSchedule):
            return NotImplemented
        return self.kappa == other.kappa and np.array_equal(self.etas, other.etas)

    def __hash__(self) -> int:
        return hash((self.kappa, self.etas.tobytes()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor: numpy's own pickling would return etas writeable.
        return type(self), (self.etas, self.kappa)

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the chain."""
        return len(self.etas) - 1

    @property
    def alphas(self) -> NDArray[np.float64]:
        """alpha_t = eta_t - eta_{t-1} at index t, float64 (T+1,), alphas[0] = 0."""
        return np.diff(self.etas, prepend=0.0)

    def marginal(self, x_0: Array, y_0: Array, t: Time) -> Gaussian:
        """Return q(x_t | x_0, y_0) [RSD Eq. 20]; x_0, y_0: (B, ...), t in 1..T."""
        return transitions.marginal(self, x_0, y_0, t)

    def prior(self, y_0: Array) -> Gaussian:
        """Return the start of sampling N(y_0, kappa^2 eta_T I); the paper writes kappa^2 I; y_0: (B, ...)."""
        return transitions.prior(self, y_0)

    def forward_step(self, x_prev: Array, x_0: Array, y_0: Array, t: Time) -> Gaussian:
        """Return q(x_t | x_{t-1}, x_0, y_0) [RSD Eq. 1]; x_prev, x_0, y_0: (B, ...), t in 1..T."""
        return transitions.forward_step(self, x_prev, x_0, y_0, t)

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> Gaussian:
        """Return q(x_{t-1} | x_t, x_0) [RSD Eq. 21], a point mass at t=1; x_t, x_0: (B, ...), t in 1..T."""
        return transitions.posterior(self, x_t, x_0, t)

    def deterministic_step(self, x_t: Array, x_0: Array, y_0: Array, t: Time) -> Array:
        """Return SinSR's x_{t-1}, which keeps x_t's noise; x_t, x_0, y_0: (B, ...), t in 1..T."""
        return transitions.deterministic_step(self, x_t, x_0, y_0, t)

    def scale_input(self, x_t: Array, t: Time) -> Array:
        """Return x_t / sqrt(kappa^2 eta_t + 1), the latent input of networks; x_t: (B, ...), t in 1..T."""
        return transitions.scale_input(self, x_t, t)

    def time_index(self, t: Time) -> Time:
        """Return t - 1, the 0-based time of the published networks; t in 1..T."""
        return transitions.time_index(self, t)

    def kl_weights(self, *, clipped: bool = False) -> NDArray[np.float64]:
        """Return w_t [RSD Eq. 27] at index t, float64 (T+1,), inf at index 0, and at index 1 unless clipped."""
        return divergence.kl_weights(self, clipped=clipped)

    def vsd_weights(self) -> NDArray[np.float64]:
        """Return w''_t / w_t [RSD Eq. 17] at index t, float64 (T+1,), inf at index 0."""
        return divergence.vsd_weights(self)


def student_timesteps(num_steps: int, count: int) -> tuple[int, ...]:
    """Return t_n = ceil(T n / N), n = 1..N: N times evenly placed in 1..T that end in T.

    Rounding up keeps them distinct, and all above 1 whenever N < T; T=15, N=4 gives (4, 8, 12, 15).

    Args:
        num_steps: T >= 1.
        count: N in 1..T.

    Raises:
        ValueError: when N is not in 1..T.

    Source: RSD Section 3.3
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"expected 1 <= count <= num_steps {num_steps}, got {count}; ask for fewer timesteps")
    return tuple(-(-num_steps * n // count) for n in range(1, count + 1))


def _check_positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected {name} finite and > 0, got {value}; give a positive number")
