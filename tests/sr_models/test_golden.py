"""Agreement with the recorded outputs of the published networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sr_models import Denoiser, ScheduleConfig, SwinUNet, SwinUNetConfig, VQAutoencoder, reference
from sr_models.layers import count_parameters
from sr_models.presets import x4
from sr_models.swin_unet import SwinLayer, shift_mask

NETWORK = {"rtol": 0.0, "atol": 1e-5}
# Fifteen network evaluations, each fed with the last one's rounding.
CHAIN = {"rtol": 0.0, "atol": 2e-5}

Read = Callable[[str], Any]


@pytest.fixture(scope="module")
def unet(golden: Read) -> SwinUNet:
    recorded = golden("unet_swin_small")
    return reference.swin_unet(recorded.state, recorded.config).eval()


@pytest.fixture(scope="module")
def autoencoder(golden: Read) -> VQAutoencoder:
    recorded = golden("vq_f_small")
    return reference.vq_autoencoder(recorded.state, recorded.config).eval()


@pytest.mark.parametrize("case", ["native", "wide"])
@torch.no_grad()
def test_unet(unet: SwinUNet, golden: Read, case: str) -> None:
    io = golden("unet_swin_small").io
    out = unet(io[f"{case}.x"], io[f"{case}.t"], io[f"{case}.lq"])
    torch.testing.assert_close(out, io[f"{case}.out"], **NETWORK)


@torch.no_grad()
def test_autoencoder(autoencoder: VQAutoencoder, golden: Read) -> None:
    io = golden("vq_f_small").io
    torch.testing.assert_close(autoencoder.encode(io["image"]), io["latent"], **NETWORK)
    torch.testing.assert_close(autoencoder.quantize(io["z"]).z, io["z_quantized"], **NETWORK)
    torch.testing.assert_close(autoencoder.decode(io["z"]), io["decoded"], **NETWORK)
    torch.testing.assert_close(autoencoder.decode(io["z"], quantize=False), io["decoded_unquantized"], **NETWORK)


@torch.no_grad()
def test_sampling(unet: SwinUNet, golden: Read) -> None:
    io = golden("sampling_15_steps").io
    schedule = ScheduleConfig(num_steps=15, kappa=2.0, power=0.3, min_noise_level=0.04, sqrt_eta_end=0.99)
    denoiser = Denoiser(unet, schedule.build())
    inputs = io["y"], io["lq"], io["noises"]
    torch.testing.assert_close(torch.stack(denoiser.trajectory(*inputs)), io["trajectory"], **CHAIN)
    states = denoiser.trajectory(*inputs, deterministic=True)
    torch.testing.assert_close(torch.stack(states), io["deterministic_trajectory"], **CHAIN)
    torch.testing.assert_close(denoiser.one_step(io["y"], io["lq"], io["noises"][15]), io["one_step"], **CHAIN)
    torch.testing.assert_close(denoiser.sample(*inputs), io["trajectory"][-1], **CHAIN)
    with pytest.raises(ValueError, match=r"expected T \+ 1 = 16 noise fields, got 15"):
        denoiser.trajectory(io["y"], io["lq"], io["noises"][1:])


def test_derived_tensors(unet: SwinUNet, golden: Read) -> None:
    recorded = golden("unet_swin_small")
    layers = _swin_layers(unet)
    masks, indices = 0, 0
    for ours, layer in layers.items():
        place = _reference_place(unet.config, ours)
        for index, block in enumerate(layer.blocks):
            name = f"{place}.blocks.{index}"
            stored = recorded.state[f"{name}.attn.relative_position_index"]
            assert torch.equal(block.attention.relative_position_index, stored)
            indices += 1
            assert (block.shift > 0) == (f"{name}.attn_mask" in recorded.state)
            if block.shift:
                mask = shift_mask(16, 16, block.attention.window, block.shift, "published")
                assert torch.equal(mask, recorded.state[f"{name}.attn_mask"])
                masks += 1
    derived = [name for name in recorded.state if name.endswith(reference.DERIVED)]
    assert (masks, masks + indices) == (2, len(derived))


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = json.loads(
        (shared_dir / "golden" / "published_state_dicts.json").read_text()
    )
    return found


def test_published_unet(published: dict[str, dict[str, list[int]]]) -> None:
    theirs = published["resshift_realsrx4_s15_v1"]
    with torch.device("meta"):
        network = SwinUNet(x4().unet)
    names = dict(reference.swin_unet_names(network.config))
    derived_names = {name for name in theirs if name.endswith(reference.DERIVED)}
    assert _shapes(network, names) == {name: theirs[name] for name in theirs.keys() - derived_names}

    derived = {}
    size = {f"down.{level}.attention": 64 >> level for level in range(4)} | {"middle.1": 8}
    size |= {f"up.{stage}.attention": 8 << stage for stage in range(4)}
    for ours, layer in _swin_layers(network).items():
        for index, block in enumerate(layer.blocks):
            place = f"{_reference_place(network.config, ours)}.blocks.{index}"
            positions = block.attention.window**2
            derived[f"{place}.attn.relative_position_index"] = [positions, positions]
            if block.shift:
                mask = shift_mask(size[ours], size[ours], block.attention.window, block.shift, "published")
                derived[f"{place}.attn_mask"] = list(mask.shape)
    assert derived == {name: theirs[name] for name in derived_names}


def test_published_autoencoder(published: dict[str, dict[str, list[int]]]) -> None:
    with torch.device("meta"):
        network = VQAutoencoder(x4().autoencoder)
    names = dict(reference.autoencoder_names(network.config))
    assert _shapes(network, names) == published["autoencoder_vq_f4"]


def test_published_sizes() -> None:
    config = x4()
    with torch.device("meta"):
        assert count_parameters(SwinUNet(config.unet)) == 118_593_583
        assert count_parameters(VQAutoencoder(config.autoencoder)) == 55_322_782


def _shapes(network: nn.Module, names: dict[str, str]) -> dict[str, list[int]]:
    return {names[ours]: list(tensor.shape) for ours, tensor in network.state_dict().items()}


def _swin_layers(network: nn.Module) -> dict[str, SwinLayer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, SwinLayer)}


def _reference_place(config: SwinUNetConfig, ours: str) -> str:
    names = dict(reference.swin_unet_names(config))
    return names[f"{ours}.proj_in.weight"].removesuffix(".patch_embed.proj.weight")
