"""ResShift schedule, posterior and KL mathematics for numpy, torch and jax arrays."""

from resshift_core.divergence import (
    distillation_normalizer,
    fake_objective,
    kl_weights,
    path_kl,
    rsd_objective,
    vsd_weights,
)
from resshift_core.gaussian import Gaussian, kl_divergence
from resshift_core.schedule import ResShiftSchedule, student_timesteps
from resshift_core.transitions import (
    deterministic_step,
    forward_step,
    marginal,
    posterior,
    prior,
    scale_input,
    time_index,
)

__all__ = [
    "Gaussian",
    "ResShiftSchedule",
    "deterministic_step",
    "distillation_normalizer",
    "fake_objective",
    "forward_step",
    "kl_divergence",
    "kl_weights",
    "marginal",
    "path_kl",
    "posterior",
    "prior",
    "rsd_objective",
    "scale_input",
    "student_timesteps",
    "time_index",
    "vsd_weights",
]
