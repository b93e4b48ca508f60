"""Presets, configurations and the public names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

import sr_models
from sr_models import AutoencoderConfig, ModelConfig, ScheduleConfig, SwinUNet, SwinUNetConfig, VQAutoencoder
from sr_models.layers import count_parameters
from sr_models.presets import PRESETS, tiny, x4

Fields = Mapping[str, Any]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_build(name: str) -> None:
    config = PRESETS[name]()
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert config.schedule.build().num_steps == 15
    with torch.device("meta"):
        network, autoencoder = SwinUNet(config.unet), VQAutoencoder(config.autoencoder)
    assert network.stem.in_channels == autoencoder.quant_conv.out_channels + config.unet.condition_channels
    # The LR image has the size of the latent, so that it is conditioned on without resizing.
    assert autoencoder.config.factor == config.scale


def test_tiny_is_small_and_linear() -> None:
    config = tiny()
    with torch.device("meta"):
        assert count_parameters(SwinUNet(config.unet)) < 2_600_000
        assert count_parameters(VQAutoencoder(config.autoencoder)) < 1_000_000
    assert not config.autoencoder.mid_attention
    assert config.autoencoder.num_codes is None
    assert config.unet.shift_mask == "swin"


def test_x4_reads_published_weights() -> None:
    assert x4().unet.shift_mask == "published"


@torch.no_grad()
def test_tiny_runs() -> None:
    config = tiny()
    z = VQAutoencoder(config.autoencoder).encode(torch.zeros(1, 3, 32, 32))
    out = SwinUNet(config.unet)(z, torch.tensor([14]), torch.zeros(1, 3, 8, 8))
    assert out.shape == z.shape == (1, 8, 8, 8)


@pytest.mark.parametrize("config", [AutoencoderConfig, ModelConfig, ScheduleConfig, SwinUNetConfig])
def test_configurations_are_strict_and_frozen(config: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config.model_validate({"chanels": 3})
    field = next(iter(config.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config(), field, getattr(config(), field))


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SwinUNetConfig, {"res_blocks": (2, 2)}, r"expected one res_blocks entry per level \(4\), got \(2, 2\)"),
        (SwinUNetConfig, {"attention_levels": (0, 4)}, r"expected attention_levels within 0\.\.3, got \(0, 4\)"),
        (SwinUNetConfig, {"swin_embed_channels": 100}, r"expected swin_embed_channels .* of head_channels=32, got 100"),
        (SwinUNetConfig, {"shift_mask": "other"}, "Input should be 'published' or 'swin'"),
        (SwinUNetConfig, {"dropout": 1.0}, "less than 1"),
        (AutoencoderConfig, {"base_channels": 100}, r"expected channels that divide into norm_groups=32, got 100\*1"),
        (AutoencoderConfig, {"num_codes": 0}, "greater than or equal to 1"),
        (AutoencoderConfig, {"latent_scale": 0}, "greater than 0"),
        (ScheduleConfig, {"sqrt_eta_end": 1.1}, "less than or equal to 1"),
        (
            ModelConfig,
            {"autoencoder": {"latent_channels": 4}},
            r"expected unet\.latent_channels and unet\.out_channels equal to the autoencoder's 4, got 3 and 3",
        ),
        (ModelConfig, {"unet": {"out_channels": 6}}, r"equal to the autoencoder's 3, got 3 and 6"),
    ],
)
def test_inconsistent_configurations_are_refused(config: type[BaseModel], fields: Fields, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_channels": 100}, "norm_groups=32"),
        ({"swin_embed_channels": 48, "head_channels": 16}, "norm_groups=32"),
        ({"image_size": 48}, "window"),  # the coarsest level is 6 wide: inputs padded for windows of 8 do not fit
        ({"image_size": 4}, "image_size"),
    ],
)
def test_unets_that_could_not_run_are_refused(fields: Fields, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SwinUNetConfig.model_validate(fields)


@pytest.mark.parametrize("fields", [{"scale": 2}, {"scale": 3}, {"unet": {"condition_channels": 12}}])
def test_scale_and_condition_channels_must_agree(fields: Fields) -> None:
    with pytest.raises(ValidationError, match=r"condition_channels|scale"):
        ModelConfig.model_validate(fields)


def test_multiple() -> None:
    assert SwinUNetConfig().multiple == 64
    assert tiny().unet.multiple == 16


def test_public_names() -> None:
    assert sr_models.__all__ == sorted(sr_models.__all__)
    assert all(getattr(sr_models, name).__doc__ for name in sr_models.__all__)
    assert "SuperResolver" in sr_models.__all__
