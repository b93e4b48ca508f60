"""Published checkpoints to ours: names of ResShift, SinSR, RSD and VQ-GAN f4 tensors mapped onto our networks.

Each ``*_names`` function lists pairs (our tensor, its tensor in the reference layout); the loaders refuse a state dict
with a missing, surplus or misshapen tensor and say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.swin_unet import SwinUNet, SwinUNetConfig

STEM = "input_blocks.0.0.weight"
"""First convolution of the U-Net: latent, LR image, and an RSD student's noise."""

DERIVED = ("relative_position_index", "attn_mask")
"""Endings of tensors that reference checkpoints carry and that follow from the sizes."""


def swin_unet_config(config: Mapping[str, Any], *, noise_channels: int = 0) -> SwinUNetConfig:
    """Our configuration from the keys of the reference's (``model_channels``, ``channel_mult``, ...)."""
    levels = len(config["channel_mult"])
    blocks = config["num_res_blocks"]
    sizes = [config["image_size"] // 2**level for level in range(levels)]
    conditioned = bool(config.get("cond_lq", True))
    latent_channels = config["out_channels"]
    return SwinUNetConfig(
        image_size=config["image_size"],
        latent_channels=latent_channels,
        condition_channels=config["in_channels"] - latent_channels if conditioned else 0,
        noise_channels=noise_channels,
        out_channels=config["out_channels"],
        base_channels=config["model_channels"],
        channel_multipliers=tuple(config["channel_mult"]),
        res_blocks=(blocks,) * levels if isinstance(blocks, int) else tuple(blocks),
        attention_levels=tuple(level for level, size in enumerate(sizes) if size in config["attention_resolutions"]),
        swin_embed_channels=config["swin_embed_dim"],
        swin_depth=config["swin_depth"],
        swin_mlp_ratio=config.get("mlp_ratio", 4),
        head_channels=config["num_head_channels"],
        window_size=config["window_size"],
        dropout=config.get("dropout", 0.0),
    )


def autoencoder_config(config: Mapping[str, Any]) -> AutoencoderConfig:
    """Our configuration from the reference's ``ddconfig``, ``n_embed`` and ``embed_dim``."""
    dd = config["ddconfig"]
    if dd.get("attn_resolutions"):
        raise ValueError(f"expected an autoencoder without attention in its levels, got {dd['attn_resolutions']}")
    return AutoencoderConfig(
        image_channels=dd["in_channels"],
        latent_channels=config["embed_dim"],
        z_channels=dd["z_channels"],
        base_channels=dd["ch"],
        channel_multipliers=tuple(dd["ch_mult"]),
        res_blocks=dd["num_res_blocks"],
        num_codes=config["n_embed"],
    )


def swin_unet(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> SwinUNet:
    """Build a :class:`SwinUNet` from reference-named tensors.

    A first convolution with one input channel more than ``config["in_channels"]`` is an RSD student's: channels in the
    order latent, LR, noise.

    Raises:
        ValueError: when tensors are missing, surplus or of another shape.
    """
    state, clean = unwrap(state_dict), config["in_channels"]
    noise_channels = int(STEM in state and state[STEM].shape[1:2] == (clean + 1,))
    ours = swin_unet_config(config, noise_channels=noise_channels)
    network = SwinUNet(ours)
    network.load_state_dict(swin_unet_tensors(state, network))
    return network


def vq_autoencoder(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VQAutoencoder:
    """Build a :class:`VQAutoencoder` from reference-named tensors.

    Raises:
        ValueError: when tensors are missing, surplus or of another shape.
    """
    network = VQAutoencoder(autoencoder_config(config))
    network.load_state_dict(autoencoder_tensors(unwrap(state_dict), network))
    return network


def swin_unet_tensors(state: Mapping[str, Tensor], network: SwinUNet) -> dict[str, Tensor]:
    """Tensors of a reference U-Net under our names; nothing is copied.

    Args:
        state: reference-named tensors; those of an RSD student have the noise channel last in the first convolution.
        network: what they are to fit; may be on the meta device.

    Raises:
        ValueError: when tensors are missing, surplus or of another shape.
    """
    state = dict(state)
    clean = network.stem.in_channels
    if network.noise_stem is not None and STEM in state:
        state["noise"], state[STEM] = state[STEM][:, clean:], state[STEM][:, :clean]
    return _translated(network, state, dict(swin_unet_names(network.config)))


def autoencoder_tensors(state: Mapping[str, Tensor], network: VQAutoencoder) -> dict[str, Tensor]:
    """Tensors of a reference autoencoder under our names; arguments and errors as :func:`swin_unet_tensors`."""
    return _translated(network, state, dict(autoencoder_names(network.config)))


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take tensors out of ``{"state_dict": ...}`` and drop a ``module.`` prefix, as found in published files."""
    inner = state_dict.get("state_dict", state_dict)
    return {name.removeprefix("module."): tensor for name, tensor in inner.items()}


def swin_unet_names(config: SwinUNetConfig) -> Iterator[tuple[str, str]]:
    """Pairs (our tensor, reference tensor) of the U-Net; a noise channel's weight is called ``noise``."""
    yield from _affine("time_mlp.0", "time_embed.0")
    yield from _affine("time_mlp.2", "time_embed.2")
    yield from _affine("stem", "input_blocks.0.0")
    if config.noise_channels:
        yield "noise_stem.weight", "noise"
    position = 1
    multipliers = (1, *config.channel_multipliers)
    for level, count in enumerate(config.res_blocks):
        for index in range(count):
            changes = index == 0 and multipliers[level] != multipliers[level + 1]
            yield from _res_block(f"down.{level}.blocks.{index}", f"input_blocks.{position}.0", changes)
            if index == 0 and level in config.attention_levels:
                yield from _swin_layer(f"down.{level}.attention", f"input_blocks.{position}.1", config)
            position += 1
        if level != len(config.res_blocks) - 1:
            yield from _affine(f"down.{level}.resample", f"input_blocks.{position}.0.op")
            position += 1
    yield from _res_block("middle.0", "middle_block.0", False)
    yield from _swin_layer("middle.1", "middle_block.1", config)
    yield from _res_block("middle.2", "middle_block.2", False)
    position = 0
    for stage, level in enumerate(range(len(config.res_blocks) - 1, -1, -1)):
        for index in range(config.res_blocks[level] + 1):
            place = f"output_blocks.{position}"
            yield from _res_block(f"up.{stage}.blocks.{index}", f"{place}.0", True)
            attended = index == 0 and level in config.attention_levels
            if attended:
                yield from _swin_layer(f"up.{stage}.attention", f"{place}.1", config)
            if level and index == config.res_blocks[level]:
                yield from _affine(f"up.{stage}.resample", f"{place}.{2 if attended else 1}.conv")
            position += 1
    yield from _affine("norm_out", "out.0")
    yield from _affine("head", "out.2")


def autoencoder_names(config: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs (our tensor, reference tensor) of the autoencoder."""
    multipliers = config.channel_multipliers
    last = len(multipliers) - 1
    for half in ("encoder", "decoder"):
        yield from _affine(f"{half}.conv_in", f"{half}.conv_in")
        yield from _vq_block(f"{half}.middle.block_in", f"{half}.mid.block_1", False)
        if config.mid_attention:
            for ours, theirs in (("norm", "norm"), ("q", "q"), ("k", "k"), ("v", "v"), ("proj", "proj_out")):
                yield from _affine(f"{half}.middle.attention.{ours}", f"{half}.mid.attn_1.{theirs}")
        yield from _vq_block(f"{half}.middle.block_out", f"{half}.mid.block_2", False)
        yield from _affine(f"{half}.norm_out", f"{half}.norm_out")
        yield from _affine(f"{half}.conv_out", f"{half}.conv_out")
    for level in range(last + 1):
        for index in range(config.res_blocks):
            changes = index == 0 and multipliers[level] != ((1, *multipliers)[level])
            yield from _vq_block(
                f"encoder.levels.{level}.blocks.{index}", f"encoder.down.{level}.block.{index}", changes
            )
        if level != last:
            yield from _affine(f"encoder.levels.{level}.resample", f"encoder.down.{level}.downsample.conv")
    for stage, level in enumerate(range(last, -1, -1)):
        for index in range(config.res_blocks + 1):
            changes = index == 0 and multipliers[level] != multipliers[min(level + 1, last)]
            yield from _vq_block(f"decoder.levels.{stage}.blocks.{index}", f"decoder.up.{level}.block.{index}", changes)
        if level:
            yield from _affine(f"decoder.levels.{stage}.resample", f"decoder.up.{level}.upsample.conv")
    yield from _affine("quant_conv", "quant_conv")
    yield from _affine("post_quant_conv", "post_quant_conv")
    if config.num_codes is not None:
        yield "codebook.weight", "quantize.embedding.weight"


def _affine(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}.weight"
    yield f"{ours}.bias", f"{theirs}.bias"


def _res_block(ours: str, theirs: str, skip: bool) -> Iterator[tuple[str, str]]:
    yield from _affine(f"{ours}.norm_in", f"{theirs}.in_layers.0")
    yield from _affine(f"{ours}.conv_in", f"{theirs}.in_layers.2")
    yield from _affine(f"{ours}.film", f"{theirs}.emb_layers.1")
    yield from _affine(f"{ours}.norm_out", f"{theirs}.out_layers.0")
    yield from _affine(f"{ours}.conv_out", f"{theirs}.out_layers.3")
    if skip:
        yield from _affine(f"{ours}.skip", f"{theirs}.skip_connection")


def _swin_layer(ours: str, theirs: str, config: SwinUNetConfig) -> Iterator[tuple[str, str]]:
    yield from _affine(f"{ours}.proj_in", f"{theirs}.patch_embed.proj")
    for index in range(config.swin_depth):
        block, reference = f"{ours}.blocks.{index}", f"{theirs}.blocks.{index}"
        yield from _affine(f"{block}.norm_attention", f"{reference}.norm1")
        yield from _affine(f"{block}.attention.qkv", f"{reference}.attn.qkv")
        yield from _affine(f"{block}.attention.proj", f"{reference}.attn.proj")
        yield f"{block}.attention.relative_position_bias", f"{reference}.attn.relative_position_bias_table"
        yield from _affine(f"{block}.norm_mlp", f"{reference}.norm2")
        yield from _affine(f"{block}.mlp.0", f"{reference}.mlp.fc1")
        yield from _affine(f"{block}.mlp.2", f"{reference}.mlp.fc2")
    yield from _affine(f"{ours}.proj_out", f"{theirs}.patch_unembed.proj")


def _vq_block(ours: str, theirs: str, skip: bool) -> Iterator[tuple[str, str]]:
    for name, reference in (
        ("norm_in", "norm1"),
        ("conv_in", "conv1"),
        ("norm_out", "norm2"),
        ("conv_out", "conv2"),
    ):
        yield from _affine(f"{ours}.{name}", f"{theirs}.{reference}")
    if skip:
        yield from _affine(f"{ours}.skip", f"{theirs}.nin_shortcut")


def _translated(network: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    own = network.state_dict()
    assert set(names) == set(own), set(names) ^ set(own)
    missing = sorted(theirs for theirs in names.values() if theirs not in state)
    surplus = sorted(set(state) - set(names.values()) - {name for name in state if name.endswith(DERIVED)})
    shapes = [
        f"{theirs}: expected {tuple(own[ours].shape)}, got {tuple(state[theirs].shape)}"
        for ours, theirs in names.items()
        if theirs in state and state[theirs].shape != own[ours].shape
    ]
    if missing or surplus or shapes:
        raise ValueError(
            "expected the tensors of this network; "
            + "; ".join(
                f"{label}: {_some(found)}"
                for label, found in (("missing", missing), ("surplus", surplus), ("misshapen", shapes))
                if found
            )
        )
    return {ours: state[theirs] for ours, theirs in names.items()}


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
