"""Minute models with random weights and runs that take a second; the shipped models are not needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config import (
    AutoencoderRun,
    CodebookConfig,
    DataConfig,
    PatchGANConfig,
    RSDRun,
    SinSRRun,
    TeacherRun,
    ValidationConfig,
    VSDRun,
)
from sr_models import AutoencoderConfig, ModelConfig, ScheduleConfig, SRModel, SwinUNet, SwinUNetConfig, VQAutoencoder
from sr_models.store import save_autoencoder, save_model
from sr_models.student import make_student

MODEL = ModelConfig(
    schedule=ScheduleConfig(num_steps=4),
    unet=SwinUNetConfig(
        image_size=8,
        latent_channels=2,
        out_channels=2,
        base_channels=8,
        channel_multipliers=(1,),
        res_blocks=(1,),
        attention_levels=(0,),
        swin_embed_channels=8,
        swin_mlp_ratio=1.0,
        head_channels=4,
        window_size=4,
        shift_mask="swin",
        norm_groups=2,
    ),
    autoencoder=AutoencoderConfig(
        latent_channels=2,
        z_channels=2,
        base_channels=4,
        channel_multipliers=(1, 1, 1),
        res_blocks=1,
        mid_attention=False,
        num_codes=None,
        norm_groups=2,
        latent_scale=1.5,
    ),
)
COMMON = {
    "preset": "minute",
    "steps": 2,
    "batch_size": 2,
    "log_every": 1,
    "device": "cpu",
    "data": DataConfig(hr_size=32, image_size=64, workers=0),
    "validation": ValidationConfig(images=2, hr_size=32),
}


def random_(network: nn.Module) -> None:
    """Make every parameter random: fresh networks have zero layers, which would hide what lies behind them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model folders ``autoencoder``, ``teacher`` and ``student``."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet, autoencoder = SwinUNet(MODEL.unet), VQAutoencoder(MODEL.autoencoder)
    random_(unet)
    random_(autoencoder)
    student = make_student(unet)
    student_config = MODEL.model_copy(update={"unet": student.config})
    save_autoencoder(autoencoder, folder / "autoencoder")
    save_model(SRModel("teacher", MODEL, unet, autoencoder), folder / "teacher")
    save_model(SRModel("student", student_config, student, autoencoder), folder / "student")
    return folder


@pytest.fixture
def autoencoder_run() -> AutoencoderRun:
    return AutoencoderRun(model=MODEL, **COMMON)


@pytest.fixture
def vq_run() -> AutoencoderRun:
    """With a codebook that takes averages, and a discriminator."""
    autoencoder = MODEL.autoencoder.model_copy(update={"num_codes": 16, "latent_scale": 1.0})
    return AutoencoderRun(
        model=MODEL.model_copy(update={"autoencoder": autoencoder}),
        sigma=None,
        terms={"l1": 1.0, "mse": 1.0, "commitment": 0.25, "gan": 0.5},
        codebook=CodebookConfig(update="ema", decay=0.9),
        gan=PatchGANConfig(base_channels=4, layers=2, norm_groups=4),
        **COMMON,
    )


@pytest.fixture
def teacher_run(models: Path) -> TeacherRun:
    # The scale of the latents is the given autoencoder's, as the configuration cannot know it.
    autoencoder = MODEL.autoencoder.model_copy(update={"latent_scale": 1.0})
    model = MODEL.model_copy(update={"autoencoder": autoencoder})
    return TeacherRun(model=model, autoencoder=str(models / "autoencoder"), **COMMON)


@pytest.fixture
def rsd_run(models: Path) -> RSDRun:
    return RSDRun(teacher=str(models / "teacher"), student_timesteps=2, fake_updates=2, **COMMON)


@pytest.fixture
def vsd_run(models: Path) -> VSDRun:
    return VSDRun(teacher=str(models / "teacher"), fake_updates=2, **COMMON)


@pytest.fixture
def sinsr_run(models: Path) -> SinSRRun:
    return SinSRRun(teacher=str(models / "teacher"), **COMMON)
