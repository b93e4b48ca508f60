"""Swin U-Net of ResShift: predicts the clean latent x_0 from a noisy one, the LR image and the time.

The layout is that of the published ResShift, SinSR and RSD networks (118,593,583 parameters with the ``x4`` preset),
so that their weights can be read by :mod:`sr_models.reference`. The names are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sr_models.layers import GroupNorm32, run_block, zero_

ShiftMask = Literal["published", "swin"]


class SwinUNetConfig(BaseModel):
    """Sizes of a :class:`SwinUNet`; the defaults are the published x4 network.

    ``image_size`` is the latent size the network was designed for. It changes no tensor; it decides, as in the
    published network, at which levels the Swin windows are shifted (those whose native size exceeds the window).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=64, ge=1)
    latent_channels: int = Field(default=3, ge=1)
    condition_channels: int = Field(default=3, ge=0, description="channels of the LR image after unshuffling")
    noise_channels: int = Field(default=0, ge=0, description="RSD's extra noise input; 0 for a teacher")
    out_channels: int = Field(default=3, ge=1)
    base_channels: int = Field(default=160, ge=1)
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_levels: tuple[int, ...] = (0, 1, 2, 3)
    swin_embed_channels: int = Field(default=192, ge=1)
    swin_depth: int = Field(default=2, ge=1)
    swin_mlp_ratio: float = Field(default=4.0, gt=0)
    head_channels: int = Field(default=32, ge=1)
    window_size: int = Field(default=8, ge=1)
    shift_mask: ShiftMask = Field(default="published", description="see :func:`shift_mask`")
    norm_groups: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        levels = len(self.channel_multipliers)
        if len(self.res_blocks) != levels:
            raise ValueError(f"expected one res_blocks entry per level ({levels}), got {self.res_blocks}")
        if any(level not in range(levels) for level in self.attention_levels):
            raise ValueError(f"expected attention_levels within 0..{levels - 1}, got {self.attention_levels}")
        smallest = self.image_size >> (levels - 1)
        if smallest < 1:
            raise ValueError(
                f"expected image_size of at least {1 << (levels - 1)} for {levels} levels, got {self.image_size}"
            )
        native = [self.image_size >> level for level in range(levels)]
        if any(size < self.window_size and self.window_size % size for size in native):
            raise ValueError(
                f"expected window_size={self.window_size} to be a multiple of every native size below it, got {native}"
            )
        if self.swin_embed_channels % self.head_channels:
            raise ValueError(
                f"expected swin_embed_channels to be a multiple of head_channels={self.head_channels}, "
                f"got {self.swin_embed_channels}"
            )
        widths = [self.swin_embed_channels, *(self.base_channels * m for m in (1, *self.channel_multipliers))]
        if any(width % self.norm_groups for width in widths):
            raise ValueError(f"expected channels that divide into norm_groups={self.norm_groups}, got {widths}")
        return self

    @property
    def multiple(self) -> int:
        """Latent height and width that divide by this need no padding inside the network."""
        return self.window_size << (len(self.channel_multipliers) - 1)


class SwinUNet(nn.Module):
    """U-Net with FiLM time conditioning and a Swin block after the first residual block of each level.

    Set ``checkpointing`` to train with less memory: blocks are computed again in the backward pass.
    """

    def __init__(self, config: SwinUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        base = config.base_channels
        time_channels = 4 * base
        self.time_mlp = nn.Sequential(
            nn.Linear(base, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.stem = nn.Conv2d(config.latent_channels + config.condition_channels, base, 3, padding=1)
        # A separate convolution, not a wider stem: adding an exact zero leaves the teacher's output bit for bit.
        self.noise_stem: nn.Conv2d | None = None
        if config.noise_channels:
            self.noise_stem = nn.Conv2d(config.noise_channels, base, 3, padding=1, bias=False)
            zero_(self.noise_stem)

        def swin(channels: int, size: int) -> SwinLayer:
            return SwinLayer(channels, size, config)

        def res(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(channels, out_channels, time_channels, config.norm_groups, config.dropout)

        skip_channels = [base]
        channels, size = base, config.image_size
        self.down = nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for level, (multiplier, count) in enumerate(zip(config.channel_multipliers, config.res_blocks, strict=True)):
            stage = Stage()
            for index in range(count):
                stage.blocks.append(res(channels, base * multiplier))
                channels = base * multiplier
                skip_channels.append(channels)
                if index == 0 and level in config.attention_levels:
                    stage.attention = swin(channels, size)
            if level != last:
                stage.resample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
                skip_channels.append(channels)
                size //= 2
            self.down.append(stage)

        self.middle = nn.ModuleList([res(channels, channels), swin(channels, size), res(channels, channels)])

        self.up = nn.ModuleList()  # in the order of use: coarsest level first
        for level in range(last, -1, -1):
            stage = Stage()
            for index in range(config.res_blocks[level] + 1):
                stage.blocks.append(res(channels + skip_channels.pop(), base * config.channel_multipliers[level]))
                channels = base * config.channel_multipliers[level]
                if index == 0 and level in config.attention_levels:
                    stage.attention = swin(channels, size)
            if level:
                stage.resample = nn.Conv2d(channels, channels, 3, padding=1)
                size *= 2
            self.up.append(stage)
        self.norm_out = GroupNorm32(config.norm_groups, channels)
        self.head = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        zero_(self.head)

    def forward(self, x: Tensor, time_index: Tensor, lr: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Predict x_0 from the scaled noisy latent.

        Args:
            x: noisy latent times the input scale, (B, latent_channels, H, W), any H and W.
            time_index: 0-based time index t - 1 of the paper's t, (B,).
            lr: LR image, pixels [-1, 1], (B, 3, h, w); larger than the latent it is pixel-unshuffled,
                smaller it is resized.
            noise: N(0, 1) of shape (B, noise_channels, H, W); only for students.

        Returns:
            x_0 prediction, (B, out_channels, H, W).
        """
        height, width = x.shape[-2:]
        features, skips, emb = self._encode(x, time_index, lr, noise)
        h = features
        for stage in stages(self.up):
            for index, block in enumerate(stage.blocks):
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb)
                if index == 0 and stage.attention is not None:
                    h = self._run(stage.attention, h)
            if stage.resample is not None:
                h = stage.resample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.head(F.silu(self.norm_out(h)))
        return out[..., :height, :width]

    def bottleneck(
        self, x: Tensor, time_index: Tensor, lr: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Features after the encoder and the middle, where the DMD2-style discriminator branch reads (Sec. 3.4 of RSD).

        Returns:
            (B, base_channels * channel_multipliers[-1], H / 2^(levels-1), W / 2^(levels-1)).
        """
        return self._encode(x, time_index, lr, noise)[0]

    def _encode(
        self, x: Tensor, time_index: Tensor, lr: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        emb = self.time_mlp(timestep_embedding(time_index, self.config.base_channels).to(x.dtype))
        h = self.stem(self._pad(self._with_condition(x, lr)))
        if self.noise_stem is not None:
            if noise is None:
                raise ValueError("expected a noise tensor for a network with a noise channel, got none; pass noise=")
            h = h + self.noise_stem(self._pad(noise))
        elif noise is not None:
            raise ValueError("expected no noise for a network without a noise channel; drop noise=")
        skips = [h]
        for stage in stages(self.down):
            for index, block in enumerate(stage.blocks):
                h = self._run(block, h, emb)
                if index == 0 and stage.attention is not None:
                    h = self._run(stage.attention, h)
                skips.append(h)
            if stage.resample is not None:
                h = stage.resample(h)
                skips.append(h)
        first, attention, second = self.middle
        h = self._run(second, self._run(attention, self._run(first, h, emb)), emb)
        return h, skips, emb

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return run_block(block, *inputs, checkpointing=self.checkpointing)

    def _with_condition(self, x: Tensor, lr: Tensor | None) -> Tensor:
        if not self.config.condition_channels:
            return x
        if lr is None:
            raise ValueError("expected the LR image for a conditioned network, got none; pass lr=")
        height, width = x.shape[-2:]
        if lr.shape[-1] > width or lr.shape[-2] > height:
            factor = lr.shape[-1] // width
            if (height * factor, width * factor) != tuple(lr.shape[-2:]):
                raise ValueError(
                    f"expected an LR image of a whole multiple of the latent size {(height, width)}, "
                    f"got {tuple(lr.shape[-2:])}; pad the LR image first"
                )
            lr = F.pixel_unshuffle(lr, factor)
        elif lr.shape[-2:] != x.shape[-2:]:
            lr = F.interpolate(lr, size=(height, width), mode="bicubic", align_corners=False)
        if lr.shape[1] != self.config.condition_channels:
            raise ValueError(
                f"expected {self.config.condition_channels} condition channels, got {lr.shape[1]} from an LR image of "
                f"{tuple(lr.shape[-2:])} for a latent of {(height, width)}; the network was made for another scale"
            )
        return torch.cat([x, lr.to(x.dtype)], dim=1)

    def _pad(self, x: Tensor) -> Tensor:
        """Replicate the right and bottom edge up to a multiple of the window at the coarsest level."""
        right, bottom = -x.shape[-1] % self.config.multiple, -x.shape[-2] % self.config.multiple
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


class Stage(nn.Module):
    """One resolution of the U-Net: residual blocks, the Swin layer after the first, and the resampling convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attention: SwinLayer | None = None
        self.resample: nn.Conv2d | None = None


def stages(modules: nn.ModuleList) -> Iterator[Stage]:
    """Iterate over a list of stages with their type."""
    for module in modules:
        assert isinstance(module, Stage)
        yield module


class ResBlock(nn.Module):
    """Two 3x3 convolutions with FiLM time conditioning and a residual connection."""

    def __init__(self, channels: int, out_channels: int, time_channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = GroupNorm32(groups, channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.film = nn.Linear(time_channels, 2 * out_channels)
        self.norm_out = GroupNorm32(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        zero_(self.conv_out)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, channels, H, W) and the time embedding (B, time_channels) to (B, out_channels, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm_out(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv_out(self.dropout(F.silu(h)))
        return out


class SwinLayer(nn.Module):
    """1x1 convolution, ``swin_depth`` Swin blocks of which every second one is shifted, 1x1 convolution."""

    def __init__(self, channels: int, native_size: int, config: SwinUNetConfig) -> None:
        super().__init__()
        embed = config.swin_embed_channels
        self.proj_in = nn.Conv2d(channels, embed, 1)
        # A level that fits in one window has nothing to shift, and its window shrinks to it.
        window = min(config.window_size, native_size)
        shift = config.window_size // 2 if native_size > config.window_size else 0
        self.blocks = nn.ModuleList(
            SwinBlock(embed, window, shift if index % 2 else 0, config) for index in range(config.swin_depth)
        )
        self.proj_out = nn.Conv2d(embed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape; H and W are multiples of the window."""
        h = self.proj_in(x)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.proj_out(h)
        return out


class SwinBlock(nn.Module):
    """Windowed attention and a pointwise MLP, each with GroupNorm before it and a residual around it."""

    def __init__(self, channels: int, window: int, shift: int, config: SwinUNetConfig) -> None:
        super().__init__()
        self.shift = shift
        self.norm_attention = GroupNorm32(config.norm_groups, channels)
        self.attention = WindowAttention(channels, window, channels // config.head_channels, config.shift_mask)
        self.norm_mlp = GroupNorm32(config.norm_groups, channels)
        hidden = int(channels * config.swin_mlp_ratio)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = x + self.attention(self.norm_attention(x), self.shift)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class WindowAttention(nn.Module):
    """Multi-head attention inside square windows with a learned relative position bias."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, heads: int, mask_kind: ShiftMask) -> None:
        super().__init__()
        self.window, self.heads, self.mask_kind = window, heads, mask_kind
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """Attend within windows of (B, C, H, W), displaced by ``shift`` pixels; same shape."""
        height, width = x.shape[-2:]
        rows, columns, window = height // self.window, width // self.window, self.window
        if shift:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(2, 3))
        tokens = rearrange(x, "b c (nh wh) (nw ww) -> b (nh nw) (wh ww) c", wh=window, ww=window)
        q, k, v = rearrange(self.qkv(tokens), "b n l (three h d) -> three (b n) h l d", three=3, h=self.heads)
        tokens = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(x, shift))
        tokens = self.proj(rearrange(tokens, "bn h l d -> bn l (h d)"))
        x = rearrange(tokens, "(b nh nw) (wh ww) c -> b c (nh wh) (nw ww)", nh=rows, nw=columns, wh=window)
        return torch.roll(x, shifts=(shift, shift), dims=(2, 3)) if shift else x

    def _mask(self, x: Tensor, shift: int) -> Tensor:
        """Additive attention mask: position bias (1, heads, L, L), plus the shift mask per window if shifted."""
        index = self.relative_position_index
        bias = rearrange(self.relative_position_bias[index.flatten()], "(l m) h -> 1 h l m", l=index.shape[0])
        bias = bias.to(x.dtype)
        if not shift:
            return bias
        batch, _, height, width = x.shape
        # While a graph is traced sizes are values of that graph, which must not stay in the cache.
        make = shift_mask.__wrapped__ if torch.onnx.is_in_onnx_export() else shift_mask
        mask = make(height, width, self.window, shift, self.mask_kind).to(x.device, x.dtype)
        return rearrange(bias + mask[:, None], "n h l m -> 1 n h l m").expand(batch, -1, -1, -1, -1).flatten(0, 1)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window, (window^2, window^2) int64."""
    axis = torch.arange(window)
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = coordinates[:, :, None] - coordinates[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, shift: int, kind: ShiftMask) -> Tensor:
    """Additive mask that keeps regions apart that only the cyclic shift brought into one window.

    ``"swin"`` separates what wrapped around on both axes. ``"published"`` is what the published networks were trained
    with, found from their stored masks: only the bottom row of windows is masked, left part against right part.

    Returns:
        (windows, window^2, window^2) float32 on the CPU: 0 within a region, -100 across. Cached per size.
    """

    def axis(length: int) -> Tensor:
        return torch.arange(length, device="cpu")  # whatever the default device of the first caller

    def wrapped(length: int) -> Tensor:
        return axis(length) >= length - shift

    if kind == "published":
        bottom = axis(height) >= height - window
        right = axis(width) % window >= window - shift
        label = (bottom[:, None] & right[None, :]).long()
    else:
        label = 2 * wrapped(height).long()[:, None] + wrapped(width).long()[None, :]
    label = rearrange(label, "(nh wh) (nw ww) -> (nh nw) (wh ww)", wh=window, ww=window)
    return (label[:, None, :] != label[:, :, None]).to(torch.float32) * -100.0


def timestep_embedding(time_index: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding, cosines first: (B,) -> (B, channels) float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=time_index.device) / half)
    angle = time_index.float()[:, None] * frequencies[None]
    embedding = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return F.pad(embedding, (0, channels % 2))
