"""The continuous autoencoder: reconstruction in pixels and a Gaussian posterior of fixed width in the latent.

The posterior is N(Enc(x), sigma^2 I) and the prior N(0, I), so the KL divergence is |Enc(x)|^2 / 2 up to a constant.
Decoding a noisy latent makes neighbouring latents decode alike, which is what a diffusion model's errors need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.output import ObjectiveOutput, mean_output
from sr_models import VQAutoencoder


def autoencoder_loss(
    network: VQAutoencoder,
    images: Tensor,
    noise: Tensor,
    *,
    sigma: float,
    l1_weight: float,
    mse_weight: float,
    kl_weight: float,
) -> ObjectiveOutput:
    """Reconstruction loss and KL divergence, per sample.

    Args:
        network: autoencoder without a quantizer.
        images: pixels [-1, 1], (B, 3, H, W).
        noise: N(0, 1), (B, C, H/f, W/f).
        sigma: standard deviation of the posterior, in unscaled latent units.
        l1_weight: weight of mean |x - x_hat|.
        mse_weight: weight of mean (x - x_hat)^2.
        kl_weight: weight of the KL divergence, mean over latent elements.
    """
    z = network.encode(images)
    reconstruction = network.decode(z + sigma * network.config.latent_scale * noise).float()
    error = reconstruction - images
    l1, mse = error.abs().flatten(1).mean(1), error.square().flatten(1).mean(1)
    kl = (z.float() / network.config.latent_scale).square().flatten(1).mean(1) / 2
    return mean_output(l1_weight * l1 + mse_weight * mse + kl_weight * kl, l1=l1.mean(), mse=mse.mean(), kl=kl.mean())


def noise_for(network: VQAutoencoder, images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the latent noise that belongs to a batch of images."""
    batch, _, height, width = images.shape
    factor = network.config.factor
    shape = (batch, network.config.latent_channels, height // factor, width // factor)
    return torch.randn(shape, generator=generator).to(images.device)
