"""Divergences between a fake model and the teacher, and the objectives that estimate them.

f_teacher is f*(x_t, y_0, t), f_fake is f_phi(x_t, y_0, t), x_0_hat is the student's output, of which x_t is a
noisy version: pixels or latents (B, ...), floating. Objectives return one value per sample, in the arrays'
dtype (pass float32 where half precision is too coarse to sum in), unweighted: multiply by w_t if wanted.

Directions of TSD-SR and OSEDiff are gradients with respect to the student's latent z_hat, (B, ...), also unweighted
and of inputs that the caller detaches: minimise w/2 ||z_hat - stopgrad(z_hat - direction)||^2. Their v_* are velocities
noise - x_0 that networks predict from the noisy student latent z_hat_t ("hat", fake) or the noisy real latent z_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from resshift_core._arrays import Array, Reduction, Time, coefficient, namespace_of, per_sample
from resshift_core.transitions import Sigma, velocity_to_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resshift_core.flow import FlowMatchingSchedule
    from resshift_core.schedule import ResShiftSchedule

# What a direction is a difference of: the paper's print (noise) or its published code (velocity).
Parameterisation: TypeAlias = Literal["noise", "velocity"]


def kl_weights(schedule: ResShiftSchedule, *, clipped: bool = False) -> NDArray[np.float64]:
    """Return w_t = alpha_t / (2 kappa^2 eta_t eta_{t-1}), which makes a squared error of x_0 a KL divergence.

    It is (alpha_t / eta_t)^2 / (2 s_t), where s_t is the variance of the posterior, 0 at t=1.

    Args:
        schedule: etas and kappa.
        clipped: give t=1 the posterior variance of t=2, as DDPM does: w_1 = 1 / (2 s_2), finite.

    Returns:
        float64 (T+1,) indexed by t. Entry 0 is inf, and entry 1 unless clipped: there the posterior is a point,
        so the sum of RSD Eq. 18 starts at t=2. Published training uses w_t = 1.

    Raises:
        ValueError: when clipped and T=1, where no posterior has a variance.

    Source: RSD Eq. 27
    """
    weights = np.full_like(schedule.etas, np.inf)
    previous, etas = schedule.etas[1:-1], schedule.etas[2:]
    weights[2:] = schedule.alphas[2:] / (2 * schedule.kappa**2 * etas * previous)
    if clipped:
        if schedule.num_steps == 1:
            raise ValueError("expected at least 2 steps for clipped weights, got 1; use unit weights at T=1")
        variance_2 = schedule.kappa**2 * schedule.etas[1] / schedule.etas[2] * schedule.alphas[2]
        weights[1] = 1 / (2 * variance_2)
    return weights


def vsd_weights(schedule: ResShiftSchedule) -> NDArray[np.float64]:
    """Return w''_t / w_t = (1 - eta_t)^2 / (kappa^2 eta_t), which makes a difference of predictions the VSD gradient.

    The gradient of D_KL(p(x_t | y_0) || p*(x_t | y_0)) is this times E <f_phi - f*, d x_0_hat / d theta>.
    One factor (1 - eta_t) / (kappa^2 eta_t) turns predictions of x_0 into scores, the other is d x_t / d x_0_hat.

    Args:
        schedule: etas and kappa.

    Returns:
        float64 (T+1,) indexed by t. Entry 0 is inf.

    Source: RSD Eq. 17
    """
    weights = np.full_like(schedule.etas, np.inf)
    etas = schedule.etas[1:]
    weights[1:] = (1 - etas) ** 2 / (schedule.kappa**2 * etas)
    return weights


def path_kl(schedule: ResShiftSchedule, f_fake: Array, f_teacher: Array, t: Time) -> Array:
    """Return one term of the path KL, D_KL(p(x_{t-1} | x_t) || p*(x_{t-1} | x_t)) = w_t ||f_phi - f*||^2.

    Args:
        schedule: etas and kappa.
        f_fake: (B, ...) the fake model's prediction of x_0.
        f_teacher: (B, ...) the teacher's prediction of x_0.
        t: 2..T, an int or an integer array (B,); the term is infinite at t=1.

    Returns:
        (B,), summed over all dimensions but the batch.

    Raises:
        ValueError: when t is out of 2..T (checked on the host only), or shapes or dtypes do not fit.

    Source: RSD Eq. 18
    """
    xp = namespace_of(f_fake=f_fake, f_teacher=f_teacher)
    squared = per_sample(xp, (f_fake - f_teacher) ** 2, "sum")
    return coefficient(kl_weights(schedule), t, squared, squared.dtype, first=2) * squared


def rsd_objective(f_teacher: Array, f_fake: Array, x_0_hat: Array, *, reduction: Reduction = "mean") -> Array:
    """Return what the student minimises, -(||f_phi||^2 - ||f*||^2 + 2 <f* - f_phi, x_0_hat>).

    At f_phi = E[x_0_hat | x_t] its expectation is E ||f_phi - f*||^2. One sample can be negative.
    Let gradients flow through all three arguments; with f_teacher and f_fake detached it is the objective of
    ResShift-VSD, whose gradient with respect to x_0_hat is -2 (f* - f_phi).

    Args:
        f_teacher: (B, ...) the teacher's prediction of x_0.
        f_fake: (B, ...) the fake model's prediction of x_0.
        x_0_hat: (B, ...) the student's output.
        reduction: "mean" or "sum" over all dimensions but the batch; the paper's norms are sums.

    Returns:
        (B,).

    Raises:
        ValueError: when shapes differ, dtypes are not floating, or reduction is unknown.

    Source: RSD Eq. 7
    """
    xp = namespace_of(f_teacher=f_teacher, f_fake=f_fake, x_0_hat=x_0_hat)
    # The same polynomial, factored: it does not lose small differences of predictions between large squares.
    terms = (f_teacher - f_fake) * ((f_teacher - x_0_hat) + (f_fake - x_0_hat))
    return per_sample(xp, terms, reduction)


def fake_objective(f_fake: Array, x_0_hat: Array, *, reduction: Reduction = "mean") -> Array:
    """Return what the fake model minimises, ||f_phi - x_0_hat||^2: -rsd_objective up to terms without phi.

    Args:
        f_fake: (B, ...) the fake model's prediction of x_0.
        x_0_hat: (B, ...) the student's output; detach it.
        reduction: "mean" or "sum" over all dimensions but the batch.

    Returns:
        (B,).

    Raises:
        ValueError: when shapes differ, dtypes are not floating, or reduction is unknown.

    Source: RSD Eq. 5
    """
    xp = namespace_of(f_fake=f_fake, x_0_hat=x_0_hat)
    return per_sample(xp, (f_fake - x_0_hat) ** 2, reduction)


def distillation_normalizer(z_0_teacher: Array, z_0_student: Array, *, eps: float = 1e-8) -> Array:
    """Return mean |z_0_teacher - z_0_student| + eps per sample, the divisor of a sample's distillation loss.

    It is a scale, not a part of the objective: the caller detaches the result.

    Args:
        z_0_teacher: (B, ...) the teacher's prediction of the latent.
        z_0_student: (B, ...) the student's output.
        eps: > 0, keeps the divisor above 0; at least the dtype's smallest normal number is taken.

    Returns:
        (B,), > 0.

    Raises:
        ValueError: when eps is not above 0, shapes differ or dtypes are not floating.

    Source: RSD Appendix C, after score identity distillation
    """
    if not eps > 0:
        raise ValueError(f"expected eps > 0, got {eps}; the published value is 1e-8")
    xp = namespace_of(z_0_teacher=z_0_teacher, z_0_student=z_0_student)
    mean = per_sample(xp, xp.abs(z_0_teacher - z_0_student), "mean")
    # 1e-8 is 0 in float16.
    return mean + max(eps, float(xp.finfo(mean.dtype).smallest_normal))


def tsm_direction(
    v_teacher_hat: Array,
    v_teacher: Array,
    z_hat_t: Array,
    z_t: Array,
    sigma: Sigma,
    parameterisation: Parameterisation = "noise",
) -> Array:
    """Return e_psi(z_hat_t) - e_psi(z_t), target score matching; z_hat_t and z_t carry the same noise.

    The two parameterisations are different objectives: as velocities the direction can push z_hat away from z
    (docs/errata.md, section 11).

    Args:
        v_teacher_hat: (B, ...) the teacher's velocity at z_hat_t.
        v_teacher: (B, ...) the teacher's velocity at z_t.
        z_hat_t: (B, ...) the student's latent, noised.
        z_t: (B, ...) the real latent, noised.
        sigma: noise level, a number or an array (B,) or (B, 1, ..., 1).
        parameterisation: "noise" or "velocity".

    Raises:
        ValueError: when shapes, dtypes, sigma or the parameterisation do not fit.

    Source: TSD-SR Eq. 4
    """
    namespace_of(v_teacher_hat=v_teacher_hat, v_teacher=v_teacher, z_hat_t=z_hat_t, z_t=z_t)
    difference = v_teacher_hat - v_teacher
    # Linear: the noise of the differences is the difference of the noises.
    noise = velocity_to_noise(difference, z_hat_t - z_t, sigma)
    return _choose(parameterisation, noise, difference)


def vsd_direction(
    v_teacher_hat: Array, v_fake: Array, sigma: Sigma, parameterisation: Parameterisation = "noise"
) -> Array:
    """Return e_psi(z_hat_t) - e_phi(z_hat_t): as noise it is (1 - sigma) times the difference of velocities.

    Args:
        v_teacher_hat: (B, ...) the teacher's velocity at z_hat_t.
        v_fake: (B, ...) the fake model's velocity at z_hat_t.
        sigma: noise level, a number or an array (B,) or (B, 1, ..., 1).
        parameterisation: "noise" or "velocity".

    Raises:
        ValueError: when shapes, dtypes, sigma or the parameterisation do not fit.

    Source: TSD-SR Eq. 3
    """
    xp = namespace_of(v_teacher_hat=v_teacher_hat, v_fake=v_fake)
    difference = v_teacher_hat - v_fake
    return _choose(parameterisation, velocity_to_noise(difference, xp.zeros_like(difference), sigma), difference)


def tsd_direction(
    v_teacher_hat: Array,
    v_teacher: Array,
    v_fake: Array,
    z_hat_t: Array,
    z_t: Array,
    sigma: Sigma,
    vsd_weight: float,
    parameterisation: Parameterisation = "noise",
) -> Array:
    """Return (1 - vsd_weight) tsm_direction + vsd_weight vsd_direction, whose arguments these are.

    Args:
        v_teacher_hat: (B, ...) the teacher's velocity at z_hat_t.
        v_teacher: (B, ...) the teacher's velocity at z_t.
        v_fake: (B, ...) the fake model's velocity at z_hat_t.
        z_hat_t: (B, ...) the student's latent, noised.
        z_t: (B, ...) the real latent, noised.
        sigma: noise level, a number or an array (B,) or (B, 1, ..., 1).
        vsd_weight: lambda in 0..1.
        parameterisation: "noise" or "velocity".

    Raises:
        ValueError: when vsd_weight is not in 0..1, or shapes, dtypes, sigma or the parameterisation do not fit.

    Source: TSD-SR Eq. 5
    """
    if not 0 <= vsd_weight <= 1:
        raise ValueError(f"expected vsd_weight in 0..1, got {vsd_weight}; it is lambda, and 1 is VSD alone")
    tsm = tsm_direction(v_teacher_hat, v_teacher, z_hat_t, z_t, sigma, parameterisation)
    return (1 - vsd_weight) * tsm + vsd_weight * vsd_direction(v_teacher_hat, v_fake, sigma, parameterisation)


def tsd_weights(schedule: FlowMatchingSchedule) -> NDArray[np.float64]:
    """Return w = sigma^2, the published weight of a direction; the paper leaves w(t) open. float64 (T,), by index."""
    return schedule.sigmas**2


def x_0_normalized_vsd_direction(x_0_fake: Array, x_0_teacher: Array, x_0_hat: Array, *, eps: float = 1e-8) -> Array:
    """Return (x_0_fake - x_0_teacher) / mean |x_0_hat - x_0_teacher|, VSD with OSEDiff's weight per sample.

    Fake minus teacher: predictions of x_0 differ with the opposite sign of predictions of noise.

    Args:
        x_0_fake: (B, ...) the fake model's prediction of the latent.
        x_0_teacher: (B, ...) the teacher's prediction of the latent.
        x_0_hat: (B, ...) the student's latent.
        eps: > 0, keeps the divisor above 0, as in `distillation_normalizer`.

    Raises:
        ValueError: when eps is not above 0, shapes differ or dtypes are not floating.

    Source: OSEDiff's published code
    """
    xp = namespace_of(x_0_fake=x_0_fake, x_0_teacher=x_0_teacher, x_0_hat=x_0_hat)
    scale = distillation_normalizer(x_0_teacher, x_0_hat, eps=eps)
    return (x_0_fake - x_0_teacher) / xp.reshape(scale, (-1,) + (1,) * (x_0_hat.ndim - 1))


def _choose(parameterisation: Parameterisation, noise: Array, velocity: Array) -> Array:
    """Return one of the two.

    Raises:
        ValueError: when the name is unknown.
    """
    if parameterisation == "noise":
        return noise
    if parameterisation == "velocity":
        return velocity
    raise ValueError(
        f"expected parameterisation 'noise' or 'velocity', got {parameterisation!r}; choose one of the two"
    )
