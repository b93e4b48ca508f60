"""The autoencoder: sizes, codes and the scale of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sr_models import AutoencoderConfig, VQAutoencoder

Random = Callable[..., Any]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def coded(autoencoder_config: AutoencoderConfig, random_weights: Random) -> VQAutoencoder:
    """An autoencoder with 32 codes."""
    return random_weights(VQAutoencoder(autoencoder_config.model_copy(update={"num_codes": 32}))).eval()


@pytest.fixture
def continuous(autoencoder_config: AutoencoderConfig, random_weights: Random) -> VQAutoencoder:
    return random_weights(VQAutoencoder(autoencoder_config)).eval()


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
@torch.no_grad()
def test_shapes(autoencoder_config: AutoencoderConfig, images: torch.Tensor, multipliers: tuple[int, ...]) -> None:
    update = {"channel_multipliers": multipliers, "latent_channels": 5, "z_channels": 4}
    config = autoencoder_config.model_copy(update=update)
    factor = 2 ** (len(multipliers) - 1)
    assert config.factor == factor
    autoencoder = VQAutoencoder(config)
    z = autoencoder.encode(images)
    assert z.shape == (2, 5, 16 // factor, 24 // factor)
    assert autoencoder.decode(z).shape == images.shape


@pytest.mark.parametrize("size", [(14, 24), (16, 23), (1, 1)])
def test_size_that_does_not_divide_is_refused(continuous: VQAutoencoder, size: tuple[int, int]) -> None:
    message = rf"expected height and width that divide by 4, got \({size[0]}, {size[1]}\); pad or crop"
    with pytest.raises(ValueError, match=message):
        continuous.encode(torch.zeros(1, 3, *size))


@torch.no_grad()
def test_continuous(continuous: VQAutoencoder, images: torch.Tensor) -> None:
    assert continuous.codebook is None
    assert not any("codebook" in name for name in continuous.state_dict())
    z = continuous.encode(images)
    assert torch.equal(continuous.decode(z), continuous.decode(z, quantize=False))
    with pytest.raises(ValueError, match=r"expected an autoencoder with a codebook, got a continuous one"):
        continuous.quantize(z)


@torch.no_grad()
def test_encode_does_not_quantize_and_decode_does(coded: VQAutoencoder, images: torch.Tensor) -> None:
    z = coded.encode(images)
    snapped = coded.quantize(z).z
    assert (z - snapped).abs().max() > 0.01
    assert torch.equal(coded.decode(z), coded.decode(snapped, quantize=False))
    assert (coded.decode(z) - coded.decode(z, quantize=False)).abs().max() > 1e-3


@torch.no_grad()
def test_codes_are_the_nearest(coded: VQAutoencoder) -> None:
    assert coded.codebook is not None
    z = 2 * torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    found = coded.quantize(z)
    flat = z.movedim(1, -1).double()
    distance = torch.linalg.vector_norm(flat[..., None, :] - coded.codebook.weight.double(), dim=-1)
    assert torch.equal(found.codes, distance.argmin(-1))
    assert found.codes.unique().numel() > 5
    torch.testing.assert_close(found.z, coded.codebook.weight[found.codes].movedim(-1, 1), rtol=0.0, atol=1e-6)


@torch.no_grad()
def test_codes_do_not_depend_on_autocast(coded: VQAutoencoder) -> None:
    z = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = coded.quantize(z).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(coded.quantize(z).codes, expected)


def test_gradient_passes_straight_through(coded: VQAutoencoder) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True)
    weight = torch.randn(2, 3, 4, 5, generator=generator)
    (coded.quantize(z).z * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)


@pytest.mark.parametrize("num_codes", [None, 32])
@torch.no_grad()
def test_scale_cancels(
    autoencoder_config: AutoencoderConfig, random_weights: Random, images: torch.Tensor, num_codes: int | None
) -> None:
    plain, scaled = (
        random_weights(VQAutoencoder(autoencoder_config.model_copy(update=update))).eval()
        for update in ({"num_codes": num_codes}, {"num_codes": num_codes, "latent_scale": 0.3})
    )
    torch.testing.assert_close(scaled.encode(images), 0.3 * plain.encode(images), rtol=1e-6, atol=1e-6)
    decoded = scaled.decode(scaled.encode(images))
    torch.testing.assert_close(decoded, plain.decode(plain.encode(images)), rtol=0.0, atol=1e-5)


def test_attention_is_optional(autoencoder_config: AutoencoderConfig) -> None:
    for wanted in (False, True):
        names = VQAutoencoder(autoencoder_config.model_copy(update={"mid_attention": wanted})).state_dict()
        assert any("attention" in name for name in names) == wanted
