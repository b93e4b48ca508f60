"""Recipes resolved against the real sizes, adding adapters, and switching between them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_models.t2i import sizes
from sr_models.t2i.lora import (
    LoRA,
    adapter_names,
    add_lora,
    lora_parameters,
    lora_shapes,
    only,
    osediff_fake,
    osediff_unet,
    osediff_vae,
    plain_layers,
    tsd_fake,
    tsd_student,
    tsd_vae,
)

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
SD3 = {
    **HEADS,
    **{"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2},
    **{"joint_attention_dim": 12, "pooled_projection_dim": 12, "pos_embed_max_size": 8},
}
SD2 = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "use_linear_projection": True},
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    **{"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 12},
}
VAE = {
    **{"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4},
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def sd3(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return diffusers.SD3Transformer2DModel(**SD3).eval()


def sd2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**SD2).eval()


def vae(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(**VAE).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def predict(network: Any) -> Tensor:
    """Output of an SD3 or SD2 network for fixed input."""
    fixed = {"hidden_states": noise(1, 4, 8, 8), "pooled_projections": noise(1, 12)}
    if not hasattr(network, "transformer_blocks"):
        fixed = {"sample": noise(1, 4, 8, 8)}
    fixed |= {"encoder_hidden_states": noise(1, 5, 12), "timestep": torch.tensor([500.0])}
    result: Tensor = network(**{name: value.to(network.dtype) for name, value in fixed.items()}).sample
    return result


def disturb(network: nn.Module, adapter: str) -> None:
    """Give an adapter's B, zero at first, values."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if f".lora_B.{adapter}." in name:
                parameter.normal_(std=0.3, generator=generator)


def count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The published networks without memory."""
    with torch.device("meta"):
        return {
            "sd3": diffusers.SD3Transformer2DModel(**sizes.sd3_medium_transformer()),
            "sd3_vae": diffusers.AutoencoderKL(**sizes.sd3_vae()),
            "sd2": diffusers.UNet2DConditionModel(**sizes.sd21_unet()),
            "sd2_vae": diffusers.AutoencoderKL(**sizes.sd2_vae()),
        }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("sd3", 2_028_328_000), ("sd3_vae", 83_819_683), ("sd2", 865_910_724), ("sd2_vae", 83_653_863)],
)
def test_real_sizes(real: dict[str, Any], name: str, parameters: int) -> None:
    assert count(value for key, value in real[name].named_parameters() if "lora_" not in key) == parameters


def test_real_scalings_of_latents() -> None:
    sd3_vae, sd2_vae = sizes.sd3_vae(), sizes.sd2_vae()
    assert (sd3_vae["scaling_factor"], sd3_vae["shift_factor"], sd2_vae["scaling_factor"]) == (1.5305, 0.0609, 0.18215)


@pytest.mark.parametrize(
    ("network", "recipe", "layers", "tensors", "parameters", "full"),
    [
        ("sd3", tsd_student, {"default": 266}, 532, 89_268_224, 0),
        ("sd3", tsd_fake, {"reg": 168}, 336, 33_030_144, 0),
        ("sd3_vae", tsd_vae, {"default": 31}, 62, 5_910_208, 0),
        (
            *("sd2", osediff_unet),
            {"default_encoder": 94, "default_decoder": 148, "default_others": 16},
            *(518, 4_055_712, 320 * 4 * 9 + 320),
        ),
        ("sd2_vae", osediff_vae, {"default_encoder": 32}, 64, 369_356, 0),
    ],
)
def test_real_recipes(
    real: dict[str, Any], network: str, recipe: Any, layers: dict[str, int], tensors: int, parameters: int, full: int
) -> None:
    module = real[network]
    ours = recipe(module)
    assert {adapter: len(names) for adapter, names in ours.adapters.items()} == layers
    add_lora(module, ours, seed=0)
    found = lora_parameters(module, ours)
    assert len(found) == tensors
    assert count(found.values()) == parameters + full
    assert {value.device.type for value in found.values()} == {"meta"}
    assert {name: tuple(value.shape) for name, value in found.items()} == lora_shapes(module, ours)
    added = {key for key, _ in module.named_parameters() if any(f".{adapter}." in key for adapter in ours.adapters)}
    assert added == {name for name in found if "lora_" in name}


def test_real_student_shapes(real: dict[str, Any]) -> None:
    shapes = lora_shapes(real["sd3"], tsd_student(real["sd3"]))
    expected = {
        "pos_embed.proj.lora_A": (64, 16, 2, 2),
        "pos_embed.proj.lora_B": (1536, 64, 1, 1),
        "transformer_blocks.0.norm1.linear.lora_B": (9216, 64),
        "transformer_blocks.22.norm1_context.linear.lora_B": (9216, 64),
        "transformer_blocks.23.norm1_context.linear.lora_B": (3072, 64),
        "transformer_blocks.7.attn.add_q_proj.lora_A": (64, 1536),
        "transformer_blocks.7.attn.to_out.0.lora_B": (1536, 64),
        "transformer_blocks.7.ff.net.0.proj.lora_B": (6144, 64),
        "transformer_blocks.22.ff_context.net.0.proj.lora_B": (6144, 64),
        "norm_out.linear.lora_B": (3072, 64),
        "proj_out.lora_B": (64, 64),
    }
    assert {name: shapes[f"{name}.default.weight"] for name in expected} == expected
    unwanted = ("to_add_out", "ff.net.2", "ff_context.net.2", "context_embedder", "time_text_embed", "23.ff_context")
    assert not [name for name in shapes if any(part in name for part in unwanted)]
    encoder = lora_shapes(real["sd3_vae"], tsd_vae(real["sd3_vae"]))
    assert encoder["encoder.conv_out.lora_B.default.weight"] == (32, 64, 1, 1)
    assert not [name for name in encoder if not name.startswith("encoder.")]


def test_real_osediff_layers(real: dict[str, Any]) -> None:
    recipe = osediff_unet(real["sd2"])
    assert not [name for names in recipe.adapters.values() for name in names if "time_emb" in name]
    assert "conv_in" in recipe.adapters["default_encoder"]
    assert "conv_out" in recipe.adapters["default_decoder"]
    shapes = lora_shapes(real["sd2"], recipe)
    assert shapes["conv_in.base_layer.weight"] == (320, 4, 3, 3)
    assert shapes["conv_in.base_layer.bias"] == (320,)
    assert "quant_conv" in osediff_vae(real["sd2_vae"]).adapters["default_encoder"]
    assert (
        count(
            torch.empty(shape, device="meta") for shape in lora_shapes(real["sd2"], osediff_fake(real["sd2"])).values()
        )
        == 4_055_712
    )


def test_a_recipe_is_the_same_with_and_without_adapters() -> None:
    network = sd2()
    before, layers = osediff_unet(network), [name for name, _ in plain_layers(network)]
    add_lora(network, before, seed=0)
    assert osediff_unet(network) == before
    assert [name for name, _ in plain_layers(network)] == layers


@pytest.mark.parametrize("recipe", [tsd_student, tsd_fake])
def test_new_adapters_start_as_the_base(recipe: Any) -> None:
    network = sd3()
    before = predict(network)
    ours = recipe(network, rank=4)
    add_lora(network, ours, seed=3)
    assert torch.equal(predict(network), before)
    for name, value in lora_parameters(network, ours).items():
        if "lora_B" in name:
            assert not value.any(), name
    drawn = torch.cat([value.flatten() for name, value in lora_parameters(network, ours).items() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(1 / 4, rel=0.1)


def test_values_follow_the_seed_and_leave_the_global_generator() -> None:
    def added(seed: int, state: int) -> dict[str, Tensor]:
        network = sd2()
        recipe = osediff_unet(network)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        add_lora(network, recipe, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {name: value for name, value in lora_parameters(network, recipe).items() if "lora_A" in name}

    first, again, other = added(3, 0), added(3, 1), added(4, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    conv1 = [value for name, value in first.items() if value.shape == (4, 8, 3, 3)]
    assert len({value[0, 0, 0, 0].item() for value in conv1}) == len(conv1) > 2


def test_exactly_the_recipe_is_trained() -> None:
    network = sd2()
    recipe = osediff_unet(network)
    add_lora(network, recipe, seed=0)
    for adapter in recipe.adapters:
        disturb(network, adapter)
    predict(network).square().sum().backward()
    found = lora_parameters(network, recipe)
    assert {"conv_in.base_layer.weight", "conv_in.base_layer.bias"} < set(found)
    assert {name for name, value in network.named_parameters() if value.grad is not None} == set(found)
    assert all(value.grad is not None and value.grad.any() for value in found.values())
    assert set(found) < set(network.state_dict())


def test_all_adapters_of_a_recipe_act_and_are_scaled_by_alpha_over_rank() -> None:
    network, merged = sd2(), sd2()
    recipe = osediff_unet(network, rank=4)
    add_lora(network, recipe, seed=0)
    weights = dict(merged.named_parameters())
    values = dict(network.named_parameters())
    for adapter, names in recipe.adapters.items():
        disturb(network, adapter)
        for name in names:
            low, high = values[f"{name}.lora_A.{adapter}.weight"], values[f"{name}.lora_B.{adapter}.weight"]
            with torch.no_grad():
                weights[f"{name}.weight"] += 2.0 * (high.flatten(1) @ low.flatten(1)).view_as(weights[f"{name}.weight"])
    torch.testing.assert_close(predict(network), predict(merged), rtol=1e-4, atol=1e-5)


def test_adapters_that_were_there_are_kept() -> None:
    network = sd3()
    teacher = tsd_student(network, rank=4)
    add_lora(network, teacher, seed=0)
    disturb(network, "default")
    kept = {name: value.clone() for name, value in lora_parameters(network, teacher).items()}
    fake = tsd_fake(network, rank=2)
    add_lora(network, fake, seed=1)
    assert adapter_names(network) == {"default", "reg"}
    assert all(torch.equal(value, kept[name]) for name, value in lora_parameters(network, teacher).items())
    assert torch.equal(predict(network), predict(sd3())), "only the new adapter, which is zero, is active"
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == set(lora_parameters(network, fake))


def test_parameters_trained_whole_stay_so_when_another_adapter_is_added() -> None:
    network = sd2()
    add_lora(network, osediff_unet(network), seed=0)
    add_lora(network, LoRA(2, 2, {"more": ("conv_out",)}), seed=0)
    assert network.conv_in.base_layer.weight.requires_grad


def test_adapters_of_a_half_precision_base_are_kept_in_single() -> None:
    network = sd3().bfloat16()
    recipe = tsd_student(network, rank=4)
    add_lora(network, recipe, seed=0)
    disturb(network, "default")
    assert {value.dtype for value in lora_parameters(network, recipe).values()} == {torch.float32}
    assert {value.dtype for name, value in network.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    output = predict(network)
    assert output.dtype == torch.bfloat16
    with only(network, []):
        assert not torch.equal(predict(network), output)


@pytest.fixture
def shared() -> dict[str, Any]:
    """One base with a frozen teacher's adapter and a trained fake one, active, and the outputs of each alone."""
    network = sd3()
    outputs = {"base": predict(network)}
    add_lora(network, tsd_student(network, rank=4), seed=0)
    disturb(network, "default")
    outputs["default"] = predict(network)
    add_lora(network, tsd_fake(network, rank=4), seed=1)
    disturb(network, "reg")
    outputs["reg"] = predict(network)
    assert len({value.sum().item() for value in outputs.values()}) == 3
    return {"network": network, **outputs}


@contextmanager
def unchanged(network: Any) -> Iterator[None]:
    def state() -> list[Any]:
        layers = [layer for layer in network.modules() if hasattr(layer, "lora_A")]
        return [
            [(list(layer.active_adapters), layer.disable_adapters) for layer in layers],
            [(name, value.requires_grad) for name, value in network.named_parameters()],
        ]

    before = state()
    yield
    assert state() == before


def test_only_activates_exactly_these(shared: dict[str, Any]) -> None:
    network = shared["network"]
    with unchanged(network), torch.no_grad():
        with only(network, ["default"]):
            assert torch.equal(predict(network), shared["default"])
            with only(network, []):
                assert torch.equal(predict(network), shared["base"])
                with only(network, ["reg"]):
                    assert torch.equal(predict(network), shared["reg"])
                assert torch.equal(predict(network), shared["base"])
            assert torch.equal(predict(network), shared["default"])
        with only(network, ["default", "reg"]):
            assert not torch.equal(predict(network), shared["reg"])
            assert not torch.equal(predict(network), shared["default"])
    assert torch.equal(predict(network), shared["reg"])


def test_only_restores_after_an_exception_and_a_disabled_network(shared: dict[str, Any]) -> None:
    network = shared["network"]
    with unchanged(network), pytest.raises(KeyError), only(network, []):
        raise KeyError
    assert torch.equal(predict(network), shared["reg"])
    network.disable_adapters()
    next(iter(network.parameters())).requires_grad_(True)
    with unchanged(network), only(network, ["default"]):
        assert torch.equal(predict(network), shared["default"])
    assert torch.equal(predict(network), shared["base"])


def test_only_undoes_flags_changed_within(shared: dict[str, Any]) -> None:
    network = shared["network"]
    with unchanged(network), only(network, ["default"]):
        network.set_adapter("default")
        network.requires_grad_(True)


def test_gradients_reach_the_active_adapter_whatever_happens_between(shared: dict[str, Any]) -> None:
    network = shared["network"]
    recipe = tsd_fake(network, rank=4)
    loss = predict(network).square().sum()
    with torch.no_grad(), only(network, ["default"]):
        predict(network)
    loss.backward()
    expected = {name: value.grad.clone() for name, value in lora_parameters(network, recipe).items()}
    network.zero_grad()
    with only(network, ["reg"]):
        loss = predict(network).square().sum()
    with only(network, []):
        loss.backward()
    assert all(torch.equal(value.grad, expected[name]) for name, value in lora_parameters(network, recipe).items())
    assert all(value.grad is None for name, value in network.named_parameters() if name not in expected)


def test_only_of_a_plain_network() -> None:
    network = nn.Linear(2, 2).requires_grad_(False)
    with unchanged(network), only(network, []):
        pass
    with pytest.raises(ValueError, match="got default; add them with add_lora"), only(network, ["default"]):
        pass


def test_only_refuses_unknown_and_merged_adapters(shared: dict[str, Any]) -> None:
    network = shared["network"]
    unknown = pytest.raises(ValueError, match=r"\['default', 'reg'\], got other")
    with unchanged(network), unknown, only(network, ["reg", "other"]):
        pass
    network.fuse_lora()
    with pytest.raises(ValueError, match="unmerge"), only(network, []):
        pass


def test_wrong_recipes_are_refused() -> None:
    network = sd3()
    recipe = tsd_student(network, rank=4)
    with pytest.raises(ValueError, match=r"without 48 of their tensors .*add_lora"):
        lora_parameters(network, recipe)
    with pytest.raises(ValueError, match=r"without \d+ of its layers"):
        add_lora(vae(), recipe, seed=0)
    with pytest.raises(ValueError, match=r"without 1 of its layers \(nothing"):
        add_lora(network, replace(recipe, full=("nothing.weight",)), seed=0)
    assert not hasattr(network, "peft_config")
    add_lora(network, recipe, seed=0)
    with pytest.raises(ValueError, match="got default, already there"):
        add_lora(network, LoRA(4, 4, {"new": recipe.adapters["default"], "default": ("proj_out",)}), seed=0)
    assert adapter_names(network) == {"default"}
    with pytest.raises(ValueError, match="none for adapter default_encoder, default_decoder, default_others"):
        osediff_unet(network)
    with pytest.raises(ValueError, match="rank >= 1"):
        tsd_student(network, rank=0)
    with pytest.raises(ValueError, match="without a dot"):
        tsd_student(network, adapter="a.b")


def test_importing_is_light() -> None:
    code = (
        "import sys, sr_models.t2i.lora, sr_models.t2i.published, sr_models.t2i.sizes;"
        "print(*{'diffusers', 'peft', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
