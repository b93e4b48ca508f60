"""Sizes of ResShift-family networks read off the shapes of their published tensors.

What shapes cannot tell keeps the published value: the groups of the norms (32), the shift mask, dropout. The latent
size that a U-Net was made for shows in its stored shift masks; a file without them gets the published 64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from sr_models.autoencoder import AutoencoderConfig
from sr_models.reference import STEM
from sr_models.swin_unet import SwinUNetConfig

TABLE = "attn.relative_position_bias_table"
INDEX = "attn.relative_position_index"
RGB = 3

Config = TypeVar("Config", bound=BaseModel)


def swin_unet_sizes(state: Mapping[str, Tensor], *, image_size: int | None = None) -> SwinUNetConfig:
    """Sizes of a U-Net, with ``noise_channels=1`` for an RSD student's.

    Args:
        state: reference-named tensors; only their shapes are looked at.
        image_size: side of the latents that it was made for; None: as its masks tell, or the published 64.

    Raises:
        ValueError: a tensor that tells a size is missing, or the sizes make no sense.
    """
    base, inputs = _shape(state, STEM, 4)[:2]
    out_channels = _shape(state, "out.2.weight", 4)[0]
    # The LR image has 3 channels, or 3 k^2 after unshuffling; one more is noise.
    noise = (inputs - out_channels) % RGB
    if inputs < out_channels or noise > 1:
        raise ValueError(
            f"expected a first convolution of {out_channels} latent channels, 3 or 3 k^2 of the LR image and perhaps "
            f"1 of noise, got {inputs}; give a U-Net of ResShift, SinSR or RSD"
        )
    widths, blocks, places = _levels(state)
    places["middle_block.1"] = len(widths) - 1
    embed, depth = _shape(state, "middle_block.1.patch_embed.proj.weight", 4)[0], _count(state, "middle_block.1.blocks")
    windows = {place: _window(state, place) for place in places}
    window, heads = max(side for side, _ in windows.values()), windows["middle_block.1"][1]
    sizes = {
        "image_size": image_size or _image_size(state, places, windows, depth),
        "latent_channels": out_channels,
        "condition_channels": inputs - out_channels - noise,
        "noise_channels": noise,
        "out_channels": out_channels,
        "base_channels": base,
        "channel_multipliers": [_ratio(width, base, "channels of a level") for width in widths],
        "res_blocks": blocks,
        "attention_levels": sorted({level for place, level in places.items() if place != "middle_block.1"}),
        "swin_embed_channels": embed,
        "swin_depth": depth,
        "swin_mlp_ratio": _shape(state, "middle_block.1.blocks.0.mlp.fc1.weight", 4)[0] / embed,
        "head_channels": _ratio(embed, heads, "Swin channels"),
        "window_size": window,
    }
    return _validated(SwinUNetConfig, sizes)


def autoencoder_sizes(state: Mapping[str, Tensor]) -> AutoencoderConfig:
    """Sizes of an autoencoder, with ``num_codes=None`` where there is no codebook; raises as the U-Net's."""
    attended = sorted(name for name in state if re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", name))
    if attended:
        raise ValueError(f"expected an autoencoder without attention in its levels, got {attended[0]}; give another")
    base, image_channels = _shape(state, "encoder.conv_in.weight", 4)[:2]
    latent, doubled = _shape(state, "quant_conv.weight", 4)[:2]
    z_channels = _shape(state, "decoder.conv_in.weight", 4)[1]
    if doubled != z_channels:
        raise ValueError(
            f"expected a VQ autoencoder, whose encoder gives the {z_channels} channels that the decoder takes, "
            f"got {doubled} (mean and variance of a KL autoencoder); give autoencoder_vq_f4.pth"
        )
    levels = _count(state, "encoder.down")
    widths = [_shape(state, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    codebook = "quantize.embedding.weight"
    sizes = {
        "image_channels": image_channels,
        "latent_channels": latent,
        "z_channels": z_channels,
        "base_channels": base,
        "channel_multipliers": [_ratio(width, base, "channels of a level") for width in widths],
        "res_blocks": _count(state, "encoder.down.0.block"),
        "mid_attention": "encoder.mid.attn_1.q.weight" in state,
        "num_codes": _shape(state, codebook, 2)[0] if codebook in state else None,
    }
    return _validated(AutoencoderConfig, sizes)


def _levels(state: Mapping[str, Tensor]) -> tuple[list[int], list[int], dict[str, int]]:
    """Channels and residual blocks of each level, and the level of every Swin layer on the way down."""
    widths, blocks, places = [0], [0], dict[str, int]()
    for position in range(1, _count(state, "input_blocks")):
        place = f"input_blocks.{position}"
        if f"{place}.0.op.weight" in state:
            widths.append(0)
            blocks.append(0)
            continue
        widths[-1] = _shape(state, f"{place}.0.in_layers.2.weight", 4)[0]
        blocks[-1] += 1
        if f"{place}.1.patch_embed.proj.weight" in state:
            places[f"{place}.1"] = len(widths) - 1
    return widths, blocks, places


def _window(state: Mapping[str, Tensor], place: str) -> tuple[int, int]:
    """Side of a Swin layer's window and its heads: the bias table has (2 side - 1)^2 rows and a column per head."""
    rows, heads = _shape(state, f"{place}.blocks.0.{TABLE}", 2)
    side = (math.isqrt(rows) + 1) // 2
    if (2 * side - 1) ** 2 != rows:
        raise ValueError(f"expected (2 window - 1)^2 rows in {place}.blocks.0.{TABLE}, got {rows}; download it again")
    return side, heads


def _image_size(
    state: Mapping[str, Tensor], places: Mapping[str, int], windows: Mapping[str, tuple[int, int]], depth: int
) -> int:
    """Latent side that the U-Net was made for."""
    window = max(side for side, _ in windows.values())
    for place, level in places.items():
        mask = state.get(f"{place}.blocks.1.attn_mask")
        if mask is not None:  # one mask for each window of the native size
            return window * math.isqrt(mask.shape[0]) << level
    for place, level in places.items():
        if windows[place][0] < window:  # windows shrink to a native size below them
            return windows[place][0] << level
    if depth > 1 and any(name.endswith(INDEX) for name in state):  # derived tensors are stored, and no level is shifted
        return window << min(places.values())
    return int(SwinUNetConfig.model_fields["image_size"].default)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered children of a name."""
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in state if name.startswith(f"{prefix}.")}
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"expected the tensor {name}, got a file without it; download it again")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"expected {name} with {dimensions} dimensions, got {shape}; download it again")
    return shape


def _ratio(value: int, unit: int, what: str) -> int:
    if value % unit:
        raise ValueError(f"expected {what} to be a multiple of {unit}, got {value}; give another file")
    return value // unit


def _validated(kind: type[Config], sizes: Mapping[str, Any]) -> Config:
    try:
        return kind.model_validate(dict(sizes))
    except ValidationError as error:
        raise ValueError("; ".join(messages(error))) from error


def messages(error: ValidationError) -> Iterator[str]:
    """What pydantic found wrong, one line each."""
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"])
        yield (f"{place}: " if place else "") + one["msg"].removeprefix("Value error, ")
