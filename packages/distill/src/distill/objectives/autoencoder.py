"""Autoencoders: reconstruction in pixels, and what keeps the latent in shape.

Two kinds of latent share the reconstruction terms. Continuous: the posterior is N(Enc(x), sigma^2 I) and the prior
N(0, I), so the KL divergence is |Enc(x)|^2 / 2 up to a constant; decoding a noisy latent makes neighbouring latents
decode alike, which is what a diffusion model's errors need. Quantized: every position is replaced by its nearest code,
the gradient passes straight through, and two terms draw outputs and codes together (VQ-VAE); with LPIPS and a patch
discriminator it is VQ-GAN.

Other than the objectives on latents this one trains what makes the latent, and its GAN differs from that of
:mod:`distill.objectives.terms`: the discriminator is a network of its own on pixels, with a hinge loss, and the weight
follows the gradients at the decoder's last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.noise import SampleNoise
from distill.objectives.output import TermValue, WeightedTerm, mean, squared_error, widen
from sr_models import VQAutoencoder
from sr_models.autoencoder import Quantized

BRIGHTNESS = ((0.5, 0.5, 0.5),)
OPPONENT = ((3.3, 0.0, -3.3), (-3.2, 6.4, -3.2))
"""Red - blue and green - magenta from RGB, scaled to unit variance over the generated images (pixels [-1, 1])."""

MAX_ADAPTIVE = 1e4


@dataclass(frozen=True)
class AutoencoderPass:
    """What the terms read of one batch; each part is computed when a term first asks for it.

    Args:
        network: autoencoder.
        hr: images, pixels [-1, 1], (B, 3, H, W).
    """

    network: VQAutoencoder
    hr: Tensor
    kept: dict[Callable[..., TermValue], TermValue] = field(default_factory=dict, init=False)

    @property
    def latents(self) -> Self:
        """The batch, where the terms of latent objectives look for ``latents.hr``."""
        return self

    @cached_property
    def z(self) -> Tensor:
        """Encoder output, scaled latent (B, C, h, w)."""
        return self.network.encode(self.hr)

    @cached_property
    def pixels(self) -> Tensor:
        """Reconstruction, nominally [-1, 1], not clamped: clamping would stop the gradient."""
        return widen(self.decode())

    @cached_property
    def error(self) -> Tensor:
        """Reconstruction less image."""
        return self.pixels - self.hr

    def decode(self) -> Tensor:
        """Decode the latent as this kind of autoencoder does in training."""
        raise NotImplementedError

    def once(self, term: Callable[[AutoencoderPass], TermValue]) -> TermValue:
        """The value of a term of this pass, computed at the first call."""
        if term not in self.kept:
            self.kept[term] = term(self)
        return self.kept[term]


@dataclass(frozen=True)
class ContinuousPass(AutoencoderPass):
    """A pass of an autoencoder without a codebook.

    Args:
        noise: N(0, 1), (B, C, h, w).
        sigma: standard deviation of the posterior, in unscaled latent units.
    """

    noise: Tensor
    sigma: float

    def decode(self) -> Tensor:
        """Decode a sample of the posterior."""
        return self.network.decode(self.z + self.sigma * self.network.config.latent_scale * self.noise)


@dataclass(frozen=True)
class QuantizedPass(AutoencoderPass):
    """A pass of an autoencoder with a codebook."""

    @cached_property
    def outputs(self) -> Tensor:
        """Encoder outputs in the codebook's units (unscaled), (B, C, h, w)."""
        return widen(self.z) / self.network.config.latent_scale

    @cached_property
    def quantized(self) -> Quantized:
        """Nearest codes; the gradient passes straight through to the outputs."""
        return self.network.quantize(self.outputs)

    @cached_property
    def codes(self) -> Tensor:
        """The codes themselves, (B, C, h, w), differentiable in the codebook."""
        assert self.network.codebook is not None
        chosen: Tensor = self.network.codebook(self.quantized.codes)
        return chosen.permute(0, 3, 1, 2)

    def decode(self) -> Tensor:
        """Decode the codes."""
        return self.network.decode(self.quantized.z * self.network.config.latent_scale, quantize=False)


@dataclass(frozen=True)
class Once:
    """A term that several readers of one pass share: it is computed once."""

    term: Callable[[AutoencoderPass], TermValue]

    def __call__(self, step: AutoencoderPass) -> TermValue:
        """Return the term's value."""
        return step.once(self.term)


def l1(step: AutoencoderPass) -> TermValue:
    """Mean |x_hat - x|, per sample."""
    return TermValue(mean(step.error.abs()))


def mse(step: AutoencoderPass) -> TermValue:
    """Mean (x_hat - x)^2, per sample."""
    return TermValue(mean(step.error.square()))


def colour(step: AutoencoderPass) -> TermValue:
    """Mean squared error along red-blue and green-magenta, pooled over one latent position, per sample.

    It is relative to their variance in pictures. Colour varies much less than brightness; without this term a small
    latent leaves green-magenta out, and no luma metric tells.
    """
    pooled = F.avg_pool2d(step.error, step.network.config.factor)
    opponent = torch.einsum("ac,bchw->bahw", pooled.new_tensor(OPPONENT), pooled)
    return TermValue(mean(opponent.square()))


def kl(step: AutoencoderPass) -> TermValue:
    """KL divergence of the posterior from N(0, I), up to a constant, a mean over elements, per sample."""
    return TermValue(mean((widen(step.z) / step.network.config.latent_scale).square()) / 2)


def codebook(step: QuantizedPass) -> TermValue:
    """Mean (sg[z] - e)^2, per sample: moves the codes to the encoder's outputs, and nothing else.

    Source: van den Oord et al. 2017, Eq. 3, second term
    """
    return TermValue(squared_error(step.codes, step.outputs.detach()))


def commitment(step: QuantizedPass) -> TermValue:
    """Mean (z - sg[e])^2, per sample: keeps the encoder's outputs near their codes; published weight 0.25.

    Source: van den Oord et al. 2017, Eq. 3, third term
    """
    return TermValue(squared_error(step.outputs, step.codes.detach()))


@dataclass(frozen=True)
class GeneratorGAN:
    """lambda times -D(x_hat), a mean over patches; gradients flow through the discriminator into the autoencoder.

    lambda balances the GAN with the reconstruction: both then pull equally hard at the decoder's last layer. It is
    computed on this micro-batch, and is the one number of a loss that depends on the micro-batches.

    Args:
        discriminator: from pixels (B, 3, H, W) to logits (B, 1, h, w), frozen but differentiable in its input.
        reconstruction: the weighted terms of L_rec, the same objects that the loss adds up.
        joined: whether the GAN takes part yet.

    Source: Esser et al. 2021 (VQ-GAN), Eq. 5 to 7, with the hinge loss of its code
    """

    discriminator: nn.Module
    reconstruction: Sequence[WeightedTerm[AutoencoderPass]]
    joined: Callable[[], bool]

    def __call__(self, step: AutoencoderPass) -> TermValue:
        """Return the generator's loss of each sample, 0 before the GAN joins."""
        if not self.joined():
            return TermValue(step.pixels.new_zeros(len(step.hr)))
        values = mean(-widen(self.discriminator(step.pixels)))
        found = [weighted.weight * weighted.term(step).values.mean() for weighted in self.reconstruction]
        last_layer = step.network.decoder.conv_out.weight
        balance = adaptive_weight(torch.stack(found).sum(), values.mean(), last_layer)
        return TermValue(balance * values, {"gan_lambda": balance})


def adaptive_weight(reconstruction: Tensor, gan: Tensor, last_layer: Tensor) -> Tensor:
    """lambda = |d L_rec / d W| / (|d L_GAN / d W| + 1e-4), at most 1e4, detached, for the last layer's weight W.

    Source: VQ-GAN Eq. 7
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_gan,) = torch.autograd.grad(gan, last_layer, retain_graph=True)
    ratio: Tensor = widen(of_reconstruction).norm() / (widen(of_gan).norm() + 1e-4)
    return ratio.clamp(max=MAX_ADAPTIVE).detach()


@dataclass(frozen=True)
class DiscriminatorGAN:
    """Hinge loss (max(0, 1 - D(x)) + max(0, 1 + D(x_hat))) / 2, a mean over patches, which trains the discriminator.

    Args:
        discriminator: from pixels (B, 3, H, W) to logits (B, 1, h, w).
    """

    discriminator: nn.Module

    def __call__(self, step: AutoencoderPass) -> TermValue:
        """Return the loss of each sample, and how many patches are told apart."""
        with torch.no_grad():
            generated = step.pixels
        real, fake = widen(self.discriminator(step.hr)), widen(self.discriminator(generated))
        with torch.no_grad():
            right = torch.cat([real > 0, fake < 0]).float().mean()
        return TermValue(mean(F.relu(1 - real) + F.relu(1 + fake)) / 2, {"gan_accuracy": right})


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
