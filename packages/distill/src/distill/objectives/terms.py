"""Terms that an objective may add to its own: LPIPS, GAN, and squared errors of the one-step output.

Each is a function of one pass that returns a value for each sample; the weights and which of them are used stand in the
run's configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.objectives.output import Latents, TermValue, squared_error, widen


class Pairs(Protocol):
    """A batch with what one-step outputs are compared to."""

    @property
    def hr(self) -> Tensor:
        """HR image, pixels [-1, 1]."""
        ...

    @property
    def z_0(self) -> Tensor:
        """Scaled latent of the HR image."""
        ...


class OneStepPass(Protocol):
    """A pass that has the one-step output at T."""

    @property
    def latents(self) -> Pairs:
        """The batch."""
        ...

    @property
    def one_step(self) -> Tensor:
        """One-step output, scaled latent (B, C, H, W)."""
        ...

    @property
    def pixels(self) -> Tensor:
        """One-step output decoded, pixels (B, 3, h, w)."""
        ...


class Sample(Protocol):
    """A generated latent."""

    @property
    def z_0_hat(self) -> Tensor:
        """Scaled latent, (B, C, H, W)."""
        ...


class SamplePass(Protocol):
    """A pass that has the generator's output at its training time."""

    @property
    def latents(self) -> Latents:
        """The batch."""
        ...

    @property
    def sample(self) -> Sample:
        """The generator's output."""
        ...


class FeatureReader(Protocol):
    """Anything with bottleneck features, as :class:`sr_models.Denoiser`."""

    def bottleneck(self, z_t: Tensor, lr: Tensor, t: Tensor) -> Tensor:
        """Features of z_t at the paper's t."""
        ...


@dataclass(frozen=True)
class LPIPS:
    """Perceptual distance of the decoded one-step output to the HR image.

    Args:
        distance: from two images, pixels [-1, 1] (B, 3, h, w), to distances of B elements, frozen.

    Source: RSD Sec. 3.4 and Algorithm 1, line 45
    """

    distance: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, step: OneStepPass) -> TermValue:
        """Return the distance of each sample."""
        pixels, hr = step.pixels, step.latents.hr
        # Full precision: the distance is a small difference of normalised features.
        with torch.autocast(pixels.device.type, enabled=False):
            return TermValue(self.distance(pixels, hr).flatten())


@dataclass(frozen=True)
class Discriminator:
    """Logits of clean latents: a head on the fake model's bottleneck features at the lowest time.

    The published networks were trained with time index 0 for the least noisy latents; clean latents enter there,
    without noise. It is the 0 in the paper's Algorithm 1.

    Args:
        features: the fake model.
        head: from features to logits (B,).

    Source: RSD Sec. 3.4 and Fig. 3
    """

    features: FeatureReader
    head: nn.Module

    def __call__(self, z_0: Tensor, lr: Tensor) -> Tensor:
        """Return the logits (B,) of clean scaled latents (B, C, H, W) given their LR images; above 0 looks real."""
        t = torch.ones(z_0.shape[0], dtype=torch.int64, device=z_0.device)
        return widen(self.head(self.features.bottleneck(z_0, lr, t)))


@dataclass(frozen=True)
class GeneratorGAN:
    """-log D(z_0_hat), the generator's part of Eq. 8; gradients flow through the discriminator into the generator.

    Source: RSD Eq. 8 and Algorithm 1, line 48
    """

    discriminator: Discriminator

    def __call__(self, step: SamplePass) -> TermValue:
        """Return softplus(-logit) of each sample."""
        logits = self.discriminator(step.sample.z_0_hat, step.latents.lr)
        return TermValue(F.softplus(-logits))


@dataclass(frozen=True)
class DiscriminatorGAN:
    """-log D(z_0) - log(1 - D(z_0_hat)), which trains the head and the fake model's encoder and middle.

    Eq. 8 writes -log D(z_0_hat) with the sign for the generator alone; taken literally the discriminator's part
    log D(z_0_hat) has no minimum, so this is the usual one, which has the same equilibrium (as in DMD2).

    Source: RSD Eq. 8 and Algorithm 1, line 28
    """

    discriminator: Discriminator

    def __call__(self, step: SamplePass) -> TermValue:
        """Return softplus(-real) + softplus(generated) of each sample, and how many are told apart."""
        real = self.discriminator(step.latents.z_0, step.latents.lr)
        generated = self.discriminator(step.sample.z_0_hat.detach(), step.latents.lr)
        with torch.no_grad():
            right = torch.cat([real > 0, generated < 0]).float().mean()
        return TermValue(F.softplus(-real) + F.softplus(generated), {"gan_accuracy": right})


@dataclass(frozen=True)
class Features:
    """Distance of the decoded one-step output to the HR image in the features of a network that has not seen it all.

    Features are scaled to unit length at every position, as LPIPS does, and compared layer by layer. Of the VAE's own
    encoder they stand in for LPIPS where no ImageNet backbone can be had; what people see they know less of.

    Args:
        read: from pixels [-1, 1] (B, 3, h, w) to features (B, C, H, W) of several layers, differentiable.
    """

    read: Callable[[Tensor], Sequence[Tensor]]

    def __call__(self, step: OneStepPass) -> TermValue:
        """Return the distance of each sample: the sum over layers of the mean squared distance at a position."""
        with torch.no_grad():
            wanted = [F.normalize(widen(layer), dim=1) for layer in self.read(step.latents.hr)]
        found = [F.normalize(widen(layer), dim=1) for layer in self.read(step.pixels)]
        distances = [(one - other).square().sum(1).flatten(1).mean(1) for one, other in zip(found, wanted, strict=True)]
        return TermValue(torch.stack(distances).sum(0))


def latent_mse(step: OneStepPass) -> TermValue:
    """Mean squared error of the one-step output to z_0, per sample."""
    return TermValue(squared_error(step.one_step, step.latents.z_0))


def pixel_mse(step: OneStepPass) -> TermValue:
    """Mean squared error of the decoded one-step output to the HR image (pixels [-1, 1]), per sample."""
    return TermValue(squared_error(step.pixels, step.latents.hr))
