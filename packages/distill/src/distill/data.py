"""Training and validation data of a run: what ``data`` in the configuration means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from distill.config import DataConfig, RunConfig
from sr_data.datasets import (
    CropSource,
    GeneratedImages,
    HRFolder,
    PairedFolder,
    PairSource,
    TrainingImages,
    TrainingPairs,
    degrade_batch,
    training_loader,
)
from sr_data.sources import low_resolution_size
from sr_data.streaming import StreamedImages, streaming_loader

POOL_BATCHES = 8
"""Generated pictures in use at a time, in batches: a batch has no picture twice."""


def build_source(
    config: DataConfig, seed: int, hr_size: int, scale: int, pool: int, what: str = "crop"
) -> CropSource | PairSource:
    """Open the source of HR crops or pairs and check up front that every file will do.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder is empty, a file is no picture or smaller than the crop, or pairs do not fit.
    """
    if config.source == "generated":
        size = max(config.image_size, hr_size)
        return GeneratedImages(seed, image_size=size, crops_per_image=config.crops_per_image, pool=pool)
    assert config.hr_folder is not None
    if config.source == "folder":
        folder = HRFolder(config.hr_folder, seed)
        folder.validate(hr_size, what)
        return folder
    assert config.lr_folder is not None
    pairs = PairedFolder(config.hr_folder, config.lr_folder, scale, seed)
    pairs.validate(hr_size, what)
    return pairs


@dataclass(frozen=True)
class TrainingData:
    """Batches of a run, and how to make pairs of them.

    Args:
        batches: endless micro-batches of one process: (micro-batch size, first sample, rank=, world=) -> iterator.
        pairs: from a batch and the numbers of its samples to LR and HR, pixels [-1, 1].
        name: of the file that sample i is cut from, without suffix; None: the images have no names.
        names: of all files.
    """

    batches: Callable[..., Iterator[Any]]
    pairs: Callable[[Any, range], tuple[Tensor, Tensor]]
    name: Callable[[int], str] | None = None
    names: Callable[[], list[str]] | None = None


def open_pairs(run: RunConfig, scale: int) -> TrainingData:
    """Pairs that a run trains on."""
    data = run.data

    def degraded(hr: Tensor, indexes: range) -> tuple[Tensor, Tensor]:
        return degrade_batch(hr, indexes, data.degradation, run.seed, scale), hr

    if data.source == "stream":
        low_resolution_size(data.hr_size, scale)
        return TrainingData(_streamed(run, run.seed), degraded)
    source = build_source(data, run.seed, data.hr_size, scale, POOL_BATCHES * run.batch_size)
    named = (source.name, source.names) if isinstance(source, HRFolder | PairedFolder) else ()
    if not isinstance(source, PairSource) and data.degrade_on == "device":
        low_resolution_size(data.hr_size, scale)
        return TrainingData(_loader(TrainingImages(source, data.hr_size), data), degraded, *named)
    degradation = None if isinstance(source, PairSource) else data.degradation
    pairs = TrainingPairs(source, data.hr_size, scale, degradation, run.seed)
    return TrainingData(_loader(pairs, data), lambda batch, _: tuple(batch), *named)


def open_images(run: RunConfig) -> TrainingData:
    """HR images alone that a run trains on."""
    data = run.data
    if data.source == "pairs":
        raise ValueError("expected data.source generated, folder or stream, got pairs; an autoencoder needs HR images")

    def none(batch: Any, indexes: range) -> tuple[Tensor, Tensor]:
        raise AssertionError("HR images alone are no pairs")

    if data.source == "stream":
        return TrainingData(_streamed(run, run.seed), none)
    source = build_source(data, run.seed, data.hr_size, 1, POOL_BATCHES * run.batch_size)
    assert not isinstance(source, PairSource)
    return TrainingData(_loader(TrainingImages(source, data.hr_size), data), none)


def validation_pairs(run: RunConfig, scale: int) -> tuple[Tensor, Tensor]:
    """LR and HR images, pixels [-1, 1]: generated ones that no run trains on, or other crops of its photographs."""
    chosen = run.validation
    if run.data.source == "stream":
        low_resolution_size(chosen.hr_size, scale)
        streamed = streaming_loader(_stream(run.data, chosen.seed), chosen.hr_size, chosen.images)
        hr = next(streamed)
        return degrade_batch(hr, range(chosen.images), run.data.degradation, chosen.seed, scale), hr
    source = build_source(run.data, chosen.seed, chosen.hr_size, scale, chosen.images, "validation crop")
    degradation = None if isinstance(source, PairSource) else run.data.degradation
    pairs = TrainingPairs(source, chosen.hr_size, scale, degradation, chosen.seed)
    lr, hr = default_collate([pairs[index] for index in range(chosen.images)])
    return lr, hr


def _loader(dataset: Any, data: DataConfig) -> Callable[..., Iterator[Any]]:
    return partial(training_loader, dataset, workers=data.workers)


def _streamed(run: RunConfig, seed: int) -> Callable[..., Iterator[Any]]:
    images = _stream(run.data, seed)
    images.validate(run.data.hr_size)
    return partial(streaming_loader, images, run.data.hr_size, workers=run.data.workers)


def _stream(data: DataConfig, seed: int) -> StreamedImages:
    assert data.stream is not None
    return StreamedImages(**data.stream.model_dump(), seed=seed)
