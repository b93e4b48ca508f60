"""Sizes of the published networks, as keyword arguments of the diffusers classes of the same kind.

Numbers only, no weights: enough to build a network of the true size, on the meta device where memory is short.
"""

from __future__ import annotations

from typing import Any


def sd3_medium_transformer() -> dict[str, Any]:
    """``SD3Transformer2DModel`` of Stable Diffusion 3 medium (2,028,328,000 parameters)."""
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    }


def sd3_vae() -> dict[str, Any]:
    """``AutoencoderKL`` of Stable Diffusion 3 (83,819,683 parameters, no quant convolutions)."""
    return {
        **_vae(latent_channels=16),
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def sd21_unet() -> dict[str, Any]:
    """``UNet2DConditionModel`` of Stable Diffusion 2.1-base (865,910,724 parameters)."""
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }


def sd2_vae() -> dict[str, Any]:
    """``AutoencoderKL`` of Stable Diffusion 2 (83,653,863 parameters)."""
    return {**_vae(latent_channels=4), "sample_size": 768, "scaling_factor": 0.18215}


def _vae(latent_channels: int) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": latent_channels,
        "norm_num_groups": 32,
    }
