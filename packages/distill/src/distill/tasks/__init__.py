"""From a configuration to a run that can be trained, measured and saved: one builder per task.

This is where the pieces meet: data, networks, objective and players. The trainer knows none of them by name.
"""

from __future__ import annotations

from accelerate import Accelerator

from distill.config import AnyRun, AutoencoderRun, RSDRun, TeacherRun
from distill.ranks import make_accelerator
from distill.tasks.autoencoder import autoencoder_task
from distill.tasks.common import Task
from distill.tasks.rsd import rsd_task
from distill.tasks.teacher import teacher_task

__all__ = ["Task", "build_task"]


def build_task(config: AnyRun, accelerator: Accelerator | None = None) -> Task:
    """Load what the run starts from and check its data; everything that can fail for bad input fails here."""
    accelerator = accelerator or make_accelerator(config.device, config.precision, config.tracker)
    match config:
        case AutoencoderRun():
            return autoencoder_task(config, accelerator)
        case TeacherRun():
            return teacher_task(config, accelerator)
        case RSDRun():
            return rsd_task(config, accelerator)
