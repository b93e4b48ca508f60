"""Small networks with random weights, and the golden networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sr_models import (
    AutoencoderConfig,
    ModelConfig,
    ScheduleConfig,
    SRModel,
    SwinUNet,
    SwinUNetConfig,
    VQAutoencoder,
    make_student,
)


@dataclass(frozen=True)
class Golden:
    """A golden file: its reference configuration, state dict and recorded tensors."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    io: dict[str, Tensor]


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> Callable[[str], Golden]:
    """Read a golden file by name."""

    def read(name: str) -> Golden:
        with safe_open(shared_dir / "golden" / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            config = json.loads((file.metadata() or {}).get("config", "{}"))
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        io = {key.removeprefix("io."): value for key, value in tensors.items() if not key.startswith("sd.")}
        return Golden(config, state, io)

    return read


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., Any]:
    """Draw all weights anew: those that start at zero would hide what lies before them."""

    def draw(network: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
                else:  # biases, and weights of norms
                    parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
        return network

    return draw


@pytest.fixture(scope="session")
def unet_config() -> SwinUNetConfig:
    """Two levels, windows of 4, shifted at the finer level only."""
    return SwinUNetConfig(
        image_size=8,
        base_channels=16,
        channel_multipliers=(1, 2),
        res_blocks=(1, 1),
        attention_levels=(0, 1),
        swin_embed_channels=16,
        swin_mlp_ratio=2.0,
        head_channels=8,
        window_size=4,
        shift_mask="swin",
        norm_groups=8,
    )


@pytest.fixture(scope="session")
def autoencoder_config() -> AutoencoderConfig:
    """Factor 4, continuous latent."""
    return AutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 2, 2), res_blocks=1, mid_attention=False, num_codes=None, norm_groups=4
    )


@pytest.fixture
def unet(unet_config: SwinUNetConfig, random_weights: Callable[..., Any]) -> SwinUNet:
    """Build a small teacher network with random weights."""
    return random_weights(SwinUNet(unet_config)).eval()


@pytest.fixture(scope="session")
def build_model(
    unet_config: SwinUNetConfig, autoencoder_config: AutoencoderConfig, random_weights: Callable[..., Any]
) -> Callable[..., SRModel]:
    """Build a small teacher or student with random weights."""

    def build(kind: str = "student", scale: int = 4, seed: int = 0) -> SRModel:
        wider = max(autoencoder_config.factor // scale, 1)
        teacher = SwinUNet(unet_config.model_copy(update={"condition_channels": 3 * wider**2}))
        network = teacher if kind == "teacher" else make_student(teacher)
        config = ModelConfig(
            scale=scale,
            schedule=ScheduleConfig(num_steps=3),
            unet=network.config,
            autoencoder=autoencoder_config,
        )
        autoencoder = VQAutoencoder(autoencoder_config)
        return SRModel(kind, config, random_weights(network, seed), random_weights(autoencoder, seed))

    return build
