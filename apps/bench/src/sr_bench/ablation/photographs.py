"""Photographs that an ablation measures on besides the generated validation images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sr_bench.quality.kept import digest
from sr_models import store

MEASURED = ("psnr", "ssim", "gmsd", "nlpd", "piqe")
"""Metrics of photographs: quick ones, without weights."""
PROTOCOL = "weight-free"


@dataclass(frozen=True)
class Photographs:
    """Photographs to measure on.

    Args:
        pairs: LR and HR file of each.
        about: how many of which folders, and a digest of their names and contents; names, not places.
    """

    pairs: tuple[tuple[Path, Path], ...]
    about: str


def choose_photographs(lr_folder: Path, hr_folder: Path, images: int) -> Photographs:
    """Take so many pairs of the same name, evenly spread.

    Args:
        lr_folder: of LR photographs.
        hr_folder: of their HR versions.
        images: how many at most, above 0.

    Raises:
        ValueError: names or sizes that do not fit.
        FileNotFoundError: no such folder.
    """
    from sr_bench.quality.folders import check_sources, pair
    from sr_bench.quality.protocols import PROTOCOLS

    pictures = pair(lr_folder, hr_folder, ())
    check_sources(pictures, PROTOCOLS[PROTOCOL])
    assert pictures.lr is not None
    assert pictures.gt is not None
    count = min(images, len(pictures.names))
    names = [pictures.names[index * len(pictures.names) // count] for index in range(count)]
    pairs = tuple((pictures.lr[name], pictures.gt[name]) for name in names)
    contents = digest([(name, *map(store.sha256, files)) for name, files in zip(names, pairs, strict=True)])
    return Photographs(pairs, f"{count} photographs of {lr_folder.name} and {hr_folder.name} (sha256 {contents[:16]})")


def measure_photographs(method: str, photographs: Photographs, steps: int | None = None) -> dict[str, float]:
    """Means of the weight-free metrics of a method: ``bicubic``, a shipped model or a model folder, in some steps."""
    import numpy as np

    from sr_bench.quality.measuring import create, score
    from sr_bench.quality.methods import Asked, load
    from sr_bench.quality.metrics import METRICS
    from sr_bench.quality.protocols import PROTOCOLS
    from sr_data.images import read_image

    protocol = PROTOCOLS[PROTOCOL]
    metrics = [METRICS[key] for key in MEASURED]
    measures = [create(metric, protocol.color, "cpu") for metric in metrics]
    restore = load(Asked(method, method), scale=protocol.scale, seed=0, device="cpu", steps=steps).restore
    values: dict[str, list[float]] = {metric.title_on(protocol.color): [] for metric in metrics}
    for lr_file, hr_file in photographs.pairs:
        lr, hr = read_image(lr_file), read_image(hr_file)
        restored = restore(lr, hr)
        for title, metric, measure in zip(values, metrics, measures, strict=True):
            values[title].append(score(measure, restored, hr if metric.reads == "gt" else None))
    return {title: float(np.mean(found)) for title, found in values.items()}
