"""The U-Net: sizes, conditioning, noise, time and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models import SwinUNet, SwinUNetConfig
from sr_models.layers import GroupNorm32
from sr_models.swin_unet import ResBlock, timestep_embedding

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def inputs(height: int, width: int, batch: int = 2, factor: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(batch, 3, height, width, generator=generator)
    lr = torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1
    return x, torch.arange(batch) * 7, lr


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (17, 16), (24, 40)])
@torch.no_grad()
def test_any_size(unet: SwinUNet, height: int, width: int) -> None:
    x, time, lr = inputs(height, width)
    out = unet(x, time, lr)
    assert out.shape == x.shape
    bottom, right = -height % 8, -width % 8
    padded = [F.pad(image, (0, right, 0, bottom), mode="replicate") for image in (x, lr)]
    torch.testing.assert_close(out, unet(padded[0], time, padded[1])[..., :height, :width], **CLOSE)
    assert unet.bottleneck(x, time, lr).shape == (2, 32, (height + bottom) // 2, (width + right) // 2)


@torch.no_grad()
def test_noise_is_padded_like_the_latent(unet_config: SwinUNetConfig, random_weights: Callable[..., Any]) -> None:
    student = random_weights(SwinUNet(unet_config.model_copy(update={"noise_channels": 2}))).eval()
    x, time, lr = inputs(5, 7)
    noise = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    padded = [F.pad(image, (0, 1, 0, 3), mode="replicate") for image in (x, lr, noise)]
    expected = student(padded[0], time, padded[1], padded[2])[..., :5, :7]
    torch.testing.assert_close(student(x, time, lr, noise), expected, **CLOSE)


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(unet: SwinUNet) -> None:
    x, time, lr = inputs(8, 16, batch=3)
    alone = [unet(x[i : i + 1], time[i : i + 1], lr[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(unet(x, time, lr), torch.cat(alone), **CLOSE)


@torch.no_grad()
def test_bottleneck_is_what_forward_reads(unet: SwinUNet) -> None:
    x, time, lr = inputs(8, 16)
    seen: list[Tensor] = []
    hook = unet.up[0].blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, :32]))
    unet(x, time, lr)
    hook.remove()
    assert torch.equal(unet.bottleneck(x, time, lr), seen[0])


@torch.no_grad()
def test_larger_lr_is_unshuffled(unet_config: SwinUNetConfig, random_weights: Callable[..., Any]) -> None:
    network = random_weights(SwinUNet(unet_config.model_copy(update={"condition_channels": 12}))).eval()
    x, time, lr = inputs(6, 10, factor=2)
    corners = [lr[..., i::2, j::2] for i in range(2) for j in range(2)]
    unshuffled = torch.stack(corners, dim=2).flatten(1, 2)  # channel c of corner k at 4c + k
    torch.testing.assert_close(network(x, time, lr), network(x, time, unshuffled), **CLOSE)


@torch.no_grad()
def test_smaller_lr_is_resized(unet: SwinUNet) -> None:
    x, time, _ = inputs(8, 16)
    lr = torch.rand(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    resized = F.interpolate(lr, size=(8, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(unet(x, time, lr), unet(x, time, resized), **CLOSE)


@pytest.mark.parametrize("size", [(12, 24), (16, 16), (8, 24), (9, 16)])
def test_lr_of_no_whole_multiple_is_refused(unet: SwinUNet, size: tuple[int, int]) -> None:
    x, time, _ = inputs(8, 16)
    with pytest.raises(ValueError, match=r"expected an LR image of a whole multiple of the latent size \(8, 16\)"):
        unet(x, time, torch.zeros(2, 3, *size))


def test_lr_of_another_scale_is_refused(unet: SwinUNet) -> None:
    x, time, lr = inputs(8, 16, factor=2)
    with pytest.raises(ValueError, match="expected 3 condition channels, got 12"):
        unet(x, time, lr)
    with pytest.raises(ValueError, match="expected 3 condition channels, got 1"):
        unet(x, time, torch.zeros(2, 1, 8, 16))


def test_lr_is_required_unless_unconditioned(unet: SwinUNet, unet_config: SwinUNetConfig) -> None:
    x, time, _ = inputs(8, 8)
    with pytest.raises(ValueError, match=r"expected the LR image .*; pass lr="):
        unet(x, time)
    network = SwinUNet(unet_config.model_copy(update={"condition_channels": 0}))
    assert network(x, time).shape == x.shape


@torch.no_grad()
def test_lr_makes_a_difference(unet: SwinUNet) -> None:
    x, time, lr = inputs(8, 8)
    assert (unet(x, time, lr) - unet(x, time, -lr)).abs().max() > 1e-2


def test_noise_is_required_or_forbidden(unet: SwinUNet, unet_config: SwinUNetConfig) -> None:
    x, time, lr = inputs(8, 8)
    with pytest.raises(ValueError, match=r"expected no noise .*; drop noise="):
        unet(x, time, lr, x[:, :1])
    student = SwinUNet(unet_config.model_copy(update={"noise_channels": 1}))
    for call in (student, student.bottleneck):
        with pytest.raises(ValueError, match=r"expected a noise tensor .*; pass noise="):
            call(x, time, lr)


@torch.no_grad()
def test_output_depends_on_time(unet: SwinUNet) -> None:
    x, _, lr = inputs(8, 8)
    outputs = [unet(x, torch.full((2,), time), lr) for time in (0, 1, 14)]
    for a, b in ((0, 1), (1, 2)):
        assert (outputs[a] - outputs[b]).abs().max() > 1e-3


@torch.no_grad()
def test_film(random_weights: Callable[..., Any]) -> None:
    """Scale comes before shift, and both act after the second norm."""
    block = random_weights(ResBlock(8, 12, 16, groups=4, dropout=0.0)).eval()
    generator = torch.Generator().manual_seed(0)
    x, emb = (torch.randn(shape, generator=generator) for shape in ((2, 8, 4, 4), (2, 16)))
    scale, shift = F.linear(F.silu(emb), block.film.weight, block.film.bias).split(12, dim=1)
    h = block.norm_out(block.conv_in(F.silu(block.norm_in(x))))
    h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(block(x, emb), block.skip(x) + block.conv_out(F.silu(h)), **CLOSE)


@pytest.mark.parametrize("channels", [6, 7])
def test_timestep_embedding(channels: int) -> None:
    times = (0, 3, 14)
    embedding = timestep_embedding(torch.tensor(times), channels)
    assert embedding.dtype == torch.float32
    for row, time in zip(embedding, times, strict=True):
        angles = [time * 10000 ** (-index / 3) for index in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (channels - 6)
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0.0, atol=1e-6)


def test_starts_with_zero_output(unet_config: SwinUNetConfig) -> None:
    x, time, lr = inputs(8, 8)
    assert not SwinUNet(unet_config)(x, time, lr).any()


def test_dropout_acts_in_training_only(unet_config: SwinUNetConfig, random_weights: Callable[..., Any]) -> None:
    network = random_weights(SwinUNet(unet_config.model_copy(update={"dropout": 0.5})))
    x, time, lr = inputs(8, 8)
    assert not torch.equal(network.train()(x, time, lr), network(x, time, lr))
    assert torch.equal(network.eval()(x, time, lr), network(x, time, lr))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
@torch.no_grad()
def test_half_precision(unet: SwinUNet, dtype: torch.dtype, tolerance: float) -> None:
    x, time, lr = inputs(8, 16)
    expected = unet(x, time, lr)
    out = unet.to(dtype)(x.to(dtype), time, lr)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < tolerance * expected.abs().max()


@torch.no_grad()
def test_autocast(unet: SwinUNet) -> None:
    x, time, lr = inputs(8, 16)
    expected = unet(x, time, lr)
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(x, time, lr)
    assert (out.float() - expected).abs().max() < 0.15 * expected.abs().max()


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_group_norm_statistics(dtype: torch.dtype, parameters: torch.dtype) -> None:
    """Statistics of large means are those of float32 at least, and the result keeps the input's dtype."""
    x = (1000 + 20 * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    norm = GroupNorm32(4, 8).to(parameters)
    nn.init.constant_(norm.weight, 1.5)
    out = norm(x)
    assert out.dtype == dtype
    exact = 1.5 * F.group_norm(x.double(), 4)
    torch.testing.assert_close(out, exact.to(dtype), rtol=0.0, atol=1e-9 if dtype == torch.float64 else 0.02)


def test_statistics_are_computed_in_float32() -> None:
    seen: list[torch.dtype] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.group_norm:
                seen.append(args[0].dtype)
            return function(*args, **(kwargs or {}))

    with Watch():
        GroupNorm32(2, 4).half()(torch.ones(1, 4, 2, 2, dtype=torch.float16))
    assert seen == [torch.float32]
