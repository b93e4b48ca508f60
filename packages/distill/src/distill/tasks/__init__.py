"""From a configuration to a run that can be trained, measured and saved: one builder per family.

This is where the pieces meet: data, networks, objective and players. The trainer knows none of them by name.
"""

from __future__ import annotations

from accelerate import Accelerator

from distill.config import (
    AnyRun,
    AutoencoderRun,
    DistillationRun,
    FakeModelRun,
    FlowTeacherRun,
    SinSRRun,
    T2IRun,
    TeacherRun,
)
from distill.ranks import make_accelerator
from distill.tasks.autoencoder import autoencoder_task
from distill.tasks.common import Task
from distill.tasks.fake_model import fake_model_task
from distill.tasks.sinsr import sinsr_task
from distill.tasks.teacher import teacher_task
from sr_models import SRModel

__all__ = ["Task", "build_distillation", "build_task"]


def build_task(config: AnyRun, accelerator: Accelerator | None = None) -> Task:
    """Load what the run starts from and check its data; everything that can fail for bad input fails here."""
    accelerator = accelerator or make_accelerator(config.device, config.precision, config.tracker)
    match config:
        case AutoencoderRun():
            return autoencoder_task(config, accelerator)
        case FlowTeacherRun():
            # diffusers is heavy and optional: only this family needs it
            from distill.tasks.flow_teacher import flow_teacher_task

            return flow_teacher_task(config, accelerator)
        case T2IRun():
            from distill.tasks.t2i import t2i_task

            return t2i_task(config, accelerator)
        case TeacherRun():
            return teacher_task(config, accelerator)
        case _:
            return build_distillation(config, accelerator)


def build_distillation(config: DistillationRun, accelerator: Accelerator, model: SRModel | None = None) -> Task:
    """Build a distillation from the teacher that its configuration names, or from another one.

    Args:
        config: of the run.
        accelerator: of this process.
        model: the teacher; None: the one that the configuration names.
    """
    match config:
        case FakeModelRun():
            return fake_model_task(config, accelerator, model)
        case SinSRRun():
            return sinsr_task(config, accelerator, model)
        case _:
            raise TypeError(f"expected the configuration of a distillation, got {type(config).__name__}")
