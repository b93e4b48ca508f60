"""Gaussian problems whose optimum is known in closed form: the oracle of tests and documentation.

Given y_0, images follow a diagonal Gaussian p(x_0 | y_0). Then every noisy x_t is Gaussian too, the best network
is an affine map of x_t, and the losses and samplers of the chain have closed forms, in any array library and
differentiable in torch. Gaussians and maps hold arrays (B, ...), pixels or latents; the dimensions are independent.

The output of a linear student, x_0_hat = slope x_T + offset + noise_scale epsilon, follows
`Affine(slope, offset).push(x_T, noise_scale**2)`.

The same holds for flow matching, z_t = (1 - sigma) x_0 + sigma noise: `ideal_velocity` is affine, and TSD-SR's
directions are factors times latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import array_api_compat

from resshift_core._arrays import Array, Time, coefficient, namespace_of, per_sample
from resshift_core.divergence import _choose
from resshift_core.gaussian import Gaussian, kl_divergence
from resshift_core.transitions import Sigma, deterministic_step, flow_interpolate, marginal, posterior

if TYPE_CHECKING:
    from resshift_core.divergence import Parameterisation
    from resshift_core.schedule import ResShiftSchedule


@dataclass(frozen=True, eq=False)
class Affine:
    """An elementwise affine map x -> slope x + offset over arrays (B, ...).

    Args:
        slope: (B, ...), floating.
        offset: of slope's shape, library and device.

    Raises:
        ValueError: when the shapes differ or the dtypes are not floating.
    """

    slope: Array
    offset: Array

    def __post_init__(self) -> None:
        namespace_of(slope=self.slope, offset=self.offset)

    def __call__(self, x: Array) -> Array:
        """Return slope x + offset; x: (B, ...)."""
        return self.slope * x + self.offset

    def __sub__(self, other: Affine) -> Affine:
        """Return the map x -> self(x) - other(x)."""
        return Affine(self.slope - other.slope, self.offset - other.offset)

    def push(self, x: Gaussian, noise_variance: Array | float = 0.0) -> Gaussian:
        """Return the law of slope x + offset + noise, with independent noise ~ N(0, noise_variance).

        Args:
            x: Gaussian over (B, ...).
            noise_variance: a number or an array that broadcasts to (B, ...), non-negative.
        """
        return Gaussian(self(x.mean), self.slope**2 * x.variance + noise_variance)

    def mean_square(self, x: Gaussian) -> Array:
        """Return E ||slope x + offset||^2 for x ~ the Gaussian: (B,), summed over all dimensions but the batch."""
        image = self.push(x)
        return per_sample(array_api_compat.array_namespace(image.mean), image.mean**2 + image.variance, "sum")


# t -> f(., y_0, t), a network that predicts x_0, for an int t in 1..T.
Denoiser: TypeAlias = Callable[[int], Affine]


def noised(schedule: ResShiftSchedule, x_0: Gaussian, y_0: Array, t: Time) -> Gaussian:
    """Return p(x_t | y_0) = N((1 - eta_t) m + eta_t y_0, (1 - eta_t)^2 v + kappa^2 eta_t) for x_0 ~ N(m, v).

    Args:
        schedule: etas and kappa.
        x_0: the law of clean images given y_0, over (B, ...).
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T, an int or an integer array (B,).

    Source: RSD Eq. 20, averaged over x_0
    """
    q = marginal(schedule, x_0.mean, y_0, t)
    shrink = coefficient(1 - schedule.etas, t, x_0.mean, x_0.mean.dtype)
    return Gaussian(q.mean, shrink**2 * x_0.variance + q.variance)


def ideal_denoiser(schedule: ResShiftSchedule, x_0: Gaussian, y_0: Array, t: Time) -> Affine:
    """Return f(x_t) = E[x_0 | x_t, y_0] = m + g (x_t - E x_t) with g = (1 - eta_t) v / Var x_t.

    It minimises RSD Eq. 5: f* for the teacher's images, f_{G_theta} for the student's.

    Args:
        schedule: etas and kappa.
        x_0: the law of clean images given y_0, over (B, ...).
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T, an int or an integer array (B,).

    Source: RSD Eq. 11
    """
    x_t = noised(schedule, x_0, y_0, t)
    slope = coefficient(1 - schedule.etas, t, x_0.mean, x_0.mean.dtype) * x_0.variance / x_t.variance
    offset = x_0.mean - slope * x_t.mean
    return Affine(array_api_compat.array_namespace(offset).broadcast_to(slope, offset.shape), offset)


def rsd_loss(schedule: ResShiftSchedule, x_0_hat: Gaussian, x_0: Gaussian, y_0: Array, t: Time) -> Array:
    """Return one unweighted term of RSD's loss, E ||f_{G_theta}(x_t) - f*(x_t)||^2 over noisy student images x_t.

    Args:
        schedule: etas and kappa.
        x_0_hat: the law of the student's images given y_0, over (B, ...).
        x_0: the law of the teacher's images given y_0, over (B, ...).
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T, an int or an integer array (B,).

    Returns:
        (B,), summed over all dimensions but the batch.

    Source: RSD Eq. 6
    """
    difference = ideal_denoiser(schedule, x_0_hat, y_0, t) - ideal_denoiser(schedule, x_0, y_0, t)
    return difference.mean_square(noised(schedule, x_0_hat, y_0, t))


def vsd_loss(schedule: ResShiftSchedule, x_0_hat: Gaussian, x_0: Gaussian, y_0: Array, t: Time) -> Array:
    """Return one unweighted term of VSD's loss, D_KL(p(x_t | y_0) || p*(x_t | y_0)), student against teacher.

    Args:
        schedule: etas and kappa.
        x_0_hat: the law of the student's images given y_0, over (B, ...).
        x_0: the law of the teacher's images given y_0, over (B, ...).
        y_0: (B, ...) low-resolution pixels or latents.
        t: 1..T, an int or an integer array (B,).

    Returns:
        (B,), summed over all dimensions but the batch.

    Source: RSD Eq. 12
    """
    return kl_divergence(noised(schedule, x_0_hat, y_0, t), noised(schedule, x_0, y_0, t))


def reverse_chain(schedule: ResShiftSchedule, denoiser: Denoiser, x_T: Gaussian) -> list[Gaussian]:
    """Return the laws of x_0..x_T when x_{t-1} is drawn from the posterior with f(x_t) in place of x_0.

    Args:
        schedule: etas and kappa.
        denoiser: t -> f(., y_0, t).
        x_T: the law that the chain starts from, over (B, ...).

    Returns:
        T+1 Gaussians indexed by t. RSD Eq. 18 takes its expectations over these.

    Source: RSD Eq. 3 and 4
    """
    xp = array_api_compat.array_namespace(x_T.mean)
    laws = [x_T]
    for t in range(schedule.num_steps, 0, -1):
        f = denoiser(t)
        # The posterior mean is linear in (x_t, x_0): put slopes in for the slope, offsets for the offset.
        slope = posterior(schedule, xp.ones_like(f.slope), f.slope, t)
        offset = posterior(schedule, xp.zeros_like(f.offset), f.offset, t)
        laws.append(Affine(slope.mean, offset.mean).push(laws[-1], slope.variance))
    return laws[::-1]


def deterministic_chain(schedule: ResShiftSchedule, denoiser: Denoiser, x_T: Gaussian, y_0: Array) -> list[Gaussian]:
    """Return the laws of x_0..x_T when x_{t-1} is SinSR's deterministic step with f(x_t) in place of x_0.

    Args:
        schedule: etas and kappa.
        denoiser: t -> f(., y_0, t).
        x_T: the law that the chain starts from, over (B, ...).
        y_0: (B, ...) low-resolution pixels or latents.

    Returns:
        T+1 Gaussians indexed by t.

    Source: SinSR's deterministic sampler
    """
    xp = array_api_compat.array_namespace(x_T.mean)
    laws = [x_T]
    for t in range(schedule.num_steps, 0, -1):
        f = denoiser(t)
        # Linear in (x_t, x_0, y_0), as above.
        slope = deterministic_step(schedule, xp.ones_like(f.slope), f.slope, xp.zeros_like(y_0), t)
        offset = deterministic_step(schedule, xp.zeros_like(f.offset), f.offset, y_0, t)
        laws.append(Affine(slope, offset).push(laws[-1]))
    return laws[::-1]


def ideal_velocity(x_0: Gaussian, sigma: Sigma) -> Affine:
    """Return E[noise - x_0 | z_t] = -m + g (z_t - (1 - sigma) m) for x_0 ~ N(m, S), what flow matching learns.

    g = (sigma - (1 - sigma) S) / V with V = (1 - sigma)^2 S + sigma^2 = Var z_t.

    Args:
        x_0: the law of clean latents, over (B, ...), S > 0.
        sigma: noise level in 0..1, a number or an array (B,) or (B, 1, ..., 1).

    Source: TSD-SR Section 3.4
    """
    xp = array_api_compat.array_namespace(x_0.mean)
    one, zero = xp.ones_like(x_0.mean), xp.zeros_like(x_0.mean)
    keep, level = flow_interpolate(one, zero, sigma), flow_interpolate(zero, one, sigma)
    slope = (level - keep * x_0.variance) / (keep**2 * x_0.variance + level**2)
    return Affine(slope, -x_0.mean - slope * keep * x_0.mean)


def tsm_factor(variance: Array | float, sigma: Array | float, parameterisation: Parameterisation = "noise") -> Array:
    """Return what multiplies z_hat - z in the TSM direction of an ideal teacher of latents with variance S.

    With V = (1 - sigma)^2 S + sigma^2 it is (1 - sigma) sigma / V for noise, always > 0: descent pulls z_hat to z.
    For velocity it is (1 - sigma) (sigma - (1 - sigma) S) / V, which pushes z_hat away where S > sigma / (1 - sigma).

    Args:
        variance: S > 0 of one direction of latent space, a number or an array.
        sigma: noise level in (0, 1], a number or an array that broadcasts with it.
        parameterisation: "noise" or "velocity".

    Source: TSD-SR Eq. 4
    """
    keep = 1 - sigma
    teacher = keep**2 * variance + sigma**2
    return keep * _choose(parameterisation, sigma, sigma - keep * variance) / teacher


def vsd_factor(
    prior_variance: Array | float,
    student_variance: Array | float,
    sigma: Array | float,
    parameterisation: Parameterisation = "noise",
) -> Array:
    """Return what multiplies z_hat_t in the VSD direction of ideal networks for latents N(0, S) and N(0, Q).

    It is sigma (1 - sigma) (Q - S) / (V_S V_Q) for velocity and (1 - sigma) times that for noise, with V as in
    `tsm_factor`: of the sign of Q - S, so descent brings the student's variance Q to the teacher's S.

    Args:
        prior_variance: S > 0, known to the teacher.
        student_variance: Q > 0, known to the fake model.
        sigma: noise level in (0, 1], a number or an array that broadcasts with the variances.
        parameterisation: "noise" or "velocity".

    Source: TSD-SR Eq. 3
    """
    keep = 1 - sigma
    teacher, fake = (keep**2 * variance + sigma**2 for variance in (prior_variance, student_variance))
    velocity = sigma * keep * (student_variance - prior_variance) / (teacher * fake)
    return _choose(parameterisation, keep * velocity, velocity)
