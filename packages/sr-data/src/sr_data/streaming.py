"""Crops of photographs that arrive as a stream: Hugging Face `datasets`, webdataset shards, parquet files.

Only which photograph a sample shows is read from the stream; its crop, mirroring and degradation belong to
(seed, index) as everywhere. A run resumes by position: what the samples before it showed is read over, not decoded.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sr_data.datasets import batch_indexes, one_thread
from sr_data.images import Pixels, read_image, to_tensor
from sr_data.sources import random_crop
from sr_data.stream_source import EncodedImage, StreamedImages, encoded_images, find_problem

__all__ = ["EncodedImage", "StreamedBatches", "StreamedImages", "streaming_loader"]

_T = TypeVar("_T")
# From this number of shards a rank on, ranks whose numbers of shards differ by one show their images almost equally
# often, so that whole shards are dealt out even where they do not divide.
_MANY_SHARDS = 16
_BATCHES_READ_AHEAD = 2


def streaming_loader(
    images: StreamedImages,
    hr_size: int,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> StreamedBatches:
    """Return the endless batches of one rank, (batch_size, 3, hr_size, hr_size) float32, pixels [-1,1].

    Sample numbers are those of `batch_indexes`. The same (seed, start, rank, world, batch_size) give the same batches,
    for any number of workers. An epoch of a rank shows each of its images once; together the ranks have all images.
    Ranks get whole shards where world divides the number of shards (or there are 16 a rank), otherwise every world-th
    image, and then each rank reads everything.

    One process a rank reads the stream, once; `workers` decode. The samples before `start` are read over with a look
    at their headers; whole epochs cost one pass, however many they are. (The order is that of `datasets`' shuffle:
    resume with the version that the run began with.)

    An image that is smaller than the crop or cannot be opened is left out. One that turns out to be broken when it is
    decoded, which reading over cannot see, is replaced by the next of its batch. Both are counted in
    `StreamedBatches.skipped`, and one warning names the first.

    Args:
        images: what to stream.
        hr_size: side of a crop in pixels.
        batch_size: samples in a batch of one rank.
        start: number of the first sample of all ranks; another `world` than before goes on at the same share of the
            epoch, with other images.
        workers: processes that decode, each with one thread; 0 reads and decodes in this process.
        rank: which of the training processes this is, from 0.
        world: number of training processes.

    Raises:
        ValueError: numbers out of range, or a stream that does not open; from the iterator: a whole epoch without
            a usable image.
    """
    if workers < 0 or hr_size < 1:
        raise ValueError(f"expected workers >= 0 and hr_size >= 1, got {workers} and {hr_size}; use at least these")
    indexes = batch_indexes(batch_size, start, rank, world)
    return StreamedBatches(_Reader(images, hr_size, rank, world), indexes, start // world, workers)


class StreamedBatches(Iterator[torch.Tensor]):
    """The batches of `streaming_loader`, and how many images were left out on the way."""

    def __init__(self, reader: _Reader, indexes: Iterator[list[int]], position: int, workers: int) -> None:
        self._reader = reader
        # A function, not a method: in a reference cycle the worker processes would linger for seconds at the end.
        self._tensors = _load(reader, _numbered(reader.images_from(position), indexes), workers)

    @property
    def skipped(self) -> int:
        """How many images were too small or broken so far, in every epoch anew, with those that were read over."""
        return self._reader.skipped

    def __next__(self) -> torch.Tensor:
        return next(self._tensors)


def _load(reader: _Reader, batches: Iterator[list[_Numbered]], workers: int) -> Iterator[torch.Tensor]:
    """Decode batches; one whose images are all broken is replaced by the next."""
    loader: DataLoader[_Cut] = DataLoader(
        _Crops(reader.size, reader.seed),
        batch_size=None,
        sampler=_ahead(batches, _BATCHES_READ_AHEAD) if workers else batches,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=one_thread,
        generator=torch.Generator(),
    )
    missing = 0
    warned = False
    for cut in loader:
        for problem in cut.problems:
            reader.leave_out(problem)
        if reader.first_skipped is not None and not warned:
            warned = True
            # Here, not where it is found: warnings are not for threads.
            warnings.warn(f"left out {reader.first_skipped}; more may follow, without another warning", stacklevel=3)
        missing += 1
        if cut.images is not None:
            for _ in range(missing):
                yield cut.images
            missing = 0
        elif reader.length is not None and missing * len(cut.problems) > 2 * reader.length:
            raise ValueError(
                f"expected images that can be decoded, got none in an epoch ({reader.first_skipped}); name other data"
            )


class _Reader:
    """The endless images of one rank, still encoded; an epoch has the same images as the one before in another order.

    `datasets.distributed.split_dataset_by_node` deals out the shards after shuffling them, so a rank gets others in
    every epoch and epochs differ in length. Here they are fixed: the length of one epoch tells where any sample lies,
    and resuming in the hundredth epoch reads one epoch to count it and the part of the hundredth before the sample.
    """

    def __init__(self, images: StreamedImages, size: int, rank: int, world: int) -> None:
        self._dataset = images.open()
        self._buffer = images.shuffle_buffer
        self._rank, self._world = rank, world
        shards = int(self._dataset.num_shards)
        self._whole_shards = shards % world == 0 or shards >= _MANY_SHARDS * world
        if self._whole_shards:
            # Before shuffling: dealt out once, in every epoch the same.
            self._dataset = self._dataset.shard(world, rank, contiguous=False)
        self.seed, self.size = images.seed, size
        self.length: int | None = None
        self.skipped = 0
        self.first_skipped: str | None = None
        self._lock = Lock()

    def leave_out(self, problem: str) -> None:
        """Count an image, from the thread that reads or the one that hands out batches."""
        with self._lock:
            self.skipped += 1
            self.first_skipped = self.first_skipped or problem

    def images_from(self, position: int) -> Iterator[EncodedImage]:
        """Yield the images from a position on, counted over all epochs."""
        length = 0
        for image in self._epoch(0):
            length += 1
            if length > position:
                yield image
        if length == 0:
            reason = self.first_skipped or f"no image for rank {self._rank} of {self._world}"
            raise ValueError(
                f"expected images of at least {self.size}x{self.size} pixels, got an epoch without any ({reason}); "
                "name other data, use a smaller crop, or fewer processes"
            )
        self.length = length
        epoch, place = divmod(max(position, length), length)
        for number in count(epoch):
            yield from islice(self._epoch(number), place, None)
            place = 0

    def _epoch(self, number: int) -> Iterator[EncodedImage]:
        """Return the usable images of one epoch."""
        seed = np.random.SeedSequence((self.seed, 0, number)).generate_state(1)[0]
        shuffled = self._dataset.shuffle(seed=int(seed), buffer_size=self._buffer)
        usable = (image for image in encoded_images(shuffled) if self._is_usable(image))
        # All ranks shuffle alike; counting usable images only keeps the number of a rank the same in every epoch.
        return usable if self._whole_shards else islice(usable, self._rank, None, self._world)

    def _is_usable(self, image: EncodedImage) -> bool:
        problem = find_problem(image, self.size)
        if problem is not None:
            self.leave_out(f"{image.name}: {problem}")
        return problem is None


@dataclass(frozen=True)
class _Numbered:
    """An image and the number of the sample that shows it."""

    index: int
    image: EncodedImage


@dataclass(frozen=True)
class _Cut:
    """A batch of crops, None where all images were broken, and what was wrong with those that were."""

    images: torch.Tensor | None
    problems: list[str]


class _Crops(Dataset[_Cut]):
    """Decodes batches; the "index" of a batch is the batch, still encoded."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __getitem__(self, batch: list[_Numbered]) -> _Cut:
        problems: list[str] = []
        decoded = [self._decode(numbered.image, problems) for numbered in batch]
        if len(problems) == len(batch):
            return _Cut(None, problems)
        # Every sample shows its own image or, where that is broken, the next intact one, from the last on to the first.
        shown = [next(p for p in decoded[place:] + decoded[:place] if p is not None) for place in range(len(batch))]
        crops = [
            to_tensor(random_crop(pixels, self.size, self.seed, numbered.index))
            for numbered, pixels in zip(batch, shown, strict=True)
        ]
        return _Cut(torch.stack(crops), problems)

    def _decode(self, image: EncodedImage, problems: list[str]) -> Pixels | None:
        try:
            pixels = read_image(image.name, image.content)
        except ValueError as error:
            problems.append(str(error))
            return None
        return pixels


def _numbered(images: Iterator[EncodedImage], indexes: Iterable[list[int]]) -> Iterator[list[_Numbered]]:
    """Yield batches of images with the numbers of their samples."""
    for batch in indexes:
        yield [_Numbered(index, next(images)) for index in batch]


def _ahead(items: Iterator[_T], number: int) -> Iterator[_T]:
    """Yield the items of an endless iterator that a thread reads ahead."""
    reader = ThreadPoolExecutor(1)
    try:
        waiting = deque(reader.submit(next, items) for _ in range(number))
        while True:
            item = waiting.popleft().result()
            waiting.append(reader.submit(next, items))
            yield item
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def _unchanged(cut: Any) -> Any:
    """Return a batch as it is: it is stacked already."""
    return cut
