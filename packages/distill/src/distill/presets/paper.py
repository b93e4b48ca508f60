"""Runs at the published sizes (x4, 256x256 HR crops, RSD Appendix C); they need a GPU and a folder of photographs."""

from __future__ import annotations

from distill.config import OptimizerConfig, RSDRun, TeacherRun
from sr_models.presets import x4


def teacher() -> TeacherRun:
    """Return a ResShift teacher of the published size; set ``data`` and ``autoencoder``."""
    return TeacherRun(
        preset="x4",
        steps=500_000,
        batch_size=64,
        log_every=100,
        optimizer=OptimizerConfig(lr=5e-5, betas=(0.9, 0.999), schedule="cosine", warmup_steps=5000),
        model=x4(),
        autoencoder="autoencoder",
    )


def rsd_distill_only() -> RSDRun:
    """Return RSD without the supervised losses ("distill only") as published; set ``data`` and ``teacher``."""
    return RSDRun(preset="x4", steps=3000, batch_size=64, teacher="teacher")
