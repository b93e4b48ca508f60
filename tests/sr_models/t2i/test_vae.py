"""Autoencoders of text-to-image teachers: the conversion computes the same; noise, scaling and dtypes are ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_models import AutoencoderConfig, VQAutoencoder
from sr_models.store import load_autoencoder
from sr_models.t2i.lora import add_lora, lora_parameters, tsd_vae
from sr_models.t2i.vae import POSTERIOR_STD, autoencoder_kl, base_dtype, decode, encode, factor, features

diffusers = pytest.importorskip("diffusers")


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sd3_vae() -> Any:
    """Small, with SD3's scaling, shift and missing quant convolutions; three levels."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@pytest.fixture(scope="module")
def vae() -> Any:
    return sd3_vae()


@pytest.fixture(scope="module", params=["shipped", "deeper"])
def original(
    request: pytest.FixtureRequest, autoencoder_config: AutoencoderConfig, random_weights: Callable[..., Any]
) -> VQAutoencoder:
    """The shipped autoencoder, and a random one of other sizes."""
    if request.param == "shipped":
        return load_autoencoder("tiny-autoencoder")
    changes = {"res_blocks": 2, "channel_multipliers": (1, 2, 3, 2), "latent_scale": 0.7}
    network = random_weights(VQAutoencoder(autoencoder_config.model_copy(update=changes)))
    assert isinstance(network, VQAutoencoder)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def converted(original: VQAutoencoder) -> Any:
    return autoencoder_kl(original)


def test_converted_autoencoder_computes_the_same(original: VQAutoencoder, converted: Any) -> None:
    pixels = noise(2, 3, 32, 48)
    z = original.encode(pixels)
    torch.testing.assert_close(encode(converted, pixels, torch.zeros_like(z)), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decode(converted, z), original.decode(z), rtol=1e-6, atol=1e-6)
    assert z.std() > 0.05, "a constant latent would agree by chance"
    assert factor(converted) == original.config.factor
    assert converted.config.scaling_factor == original.config.latent_scale != 1.0


def test_converted_autoencoder_is_frozen_and_keeps_the_number_of_weights(
    original: VQAutoencoder, converted: Any
) -> None:
    assert not converted.training
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    c, width = original.config.latent_channels, original.encoder.conv_out.weight[0].numel()
    added = c * (width + 1) + 3 * c * c + c  # second halves of conv_out and of quant_conv, which is square
    theirs, ours = (sum(value.numel() for value in network.parameters()) for network in (converted, original))
    assert theirs == ours + added


def test_converted_autoencoder_has_a_constant_narrow_posterior(original: VQAutoencoder, converted: Any) -> None:
    pixels = noise(2, 3, 16, 16)
    z = original.encode(pixels)
    assert POSTERIOR_STD == 0.1
    spread = encode(converted, pixels, torch.ones_like(z)) - encode(converted, pixels, torch.zeros_like(z))
    torch.testing.assert_close(spread, torch.full_like(z, 0.1 * original.config.latent_scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"num_codes": 16}, {"mid_attention": True}])
def test_codebook_and_attention_are_refused(autoencoder_config: AutoencoderConfig, change: dict[str, Any]) -> None:
    network = VQAutoencoder(autoencoder_config.model_copy(update=change))
    with pytest.raises(ValueError, match=r"\Aexpected a continuous .*num_codes=(16|None), mid_attention=.*; train.*\Z"):
        autoencoder_kl(network)


def test_other_width_before_the_quant_convolution_is_refused(autoencoder_config: AutoencoderConfig) -> None:
    network = VQAutoencoder(autoencoder_config.model_copy(update={"z_channels": 5}))
    with pytest.raises(ValueError, match="z_channels"):
        autoencoder_kl(network)


def test_latents_are_the_scaled_posterior_without_shift(vae: Any) -> None:
    pixels, n = noise(2, 3, 16, 24), noise(2, 4, 4, 6, seed=2)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        torch.testing.assert_close(encode(vae, pixels, n), (posterior.mean + posterior.std * n) * 1.5305)
        torch.testing.assert_close(encode(vae, pixels, torch.zeros_like(n)), posterior.mean * 1.5305)
        torch.testing.assert_close(decode(vae, n), vae.decode(n / 1.5305).sample)
    assert posterior.std.mean() > 0.3, "the noise matters here"


def test_all_noise_comes_from_outside(vae: Any) -> None:
    pixels, n = noise(1, 3, 16, 16), noise(1, 4, 4, 4, seed=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = encode(vae, pixels, n)
    decode(vae, first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(encode(vae, pixels, n), first)
    assert not torch.equal(encode(vae, pixels, -n), first)


def test_half_precision_rounds_inside_the_network_only() -> None:
    half = sd3_vae().bfloat16()
    pixels, n = noise(1, 3, 16, 16), noise(1, 4, 4, 4, seed=2)
    with torch.no_grad():
        posterior = half.encode(pixels.bfloat16()).latent_dist
        z = encode(half, pixels, n)
        assert z.dtype == torch.float32
        assert torch.equal(z, (posterior.mean.float() + posterior.std.float() * n) * 1.5305)
        assert not torch.equal(z, z.bfloat16().float())
        out = decode(half, z)
        assert out.dtype == torch.float32
        assert torch.equal(out, half.decode((z / 1.5305).bfloat16()).sample.float())
        assert {layer.dtype for layer in features(half, pixels)} == {torch.bfloat16}


def test_double_precision_stays() -> None:
    double = sd3_vae().double()
    z = encode(double, noise(1, 3, 16, 16), noise(1, 4, 4, 4))
    assert (z.dtype, decode(double, z).dtype) == (torch.float64, torch.float64)


def test_dtype_of_a_network_is_that_of_its_base() -> None:
    half = sd3_vae().bfloat16()
    add_lora(half, tsd_vae(half, rank=2), seed=0)
    assert base_dtype(half) == torch.bfloat16
    layer = nn.Module()
    layer.register_module("lora_A", nn.Linear(1, 1))
    layer.register_module("base_layer", nn.Linear(1, 1).half())
    assert base_dtype(layer) == torch.float16


def test_gradients_reach_pixels_latents_and_the_encoders_adapters() -> None:
    network = sd3_vae()
    recipe = tsd_vae(network, rank=2)
    add_lora(network, recipe, seed=0)
    own = lora_parameters(network, recipe)
    with torch.no_grad():
        for parameter in own.values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    pixels = noise(1, 3, 16, 16).requires_grad_()
    z = encode(network, pixels, noise(1, 4, 4, 4, seed=2))
    given = torch.autograd.grad(decode(network, z).square().sum(), [z, pixels, *own.values()])
    assert all(gradient.abs().sum() > 0 for gradient in given)


def test_features_are_what_the_encoder_computes(vae: Any) -> None:
    seen: list[Tensor] = []
    parts = [vae.encoder.conv_in, *vae.encoder.down_blocks]
    hooks = [part.register_forward_hook(lambda _, __, out: seen.append(out)) for part in parts]
    pixels = noise(2, 3, 16, 24)
    with torch.no_grad():
        vae.encode(pixels)
        for hook in hooks:
            hook.remove()
        found = features(vae, pixels)
    assert [tuple(layer.shape) for layer in found] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6), (2, 16, 4, 6)]
    assert len(seen) == len(found)
    assert all(torch.equal(one, other) for one, other in zip(found, seen, strict=True))


def test_factor(vae: Any) -> None:
    assert factor(vae) == 4
    assert encode(vae, noise(1, 3, 16, 8), torch.zeros(1, 4, 4, 2)).shape == (1, 4, 4, 2)
