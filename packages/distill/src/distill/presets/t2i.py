"""Text-to-image teachers and what is distilled from them."""

from __future__ import annotations

from typing import Any

from distill.config import (
    CheckpointConfig,
    DataConfig,
    FlowTeacherRun,
    LPIPSConfig,
    OptimizerConfig,
    OSEDiffRun,
    PromptsConfig,
    TSDRun,
    TSDScheduleConfig,
    ValidationConfig,
)
from distill.presets.tiny import VALIDATION

SD21 = "stabilityai/stable-diffusion-2-1-base"
FLOAT32: dict[str, Any] = {"precision": "fp32", "base_dtype": None}


def flow_teacher() -> FlowTeacherRun:
    """Return the run that made the shipped ``tiny-flow-teacher``: an SD3 transformer of 1.6 million parameters."""
    return FlowTeacherRun(
        preset="tiny",
        steps=6000,
        batch_size=32,
        log_every=20,
        clip_norm=1.0,
        ema_decay=0.999,
        save_dtype="float16",
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=200),
        data=DataConfig(hr_size=64),
        validation=VALIDATION,
        autoencoder="tiny-autoencoder",
    )


def conditions() -> dict[str, Any]:
    """Return what the small distillations have in common: minutes on two CPU cores.

    Learning rates are far above the published ones, because the runs are a thousand times shorter. The VAE's own
    features stand in for LPIPS, whose backbone would have to be downloaded.
    """
    return {
        "preset": "tiny",
        "batch_size": 8,
        "log_every": 1,
        "clip_norm": 1.0,
        "ema_decay": 0.98,
        "optimizer": OptimizerConfig(lr=3e-3, betas=(0.9, 0.99), warmup_steps=10),
        "fake_lr": 5e-4,
        "data": DataConfig(hr_size=64),
        "validation": VALIDATION,
        "checkpoint": CheckpointConfig(every=50, keep=1),
        "base": "tiny-flow-teacher",
        "prompts": PromptsConfig(own="detail"),
        "rank": 16,
        "vae_rank": 16,
        "fake_rank": 16,
    }


def tsd() -> TSDRun:
    """Return the run behind ``sr-distill train tsd``: minutes on two CPU cores."""
    return TSDRun(
        steps=600,
        terms={"distillation": 1.0, "features": 1.0, "latent_mse": 1.0},
        schedule=TSDScheduleConfig(latent_mse_until=450, dasm_from=450),
        **conditions(),
    )


def osediff() -> OSEDiffRun:
    """Return OSEDiff for the small models: minutes on two CPU cores."""
    return OSEDiffRun(steps=600, terms={"distillation": 1.0, "features": 2.0, "pixel_mse": 1.0}, **conditions())


def sd3_paper() -> TSDRun:
    """Return TSD-SR on SD3-medium as published; set ``data`` (photographs) and ``prompts.folder``.

    Published (TSD-SR Sec. 4, Appendix D, and its training program): HR of 512x512, batch 16, AdamW 5e-6 for the student
    and 1e-6 for the fake model, cosine after 3000 updates of warm-up, gradient norm 1, ranks of 64, N = 4, s = 50,
    weights 1 and 0.3, guidance 7.5, times 50..949, LPIPS (AlexNet), gamma_1 from 1 to 2, 200,000 updates.

    Ours: the phases change in the middle, lambda falls from the program's 0.7 to the authors' final 0.3, bfloat16
    instead of float16, the noise form of TSM (docs/errata.md says why; ``parameterisation=velocity`` is as published),
    and an average of the weights. The teacher's own adapters are ``teacher_lora``.
    """
    steps = 200_000
    return TSDRun(
        preset="sd3-paper",
        steps=steps,
        terms={"distillation": 1.0, "lpips": 1.0, "latent_mse": 1.0},
        lpips=LPIPSConfig(net="alex"),
        schedule=TSDScheduleConfig(latent_mse_until=steps // 2, dasm_from=steps // 2),
        optimizer=OptimizerConfig(lr=5e-6, betas=(0.9, 0.999), weight_decay=1e-4, schedule="cosine", warmup_steps=3000),
        fake_lr=1e-6,
        base="stabilityai/stable-diffusion-3-medium-diffusers",
        **_large(),
    )


def sd3_24gb() -> TSDRun:
    """Return the published optimisation for one card of 24 GB: one image at a time, activations computed again."""
    return sd3_paper().model_copy(update={"preset": "sd3-24gb", "micro_batch": 1, "checkpointing": True})


def sd21_paper() -> OSEDiffRun:
    """Return OSEDiff on SD2.1-base as published; set ``data`` (photographs) and ``prompts.folder``.

    Published: HR of 512x512, batch 16, AdamW 5e-5 with weight decay 0.01 for both, gradient norm 1, ranks of 4, times
    20..979, guidance 7.5 for the teacher alone, pixel MSE 1, LPIPS (VGG) 2, VSD 1, 100,000 updates. Its guidance is
    away from a negative prompt: encode that text as ``null`` (docs/text-to-image.md).

    Ours: float32 instead of float16 (x_0 of the noisiest time amplifies the noise's rounding 15 times), the default
    prompt for the student, since nothing tags the image in use (``student_prompt=own`` is as published), and an average
    of the weights.
    """
    return OSEDiffRun(
        preset="sd21-paper",
        steps=100_000,
        optimizer=OptimizerConfig(lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-2),
        fake_lr=5e-5,
        base=SD21,
        rank=4,
        vae_rank=4,
        fake_rank=4,
        **{**_large(), **FLOAT32},
    )


def sd21_tsd() -> TSDRun:
    """Return TSD-SR on SD2.1-base (TSD-SR Table 5); set ``data`` (photographs) and ``prompts.folder``.

    Published is only that it was done. Objective and optimisation are those of ``sd3-paper``, on SD2.1 seen as a flow;
    the adapters are OSEDiff's (rank 4, scaled by 2), in float32.
    """
    ranks = {"rank": 4, "vae_rank": 4, "fake_rank": 4}
    return sd3_paper().model_copy(update={"preset": "sd21", "base": SD21, **ranks, **FLOAT32})


def _large() -> dict[str, Any]:
    """What the published sizes have in common."""
    return {
        "batch_size": 16,
        "micro_batch": 2,
        "log_every": 100,
        "precision": "bf16",
        "base_dtype": "bfloat16",
        "clip_norm": 1.0,
        "data": DataConfig(hr_size=512, image_size=512, workers=4, degrade_on="device"),
        "validation": ValidationConfig(images=4, hr_size=512, every=1000),
        "checkpoint": CheckpointConfig(every=500),
    }
