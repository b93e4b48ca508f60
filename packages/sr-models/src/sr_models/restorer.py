"""SuperResolver: an LR image of any size -> the SR image, in one network evaluation."""

from __future__ import annotations

import os
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sr_models import store
from sr_models.geometry import TILE_OVERLAP, pad_to_multiple, round_up, scaled, tile_ramp, tile_spans

LARGEST_UNTILED = 512 * 512
"""LR pixels that are restored in one piece when nobody asks for tiles."""
AUTO_TILE = 256


class Restorable(Protocol):
    """What :class:`SuperResolver` asks of a model."""

    @property
    def kind(self) -> str:
        """What it is called in errors."""
        ...

    @property
    def scale(self) -> int:
        """Enlargement."""
        ...

    @property
    def lr_multiple(self) -> int:
        """LR height and width have to be multiples of this."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of network evaluations that it can restore in, the usual one first."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the networks and put them in eval mode."""
        ...

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        """Shape (..., H, W) of the N(0, 1) that :meth:`restore` takes for LR images of this size."""
        ...

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """LR images, pixels [-1, 1], (B, 3, h, w) of whole multiples, to SR images, not clamped."""
        ...


class SuperResolver:
    """Restores photographs with a model: one step for a student, the whole chain for a teacher.

    Args:
        model: networks, schedule and scale, such as :class:`sr_models.SRModel`.
        device: where to compute.
    """

    def __init__(self, model: Restorable, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.device = torch.device(device)
        model.to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "tiny-student",
        device: torch.device | str = "cpu",
        *,
        base: str | None = None,
    ) -> Self:
        """Load a shipped model by name or a model folder.

        Args:
            name: of the model.
            device: where to compute.
            base: where the base of a text-to-image student is; None: where it was in training.

        Raises:
            FileNotFoundError: no such model.
            ValueError: the files are truncated, changed, or of another kind.
        """
        if store.read_about(name)["kind"] == "t2i-student":
            # diffusers is heavy and optional: only this family needs it
            from sr_models.t2i.folder import load_student

            return cls(load_student(name, base), device)
        if base is not None:
            raise ValueError(f"expected base=None for {str(name)!r}, which is not a student of a text-to-image model")
        return cls(store.load_model(name), device)

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        return self.model.scale

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
        try:
            sr = self.restore(lr, torch.Generator().manual_seed(seed), steps=steps, tile=tile)[0]
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of memory on the device ({str(error).splitlines()[0]}); give smaller tiles, such as tile=128"
            ) from error
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
        batch, _, rows, columns = padded.shape
        noise = torch.randn(self.model.noise_shape(batch, rows, columns, steps), generator=generator)
        if tile is None:
            tile = AUTO_TILE if height * width > LARGEST_UNTILED else 0
        if tile and tile < max(padded.shape[-2:]):
            sr = self._restore_tiles(padded, noise, steps, tile)
        else:
            sr = self._restore_whole(padded, noise, steps)
        return sr[..., : height * self.scale, : width * self.scale]

    def _restore_whole(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Restore LR images of whole multiples; ``noise`` as in :meth:`Restorable.noise_shape`."""
        return self.model.restore(lr.to(self.device), noise.to(self.device), steps).clamp(-1, 1).cpu()

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
        chosen = self.model.steps[0] if steps is None else steps
        if chosen not in self.model.steps:
            options = " or ".join(str(option) for option in sorted(self.model.steps))
            raise ValueError(f"expected steps={options} for this {self.model.kind}, got {chosen}")
        return chosen

    @property
    def lr_multiple(self) -> int:
        """LR height and width are padded to a multiple of this."""
        return self.model.lr_multiple
