"""Checkpoint files of other networks (ESRGAN, Real-ESRGAN, BSRGAN, SwinIR, ...), by spandrel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_data.images import to_tensor

Pixels = NDArray[np.uint8]

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
TILE = 512
"""LR pixels along one side, for pictures that are larger, where the user does not say otherwise."""
OVERLAP = 32
"""LR pixels that a tile sees around what is kept of it."""


@dataclass(frozen=True)
class Network:
    """A network that enlarges pictures.

    Args:
        architecture: as spandrel calls it.
        scale: enlargement.
        tile: side of the tiles in LR pixels; 0: none.
        restore: the function, LR to restored.
    """

    architecture: str
    scale: int
    tile: int
    restore: Callable[[Pixels], Pixels]


def load(path: Path, device: str, tile: int | None = None) -> Network:
    """Read a checkpoint; pickles are read without running code in them.

    Args:
        path: of the file.
        device: where to compute, in float32.
        tile: side of the tiles in LR pixels; 0: never; None: by itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, of a network that spandrel does not know, or not from RGB to RGB.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, got no such file; check the path")
    # heavy: forty architectures
    from spandrel import ImageModelDescriptor, ModelLoader, ModelTiling

    try:
        with warnings.catch_warnings(action="ignore"):  # of torch about how the networks and their files are made
            found = ModelLoader(device).load_from_file(path)
    except Exception as error:  # of torch, pickle, safetensors and forty architectures
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"expected a checkpoint of a network that spandrel knows in {path}, got: {reason}; restore pictures with "
            "the tool that belongs to it and measure them by --pred DIR"
        ) from error
    if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise ValueError(
            f"expected a network from RGB to RGB in {path}, got {found.architecture.name} ({found.purpose}, "
            f"{found.input_channels} to {found.output_channels} channels); give another checkpoint"
        )
    found.float().eval()
    side = (TILE if found.tiling == ModelTiling.SUPPORTED else 0) if tile is None else tile

    @torch.inference_mode()
    def restore(lr: Pixels) -> Pixels:
        image = to_tensor(lr)[None].add(1).div(2)
        out = in_tiles(lambda part: found(part.to(device)).cpu(), image, side, found.scale)
        pixels: Pixels = out[0].mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return np.ascontiguousarray(pixels)

    return Network(found.architecture.name, found.scale, side, restore)


def in_tiles(enlarge: Callable[[Tensor], Tensor], image: Tensor, side: int, scale: int) -> Tensor:
    """Enlarge a picture piece by piece, every piece with its surroundings.

    Args:
        enlarge: (1, 3, h, w) to (1, 3, h scale, w scale).
        image: (1, 3, H, W).
        side: of the pieces; 0, or at least that of the picture: in one piece.
        scale: enlargement.
    """
    height, width = image.shape[-2:]
    if side == 0 or side >= max(height, width):
        return enlarge(image)
    out = image.new_empty(1, 3, height * scale, width * scale)
    for rows, seen_rows in _spans(height, side):
        for columns, seen_columns in _spans(width, side):
            piece = enlarge(image[..., seen_rows, seen_columns])
            inner_rows = _scaled(rows, scale, seen_rows.start)
            inner_columns = _scaled(columns, scale, seen_columns.start)
            out[..., _scaled(rows, scale), _scaled(columns, scale)] = piece[..., inner_rows, inner_columns]
    return out


def _spans(length: int, side: int) -> Iterator[tuple[slice, slice]]:
    """What is kept of every tile, and what it sees."""
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield slice(start, stop), slice(max(start - OVERLAP, 0), min(stop + OVERLAP, length))


def _scaled(span: slice, scale: int, origin: int = 0) -> slice:
    return slice((span.start - origin) * scale, (span.stop - origin) * scale)
