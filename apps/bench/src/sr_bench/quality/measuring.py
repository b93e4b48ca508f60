"""One metric of one picture, and many of them side by side."""

from __future__ import annotations

import signal
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from sr_bench.pool import processes
from sr_bench.quality.kept import digest
from sr_bench.quality.metrics import METRICS, Metric, weight_file
from sr_bench.quality.protocols import Protocol
from sr_data.images import read_image, to_tensor, write_image
from sr_models.store import sha256

Pixels = NDArray[np.uint8]
LR_RMSE = 1
"""Version of :func:`lr_rmse`; rises with every change of its values."""
Key = tuple[str, str, str]
"""sha256 of the picture, sha256 of what it is compared with, how it is measured (:func:`how`)."""


@dataclass(frozen=True)
class Task:
    """One metric of one picture.

    Args:
        metric: key.
        color: of the protocol.
        crop_border: of the protocol.
        picture: file.
        reference: file of the ground truth or of the LR picture; None: the metric reads the picture alone.
        device: where to compute.
        key: of the value.
    """

    metric: str
    color: str
    crop_border: int
    picture: Path
    reference: Path | None
    device: str
    key: Key


def how(metric: Metric, protocol: Protocol) -> str:
    """Everything that a value depends on besides the pictures."""
    if metric.reads == "lr":
        return f"{metric.key} version {LR_RMSE}"
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(metric.arguments_on(protocol.color).items()))
    weights = f" weights {digest([_content(weight_file(name)) for name in metric.files])}" if metric.files else ""
    return f"pyiqa {version('pyiqa')} {metric.key}({arguments}) border {protocol.crop_border}{weights}"


def work(task: Task) -> float | str:
    """Value of a task, or why there is none; always on one thread, as the number of threads changes last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        value = _value(task)
    except Exception as error:  # a metric that fails, such as on a small picture, leaves the others alone
        reason = str(error).strip().splitlines()
        return reason[0] if reason else type(error).__name__
    finally:
        torch.set_num_threads(threads)
    return value if np.isfinite(value) else f"the metric gave {value}"


def work_all(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, float | str]]:
    """Yield values as they come, from this process for one job at a time, otherwise from others.

    Raises:
        ValueError: a process was killed, most likely for want of memory.
    """
    if jobs == 1 or len(tasks) < 2:
        yield from ((task, work(task)) for task in tasks)
        return
    pool = processes(min(jobs, len(tasks)))
    try:
        with _interrupts_ignored():  # by the processes, for good: an interrupt is for this one
            running = {pool.submit(work, task): task for task in tasks}
        for done in as_completed(running):
            yield running[done], done.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"expected memory for {jobs} processes that measure, got one that was killed; repeat the command with "
            "fewer --jobs (with --out it goes on), or with --skip-metric mad, which needs most"
        ) from error
    except BaseException:  # an interrupt, here or where the values go: a running task can take half a minute
        for process in pool._processes.values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def score(metric: Any, restored: Pixels, reference: Pixels | None) -> float:
    """Value of a pyiqa metric on 8-bit pictures."""
    images = [to_tensor(pixels)[None].add(1).div(2) for pixels in (restored, reference) if pixels is not None]
    with torch.inference_mode():
        return float(metric(*images).mean())


def lr_rmse(restored: Pixels, lr: Pixels) -> float:
    """RMSE between the LR image and a restored one averaged down to it, in levels of 8 bits."""
    height, width = lr.shape[:2]
    down, across = restored.shape[0] // height, restored.shape[1] // width
    averaged = restored.reshape(height, down, width, across, 3).mean((1, 3))
    return float(np.sqrt(np.square(averaged - lr).mean()))


@cache
def gauge(key: str, color: str, device: str) -> Any:
    """pyiqa's metric, with what the protocol asks for; its weights have to be on this machine."""
    with offline():
        return create(METRICS[key], color, device)


def create(metric: Metric, color: str, device: str) -> Any:
    """pyiqa's metric; fetches weights that are not there."""
    import pyiqa  # 10 s and heavy

    return pyiqa.create_metric(metric.key, device=device, **metric.arguments_on(color))


def frechet_distance(pictures: Sequence[Path], references: Sequence[Path], device: str, border: int = 0) -> float:
    """FID between two sets of pictures without their border, in clean-fid's way of resizing.

    Raises:
        ValueError: fewer than two pictures, which have no covariance, or one that is smaller than the border.
    """
    if len(pictures) < 2:
        raise ValueError("expected at least 2 pictures for FID, got 1; measure more")
    with tempfile.TemporaryDirectory() as folder:
        for name, files in (("pictures", pictures), ("references", references)):
            place = Path(folder) / name
            place.mkdir()
            for number, file in enumerate(files):  # pyiqa takes folders, and names may lie deeper
                if border:
                    write_image(place / f"{number:08d}.png", _inside(read_image(file), border))
                else:
                    (place / f"{number:08d}{file.suffix}").symlink_to(file.resolve())
        sides = [str(Path(folder) / name) for name in ("pictures", "references")]
        metric = gauge("fid", "y", device)
        return float(metric(*sides, mode="clean", num_workers=0, verbose=False))


@contextmanager
def offline() -> Iterator[None]:
    """Let nothing be fetched: what would be is an error instead."""
    from huggingface_hub import constants

    with (
        patch.object(torch.hub, "urlopen", _refuse),
        patch.object(urllib.request, "urlopen", _refuse),
        patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
        yield


def _refuse(request: Any, *_: Any, **__: Any) -> NoReturn:
    name = str(getattr(request, "full_url", request)).rsplit("/", 1)[-1]
    raise FileNotFoundError(f"needs {name}, which is absent or damaged")


def _value(task: Task) -> float:
    picture = _read(task.picture, task.key[0])
    reference = None if task.reference is None else _read(task.reference, task.key[1])
    if METRICS[task.metric].reads == "lr":
        assert reference is not None
        return lr_rmse(picture, reference)
    inner = _inside(picture, task.crop_border)
    measure = gauge(task.metric, task.color, task.device)
    return score(measure, inner, None if reference is None else _inside(reference, task.crop_border))


def _inside(picture: Pixels, border: int) -> Pixels:
    if min(picture.shape[:2]) <= 2 * border:
        raise ValueError(f"the picture is smaller than the border of {border}")
    inner = slice(border, -border or None)
    return picture[inner, inner]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; processes that start in it always do."""
    if threading.current_thread() is not threading.main_thread():  # others have no part in signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@cache
def _content(path: Path | None) -> str | None:
    """sha256 of a weight file, read once in a process."""
    return None if path is None else sha256(path)


@lru_cache(maxsize=3)
def _read(path: Path, sha256: str) -> Pixels:
    """The picture; its sha256 is part of the key, so that a file with other content is read again."""
    return read_image(path)
