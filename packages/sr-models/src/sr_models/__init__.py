"""Networks of one-step diffusion super-resolution, how they are stored, and SuperResolver."""

from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.denoiser import Denoiser
from sr_models.model import ModelConfig, ScheduleConfig, SRModel
from sr_models.options import Options, Report
from sr_models.restorable import Restorable
from sr_models.restorer import SuperResolver
from sr_models.student import make_fake, make_student
from sr_models.swin_unet import SwinUNet, SwinUNetConfig

__all__ = [
    "AutoencoderConfig",
    "Denoiser",
    "ModelConfig",
    "Options",
    "Report",
    "Restorable",
    "SRModel",
    "ScheduleConfig",
    "SuperResolver",
    "SwinUNet",
    "SwinUNetConfig",
    "VQAutoencoder",
    "make_fake",
    "make_student",
]
