"""Discriminators: RSD's head on the fake model's bottleneck features, and the patch discriminator on pixels."""

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


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for every overlapping patch of an image, 70x70 pixels with the defaults.

    Strided 4x4 convolutions with LeakyReLU 0.2, channels doubling up to 8 times ``base_channels``, then two of stride
    1. The published network has batch normalisation; here it is group normalisation, because the logits of a sample
    must not depend on what else is in its batch: micro-batches and processes would change them.

    Args:
        base_channels: of the first layer.
        layers: strided convolutions.
        norm_groups: groups of the normalisation; divide ``2 * base_channels``.
        image_channels: of the input.

    Source: Isola et al. 2017 (pix2pix), Sec. 6.1.2
    """

    def __init__(
        self, base_channels: int = 64, layers: int = 3, norm_groups: int = 32, image_channels: int = 3
    ) -> None:
        super().__init__()
        if layers < 1 or 2 * base_channels % norm_groups:
            raise ValueError(
                f"expected layers >= 1 and channels that divide into norm_groups={norm_groups}, got layers={layers} "
                f"and 2*{base_channels} channels; change base_channels or norm_groups"
            )
        self.smallest = 3 << layers
        """Images need this many pixels a side."""
        blocks: list[nn.Module] = [nn.Conv2d(image_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = base_channels
        for layer in range(1, layers + 1):
            out_channels = base_channels * min(1 << layer, 8)
            stride = 2 if layer < layers else 1
            # The normalisation has a bias of its own.
            blocks.append(nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1, bias=False))
            blocks += [GroupNorm32(norm_groups, out_channels), nn.LeakyReLU(0.2)]
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.logits = nn.Conv2d(channels, 1, 4, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W), pixels [-1, 1], to logits (B, 1, h, w) of patches: above 0 looks real.

        Raises:
            ValueError: the images are smaller than a patch's convolutions need.
        """
        if min(images.shape[-2:]) < self.smallest:
            raise ValueError(
                f"expected images of at least {self.smallest}x{self.smallest} pixels, got {tuple(images.shape[-2:])}; "
                "take larger images or fewer layers"
            )
        logits: Tensor = self.logits(self.blocks(images))
        return logits


def make_patch_discriminator(
    generator: torch.Generator, base_channels: int = 64, layers: int = 3, norm_groups: int = 32
) -> PatchDiscriminator:
    """Return a fresh patch discriminator; its convolutions are drawn from ``generator``, N(0, 0.02^2) as published.

    Source: Isola et al. 2017, Sec. 6.2
    """
    discriminator = PatchDiscriminator(base_channels, layers, norm_groups)
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return discriminator
