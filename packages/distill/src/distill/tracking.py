"""Curves and pictures of a run for TensorBoard or another tracker that accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from distill.evaluation import Evaluation

PROJECT = "sr-distill"
"""Name of the project in trackers that have projects."""
NOT_CURVES = ("step", "images", "seconds")


class Tracker:
    """The tracker that the accelerator was made with; none is fine.

    Args:
        accelerator: of the run.
        folder: run folder.
        step: that the run starts or continues at; later entries of an interrupted run are dropped.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, step: int) -> None:
        self._accelerator = accelerator
        if accelerator.log_with:
            accelerator.project_configuration.logging_dir = str(folder)
            board = "tensorboard" in [str(kind) for kind in accelerator.log_with]
            extra: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + 1}} if board else {}
            # accelerate gives TensorBoard's folder the name of the project.
            accelerator.init_trackers("tensorboard" if board else PROJECT, init_kwargs=extra)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not end_training(): it would also end the group of processes, which meet once more after this.
        for tracker in self._accelerator.trackers if self._accelerator.log_with else []:
            tracker.finish()

    def scalars(self, record: Mapping[str, float], step: int) -> None:
        """Log the numbers of a record."""
        if self._accelerator.log_with:
            self._accelerator.log({name: value for name, value in record.items() if name not in NOT_CURVES}, step)

    def evaluation(self, evaluation: Evaluation, step: int) -> None:
        """Log what was measured on the validation images, and the images, where the tracker takes images."""
        for method, values in evaluation.rows.items():
            self.scalars({f"validation/{method}/{metric}": value for metric, value in values.items()}, step)
        for tracker in self._accelerator.trackers if self._accelerator.is_main_process else []:
            if hasattr(tracker, "log_images"):
                pictures = {f"validation/{name}": _bytes(images) for name, images in evaluation.pictures.items()}
                tracker.log_images(pictures, step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    """Pixels [-1, 1] (N, 3, H, W) as bytes (N, H, W, 3), which all trackers of accelerate take."""
    levels = images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    array: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).numpy()
    return array
