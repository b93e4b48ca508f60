"""Autoencoder between pixels and latents: the VQ-GAN f4 layout, with an optional quantizer.

With the ``x4`` preset it is the published autoencoder (55,322,782 parameters). Without a quantizer
(``num_codes=None``) the latent is continuous, which the small presets use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sr_models.layers import GroupNorm32, run_block

NORM_EPS = 1e-6


class AutoencoderConfig(BaseModel):
    """Sizes of a :class:`VQAutoencoder`; the defaults are the published f4 autoencoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_channels: int = Field(default=3, ge=1)
    latent_channels: int = Field(default=3, ge=1, description="channels of z, the embedding dimension of the codes")
    z_channels: int = Field(default=3, ge=1, description="channels between the encoder and its 1x1 output convolution")
    base_channels: int = Field(default=128, ge=1)
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    res_blocks: int = Field(default=2, ge=1)
    mid_attention: bool = Field(default=True, description="global attention in the middle; its cost is quadratic")
    num_codes: int | None = Field(default=8192, ge=1, description="None: continuous latent, no quantizer")
    norm_groups: int = Field(default=32, ge=1)
    latent_scale: float = Field(
        default=1.0, gt=0, description="z is multiplied by this after encoding, divided before decoding"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for multiplier in self.channel_multipliers:
            if self.base_channels * multiplier % self.norm_groups:
                raise ValueError(
                    f"expected channels that divide into norm_groups={self.norm_groups}, "
                    f"got {self.base_channels}*{multiplier}; change base_channels or norm_groups"
                )
        return self

    @property
    def factor(self) -> int:
        """Pixels per latent along one side (f)."""
        return 1 << (len(self.channel_multipliers) - 1)


class Quantized(NamedTuple):
    """Nearest codes: ``z`` (B, C, H, W) latent and ``codes`` (B, H, W) int64 rows of the codebook."""

    z: Tensor
    codes: Tensor


class VQAutoencoder(nn.Module):
    """Encoder and decoder; ``encode`` does not quantize, ``decode`` does when there is a codebook."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, 1)
        self.codebook: nn.Embedding | None = None
        if config.num_codes is not None:
            self.codebook = nn.Embedding(config.num_codes, config.latent_channels)
            nn.init.uniform_(self.codebook.weight, -1 / config.num_codes, 1 / config.num_codes)

    def encode(self, x: Tensor) -> Tensor:
        """Encode pixels [-1, 1].

        Args:
            x: (B, 3, H, W), H and W multiples of f = ``config.factor``.

        Returns:
            The scaled latent, (B, C, H/f, W/f), not quantized.

        Raises:
            ValueError: H or W does not divide by f.
        """
        factor = self.config.factor
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"expected height and width that divide by {factor}, got {tuple(x.shape[-2:])}; pad or crop the image"
            )
        z: Tensor = self.quant_conv(self.encoder(x))
        return z * self.config.latent_scale

    def decode(self, z: Tensor, *, quantize: bool = True) -> Tensor:
        """Scaled latent (B, C, h, w) to pixels (B, 3, h*f, w*f), nominally in [-1, 1] but not clamped.

        Args:
            z: scaled latent.
            quantize: snap to the codebook first; without a codebook it makes no difference.
        """
        z = z / self.config.latent_scale
        if quantize and self.codebook is not None:
            z = self.quantize(z).z
        pixels: Tensor = self.decoder(self.post_quant_conv(z))
        return pixels

    def quantize(self, z: Tensor) -> Quantized:
        """Nearest codebook entries (Euclidean) of the unscaled latent ``z`` (B, C, H, W).

        The gradient passes straight through to ``z``. Written as ``z + (code - z)`` it also rounds as the
        published one does.
        """
        if self.codebook is None:
            raise ValueError("expected an autoencoder with a codebook, got a continuous one (num_codes=None)")
        batch, channels, height, width = z.shape
        flat = z.permute(0, 2, 3, 1).reshape(-1, channels).float()
        weight = self.codebook.weight.float()
        # argmin |z - e|^2 = argmin |e|^2 - 2 z.e: the term |z|^2 is the same for all codes. Autocast would round it.
        with torch.autocast(z.device.type, enabled=False):
            codes = (weight.square().sum(1) - 2 * flat @ weight.T).argmin(1)
        snapped = self.codebook(codes).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return Quantized(z + (snapped.to(z.dtype) - z).detach(), codes.view(batch, height, width))


class Encoder(nn.Module):
    """Pixels to z: residual blocks at every level, strided convolutions between, a middle with attention."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        base, groups = config.base_channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.image_channels, base, 3, padding=1)
        channels = base
        self.levels = nn.ModuleList()
        for level, multiplier in enumerate(config.channel_multipliers):
            stage = Stage()
            for _ in range(config.res_blocks):
                stage.blocks.append(ResBlock(channels, base * multiplier, groups))
                channels = base * multiplier
            if level != len(config.channel_multipliers) - 1:
                stage.resample = nn.Conv2d(channels, channels, 3, stride=2)
            self.levels.append(stage)
        self.middle = Middle(channels, groups, config.mid_attention)
        self.norm_out = GroupNorm32(groups, channels, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, z_channels, H/f, W/f)."""
        h = self.conv_in(x)
        for stage in stages(self.levels):
            for block in stage.blocks:
                h = block(h)
            if stage.resample is not None:
                h = stage.resample(F.pad(h, (0, 1, 0, 1)))  # the published encoder pads right and bottom only
        h = self.middle(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Decoder(nn.Module):
    """z to pixels: the encoder mirrored, with one more residual block a level.

    Set ``checkpointing`` where a loss on pixels trains what made the latent: the decoder then keeps the inputs of its
    blocks only.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.checkpointing = False
        base, groups = config.base_channels, config.norm_groups
        channels = base * config.channel_multipliers[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.middle = Middle(channels, groups, config.mid_attention)
        self.levels = nn.ModuleList()  # in the order of use: coarsest level first
        for level in range(len(config.channel_multipliers) - 1, -1, -1):
            stage = Stage()
            for _ in range(config.res_blocks + 1):
                stage.blocks.append(ResBlock(channels, base * config.channel_multipliers[level], groups))
                channels = base * config.channel_multipliers[level]
            if level:
                stage.resample = nn.Conv2d(channels, channels, 3, padding=1)
            self.levels.append(stage)
        self.norm_out = GroupNorm32(groups, channels, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, 3, h*f, w*f)."""
        h = run_block(self.middle, self.conv_in(z), checkpointing=self.checkpointing)
        for stage in stages(self.levels):
            for block in stage.blocks:
                h = run_block(block, h, checkpointing=self.checkpointing)
            if stage.resample is not None:
                h = stage.resample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Stage(nn.Module):
    """One resolution: residual blocks and the resampling convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.resample: nn.Conv2d | None = None


def stages(modules: nn.ModuleList) -> Iterator[Stage]:
    """Iterate over a list of stages with their type."""
    for module in modules:
        assert isinstance(module, Stage)
        yield module


class Middle(nn.Module):
    """Residual block, optional global attention, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block_in = ResBlock(channels, channels, groups)
        self.attention = Attention(channels, groups) if attention else nn.Identity()
        self.block_out = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape."""
        out: Tensor = self.block_out(self.attention(self.block_in(x)))
        return out


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; no time conditioning."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_in = GroupNorm32(groups, channels, eps=NORM_EPS)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm_out = GroupNorm32(groups, out_channels, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out_channels, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        out: Tensor = self.skip(x) + self.conv_out(F.silu(self.norm_out(h)))
        return out


class Attention(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape_as(x)
        out: Tensor = x + self.proj(h)
        return out
