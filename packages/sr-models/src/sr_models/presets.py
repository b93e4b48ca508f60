"""Named sizes. A preset is a function that returns a complete configuration."""

from __future__ import annotations

from collections.abc import Callable

from sr_models.autoencoder import AutoencoderConfig
from sr_models.model import ModelConfig
from sr_models.swin_unet import SwinUNetConfig


def x4() -> ModelConfig:
    """Return the published x4 sizes: U-Net of 118,593,583 and autoencoder of 55,322,782 parameters."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """Return the small model that ships and trains on a CPU.

    The latent is continuous with 8 channels, so that the autoencoder is not the bottleneck, and the autoencoder has no
    global attention, so that its cost is linear in the picture.
    """
    latent_channels = 8
    return ModelConfig(
        unet=SwinUNetConfig(
            image_size=16,
            latent_channels=latent_channels,
            out_channels=latent_channels,
            base_channels=48,
            channel_multipliers=(1, 2),
            res_blocks=(2, 2),
            attention_levels=(0, 1),
            swin_embed_channels=48,
            swin_mlp_ratio=2.0,
            head_channels=16,
            shift_mask="swin",
            norm_groups=16,
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=latent_channels,
            z_channels=latent_channels,
            base_channels=24,
            channel_multipliers=(1, 2, 2),
            res_blocks=1,
            mid_attention=False,
            num_codes=None,
            norm_groups=8,
        ),
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {"tiny": tiny, "x4": x4}
