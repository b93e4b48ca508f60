"""One-step students of text-to-image teachers: LoRA on the network and on the VAE's encoder, the decoder as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_models.geometry import upsample
from sr_models.restoration.tiles import MAPS_AT_ONCE
from sr_models.t2i.base import Base
from sr_models.t2i.lora import LoRA, add_lora, lora_parameters, osediff_unet, osediff_vae, tsd_student, tsd_vae
from sr_models.t2i.prompts import Prompt
from sr_models.t2i.tiling import tiled
from sr_models.t2i.vae import decode, encode, factor

OVERLAP_SHARE = 8
"""Tiles overlap by an eighth of their side, as the published 8 of 64 latent positions."""


@dataclass(frozen=True)
class T2IStudent:
    """A one-step student: VAE encoder with LoRA, network with LoRA at the noisiest time, frozen decoder.

    Args:
        base: owns the networks, which carry the adapters.
        network_lora: recipe of the network's adapters.
        vae_lora: recipe of the encoder's adapters.
        prompt: the prompt that it always gets, batch of one.
        scale: enlargement.
        tile: side of the latents that it was trained on; larger ones are cut into tiles of this side.
    """

    base: Base
    network_lora: LoRA
    vae_lora: LoRA
    prompt: Prompt
    scale: int
    tile: int

    @property
    def kind(self) -> str:
        """What it is called."""
        return "student"

    @property
    def steps(self) -> tuple[int, ...]:
        """It restores in one evaluation."""
        return (1,)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return int(self.base.vae.config.latent_channels)

    @property
    def pixel_multiple(self) -> int:
        """HR sides have to be multiples of this, so that the latent fits the patches, or the U-Net's levels."""
        network = self.base.predictor.network.config
        latent = network.patch_size if self.base.family == "sd3" else 2 ** (len(network.block_out_channels) - 1)
        return int(latent) * factor(self.base.vae)

    @property
    def lr_multiple(self) -> int:
        """LR sides have to be multiples of this."""
        return self.pixel_multiple // math.gcd(self.pixel_multiple, self.scale)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All trained tensors: the network's under ``network.``, the encoder's under ``vae.``."""
        network = lora_parameters(self.base.predictor.network, self.network_lora)
        vae = lora_parameters(self.base.vae, self.vae_lora)
        return {
            **{f"network.{name}": parameter for name, parameter in network.items()},
            **{f"vae.{name}": parameter for name, parameter in vae.items()},
        }

    @property
    def color(self) -> str:
        """TSD-SR's program corrects colours by wavelets, OSEDiff's by mean and deviation."""
        return "wavelet" if self.base.family == "sd3" else "adain"

    @property
    def bytes_per_pixel(self) -> int:
        """Memory for one LR pixel: the decoder's last level."""
        return MAPS_AT_ONCE * 4 * int(self.base.vae.config.block_out_channels[0]) * self.scale**2

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        """The VAE: the other network cuts its latents into tiles of its own."""
        return (self.base.vae,)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        """Move the networks and put them in eval mode."""
        for network in (self.base.predictor.network, self.base.vae):
            nn.Module.to(nn.Module.to(network, device), memory_format=memory_format).eval()

    def __call__(self, pixels: Tensor, noise: Tensor, prompt: Prompt | None = None) -> Tensor:
        """Output of one step, differentiable in all trained tensors.

        z_L is sampled from the encoder's posterior and goes into the network as if it were noise at the noisiest time;
        the output is the clean latent that the prediction means (SD3: z_L - velocity). No noise is added, no guidance.

        Args:
            pixels: LR images enlarged to the size of HR, [-1, 1], (B, 3, H, W).
            noise: N(0, 1) of the posterior, (B, C, H / f, W / f).
            prompt: of each image; None: the student's own.

        Returns:
            Scaled latent (B, C, H / f, W / f).

        Source: TSD-SR Sec. 3.2 and Algorithm 1, line 4
        """
        predictor = self.base.predictor
        z_L = encode(self.base.vae, pixels, noise)
        wanted = prompt or self.prompt.repeat(len(z_L))
        index = torch.full((len(z_L),), predictor.start, dtype=torch.int64, device=z_L.device)
        prediction = tiled(lambda part: predictor(part, index, wanted), z_L, self.tile, self.tile // OVERLAP_SHARE)
        return predictor.x_0(prediction, z_L, index)

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        """Shape of the posterior's noise for LR images of this size."""
        pixels = factor(self.base.vae)
        return (1, batch, self.latent_channels, height * self.scale // pixels, width * self.scale // pixels)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """LR images, pixels [-1, 1], (B, 3, h, w) of whole multiples, to SR images, not clamped.

        Args:
            lr: on the networks' device.
            noise: N(0, 1) of :meth:`noise_shape`.
            steps: 1.
        """
        return decode(self.base.vae, self(upsample(lr, self.scale), noise[0]))


def make_student(
    base: Base, prompt: Prompt, *, scale: int, tile: int, rank: int, vae_rank: int, seed: int
) -> T2IStudent:
    """Add fresh adapters to a base: TSD-SR's on SD3, OSEDiff's on SD2. With B = 0 it starts as the base.

    Args:
        base: loaded for this student alone; it is changed.
        prompt: the student's, batch of one.
        scale: enlargement.
        tile: side of the training latents.
        rank: of the network's adapters.
        vae_rank: of the encoder's.
        seed: of the initial values.
    """
    network, vae = base.predictor.network, base.vae
    if base.family == "sd3":
        recipes = tsd_student(network, rank), tsd_vae(vae, vae_rank)
    else:
        recipes = osediff_unet(network, rank), osediff_vae(vae, vae_rank)
    add_lora(network, recipes[0], seed)
    add_lora(vae, recipes[1], seed + 1)
    return T2IStudent(base, *recipes, prompt, scale, tile)


class AdapterWeights(nn.Module):
    """Trained tensors of networks as a module of their own: what an optimizer, an average and a checkpoint are of.

    The parameters are the networks' own, not copies.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)  # a module's own names have no dots

    @contextmanager
    def showing(self, other: nn.Module) -> Iterator[None]:
        """Within it the networks compute with the values of another such module, afterwards with their own again."""
        own = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        try:
            self.load_state_dict(other.state_dict())
            yield
        finally:
            self.load_state_dict(own)
