"""SuperResolver: an LR image of any size -> the SR image, in one network evaluation."""

from __future__ import annotations

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

    def upscale(self, image: Image.Image | NDArray[np.uint8], *, seed: int = 0, steps: int | None = None) -> Any:
        """Restore one picture.

        Args:
            image: a PIL image (converted to RGB) or (H, W, 3) uint8.
            seed: of the noise; the same seed gives the same picture.
            steps: 1, or the model's T for the whole chain; None: 1 for a student, T for a teacher.

        Returns:
            The same type as ``image``, scale times its width and height.
        """
        if isinstance(image, Image.Image):
            return Image.fromarray(self.upscale(np.asarray(image.convert("RGB")), seed=seed, steps=steps))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}; convert it first"
            )
        lr = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().div(127.5).sub(1.0)
        sr = self.restore(lr, torch.Generator().manual_seed(seed), steps=steps)[0]
        pixels = sr.add(1.0).mul(127.5).round().clamp(0, 255).byte()
        return pixels.permute(1, 2, 0).numpy()

    @torch.inference_mode()
    def restore(self, lr: Tensor, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Restore a batch of LR images, pixels [-1, 1], (B, 3, h, w) -> (B, 3, h * scale, w * scale) on the CPU.

        Args:
            lr: LR images of any height and width.
            generator: CPU generator that all noise is drawn from, so that the picture does not depend on the device.
            steps: as in :meth:`upscale`.
        """
        total = self.model.config.schedule.num_steps
        steps = steps if steps is not None else (1 if self.model.kind == "student" else total)
        if steps not in (1, total) or (steps > 1 and self.model.kind == "student"):
            allowed = "1" if self.model.kind == "student" else f"1 or {total}"
            raise ValueError(f"expected steps={allowed} for this {self.model.kind}, got {steps}")
        height, width = lr.shape[-2:]
        padded = pad_to_multiple(lr.to(self.device), self.lr_multiple)
        z_y = self.model.autoencoder.encode(upsample(padded, self.scale))
        if steps == 1:
            z_0 = self.denoiser.one_step(z_y, padded, self._draw(z_y.shape, generator), self._epsilon(z_y, generator))
        else:
            z_0 = self.denoiser.sample(z_y, padded, self._draw((steps + 1, *z_y.shape), generator))
        sr = self.model.autoencoder.decode(z_0)
        return sr[..., : height * self.scale, : width * self.scale].clamp(-1, 1).cpu()

    @property
    def lr_multiple(self) -> int:
        """LR height and width are padded to a multiple of this, so that latents fit the windows at every level."""
        latent = self.model.config.unet.multiple
        pixels = latent * self.model.config.autoencoder.factor
        return max(pixels // self.scale, 1)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.device)

    def _epsilon(self, z_y: Tensor, generator: torch.Generator) -> Tensor | None:
        channels = self.model.config.unet.noise_channels
        return self._draw((z_y.shape[0], channels, *z_y.shape[2:]), generator) if channels else None


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
