"""Runs at the published sizes (x4, 256x256 HR crops, RSD Appendix C); they need a GPU and a folder of photographs."""

from __future__ import annotations

from typing import Any

from distill.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RSDRun,
    SinSRRun,
    TeacherRun,
    ValidationConfig,
    VSDRun,
)
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


def teacher_lpips() -> TeacherRun:
    """Return the teacher of the published size with LPIPS on its decoded prediction, as ResShift's later variant.

    The weight of LPIPS is ours.
    """
    return teacher().model_copy(
        update={"preset": "x4-lpips", "terms": {"z_0": 1.0, "lpips": 1.0}, "autoencoder_dtype": "float16"}
    )


def conditions() -> dict[str, Any]:
    """Return what RSD, ResShift-VSD and SinSR have in common in the paper's comparison (Appendix C).

    Batch 64 in micro-batches of 8, AdamW 5e-5 with betas 0.9 and 0.95, average of 0.999, networks in float32 and the
    autoencoder in float16; HR crops of 256x256, second-order degradation x4.
    """
    return {
        "batch_size": 64,
        "micro_batch": 8,
        "ema_decay": 0.999,
        "optimizer": OptimizerConfig(lr=5e-5, betas=(0.9, 0.95), weight_decay=0.0),
        "data": DataConfig(hr_size=256, workers=4, degrade_on="device"),
        "checkpoint": CheckpointConfig(every=100),
        "validation": ValidationConfig(every=250),
        "teacher": "teacher",
        "autoencoder_dtype": "float16",
    }


def rsd_paper() -> RSDRun:
    """Return RSD as published; set ``data`` (photographs) and ``teacher``.

    Every number of Appendix C: the common conditions, K=5, N=4, 3000 student updates (15000 of the fake model), LPIPS
    2, GAN 3e-3.
    """
    return RSDRun(
        preset="rsd-paper",
        steps=3000,
        student_timesteps=4,
        fake_updates=5,
        terms={"distillation": 1.0, "lpips": 2.0, "gan": 3e-3},
        **conditions(),
    )


def rsd_distill_only() -> RSDRun:
    """Return RSD without the supervised losses ("distill only" of Tables 1, 2 and 6); otherwise as published."""
    return rsd_paper().model_copy(update={"preset": "rsd-distill-only", "terms": {"distillation": 1.0}})


def rsd_24gb() -> RSDRun:
    """Return the published optimisation for one card of 24 GB: smaller micro-batches, checkpointing, bfloat16."""
    return rsd_paper().model_copy(
        update={"preset": "rsd-24gb", "micro_batch": 4, "precision": "bf16", "checkpointing": True}
    )


def rsd_512() -> RSDRun:
    """Return RSD on HR crops of 512x512 (latents of 128x128), as the paper's revised version trains on LSDIR."""
    return rsd_paper().model_copy(
        update={
            "preset": "rsd-512",
            "micro_batch": 2,
            "data": DataConfig(hr_size=512, image_size=512, workers=4, degrade_on="device"),
            "validation": ValidationConfig(images=4, hr_size=512, every=250),
        }
    )


def vsd_paper() -> VSDRun:
    """Return ResShift-VSD as published: RSD's conditions, K=5, 3000 student updates, distillation term alone."""
    return VSDRun(preset="vsd-paper", steps=3000, fake_updates=5, **conditions())


def sinsr_paper() -> SinSRRun:
    """Return SinSR under the paper's common conditions, all three terms with weight 1.

    The number of updates is ours: 30,000, which is 1.9 million images; RSD's 3000 steps see 1.2 million.
    """
    return SinSRRun(preset="sinsr-paper", steps=30_000, **conditions())


def sinsr_distill_only() -> SinSRRun:
    """Return SinSR with its distillation term alone ("distill only" of Tables 1 and 2)."""
    return sinsr_paper().model_copy(update={"preset": "sinsr-distill-only", "terms": {"distillation": 1.0}})
