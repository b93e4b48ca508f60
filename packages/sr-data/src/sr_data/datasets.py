"""Training pairs by number, and the loader that counts through them.

Sample `index` is a pure function of the seeds and the index: a run resumes by starting at another index, and
the number of worker processes changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sr_data.images import to_tensor
from sr_data.sources import (
    CropSource,
    GeneratedImages,
    HRFolder,
    PairedFolder,
    PairSource,
    low_resolution_size,
)

if TYPE_CHECKING:
    from sr_data.degradation import DegradationConfig

__all__ = [
    "CropSource",
    "GeneratedImages",
    "HRFolder",
    "PairSource",
    "PairedFolder",
    "TrainingImages",
    "TrainingPairs",
    "make_generator",
    "training_loader",
]

Pair = tuple[torch.Tensor, torch.Tensor]


def make_generator(seed: int, index: int) -> torch.Generator:
    """Return the CPU torch generator that belongs to (seed, index).

    Args:
        seed: >= 0.
        index: number of the sample, >= 0.

    Raises:
        ValueError: a negative number.
    """
    if min(seed, index) < 0:
        raise ValueError(f"expected seed and index >= 0, got {seed} and {index}; count from 0")
    # SeedSequence mixes, so neighbouring indexes get unrelated streams; torch takes 63 bits.
    state = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


class TrainingImages(Dataset[torch.Tensor]):
    """High-resolution crops to train an autoencoder; item: (3, hr_size, hr_size) float32, pixels [-1,1].

    Args:
        source: where the crops come from.
        hr_size: side of a crop in pixels.
    """

    def __init__(self, source: CropSource, hr_size: int) -> None:
        self.source = source
        self.hr_size = hr_size

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_tensor(self.source.crop(index, self.hr_size))


class TrainingPairs(Dataset[Pair]):
    """Low- and high-resolution crops; item: (lr, hr) float32, pixels [-1,1], hr scale times as large.

    The low-resolution crop of a `CropSource` is made by `sr_data.degradation.degrade` with a generator that
    belongs to (seed, index); a `PairSource` brings its own.

    Args:
        source: where the crops come from.
        hr_size: side of a high-resolution crop in pixels, a multiple of the scale.
        scale: enlargement.
        degradation: how to make the low-resolution crop; None exactly when the source has pairs.
        seed: of the degradation, >= 0.

    Raises:
        ValueError: hr_size is no multiple of the scale, or the degradation does not fit the source.
    """

    def __init__(
        self,
        source: CropSource | PairSource,
        hr_size: int,
        scale: int,
        degradation: DegradationConfig | None,
        seed: int,
    ) -> None:
        low_resolution_size(hr_size, scale)
        if isinstance(source, PairSource):
            if degradation is not None:
                raise ValueError("expected no degradation for pairs, got one; pass degradation=None")
            if source.scale != scale:
                raise ValueError(f"expected pairs of scale {scale}, got {source.scale}; use the same scale")
        elif degradation is None:
            raise ValueError(
                "expected a DegradationConfig, got None; pass one, or train on TrainingImages without pairs"
            )
        self.source = source
        self.hr_size = hr_size
        self.scale = scale
        self.degradation = degradation
        self.seed = seed

    def __getitem__(self, index: int) -> Pair:
        if isinstance(self.source, PairSource):
            hr_pixels, lr_pixels = self.source.pair(index, self.hr_size)
            return to_tensor(lr_pixels), to_tensor(hr_pixels)
        from sr_data.degradation import degrade

        assert self.degradation is not None
        hr = to_tensor(self.source.crop(index, self.hr_size))
        generator = make_generator(self.seed, index)
        # degrade works on a batch of pixels [0,1] and returns 8-bit levels.
        lr = degrade(hr[None].add(1.0).div(2.0), self.degradation, generator, self.scale)[0]
        return lr.mul(2.0).sub(1.0), hr


class _Batches:
    """The endless batches of indexes start, start + 1, ...; a batch sampler for `DataLoader`."""

    def __init__(self, batch_size: int, start: int) -> None:
        self.batch_size = batch_size
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        for first in count(self.start, self.batch_size):
            yield list(range(first, first + self.batch_size))


def _stack_images(items: list[torch.Tensor]) -> torch.Tensor:
    """Return a batch of crops."""
    return torch.stack(items)


def _stack_pairs(items: list[Pair]) -> Pair:
    """Return a batch of pairs."""
    return torch.stack([lr for lr, _ in items]), torch.stack([hr for _, hr in items])


def _one_thread(worker: int) -> None:
    """Keep a worker process to one thread: the workers are the parallelism."""
    torch.set_num_threads(1)


@overload
def training_loader(dataset: TrainingPairs, batch_size: int, start: int = 0, workers: int = 0) -> Iterator[Pair]: ...


@overload
def training_loader(
    dataset: TrainingImages, batch_size: int, start: int = 0, workers: int = 0
) -> Iterator[torch.Tensor]: ...


def training_loader(
    dataset: TrainingPairs | TrainingImages, batch_size: int, start: int = 0, workers: int = 0
) -> Iterator[Pair] | Iterator[torch.Tensor]:
    """Return the endless stacked batches of samples start, start + 1, ...

    The batches are the same for any number of workers. `GeneratedImages` keeps one cache per worker; no
    picture is generated twice when its pool is a multiple of batch_size * workers.

    Args:
        dataset: samples by number.
        batch_size: samples in a batch.
        start: number of the first sample: where a resumed run goes on.
        workers: processes that prepare batches, each with one thread; 0 prepares them in this process.

    Raises:
        ValueError: a batch size below 1, or a negative start or number of workers.
    """
    if batch_size < 1 or start < 0 or workers < 0:
        raise ValueError(
            "expected batch_size >= 1, start >= 0 and workers >= 0, "
            f"got {batch_size}, {start} and {workers}; use at least these"
        )
    # One endless pass: the workers live as long as the iterator.
    return iter(
        DataLoader(
            dataset,
            batch_sampler=_Batches(batch_size, start),
            num_workers=workers,
            collate_fn=_stack_pairs if isinstance(dataset, TrainingPairs) else _stack_images,
            worker_init_fn=_one_thread,
            # Otherwise the loader would draw from the global generator.
            generator=torch.Generator(),
        )
    )
