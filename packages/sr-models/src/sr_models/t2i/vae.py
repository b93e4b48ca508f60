"""The autoencoder of a text-to-image teacher: diffusers' AutoencoderKL, with our noise and scaling conventions.

Latents are scaled as the published one-step models scale them: times ``scaling_factor``, and SD3's ``shift_factor`` is
not subtracted. The LoRA weights that are published for SD3 expect this.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.autoencoder import VQAutoencoder

POSTERIOR_STD = 0.1
"""Standard deviation that a converted autoencoder's posterior gets: the width it was trained with."""


def encode(vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
    """Sample the posterior of pixels [-1, 1] and scale it; differentiable in the encoder and in ``pixels``.

    The network computes in its own dtype; the latent is float32 at least.

    Args:
        vae: an AutoencoderKL.
        pixels: (B, 3, H, W), sides that divide by :func:`factor`.
        noise: N(0, 1), (B, C, H / factor, W / factor); zeros give the mean.
    """
    posterior = vae.encode(pixels.to(base_dtype(vae))).latent_dist
    mean, std = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (posterior.mean, posterior.std))
    z: Tensor = (mean + std * noise) * vae.config.scaling_factor
    return z


def decode(vae: Any, z: Tensor) -> Tensor:
    """Scaled latent to pixels, nominally in [-1, 1] but not clamped; differentiable in ``z``."""
    pixels: Tensor = vae.decode((z / vae.config.scaling_factor).to(base_dtype(vae))).sample
    return pixels.to(torch.promote_types(pixels.dtype, torch.float32))


def features(vae: Any, pixels: Tensor) -> list[Tensor]:
    """Outputs of the encoder's first convolution and of its levels, for pixels [-1, 1]."""
    layers = [vae.encoder.conv_in(pixels.to(base_dtype(vae)))]
    for block in vae.encoder.down_blocks:
        layers.append(block(layers[-1]))
    return layers


def base_dtype(network: nn.Module) -> torch.dtype:
    """dtype of a network's weights; its adapters may have another one."""
    return next(value.dtype for name, value in network.named_parameters() if "lora_" not in name)


def factor(vae: Any) -> int:
    """Pixels per latent along one side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def autoencoder_kl(autoencoder: VQAutoencoder) -> Any:
    """Put a continuous :class:`VQAutoencoder` into diffusers' class; both then compute the same.

    Raises:
        ValueError: the autoencoder has a codebook or attention in its middle.
    """
    from diffusers import AutoencoderKL

    config = autoencoder.config
    if config.num_codes is not None or config.mid_attention:
        raise ValueError(
            "expected a continuous autoencoder without attention (num_codes=null, mid_attention=false), got "
            f"num_codes={config.num_codes}, mid_attention={config.mid_attention}; train one with the preset tiny"
        )
    if config.z_channels != config.latent_channels:
        raise ValueError(
            f"expected an autoencoder with z_channels equal to latent_channels={config.latent_channels}, as diffusers' "
            f"class has it, got {config.z_channels}; train one so"
        )
    levels = len(config.channel_multipliers)
    vae = AutoencoderKL(
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.base_channels * multiplier for multiplier in config.channel_multipliers),
        layers_per_block=config.res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=False,
        scaling_factor=config.latent_scale,
    )
    state = {_their_name(name): value for name, value in autoencoder.state_dict().items()}
    _add_variance(state, config.latent_channels)
    vae.load_state_dict(state)
    return vae.requires_grad_(False).eval()


_RULES = (
    (r"^encoder\.levels\.(\d+)\.resample", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"^encoder\.levels\.(\d+)\.blocks", r"encoder.down_blocks.\1.resnets"),
    (r"^decoder\.levels\.(\d+)\.resample", r"decoder.up_blocks.\1.upsamplers.0.conv"),
    (r"^decoder\.levels\.(\d+)\.blocks", r"decoder.up_blocks.\1.resnets"),
    (r"\.middle\.block_in\.", ".mid_block.resnets.0."),
    (r"\.middle\.block_out\.", ".mid_block.resnets.1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"(\.resnets\.\d+)\.norm_in\.", r"\1.norm1."),
    (r"(\.resnets\.\d+)\.conv_in\.", r"\1.conv1."),
    (r"(\.resnets\.\d+)\.norm_out\.", r"\1.norm2."),
    (r"(\.resnets\.\d+)\.conv_out\.", r"\1.conv2."),
    (r"(\.resnets\.\d+)\.skip\.", r"\1.conv_shortcut."),
)


def _their_name(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _add_variance(state: dict[str, Tensor], channels: int) -> None:
    """Give the encoder a second half of outputs, the constant log-variance of the posterior."""
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name])])
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    both = weight.new_zeros(2 * channels, 2 * weight.shape[1], 1, 1)
    both[:channels, : weight.shape[1]] = weight
    state["quant_conv.weight"] = both
    state["quant_conv.bias"] = torch.cat([bias, torch.full_like(bias, 2 * math.log(POSTERIOR_STD))])
