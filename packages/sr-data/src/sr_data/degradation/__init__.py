"""Second-order degradation of HR images into LR images (Real-ESRGAN), one independent draw a sample."""

from sr_data.degradation.blur import (
    filter2d,
    gaussian_kernel,
    generalized_gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
)
from sr_data.degradation.config import DegradationConfig
from sr_data.degradation.jpeg import jpeg
from sr_data.degradation.noise import add_gaussian_noise, add_poisson_noise
from sr_data.degradation.parameters import DegradationParameters, draw_parameters
from sr_data.degradation.pipeline import degrade, degrade_one, degrade_seeded, sample_seeds
from sr_data.degradation.resize import resize

__all__ = [
    "DegradationConfig",
    "DegradationParameters",
    "add_gaussian_noise",
    "add_poisson_noise",
    "degrade",
    "degrade_one",
    "degrade_seeded",
    "draw_parameters",
    "filter2d",
    "gaussian_kernel",
    "generalized_gaussian_kernel",
    "jpeg",
    "plateau_kernel",
    "resize",
    "sample_seeds",
    "sinc_kernel",
]
