"""Training pairs by number, and the loader that counts through them.

Sample `index` is a pure function of the seeds and the index: a run resumes by starting at another index, and
the number of worker processes changes nothing but the speed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
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
    "batch_indexes",
    "degrade_batch",
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


def degrade_batch(
    hr: torch.Tensor, indexes: Sequence[int], config: DegradationConfig, seed: int, scale: int
) -> torch.Tensor:
    """Return the low-resolution images of crops, made on the device that the crops are on.

    The degradation of a sample belongs to (seed, index) alone: `TrainingPairs` with the same seed gives the same
    images (on a CPU bit for bit), so a loader of `TrainingImages` with this function on the training device takes
    the degradation out of the worker processes and changes nothing else.

    Args:
        hr: (B, 3, H, W) floating point, pixels [-1,1]; H and W multiples of the scale.
        indexes: number of each sample, >= 0; see `batch_indexes`.
        config: how to degrade.
        seed: of the degradation, >= 0.
        scale: how many times smaller the low-resolution images are.

    Returns:
        (B, 3, H / scale, W / scale) float32, pixels [-1,1] on the levels of 8 bit.

    Raises:
        ValueError: not one index for each crop, or crops of another shape, dtype or domain.
    """
    from sr_data.degradation import degrade_seeded, sample_seeds

    if len(indexes) != hr.shape[0]:
        raise ValueError(f"expected one index for each of {hr.shape[0]} crops, got {len(indexes)}; use batch_indexes")
    seeds = [sample_seeds(make_generator(seed, index), 1)[0] for index in indexes]
    return degrade_seeded(hr.float().add(1.0).div(2.0), config, seeds, scale).mul(2.0).sub(1.0)


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

    The low-resolution crop of a `CropSource` is made by `degrade_batch`; a `PairSource` brings its own.

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
        assert self.degradation is not None
        hr = to_tensor(self.source.crop(index, self.hr_size))
        return degrade_batch(hr[None], [index], self.degradation, self.seed, self.scale)[0], hr


def batch_indexes(batch_size: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
    """Return the endless sample numbers of the batches of one rank; `training_loader` yields these samples.

    Batch k = 0, 1, ... of rank r holds the consecutive numbers from start + (k * world + r) * batch_size on: the
    ranks' k-th batches together are what one process would see as one batch of world * batch_size.

    Args:
        batch_size: samples in a batch of one rank.
        start: number of the first sample of all ranks.
        rank: which of the processes this is, from 0.
        world: number of processes.

    Raises:
        ValueError: a batch size or world below 1, a negative start, or a rank outside 0 ... world - 1.
    """
    if batch_size < 1 or start < 0 or not 0 <= rank < world:
        raise ValueError(
            f"expected batch_size >= 1, start >= 0 and 0 <= rank < world, got {batch_size}, {start}, "
            f"rank {rank} and world {world}; use numbers in these ranges"
        )
    firsts = count(start + rank * batch_size, world * batch_size)
    return (list(range(first, first + batch_size)) for first in firsts)


def _stack_images(items: list[torch.Tensor]) -> torch.Tensor:
    """Return a batch of crops."""
    return torch.stack(items)


def _stack_pairs(items: list[Pair]) -> Pair:
    """Return a batch of pairs."""
    return torch.stack([lr for lr, _ in items]), torch.stack([hr for _, hr in items])


def one_thread(worker: int) -> None:
    """Keep a worker process to one thread, the workers are the parallelism; leave Ctrl-C to the training process.

    Ctrl-C reaches the whole group of processes, and a worker that died of it would take with it the step that the
    training process wants to finish. SIGTERM stays as it is: Python ends workers with it.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@overload
def training_loader(
    dataset: TrainingPairs, batch_size: int, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Pair]: ...


@overload
def training_loader(
    dataset: TrainingImages, batch_size: int, start: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[torch.Tensor]: ...


def training_loader(
    dataset: TrainingPairs | TrainingImages,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Pair] | Iterator[torch.Tensor]:
    """Return the endless stacked batches of one rank; their sample numbers are those of `batch_indexes`.

    The batches are the same for any number of workers. `GeneratedImages` keeps one cache per worker of each rank;
    no picture is generated twice when its pool is a multiple of batch_size * world * workers (otherwise up to
    world * workers times: slower, but the same crops).

    Args:
        dataset: samples by number.
        batch_size: samples in a batch of one rank.
        start: number of the first sample of all ranks: where a resumed run goes on.
        workers: processes that prepare the batches of this rank, each with one thread; 0 prepares them in this process.
        rank: which of the training processes this is, from 0.
        world: number of training processes.

    Raises:
        ValueError: a batch size or world below 1, a negative start or number of workers, or a rank outside
            0 ... world - 1.
    """
    if workers < 0:
        raise ValueError(f"expected workers >= 0, got {workers}; 0 prepares batches in this process")
    # One endless pass: the workers live as long as the iterator.
    return iter(
        DataLoader(
            dataset,
            batch_sampler=batch_indexes(batch_size, start, rank, world),
            num_workers=workers,
            collate_fn=_stack_pairs if isinstance(dataset, TrainingPairs) else _stack_images,
            worker_init_fn=one_thread,
            # Otherwise the loader would draw from the global generator.
            generator=torch.Generator(),
        )
    )
