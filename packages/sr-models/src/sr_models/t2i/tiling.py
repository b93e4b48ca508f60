"""Latents larger than a network was trained on: predictions of overlapping tiles, blended."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sr_models.geometry import tile_spans

VARIANCE = 0.01
"""Of the Gaussian weights, on positions in units of the tile's side."""


def tiled(predict: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict for latents (B, C, H, W) in tiles, weighted by a Gaussian around each tile's centre.

    Latents of at most ``tile`` by ``tile`` are given to the network as they are. The published TSD-SR blends the
    network's output in the same way, with the centre of rows half a position off.

    Args:
        predict: from latents (B, C, h, w) to a prediction of the same shape.
        z: H and W at least the network's patch.
        tile: side of the tiles in latent positions.
        overlap: positions that neighbours share at least.
    """
    height, width = z.shape[-2:]
    if height <= tile and width <= tile:
        return predict(z)
    out, total = torch.zeros_like(z, dtype=torch.float32), z.new_zeros(1, 1, height, width, dtype=torch.float32)
    for rows in tile_spans(height, tile, overlap, 1):
        for columns in tile_spans(width, tile, overlap, 1):
            part = z[..., rows, columns]
            weight = (_gaussian(part.shape[-2])[:, None] * _gaussian(part.shape[-1])[None]).to(z.device)
            out[..., rows, columns] += predict(part).float() * weight
            total[..., rows, columns] += weight
    return (out / total).to(z.dtype)


def _gaussian(length: int) -> Tensor:
    position = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / length
    return ((-position.square() / (2 * VARIANCE)).exp() / math.sqrt(2 * math.pi * VARIANCE)).float()
