"""SuperResolver: an LR image of any size -> the SR image, in one network evaluation."""

from __future__ import annotations

import math
import os
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sr_models import store
from sr_models.model import SRModel

LARGEST_UNTILED = 512 * 512
"""LR pixels that are restored in one piece when nobody asks for tiles."""
AUTO_TILE = 256
TILE_OVERLAP = 32
"""LR pixels that neighbouring tiles share and in which one fades into the other."""


class SuperResolver:
    """Restores photographs with a model: one step for a student, the whole chain for a teacher.

    Args:
        model: networks, schedule and scale.
        device: where to compute.
    """

    def __init__(self, model: SRModel, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.device = torch.device(device)
        self.denoiser = model.denoiser
        model.unet.to(self.device).eval()
        model.autoencoder.to(self.device).eval()

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str] = "tiny-student", device: torch.device | str = "cpu") -> Self:
        """Load a shipped model by name or a model folder.

        Raises:
            FileNotFoundError: no such model.
            ValueError: the files are truncated, changed, or of another kind.
        """
        return cls(store.load_model(name), device)

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        return self.model.config.scale

    def upscale(
        self,
        image: Image.Image | NDArray[np.uint8],
        *,
        seed: int = 0,
        steps: int | None = None,
        tile: int | None = None,
    ) -> Any:
        """Restore one picture.

        Args:
            image: a PIL image of 8 bits a channel (converted to RGB) or (H, W, 3) uint8.
            seed: of the noise; the same seed gives the same picture.
            steps: 1, or the model's T for the whole chain; None: 1 for a student, T for a teacher.
            tile: side of the tiles in LR pixels; None: tiles of 256 for more than 512x512 LR pixels, so that what
                the networks need does not grow with the picture (its noise and its output still do); 0: never.

        Returns:
            The same type as ``image``, scale times its width and height.
        """
        if isinstance(image, Image.Image):
            if image.mode.startswith(("I", "F")):  # Pillow would clip these, not scale them
                raise ValueError(
                    f"expected a picture of 8 bits a channel, got mode {image.mode!r}; scale it to 8 bits first"
                )
            return Image.fromarray(self.upscale(np.asarray(image.convert("RGB")), seed=seed, steps=steps, tile=tile))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}; convert it first"
            )
        lr = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1.0)
        sr = self.restore(lr, torch.Generator().manual_seed(seed), steps=steps, tile=tile)[0]
        pixels = sr.add(1.0).mul(127.5).round().clamp(0, 255).byte()
        return pixels.permute(1, 2, 0).numpy()

    @torch.inference_mode()
    def restore(
        self, lr: Tensor, generator: torch.Generator, *, steps: int | None = None, tile: int | None = None
    ) -> Tensor:
        """Restore a batch of LR images, pixels [-1, 1], (B, 3, h, w) -> (B, 3, h * scale, w * scale) on the CPU.

        Args:
            lr: LR images of any height and width.
            generator: CPU generator that all noise is drawn from, so that the picture does not depend on the device.
            steps: as in :meth:`upscale`.
            tile: as in :meth:`upscale`.
        """
        if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape:
            raise ValueError(f"expected LR images (B, 3, h, w), got {tuple(lr.shape)}; convert them first")
        if tile is not None and tile < 0:
            raise ValueError(f"expected the side of a tile, or 0 for no tiles, got {tile}; give a positive number")
        steps = self._steps(steps)
        height, width = lr.shape[-2:]
        padded = pad_to_multiple(lr, self.lr_multiple)
        # One noise field for the whole picture: tiles that overlap agree about it, whatever their order.
        noise = self._noise(padded, generator, steps)
        if tile is None:
            tile = AUTO_TILE if height * width > LARGEST_UNTILED else 0
        if tile and tile < max(padded.shape[-2:]):
            sr = self._restore_tiles(padded, noise, steps, tile)
        else:
            sr = self._restore_whole(padded, noise, steps)
        return sr[..., : height * self.scale, : width * self.scale]

    def _restore_whole(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Restore LR images of whole multiples; ``noise`` as from :meth:`_noise`."""
        lr, noise = lr.to(self.device), noise.to(self.device)
        z_y = self.model.autoencoder.encode(upsample(lr, self.scale))
        channels = z_y.shape[1]
        if steps == 1:
            epsilon = noise[0, :, channels:] if noise.shape[2] > channels else None
            z_0 = self.denoiser.one_step(z_y, lr, noise[0, :, :channels], epsilon)
        else:
            z_0 = self.denoiser.sample(z_y, lr, noise)
        return self.model.autoencoder.decode(z_0).clamp(-1, 1).cpu()

    def _restore_tiles(self, lr: Tensor, noise: Tensor, steps: int, tile: int) -> Tensor:
        """Restore tile by tile and blend the overlaps with linear ramps."""
        multiple, scale = self.lr_multiple, self.scale
        # Never so small that the next tile, at least a multiple further on, overlaps too little.
        tile = round_up(max(tile, 2 * TILE_OVERLAP, TILE_OVERLAP + multiple), multiple)
        height, width = lr.shape[-2:]
        per_pixel = noise.shape[-1] / width  # latent positions per LR pixel
        out = torch.zeros(lr.shape[0], 3, height * scale, width * scale)
        weight = torch.zeros(1, 1, height * scale, width * scale)
        for rows in tile_spans(height, tile, TILE_OVERLAP, multiple):
            for columns in tile_spans(width, tile, TILE_OVERLAP, multiple):
                part = noise[..., scaled(rows, per_pixel), scaled(columns, per_pixel)]
                sr = self._restore_whole(lr[..., rows, columns], part, steps)
                fade = tile_ramp(rows, height, scale)[:, None] * tile_ramp(columns, width, scale)[None, :]
                where = (..., scaled(rows, scale), scaled(columns, scale))
                out[where] += sr * fade
                weight[where] += fade
        return out.div_(weight)

    def _steps(self, steps: int | None) -> int:
        total = self.model.config.schedule.num_steps
        if self.model.kind == "student":
            allowed, default = {1}, 1
        else:
            allowed, default = {1, total}, total
        chosen = default if steps is None else steps
        if chosen not in allowed:
            options = " or ".join(str(option) for option in sorted(allowed))
            raise ValueError(f"expected steps={options} for this {self.model.kind}, got {chosen}")
        return chosen

    def _noise(self, lr: Tensor, generator: torch.Generator, steps: int) -> Tensor:
        """Draw N(0, 1) for the whole picture: (1 or steps + 1, B, latent + noise channels, H, W)."""
        config = self.model.config
        channels = config.unet.latent_channels + config.unet.noise_channels
        height, width = (edge * self.scale // config.autoencoder.factor for edge in lr.shape[-2:])
        fields = 1 if steps == 1 else steps + 1
        return torch.randn((fields, lr.shape[0], channels, height, width), generator=generator)

    @property
    def lr_multiple(self) -> int:
        """LR height and width are padded to a multiple of this, so that latents fit the windows at every level."""
        latent = self.model.config.unet.multiple
        pixels = latent * self.model.config.autoencoder.factor
        return pixels // math.gcd(pixels, self.scale)


def upsample(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling by ``scale``, pixels [-1, 1], clamped: what the encoder sees of the LR image."""
    return F.interpolate(lr, scale_factor=float(scale), mode="bicubic", align_corners=False).clamp(-1, 1)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom to a multiple by reflection, or by replication where the image is too small to reflect."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return image
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is at least ``value``."""
    return -(-value // multiple) * multiple


def tile_spans(length: int, tile: int, overlap: int, multiple: int) -> list[slice]:
    """Cut 0..length into spans of ``tile`` that overlap by at least ``overlap`` and start at multiples.

    Args:
        length: a multiple of ``multiple``.
        tile: a multiple of ``multiple``, larger than ``overlap``; the last span ends at ``length``.
        overlap: at least this many positions are shared.
        multiple: latents of tiles line up with those of the picture.
    """
    stride = max((tile - overlap) // multiple, 1) * multiple
    starts = [*range(0, max(length - tile, 0), stride), max(length - tile, 0)]
    return [slice(start, min(start + tile, length)) for start in starts]


def scaled(span: slice, factor: float) -> slice:
    """Return the same span in a picture ``factor`` times as large."""
    return slice(int(span.start * factor), int(span.stop * factor))


def tile_ramp(span: slice, length: int, scale: int) -> Tensor:
    """Weights of a tile along one axis, (tile * scale,): fading at both ends, except at the border of the picture."""
    size, fade = (span.stop - span.start) * scale, TILE_OVERLAP * scale
    position = torch.arange(size) + 0.5
    ramp = torch.ones(size)
    if span.start > 0:
        ramp = torch.minimum(ramp, position / fade)
    if span.stop < length:
        ramp = torch.minimum(ramp, (size - position) / fade)
    return ramp
