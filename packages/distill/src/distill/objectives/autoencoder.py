"""The continuous autoencoder: reconstruction in pixels and a Gaussian posterior of fixed width in the latent.

The posterior is N(Enc(x), sigma^2 I) and the prior N(0, I), so the KL divergence is |Enc(x)|^2 / 2 up to a constant.
Decoding a noisy latent makes neighbouring latents decode alike, which is what a diffusion model's errors need.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.noise import SampleNoise
from distill.objectives.output import ObjectiveOutput, combine, mean, widen
from sr_models import VQAutoencoder

BRIGHTNESS = ((0.5, 0.5, 0.5),)
OPPONENT = ((3.3, 0.0, -3.3), (-3.2, 6.4, -3.2))
"""Red - blue and green - magenta from RGB, scaled to unit variance over the generated images (pixels [-1, 1])."""


class Weights(NamedTuple):
    """Weights of the terms, each a mean over a sample's elements.

    Args:
        l1: of |x - x_hat|.
        mse: of (x - x_hat)^2.
        colour: of the squared errors along red-blue and green-magenta, pooled over one latent position, relative to
            their variance in pictures. Colour varies much less than brightness; without this term a small latent leaves
            green-magenta out, and no luma metric tells.
        kl: of the KL divergence.
    """

    l1: float
    mse: float
    colour: float
    kl: float


def autoencoder_loss(
    network: VQAutoencoder, images: Tensor, noise: Tensor, *, sigma: float, weights: Weights
) -> ObjectiveOutput:
    """Reconstruction loss and KL divergence, per sample.

    Args:
        network: autoencoder without a quantizer.
        images: pixels [-1, 1], (B, 3, H, W).
        noise: N(0, 1), (B, C, H/f, W/f).
        sigma: standard deviation of the posterior, in unscaled latent units.
        weights: of the terms.
    """
    z = network.encode(images)
    reconstruction = widen(network.decode(z + sigma * network.config.latent_scale * noise))
    error = reconstruction - images
    pooled = F.avg_pool2d(error, network.config.factor)
    opponent = torch.einsum("ac,bchw->bahw", pooled.new_tensor(OPPONENT), pooled)
    terms = {
        "l1": mean(error.abs()),
        "mse": mean(error.square()),
        "colour": mean(opponent.square()),
        "kl": mean((widen(z) / network.config.latent_scale).square()) / 2,
    }
    return combine(terms, weights._asdict())


@torch.no_grad()
def balance_colours_(network: VQAutoencoder) -> None:
    """Make a fresh encoder see brightness and both colour axes at about unit variance, in place.

    The first convolution is multiplied by that change of axes, which it could as well have been drawn with. Otherwise
    green-magenta starts seven times weaker than brightness in variance; 3000 steps did not learn it.
    """
    weight = network.encoder.conv_in.weight
    axes = weight.new_tensor(BRIGHTNESS + OPPONENT)
    weight.copy_(torch.einsum("oahw,ac->ochw", weight, axes))


def noise_for(network: VQAutoencoder, images: Tensor, noise: SampleNoise) -> Tensor:
    """Draw the latent noise that belongs to a batch of images."""
    height, width = images.shape[-2:]
    factor = network.config.factor
    return noise.normal((network.config.latent_channels, height // factor, width // factor))
