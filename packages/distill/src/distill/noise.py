"""Random numbers of training: every sample has a generator of its own.

The numbers of sample i are a pure function of (seed, i), i counting all samples of a run. Micro-batches, processes and
a resumed run therefore draw the same numbers for the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sr_data.datasets import make_generator

NOISE_STREAM = 1 << 32
"""Added to the run's seed for training noise, so that it is unrelated to the data's."""

LAYER_STREAM = 2 << 32

POSTERIOR_STREAM = 6 << 32
"""Added to the run's seed for samples of an autoencoder's posterior at HR images."""


class SampleNoise:
    """Draws for the samples of one micro-batch, in the same order for each.

    Args:
        seed: of the run.
        indexes: numbers of the samples, B of them.
        device: where the numbers go; they are drawn on the CPU, so that they are the same on every device.
    """

    def __init__(self, seed: int, indexes: Sequence[int], device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._generators = [make_generator(seed + NOISE_STREAM, index) for index in indexes]
        self.layer_seed = make_generator(seed + LAYER_STREAM, indexes[0]).initial_seed()
        """For layers that draw from the global generator themselves, such as dropout."""

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of shape (B, *shape), float32."""
        return self._stack([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform integers low..high, both ends included, (B,) int64."""
        return self._stack([torch.randint(low, high + 1, (), generator=g) for g in self._generators])

    def _stack(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).to(self.device)
