"""One-step students: the step by hand, sizes of pictures, and the tensors that are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sr_models import SuperResolver
from sr_models.geometry import upsample
from sr_models.t2i.base import Base, Sizes, empty_base, make_predictor
from sr_models.t2i.lora import lora_parameters, osediff_unet, osediff_vae, tsd_student, tsd_vae
from sr_models.t2i.prompts import Prompt
from sr_models.t2i.student import AdapterWeights, T2IStudent, make_student
from sr_models.t2i.tiling import tiled
from sr_models.t2i.vae import decode, encode

diffusers = pytest.importorskip("diffusers")

FAMILIES = ("sd3", "sd2")
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3": {"shift": 3.0},
    "sd2": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sizes(family: str, levels: int) -> Sizes:
    """Networks of one layer; VAE and U-Net have so many levels."""
    width, vae_widths = (8, 16, 16, 16)[:levels], (8, 8, 8, 8)[:levels]
    network: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8}
    if family == "sd3":
        network |= {"num_attention_heads": 2, "caption_projection_dim": 16, "patch_size": 2, "num_layers": 1}
        network |= {"joint_attention_dim": 12, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
    else:
        network |= {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": width}
        network |= {"cross_attention_dim": 12, "use_linear_projection": True}
        network["down_block_types"] = ("CrossAttnDownBlock2D",) + ("DownBlock2D",) * (levels - 1)
        network["up_block_types"] = ("UpBlock2D",) * (levels - 1) + ("CrossAttnUpBlock2D",)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": vae_widths,
    }
    vae = {**blocks, "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.7}
    return Sizes(family, network, vae, SCHEDULERS[family])  # type: ignore[arg-type]


def build(family: str, levels: int = 2) -> Base:
    torch.manual_seed(0)
    kind = diffusers.SD3Transformer2DModel if family == "sd3" else diffusers.UNet2DConditionModel
    found = sizes(family, levels)
    network, vae = kind(**found.network), diffusers.AutoencoderKL(**found.vae)
    for part in (network, vae):
        part.requires_grad_(False).eval()
    return Base("tiny", found.family, make_predictor(network, found.family, found.scheduler), vae, found.scheduler)


def prompt(family: str, batch: int = 1, seed: int = 7) -> Prompt:
    pooled = noise(batch, 12, seed=seed + 1) if family == "sd3" else None
    return Prompt(noise(batch, 5, 12, seed=seed), pooled)


def fresh(family: str, levels: int = 2, tile: int = 8, seed: int = 0) -> T2IStudent:
    return make_student(build(family, levels), prompt(family), scale=4, tile=tile, rank=2, vae_rank=3, seed=seed)


def disturb(student: T2IStudent, seed: int = 5) -> T2IStudent:
    """Give all trained tensors values as training would; B is zero before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter.normal_(std=0.3, generator=generator)
    return student


def trained(family: str, levels: int = 2, tile: int = 8) -> T2IStudent:
    return disturb(fresh(family, levels, tile))


@pytest.fixture(scope="module", params=FAMILIES)
def student(request: pytest.FixtureRequest) -> T2IStudent:
    """Factor 2, tiles of 8: not changed by tests."""
    return trained(request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def deep(request: pytest.FixtureRequest) -> T2IStudent:
    """Factor 8 and, for the U-Net, four levels, as the published models have."""
    return trained(request.param, levels=4, tile=16)


@torch.no_grad()
def by_hand(student: T2IStudent, pixels: Tensor, n: Tensor, wanted: Prompt) -> Tensor:
    """The step from its formula, with the network's own calling convention."""
    z_L, network = encode(student.base.vae, pixels, n), student.base.predictor.network
    batch = len(z_L)
    if student.base.family == "sd3":
        t, pooled = torch.full((batch,), 1000.0), wanted.pooled
        v = network(z_L, timestep=t, encoder_hidden_states=wanted.embeds, pooled_projections=pooled).sample
        return z_L - v  # type: ignore[no-any-return]
    t, alpha = torch.full((batch,), 999), 0.0046601
    epsilon = network(z_L, timestep=t, encoder_hidden_states=wanted.embeds).sample
    return (z_L - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_step_is_the_formula_at_the_noisiest_time(student: T2IStudent) -> None:
    family = student.base.family
    pixels, n = noise(2, 3, 16, 16), noise(2, 4, 8, 8, seed=2)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if family == "sd3" else {"rtol": 1e-4, "atol": 1e-3}
    own = student(pixels, n)
    torch.testing.assert_close(own, by_hand(student, pixels, n, student.prompt.repeat(2)), **tolerance)
    given = prompt(family, batch=2, seed=20)
    other = student(pixels, n, given)
    torch.testing.assert_close(other, by_hand(student, pixels, n, given), **tolerance)
    assert (other - own).abs().max() > 1e-3, "the prompt matters"
    torch.testing.assert_close(student(pixels[:1], n[:1]), own[:1], **tolerance)


@torch.no_grad()
def test_a_picture_is_enlarged_encoded_mapped_and_decoded(student: T2IStudent) -> None:
    lr, n = noise(1, 3, 4, 4).clamp(-1, 1), noise(1, 1, 4, 8, 8, seed=2)
    z = by_hand(student, upsample(lr, 4), n[0], student.prompt)
    out = student.restore(lr, n, 1)
    assert out.shape == (1, 3, 16, 16)
    torch.testing.assert_close(out, decode(student.base.vae, z), rtol=1e-3, atol=1e-3)
    assert student.noise_shape(2, 4, 6, 1) == (1, 2, 4, 8, 12)
    assert (student.kind, student.steps, student.latent_channels) == ("student", (1,), 4)


@torch.no_grad()
def test_larger_latents_are_asked_in_tiles(student: T2IStudent) -> None:
    pixels, n = noise(1, 3, 24, 32), noise(1, 4, 12, 16, seed=2)
    predictor, index = student.base.predictor, torch.tensor([student.base.predictor.start])
    z_L = encode(student.base.vae, pixels, n)
    prediction = tiled(lambda part: predictor(part, index, student.prompt), z_L, 8, 1)
    torch.testing.assert_close(student(pixels, n), predictor.x_0(prediction, z_L, index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [4, 3, 2])
@pytest.mark.parametrize(("family", "pixels"), [("sd3", 16), ("sd2", 64)])
def test_multiple_of_the_sides(family: str, pixels: int, scale: int) -> None:
    """SR sides divide by factor 8 times patch 2, or times 8 for the U-Net's three halvings: 16 and 64 pixels."""
    base = empty_base("tiny", sizes(family, 4))
    if family == "sd3":
        recipes = tsd_student(base.predictor.network, 2), tsd_vae(base.vae, 2)
    else:
        recipes = osediff_unet(base.predictor.network, 2), osediff_vae(base.vae, 2)
    multiple = T2IStudent(base, *recipes, prompt(family), scale, 16).lr_multiple
    assert multiple == {4: pixels // 4, 3: pixels, 2: pixels // 2}[scale]
    assert next(side for side in range(1, 65) if side * scale % pixels == 0) == multiple


def picture(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(49, 37), (98, 5), (6, 103), (107, 3), (1, 1)])
def test_pictures_of_any_size_are_restored(deep: T2IStudent, size: tuple[int, int]) -> None:
    """Short sides of 49, 98, 103 and 107 are where the published program fails."""
    out = SuperResolver(deep).upscale(picture(*size))
    assert out.shape == (4 * size[0], 4 * size[1], 3)
    assert out.dtype == np.uint8
    assert out.std() > 1


def test_the_seed_decides_the_picture(student: T2IStudent) -> None:
    resolver, lr = SuperResolver(student), picture(9, 7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = resolver.upscale(lr, seed=3)
    assert torch.equal(torch.get_rng_state(), before), "no global generator is used"
    torch.manual_seed(2)
    assert np.array_equal(resolver.upscale(lr, seed=3), first)
    assert not np.array_equal(resolver.upscale(lr, seed=4), first)
    assert first.shape == (36, 28, 3)
    with pytest.raises(ValueError, match=r"expected steps=1 for this student, got 2"):
        resolver.upscale(lr, steps=2)


def test_the_posterior_is_sampled(student: T2IStudent) -> None:
    pixels, n = noise(1, 3, 16, 16), noise(1, 4, 8, 8, seed=2)
    with torch.no_grad():
        assert not torch.allclose(student(pixels, n), student(pixels, torch.zeros_like(n)), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_fresh_student_is_its_base(family: str) -> None:
    base, ours = build(family), fresh(family)
    pixels, n = noise(1, 3, 16, 16), noise(1, 4, 8, 8, seed=2)
    predictor, index = base.predictor, torch.tensor([base.predictor.start])
    z_L = encode(base.vae, pixels, n)
    expected = predictor.x_0(predictor(z_L, index, prompt(family)), z_L, index)
    torch.testing.assert_close(ours(pixels, n), expected, rtol=1e-5, atol=1e-5)
    assert (ours.network_lora.rank, ours.vae_lora.rank) == (2, 3)
    assert not torch.allclose(disturb(ours)(pixels, n), expected, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_values_depend_on_the_seed_alone(family: str) -> None:
    torch.manual_seed(5)
    one, same, other = (fresh(family, seed=seed).parameters() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if "lora_A" in name]
    assert drawn
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_names_of_the_trained_tensors(student: T2IStudent) -> None:
    found = student.parameters()
    network, vae = student.base.predictor.network, student.base.vae
    ours = {"network": (network, student.network_lora), "vae": (vae, student.vae_lora)}
    expected = {
        f"{part}.{name}": parameter
        for part, (module, recipe) in ours.items()
        for name, parameter in lora_parameters(module, recipe).items()
    }
    assert list(found) == list(expected)
    assert all(found[name] is parameter for name, parameter in expected.items()), "the networks' own tensors"
    trainable = {id(value) for module in (network, vae) for value in module.parameters() if value.requires_grad}
    assert {id(value) for value in found.values()} == trainable
    assert not any("decoder" in name and name.startswith("vae.") for name in found)
    if student.base.family == "sd3":
        assert found["network.transformer_blocks.0.attn.to_q.lora_A.default.weight"].shape == (2, 16)
        assert found["vae.encoder.conv_in.lora_B.default.weight"].shape == (8, 3, 1, 1)
    else:
        assert found["network.conv_in.base_layer.weight"].shape == (8, 4, 3, 3)
        assert found["network.mid_block.resnets.0.conv1.lora_A.default_others.weight"].shape[0] == 2
        assert found["vae.quant_conv.lora_A.default_encoder.weight"].shape == (3, 8, 1, 1)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_adapter_weights_are_the_networks_own(student: T2IStudent) -> None:
    own = student.parameters()
    weights = AdapterWeights(own)
    found = dict(weights.named_parameters())
    assert list(found) == [name.replace(".", "/") for name in own]
    assert all(one is other for one, other in zip(found.values(), own.values(), strict=True))
    assert list(weights.state_dict()) == list(found)


class Stop(Exception):
    """Leaves the context."""


@pytest.mark.parametrize("leaving", [None, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("family", FAMILIES)
def test_showing_swaps_and_restores(family: str, leaving: type[BaseException] | None) -> None:
    ours, theirs = trained(family), disturb(fresh(family), seed=6)
    pixels, n = noise(1, 3, 16, 16), noise(1, 4, 8, 8, seed=2)
    weights, other = AdapterWeights(ours.parameters()), AdapterWeights(theirs.parameters())
    before, wanted, kept = values(weights), values(other), dict(weights.named_parameters())
    with torch.no_grad():
        own, shown = ours(pixels, n), theirs(pixels, n)
        assert not torch.allclose(own, shown, atol=1e-2)
        try:
            with weights.showing(other):
                assert torch.equal(ours(pixels, n), shown)
                assert all(torch.equal(value, wanted[name]) for name, value in weights.state_dict().items())
                if leaving is not None:
                    raise leaving
        except (Stop, KeyboardInterrupt):
            assert leaving is not None
        assert torch.equal(ours(pixels, n), own)
    assert all(torch.equal(value, before[name]) for name, value in weights.state_dict().items())
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())
    assert all(value is kept[name] for name, value in weights.named_parameters()), "an optimizer keeps its tensors"
    assert all(value.requires_grad for value in kept.values())


def test_showing_a_misfit_changes_nothing() -> None:
    one, other = (
        AdapterWeights({"a.x": nn.Parameter(torch.full((2,), value)), "b.x": nn.Parameter(torch.zeros(size))})
        for value, size in ((1.0, 2), (2.0, 3))
    )
    before = values(one)
    with pytest.raises(RuntimeError, match="size mismatch"), one.showing(other):
        pass
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_gradients_reach_every_trained_tensor(student: T2IStudent) -> None:
    out = student(noise(1, 3, 24, 16), noise(1, 4, 12, 8, seed=2)).square().mean()
    given = torch.autograd.grad(out, list(student.parameters().values()), allow_unused=True)
    missing = [name for name, gradient in zip(student.parameters(), given, strict=True) if gradient is None]
    assert missing == []
