"""One noise field for a whole picture, of which any part can be had by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Side of the blocks that are drawn at once."""


@dataclass(frozen=True)
class NoiseField:
    """N(0, 1) over an unbounded plane, drawn in blocks, each from a generator of its own.

    Tiles that overlap see the same noise, whatever their size and order, and nothing is kept for the whole picture.

    Args:
        seed: 0 or more; the same seed gives the same field on every device.
        fields: how many fields, one for every draw of the sampler.
        channels: of each.
    """

    seed: int
    fields: int
    channels: int

    def crop(self, rows: slice, columns: slice) -> Tensor:
        """Return (fields, 1, channels, h, w) float32 for positions from 0 on."""
        out = np.empty(
            (self.fields, 1, self.channels, rows.stop - rows.start, columns.stop - columns.start), np.float32
        )
        for block_row in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            inside_rows, out_rows = _overlap(block_row, rows)
            for block_column in range(columns.start // BLOCK, -(-columns.stop // BLOCK)):
                inside_columns, out_columns = _overlap(block_column, columns)
                block = self._block(block_row, block_column)
                out[:, 0, :, out_rows, out_columns] = block[..., inside_rows, inside_columns]
        return torch.from_numpy(out)

    def _block(self, row: int, column: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, row, column])))
        return generator.standard_normal((self.fields, self.channels, BLOCK, BLOCK), dtype=np.float32)


def _overlap(block: int, span: slice) -> tuple[slice, slice]:
    """Where a block and a span meet, in the block and in the span."""
    start, stop = max(block * BLOCK, span.start), min((block + 1) * BLOCK, span.stop)
    return slice(start - block * BLOCK, stop - block * BLOCK), slice(start - span.start, stop - span.start)
