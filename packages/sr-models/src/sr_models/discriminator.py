"""The GAN head of RSD: real or generated, from the bottleneck features of the fake model's U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.layers import GroupNorm32
from sr_models.swin_unet import SwinUNetConfig


class DiscriminatorHead(nn.Module):
    """Classification branch on the bottleneck: two strided convolutions, mean over positions, one logit.

    The discriminator is the fake model's encoder and middle with this head on top, as in DMD2. The mean over positions
    lets latents of any size through.

    Args:
        channels: of the features, a multiple of ``norm_groups``.
        norm_groups: groups of the normalisation.

    Source: RSD Sec. 3.4 and Fig. 3
    """

    def __init__(self, channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm_in = GroupNorm32(norm_groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm_out = GroupNorm32(norm_groups, channels)
        self.logit = nn.Linear(channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map bottleneck features (B, channels, H, W) to logits (B,): above 0 looks real."""
        h = F.silu(self.norm_in(self.conv_in(features)))
        h = F.silu(self.norm_out(self.conv_out(h)))
        logit: Tensor = self.logit(h.mean((2, 3)))
        return logit[:, 0]


def make_head(unet: SwinUNetConfig, generator: torch.Generator) -> DiscriminatorHead:
    """Return a fresh head for the bottleneck of a U-Net; every weight is drawn from ``generator``.

    Source: RSD Algorithm 1, randomInitOfDiscriminatorHead
    """
    head = DiscriminatorHead(unet.base_channels * unet.channel_multipliers[-1], unet.norm_groups)
    layers: tuple[nn.Conv2d | nn.Linear, ...] = (head.conv_in, head.conv_out, head.logit)
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return head
