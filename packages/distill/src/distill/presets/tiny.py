"""The small models that ship: trained and distilled on two CPU cores, on generated images."""

from __future__ import annotations

from typing import Any

from distill.config import (
    AutoencoderRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RSDRun,
    SinSRRun,
    TeacherRun,
    ValidationConfig,
    VSDRun,
)
from sr_models.presets import tiny

VALIDATION = ValidationConfig(images=6, hr_size=192)


def autoencoder() -> AutoencoderRun:
    """Return the run that made the shipped ``tiny-autoencoder``."""
    return AutoencoderRun(
        preset="tiny",
        steps=2500,
        batch_size=16,
        log_every=20,
        precision="bf16",
        clip_norm=1.0,
        ema_decay=0.998,
        save_dtype="float16",
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=100),
        data=DataConfig(hr_size=64),
        validation=VALIDATION,
        model=tiny(),
    )


def teacher() -> TeacherRun:
    """Return the run that made the shipped ``tiny-teacher``."""
    return TeacherRun(
        preset="tiny",
        steps=5000,
        batch_size=16,
        log_every=20,
        precision="bf16",
        clip_norm=1.0,
        ema_decay=0.999,
        save_dtype="float16",
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.99), schedule="cosine", warmup_steps=200),
        data=DataConfig(hr_size=64),
        validation=VALIDATION,
        model=tiny(),
        autoencoder="tiny-autoencoder",
    )


def conditions() -> dict[str, Any]:
    """Return what the distillations have in common: minutes on two CPU cores.

    The published optimisation (Appendix C) with fewer and smaller batches; the learning rate is higher and the average
    shorter because the run has a twentieth of the paper's updates.
    """
    return {
        "preset": "tiny",
        "batch_size": 8,
        "log_every": 1,
        "ema_decay": 0.98,
        "save_dtype": "float16",
        "optimizer": OptimizerConfig(lr=1e-4),
        "data": DataConfig(hr_size=64),
        "validation": VALIDATION,
        "checkpoint": CheckpointConfig(every=50, keep=1),
        "teacher": "tiny-teacher",
    }


def rsd() -> RSDRun:
    """Return the run behind ``sr-distill train rsd``: minutes on two CPU cores."""
    return RSDRun(steps=150, **conditions())


def vsd() -> VSDRun:
    """Return ResShift-VSD for the small models: minutes on two CPU cores."""
    return VSDRun(steps=150, **conditions())


def sinsr() -> SinSRRun:
    """Return SinSR for the small models: minutes on two CPU cores."""
    return SinSRRun(steps=300, **conditions())
