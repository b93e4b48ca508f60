"""What is asked of a measurement, and whether it can be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sr_bench.quality import methods
from sr_bench.quality.metrics import METRICS, WEIGHT_FREE, check_keys
from sr_bench.quality.protocols import Protocol
from sr_bench.quality.settings import Settings

LONGEST_LABEL = 100
"""Bytes; a label is the name of a folder too, which file systems limit."""


@dataclass(frozen=True)
class Pred:
    """A folder of restored pictures and its label in tables."""

    label: str
    folder: Path


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Args:
        protocol: how.
        preds: folders of restored pictures.
        models: methods that restore the LR pictures.
        lr: folder of LR pictures.
        gt: folder of the ground truth.
        metrics: keys instead of the protocol's and the weight-free ones; empty: those.
        skipped: keys that are left out.
        out: folder to write; None: nothing is kept.
        seed: of the noise of models.
        limit: take the first so many pictures.
        device: where models and metrics compute.
        download: let pyiqa fetch weights.
        jobs: processes that measure.
        command: for the record.
        reference: label of the method that the others are compared with; None: the first, folders before models.
    """

    protocol: Protocol
    preds: Sequence[Pred]
    models: Sequence[methods.Asked]
    lr: Path | None = None
    gt: Path | None = None
    metrics: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    out: Path | None = None
    seed: int = 0
    limit: int | None = None
    device: str = "cpu"
    download: bool = False
    jobs: int = 1
    command: str = "sr-bench quality"
    reference: str | None = None


def read_pred(text: str) -> Pred:
    """Read ``[LABEL=]DIR``; without a label it is the name of the folder.

    Raises:
        ValueError: nothing on one side of "=".
    """
    label, equals, folder = text.partition("=")
    if not equals or os.path.exists(text):  # noqa: PTH110 - Path.exists raises where the text is too long for a path
        return Pred(Path(text).resolve().name, Path(text))
    if not label or not folder:
        raise ValueError(f"expected --pred DIR or LABEL=DIR, got {text!r}; give a label and a folder")
    return Pred(label, Path(folder))


def data_folders(data: Path) -> tuple[Path, Path | None]:
    """LR and ground truth in a folder: ``lr/`` and ``hr/`` or ``gt/``; the second may be absent.

    Raises:
        FileNotFoundError: no ``lr/``.
        ValueError: both ``hr/`` and ``gt/``.
    """
    if not (data / "lr").is_dir():
        raise FileNotFoundError(f"expected a folder lr in {data}, got none; give --lr DIR and --gt DIR")
    found = [data / name for name in ("hr", "gt") if (data / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"expected hr or gt in {data}, got both; give --lr DIR and --gt DIR")
    return data / "lr", found[0] if found else None


def default_jobs(device: str) -> int:
    """Processes that measure: one for each core, one on a GPU."""
    return (os.cpu_count() or 1) if device == "cpu" else 1


def choose_metrics(request: Request) -> tuple[str, ...]:
    """The metrics that can be asked of these folders: the protocol's own first, then the weight-free ones.

    Raises:
        ValueError: an unknown metric, one that was asked for and reads a folder that is not given, or none at all.
    """
    check_keys((*request.metrics, *request.skipped))
    given = {"sr": True, "gt": request.gt is not None, "lr": request.lr is not None, "all": request.gt is not None}
    for key in request.metrics:
        if not given[METRICS[key].reads]:
            option = "--lr DIR" if METRICS[key].reads == "lr" else "--gt DIR"
            raise ValueError(f"expected {option} for {key}, got none; give it, or leave out --metric {key}")
    wanted = request.metrics or (*request.protocol.metrics, *WEIGHT_FREE)
    chosen = dict.fromkeys(key for key in wanted if key not in request.skipped and given[METRICS[key].reads])
    if not chosen:
        raise ValueError("expected at least one metric, got none; leave out a --skip-metric, or give --gt DIR")
    return tuple(chosen)


def check_labels(request: Request) -> None:
    """Refuse labels that are not unique or too long, and methods without the pictures that they need.

    Raises:
        ValueError: says what to give.
    """
    labels = [*(pred.label for pred in request.preds), *(asked.label for asked in request.models)]
    if not labels:
        raise ValueError("expected something to measure, got nothing; give --pred DIR or --model NAME")
    folders = [methods.folder_name(label) for label in labels]
    if same := sorted({label for label, name in zip(labels, folders, strict=True) if folders.count(name) > 1}):
        raise ValueError(f"expected a label for each method, got {', '.join(same)} twice; give LABEL=NAME")
    if long := [label for label, name in zip(labels, folders, strict=True) if len(name.encode()) > LONGEST_LABEL]:
        raise ValueError(
            f"expected labels of at most {LONGEST_LABEL} letters, got {long[0][:20]}... of {len(long[0])}; "
            "give a shorter LABEL=NAME"
        )
    if request.reference is not None and request.reference not in labels:
        raise ValueError(f"expected --reference of {', '.join(labels)}, got {request.reference}; give one of them")
    if request.models and request.lr is None:
        raise ValueError("expected LR pictures for --model, got none; give --data DIR or --lr DIR")
    if request.gt is None and any(asked.name == methods.AUTOENCODER for asked in request.models):
        raise ValueError("expected a ground truth for autoencoder, which restores it, got none; give --gt DIR")


def settings_of(request: Request, metrics: tuple[str, ...], base: Path) -> Settings:
    """What decides about the figures, with paths as seen from the folder ``base``."""
    asked = {pred.label: relative(pred.folder, base) for pred in request.preds}
    for model in request.models:
        name = relative(Path(model.name), base) if Path(model.name).exists() else model.name
        asked[model.label] = ",".join([name, *(f"{key}={value}" for key, value in model.options.items())])
    return Settings(
        protocol=request.protocol,
        metrics=metrics,
        methods=asked,
        lr=None if request.lr is None else relative(request.lr, base),
        gt=None if request.gt is None else relative(request.gt, base),
        seed=request.seed,
        limit=request.limit,
        device=request.device,
    )


def relative(path: Path, base: Path) -> str:
    """A path as seen from a folder, "/" between its parts."""
    return Path(os.path.relpath(path, base)).as_posix()
