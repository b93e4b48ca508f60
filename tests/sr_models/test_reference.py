"""Reading checkpoints that carry the published names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_models import SwinUNet, reference

Read = Callable[[str], Any]


@pytest.mark.parametrize("name", ["unet_swin_small", "vq_f_small"])
def test_wrappings(golden: Read, name: str) -> None:
    recorded = golden(name)
    build = reference.swin_unet if name.startswith("unet") else reference.vq_autoencoder
    plain = build(recorded.state, recorded.config).state_dict()
    prefixed = {f"module.{key}": value for key, value in recorded.state.items()}
    for wrapped in (prefixed, {"state_dict": recorded.state}, {"state_dict": prefixed, "epoch": 3}):
        state = build(wrapped, recorded.config).state_dict()
        assert state.keys() == plain.keys()
        assert all(torch.equal(state[key], plain[key]) for key in plain)
    assert set(reference.unwrap({"module.a.module.b": torch.zeros(1)})) == {"a.module.b"}


def test_input_stays_unchanged(golden: Read) -> None:
    recorded = golden("unet_swin_small")
    state = _student_state(recorded.state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    network = reference.swin_unet(state, recorded.config)
    with torch.no_grad():
        network.stem.weight.zero_()
        network.head.weight.zero_()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_derived_tensors_are_not_needed(golden: Read) -> None:
    recorded = golden("unet_swin_small")
    bare = {name: tensor for name, tensor in recorded.state.items() if not name.endswith(reference.DERIVED)}
    assert len(bare) < len(recorded.state)
    reference.swin_unet(bare, recorded.config)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("unet_swin_small", "middle_block.1.blocks.1.attn.relative_position_bias_table"),
        ("unet_swin_small", "input_blocks.0.0.weight"),
        ("unet_swin_small", "output_blocks.1.0.skip_connection.bias"),
        ("vq_f_small", "decoder.up.1.upsample.conv.weight"),
        ("vq_f_small", "quantize.embedding.weight"),
    ],
)
def test_wrong_tensors_are_named(golden: Read, name: str, tensor: str) -> None:
    recorded = golden(name)
    build = reference.swin_unet if name.startswith("unet") else reference.vq_autoencoder
    rest = {key: value for key, value in recorded.state.items() if key != tensor}
    with pytest.raises(ValueError, match=rf"^expected .*missing: {re.escape(tensor)}$"):
        build(rest, recorded.config)
    with pytest.raises(ValueError, match=r"^expected .*surplus: loss\.logvar$"):
        build(recorded.state | {"loss.logvar": torch.zeros(())}, recorded.config)
    # Two channels too many are not a student's first convolution.
    right = recorded.state[tensor]
    wrong = right.new_zeros(right.shape[0], right.shape[1] + 2, *right.shape[2:]) if right.ndim > 1 else right[1:]
    with pytest.raises(ValueError, match=rf"^expected .*misshapen: {re.escape(tensor)}: expected .*, got .*$"):
        build(recorded.state | {tensor: wrong}, recorded.config)


def test_one_dimensional_stem_is_named(golden: Read) -> None:
    recorded = golden("unet_swin_small")
    state = recorded.state | {"input_blocks.0.0.weight": torch.zeros(32)}
    with pytest.raises(ValueError, match=r"misshapen: input_blocks\.0\.0\.weight: expected .*, got \(32,\)$"):
        reference.swin_unet(state, recorded.config)


@torch.no_grad()
def test_student_stem(golden: Read) -> None:
    """An RSD student equals the network that convolves all seven channels at once."""
    recorded = golden("unet_swin_small")
    state = _student_state(recorded.state)
    student = reference.swin_unet(state, recorded.config).eval()
    assert student.config.noise_channels == 1
    assert student.stem.in_channels == 6

    # A teacher conditioned on four channels is a plain network with seven: latent, LR, and the noise as a fourth.
    plain = SwinUNet(student.config.model_copy(update={"noise_channels": 0, "condition_channels": 4})).eval()
    weights = student.state_dict()
    del weights["noise_stem.weight"]
    plain.load_state_dict(weights | {"stem.weight": state["input_blocks.0.0.weight"]})
    x, lr, time = (recorded.io[f"native.{key}"] for key in ("x", "lq", "t"))
    noise = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = plain(x, time, torch.cat([lr, noise], dim=1))
    out = student(x, time, lr, noise)
    torch.testing.assert_close(out, expected, rtol=0.0, atol=2e-5)
    assert (out - recorded.io["native.out"]).abs().max() > 1e-2, "the noise makes no difference"


def test_autoencoder_with_attention_in_levels_is_refused(golden: Read) -> None:
    recorded = golden("vq_f_small")
    config = recorded.config | {"ddconfig": recorded.config["ddconfig"] | {"attn_resolutions": [16]}}
    with pytest.raises(ValueError, match=r"expected an autoencoder without attention in its levels, got \[16\]"):
        reference.vq_autoencoder(recorded.state, config)


def test_half_precision_checkpoint_becomes_float32(golden: Read) -> None:
    recorded = golden("vq_f_small")
    halves = {name: tensor.half() for name, tensor in recorded.state.items()}
    network: nn.Module = reference.vq_autoencoder(halves, recorded.config)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def _student_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stem = state["input_blocks.0.0.weight"]
    noise = torch.randn(stem.shape[0], 1, 3, 3, generator=torch.Generator().manual_seed(1)) / 3
    return state | {"input_blocks.0.0.weight": torch.cat([stem, noise], dim=1)}
