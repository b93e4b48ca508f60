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

POOL_BATCHES = 8
"""Generated pictures in use at a time, in batches: a batch has no picture twice."""


def build_source(config: DataConfig, seed: int, hr_size: int, scale: int, pool: int) -> CropSource | PairSource:
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
        folder.validate(hr_size)
        return folder
    assert config.lr_folder is not None
    pairs = PairedFolder(config.hr_folder, config.lr_folder, scale, seed)
    pairs.validate(hr_size)
    return pairs


@dataclass(frozen=True)
class TrainingData:
    """Batches of a run, and how to make pairs of them.

    Args:
        batches: endless micro-batches of one process: (micro-batch size, first sample, rank=, world=) -> iterator.
        pairs: from a batch and the numbers of its samples to LR and HR, pixels [-1, 1].
    """

    batches: Callable[..., Iterator[Any]]
    pairs: Callable[[Any, range], tuple[Tensor, Tensor]]


def open_pairs(run: RunConfig, scale: int) -> TrainingData:
    """Pairs that a run trains on."""
    data = run.data
    source = build_source(data, run.seed, data.hr_size, scale, POOL_BATCHES * run.batch_size)
    if isinstance(source, PairSource) or data.degrade_on == "workers":
        degradation = None if isinstance(source, PairSource) else data.degradation
        pairs = TrainingPairs(source, data.hr_size, scale, degradation, run.seed)
        return TrainingData(partial(training_loader, pairs, workers=data.workers), lambda batch, _: tuple(batch))

    def degraded(hr: Tensor, indexes: range) -> tuple[Tensor, Tensor]:
        return degrade_batch(hr, indexes, data.degradation, run.seed, scale), hr

    return TrainingData(partial(training_loader, TrainingImages(source, data.hr_size), workers=data.workers), degraded)


def open_images(run: RunConfig) -> TrainingData:
    """HR images alone that a run trains on."""
    if run.data.source == "pairs":
        raise ValueError("expected data.source generated or folder, got pairs; an autoencoder needs HR images only")
    source = build_source(run.data, run.seed, run.data.hr_size, 1, POOL_BATCHES * run.batch_size)
    assert not isinstance(source, PairSource)

    def none(batch: Any, indexes: range) -> tuple[Tensor, Tensor]:
        raise AssertionError("an autoencoder has no pairs")

    return TrainingData(
        partial(training_loader, TrainingImages(source, run.data.hr_size), workers=run.data.workers), none
    )


def validation_pairs(run: RunConfig, scale: int) -> tuple[Tensor, Tensor]:
    """LR and HR images, pixels [-1, 1], that the run never trains on (generated) or other crops of the same folder."""
    chosen = run.validation
    source = build_source(run.data, chosen.seed, chosen.hr_size, scale, pool=chosen.images)
    degradation = None if isinstance(source, PairSource) else run.data.degradation
    pairs = TrainingPairs(source, chosen.hr_size, scale, degradation, chosen.seed)
    lr, hr = default_collate([pairs[index] for index in range(chosen.images)])
    return lr, hr
