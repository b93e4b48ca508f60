"""Autoencoders with a codebook: a small one for a CPU, and the published f4 size."""

from __future__ import annotations

from distill.config import (
    AutoencoderRun,
    CheckpointConfig,
    CodebookConfig,
    DataConfig,
    OptimizerConfig,
    PatchGANConfig,
    ValidationConfig,
)
from distill.presets.tiny import VALIDATION
from sr_models import ModelConfig
from sr_models.presets import tiny, x4


def tiny_vq() -> AutoencoderRun:
    """Return a small autoencoder with 1024 codes and a patch discriminator: minutes on two CPU cores.

    The codes are moving averages, as long as that of the weights, so that averaged encoder and codes fit each other;
    dead codes move. Without LPIPS, whose weights have to be downloaded. It shows every part at work and is no
    autoencoder to build on: after its 600 updates green still comes out grey. No model that ships was made by it.
    """
    return AutoencoderRun(
        preset="tiny-vq",
        steps=600,
        batch_size=16,
        log_every=20,
        clip_norm=1.0,
        ema_decay=0.98,
        save_dtype="float16",
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=20),
        data=DataConfig(hr_size=64),
        validation=VALIDATION,
        model=_tiny_model(),
        sigma=None,
        terms={"l1": 1.0, "mse": 1.0, "colour": 0.5, "commitment": 0.25, "gan": 0.1},
        codebook=CodebookConfig(update="ema", decay=0.98),
        gan=PatchGANConfig(start=300, base_channels=16, layers=2, norm_groups=8),
    )


def vq_f4() -> AutoencoderRun:
    """Return the published f4 autoencoder with 8192 codes (VQ-GAN); set ``data`` (photographs).

    Published (VQ-GAN, and the vq-f4 model of the latent diffusion paper, which ResShift takes): the network, L1 + LPIPS
    1 + codebook 1 + commitment 0.25 + GAN 0.75 with the adaptive weight and the hinge loss from the first update on, a
    PatchGAN with base 64 and 3 layers, Adam with betas 0.5 and 0.9 and a constant learning rate of 4.5e-6 for every
    image of the batch, crops of 256x256, codes trained by gradient, no balanced colour axes. The published code weighs
    codebook and commitment the other way round by default (0.25 and 1, a known slip kept for old models); here they are
    as in the papers.

    Ours: batch 64 (8 GPUs of 8), 500000 steps, the moving average of the weights, dead-code revival, group
    normalisation in the discriminator, new images for the discriminator's update.
    """
    batch = 64
    return AutoencoderRun(
        preset="vq-f4",
        steps=500_000,
        batch_size=batch,
        micro_batch=8,
        log_every=100,
        ema_decay=0.999,
        optimizer=OptimizerConfig(lr=4.5e-6 * batch, betas=(0.5, 0.9)),
        data=DataConfig(hr_size=256, workers=4),
        validation=ValidationConfig(every=5000),
        checkpoint=CheckpointConfig(every=1000),
        model=x4(),
        sigma=None,
        balance_colours=False,
        terms={"l1": 1.0, "lpips": 1.0, "codebook": 1.0, "commitment": 0.25, "gan": 0.75},
    )


def _tiny_model() -> ModelConfig:
    """The small model that ships, with a latent of 4 channels and 1024 codes."""
    model, channels, codes = tiny(), 4, 1024
    size = {"latent_channels": channels, "z_channels": channels, "num_codes": codes}
    return model.model_copy(
        update={
            "unet": model.unet.model_copy(update={"latent_channels": channels, "out_channels": channels}),
            "autoencoder": model.autoencoder.model_copy(update=size),
        }
    )
