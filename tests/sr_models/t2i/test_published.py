"""Adapter files of TSD-SR and OSEDiff: names, round trips, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_models.t2i import published
from sr_models.t2i.lora import (
    LoRA,
    add_lora,
    lora_parameters,
    osediff_fake,
    osediff_unet,
    osediff_vae,
    tsd_fake,
    tsd_student,
    tsd_vae,
)
from sr_models.t2i.published import read_osediff, read_tsd, tsd_state, write_osediff, write_tsd

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


def sd3() -> Any:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    inputs = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    prompt = {"joint_attention_dim": 12, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
    return diffusers.SD3Transformer2DModel(**heads, **inputs, **prompt).eval()


def sd2() -> Any:
    torch.manual_seed(0)
    inputs = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
    }
    attention = {"attention_head_dim": 2, "cross_attention_dim": 12, "use_linear_projection": True}
    return diffusers.UNet2DConditionModel(**inputs, **blocks, **attention).eval()


def autoencoder(quantised: bool = False) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "use_quant_conv": quantised}
    return diffusers.AutoencoderKL(**blocks, **sizes).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(network: Any) -> Tensor:
    """Output of any of the networks for fixed input."""
    prompt = {"encoder_hidden_states": noise(1, 5, 12), "timestep": torch.tensor([500.0])}
    if isinstance(network, diffusers.AutoencoderKL):
        output = network.encode(noise(1, 3, 16, 16)).latent_dist.parameters
    elif isinstance(network, diffusers.UNet2DConditionModel):
        output = network(noise(1, 4, 8, 8), **prompt).sample
    else:
        output = network(noise(1, 4, 8, 8), **prompt, pooled_projections=noise(1, 12)).sample
    assert isinstance(output, Tensor)
    return output


def trained(network: Any, recipe: LoRA) -> Any:
    """Add the recipe's adapters and give all of its tensors values as training would."""
    add_lora(network, recipe, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters(network, recipe).values():
            parameter.normal_(std=0.3, generator=generator)
    return network


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    same = left.keys() == right.keys()
    return same and all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


def refusal(*parts: str) -> AbstractContextManager[Any]:
    """A ValueError of one line that has all these parts."""
    return pytest.raises(ValueError, match=r"\A" + "".join(f"(?=.*{part})" for part in parts) + r"[^\n]*\Z")


Kind = tuple[Callable[[], Any], Callable[..., LoRA], str]
KINDS: list[Kind] = [
    (sd3, tsd_student, "default"),
    (sd3, tsd_fake, "reg"),
    (autoencoder, tsd_vae, "default"),
]


@pytest.mark.parametrize(("base", "recipe", "adapter"), KINDS)
def test_tsd_files_are_read_back_bit_for_bit(
    tmp_path: Path, base: Callable[[], Any], recipe: Callable[..., LoRA], adapter: str
) -> None:
    network = base()
    trained(network, recipe(network, rank=4, adapter=adapter))
    write_tsd(tmp_path / "new" / "first.safetensors", network, adapter)
    fresh = base()
    found = read_tsd(tmp_path / "new" / "first.safetensors", fresh, "other", recipe)
    assert found == recipe(base(), rank=4, adapter="other")
    assert torch.equal(predict(fresh), predict(network))
    assert not torch.equal(predict(fresh), predict(base()))
    write_tsd(tmp_path / "second.safetensors", fresh, "other")
    first, second = load_file(tmp_path / "new" / "first.safetensors"), load_file(tmp_path / "second.safetensors")
    assert equal(first, second)
    assert equal(first, tsd_state(network, adapter))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["first.safetensors"], "no temporary file stays"


@pytest.mark.parametrize(("base", "recipe", "adapter"), KINDS)
def test_diffusers_reads_our_tsd_files_alike(
    base: Callable[[], Any], recipe: Callable[..., LoRA], adapter: str
) -> None:
    network, theirs = base(), base()
    trained(network, recipe(network, rank=4, adapter=adapter))
    state = tsd_state(network, adapter)
    assert equal(
        {name.removeprefix("transformer."): value for name, value in state.items()},
        peft.utils.get_peft_model_state_dict(network, adapter_name=adapter),
    )
    assert all(value.is_contiguous() and not value.requires_grad for value in state.values())
    theirs.load_lora_adapter(dict(state), prefix="transformer", adapter_name="default")
    assert torch.equal(predict(theirs), predict(network))


def test_tsd_names() -> None:
    transformer, vae = sd3(), autoencoder()
    state = tsd_state(trained(transformer, tsd_student(transformer, rank=4)))
    assert state["transformer.transformer_blocks.1.attn.to_out.0.lora_A.weight"].shape == (4, 16)
    assert state["transformer.pos_embed.proj.lora_B.weight"].shape == (16, 4, 1, 1)
    assert "transformer.encoder.conv_in.lora_A.weight" in tsd_state(trained(vae, tsd_vae(vae, rank=4)))


def test_tsd_reads_beside_another_adapter_and_keeps_it(tmp_path: Path) -> None:
    network, source = sd3(), sd3()
    trained(network, tsd_student(network, rank=4))
    kept = {name: value.clone() for name, value in tsd_state(network).items()}
    trained(source, tsd_fake(source, rank=2))
    write_tsd(tmp_path / "transformer_reg.safetensors", source, "reg")
    read_tsd(tmp_path / "transformer_reg.safetensors", network, "reg", tsd_fake)
    assert torch.equal(predict(network), predict(source))
    assert equal(tsd_state(network), kept)


def test_tsd_half_precision_files(tmp_path: Path) -> None:
    network, fresh = sd3(), sd3()
    trained(network, tsd_student(network, rank=4))
    path = tmp_path / "half.safetensors"
    write_tsd(path, network, dtype=torch.float16)
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    read_tsd(path, fresh)
    assert equal({name: value.half() for name, value in tsd_state(fresh).items()}, stored)
    write_tsd(tmp_path / "again.safetensors", fresh, dtype=torch.float16)
    assert equal(load_file(tmp_path / "again.safetensors"), stored)


def test_tsd_refuses_to_write_what_cannot_be_read_back(tmp_path: Path) -> None:
    network = sd2()
    add_lora(network, osediff_unet(network), seed=0)
    with refusal("scaling 2", "alpha equal to the rank"):
        write_tsd(tmp_path / "file", network, "default_encoder")
    with refusal(r"\['default_decoder', 'default_encoder', 'default_others'\]", "got 'reg'"):
        write_tsd(tmp_path / "file", network, "reg")
    assert not list(tmp_path.iterdir())


def damaged(path: Path, how: str) -> None:
    tensors = load_file(path)
    first, second = (f"transformer.pos_embed.proj.lora_{matrix}.weight" for matrix in "AB")
    if how == "missing":
        del tensors[first], tensors[second]
    elif how == "surplus":
        tensors["transformer.more.lora_A.weight"] = torch.zeros(4, 4)
    elif how == "no prefix":
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    elif how == "alpha":
        tensors[first.replace("lora_A.weight", "alpha")] = torch.tensor(8.0)
    elif how == "misshapen":
        tensors[first] = tensors[first][:2].contiguous()
    elif how == "integers":
        tensors[first] = tensors[first].long()
    elif how == "empty":
        tensors = {}
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        (
            "missing",
            [r"missing: 2 \(transformer\.pos_embed\.proj\.lora_A\.weight, transformer\.pos_embed\.proj\.lora_B"],
        ),
        ("surplus", [r"surplus: 1 \(transformer\.more\.lora_A\.weight\)"]),
        ("no prefix", [r"missing: 48 \(.*, \.\.\.\)", r"surplus: 48 \(.*, \.\.\.\)"]),
        ("alpha", [r"surplus: 1 \(transformer\.pos_embed\.proj\.alpha\)"]),
        ("misshapen", [r"misshapen: 1 \(\S+proj\.lora_A\.weight \(2, 4, 2, 2\) instead of \(4, 4, 2, 2\)\)"]),
        ("integers", [r"misshapen: 1 \(\S+ torch\.int64 \(4, 4, 2, 2\) instead of \(4, 4, 2, 2\)\)"]),
        ("empty", ["missing: 48"]),
    ],
)
def test_tsd_refuses_files_that_do_not_fit(tmp_path: Path, how: str, parts: list[str]) -> None:
    source, network = sd3(), sd3()
    path = tmp_path / "transformer.safetensors"
    write_tsd(path, trained(source, tsd_student(source, rank=4)))
    damaged(path, how)
    before = dict(network.state_dict())
    with refusal("tsd_student", r"transformer\.safetensors", *parts):
        read_tsd(path, network)
    assert equal(network.state_dict(), before)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not getattr(network, "peft_config", {})


def test_tsd_refuses_another_recipe_and_a_taken_name(tmp_path: Path) -> None:
    source, network = sd3(), sd3()
    path = tmp_path / "transformer_reg.safetensors"
    write_tsd(path, trained(source, tsd_fake(source, rank=4)), "reg")
    with refusal("tsd_student", "missing: 20"):
        read_tsd(path, network)
    with refusal("got reg, already there"):
        read_tsd(path, source, "reg", tsd_fake)


def test_tsd_takes_the_rank_from_the_a_matrices_alone(tmp_path: Path) -> None:
    source = sd3()
    path = tmp_path / "transformer_reg.safetensors"
    write_tsd(path, trained(source, tsd_fake(source, rank=4)), "reg")
    tensors = load_file(path)
    name = next(name for name in tensors if ".lora_A." in name)
    tensors[name] = tensors[name][:2].contiguous()
    save_file(tensors, path)
    with refusal("tsd_fake", r"misshapen: 1 \(\S+ \(2, 16\) instead of \(4, 16\)\)"):
        read_tsd(path, sd3(), "reg", tsd_fake)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs\n", b"\x08" + bytes(7) + b"{}", b"PK\x03\x04" * 99])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(content)
    with refusal(r"some\.bin", "safetensors", "download it again"):
        read_tsd(path, nn.Linear(2, 2))
    with refusal(r"some\.bin", "torch.save", "download it again"):
        read_osediff(path, nn.Linear(2, 2), nn.Linear(2, 2))


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors.*download it or give its path"):
        read_tsd(tmp_path / "absent.safetensors", nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="download it or give its path"):
        read_osediff(tmp_path, nn.Linear(2, 2), nn.Linear(2, 2))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = sd3()
    path = tmp_path / "transformer.safetensors"
    write_tsd(path, trained(network, tsd_student(network, rank=4)))
    before = path.read_bytes()

    def fail(tensors: object, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(published, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_tsd(path, network)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def generator() -> tuple[Any, Any, tuple[LoRA, LoRA]]:
    """OSEDiff's U-Net and autoencoder with trained adapters, and their recipes."""
    unet, vae = sd2(), autoencoder(quantised=True)
    recipes = osediff_unet(unet), osediff_vae(vae)
    return trained(unet, recipes[0]), trained(vae, recipes[1]), recipes


@pytest.fixture
def osediff(tmp_path: Path, generator: tuple[Any, Any, tuple[LoRA, LoRA]]) -> Path:
    """An OSEDiff file."""
    path = tmp_path / "osediff.pkl"
    write_osediff(path, *generator)
    return path


def test_osediff_files_are_read_back_bit_for_bit(
    tmp_path: Path, osediff: Path, generator: tuple[Any, Any, tuple[LoRA, LoRA]]
) -> None:
    unet, vae = sd2(), autoencoder(quantised=True)
    recipes = read_osediff(osediff, unet, vae)
    assert recipes == generator[2]
    assert torch.equal(predict(unet), predict(generator[0]))
    assert torch.equal(predict(vae), predict(generator[1]))
    write_osediff(tmp_path / "again.pkl", unet, vae, recipes)
    first, second = (torch.load(path, weights_only=True) for path in (osediff, tmp_path / "again.pkl"))
    for part in ("state_dict_unet", "state_dict_vae"):
        assert equal(first.pop(part), second.pop(part))
    assert first == second


def test_osediff_content(osediff: Path, generator: tuple[Any, Any, tuple[LoRA, LoRA]]) -> None:
    content = torch.load(osediff, weights_only=True)
    assert (content["rank_unet"], content["rank_vae"]) == (4, 4)
    assert "conv_in" in content["unet_lora_encoder_modules"]
    assert "conv_out" in content["unet_lora_decoder_modules"]
    assert all(name.startswith("mid_block.") for name in content["unet_lora_others_modules"])
    assert "quant_conv" in content["vae_lora_encoder_modules"]
    unet, vae = content["state_dict_unet"], content["state_dict_vae"]
    assert "down_blocks.0.attentions.0.proj_in.lora_A.default_encoder.weight" in unet
    assert "mid_block.resnets.0.conv1.lora_B.default_others.weight" in unet
    assert torch.equal(unet["conv_in.base_layer.weight"], generator[0].conv_in.base_layer.weight)
    assert "encoder.conv_in.lora_A.default_encoder.weight" in vae
    layers = sum(len(content[key]) for key in published.OSEDIFF_LISTS)
    assert (len(unet), len(vae)) == (2 * layers + 2, 2 * len(content["vae_lora_encoder_modules"]))


def test_osediff_adapters_are_scaled_by_two_and_conv_in_is_replaced(osediff: Path) -> None:
    unet, merged = sd2(), sd2()
    read_osediff(osediff, unet, autoencoder(quantised=True))
    state = torch.load(osediff, weights_only=True)["state_dict_unet"]
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for leaf in ("weight", "bias"):
            weights[f"conv_in.{leaf}"].copy_(state[f"conv_in.base_layer.{leaf}"])
        for name, low in state.items():
            if ".lora_A." in name:
                weight = weights[f"{name.split('.lora_A.')[0]}.weight"]
                weight += 2 * (state[name.replace(".lora_A.", ".lora_B.")].flatten(1) @ low.flatten(1)).view_as(weight)
    torch.testing.assert_close(predict(unet), predict(merged), rtol=1e-4, atol=1e-4)


def test_osediff_lists_may_repeat_names(osediff: Path) -> None:
    content = torch.load(osediff, weights_only=True)
    content["vae_lora_encoder_modules"] = content["vae_lora_encoder_modules"][::-1] * 2
    torch.save(content, osediff)
    read_osediff(osediff, sd2(), autoencoder(quantised=True))


def spoil(content: dict[str, Any], how: str) -> None:
    unet, vae = content["state_dict_unet"], content["state_dict_vae"]
    if how == "missing":
        del unet["conv_in.base_layer.bias"]
    elif how == "surplus":
        vae["decoder.conv_in.lora_A.default_encoder.weight"] = torch.zeros(4, 4, 3, 3)
    elif how == "misshapen":
        name = "encoder.conv_in.lora_A.default_encoder.weight"
        vae[name] = vae[name][:2]
    elif how == "no tensor":
        unet["conv_in.base_layer.bias"] = [0.0] * 8
    elif how == "rank":
        content["rank_vae"] = 8
    elif how == "no rank":
        content["rank_unet"] = 0
    elif how == "no names":
        content["unet_lora_others_modules"] = [1, "a"]
    elif how == "list":
        content["unet_lora_others_modules"].append("mid_block.more")
    elif how == "key":
        del content["rank_unet"]


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("missing", ["state_dict_unet", r"missing: 1 \(conv_in\.base_layer\.bias\)"]),
        ("surplus", ["state_dict_vae", r"surplus: 1 \(decoder\.conv_in\.lora_A\.default_encoder\.weight\)"]),
        ("misshapen", ["state_dict_vae", r"misshapen: 1 \(.*\(2, 3, 3, 3\) instead of \(4, 3, 3, 3\)\)"]),
        ("no tensor", ["state_dict_unet", r"misshapen: 1 \(conv_in\.base_layer\.bias list instead of \(8,\)\)"]),
        ("rank", ["state_dict_vae", r"misshapen: 34 \(.*, \.\.\.\)"]),
        ("no rank", ["rank_unet", "a rank"]),
        ("no names", ["unet_lora_others_modules", "a list of names"]),
        ("list", ["unet_lora_others_modules", r"differs in 1 \(mid_block\.more\)"]),
        ("key", ["expected a dictionary of", r"got \['rank_vae', "]),
    ],
)
def test_osediff_refuses_files_that_do_not_fit(osediff: Path, how: str, parts: list[str]) -> None:
    content = torch.load(osediff, weights_only=True)
    spoil(content, how)
    torch.save(content, osediff)
    networks = sd2(), autoencoder(quantised=True)
    before = [dict(network.state_dict()) for network in networks]
    with refusal(r"osediff\.pkl", *parts):
        read_osediff(osediff, *networks)
    for network, state in zip(networks, before, strict=True):
        assert equal(network.state_dict(), state)
        assert not getattr(network, "peft_config", {})


def test_osediff_refuses_networks_with_those_adapters(osediff: Path) -> None:
    unet, vae = sd2(), autoencoder(quantised=True)
    add_lora(vae, osediff_vae(vae), seed=0)
    with refusal("without adapters default_encoder", "fresh networks"):
        read_osediff(osediff, unet, vae)
    assert not getattr(unet, "peft_config", {})


class Code:
    """Creates a file when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_osediff_runs_no_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "osediff.pkl", tmp_path / "trace"
    torch.save({"state_dict_unet": Code(trace)}, path)
    with refusal(r"osediff\.pkl", "got code in it or a damaged or other file", "download it again"):
        read_osediff(path, nn.Linear(2, 2), nn.Linear(2, 2))
    assert not trace.exists()


def test_osediff_truncated(osediff: Path) -> None:
    osediff.write_bytes(osediff.read_bytes()[:-1000])
    with refusal(r"osediff\.pkl", "damaged"):
        read_osediff(osediff, sd2(), autoencoder(quantised=True))


def test_osediff_writes_its_own_recipes_only(tmp_path: Path, generator: tuple[Any, Any, tuple[LoRA, LoRA]]) -> None:
    unet, vae, (unet_recipe, vae_recipe) = generator
    path = tmp_path / "file.pkl"
    with refusal("got others"):
        write_osediff(path, unet, vae, (osediff_fake(unet), vae_recipe))
    with refusal("got others"):
        write_osediff(path, unet, vae, (unet_recipe, tsd_vae(vae)))
    with refusal("expected alpha 8", "got 4"):
        write_osediff(path, unet, vae, (unet_recipe, LoRA(4, 4, vae_recipe.adapters)))
    assert not path.exists()
