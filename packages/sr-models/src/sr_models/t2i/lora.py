"""LoRA adapters of the text-to-image networks: which layers get one, adding them, and which of them are active.

A :class:`LoRA` is a recipe resolved against one network: full names of the layers, and of the parameters that are
trained whole. The optimizers, the files (:mod:`sr_models.t2i.published`) and the tests all go by its list of names;
never by ``requires_grad``, which peft changes whenever the active adapters change.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj")
"""Endings of the seven attention projections that TSD-SR's fake model adapts."""

STUDENT = (*ATTENTION, "proj", "linear", "proj_out")
"""Endings of the layers that TSD-SR's student adapts."""

OSEDIFF = (
    *("to_k", "to_q", "to_v", "to_out.0"),
    *("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut"),
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
)
"""Endings of the layers that OSEDiff adapts in the U-Net of Stable Diffusion 2."""

OSEDIFF_ALPHA = 8
"""peft's default, which OSEDiff leaves as it is at every rank: with rank 4 its adapters are scaled by 2."""

OSEDIFF_PARTS = {
    "default_encoder": ("conv_in", "down_blocks."),
    "default_decoder": ("up_blocks.", "conv_out"),
    "default_others": ("mid_block.",),
}
"""OSEDiff's three U-Net adapters and how the names of their layers begin."""


@dataclass(frozen=True)
class LoRA:
    """Recipe: which layers of one network get an adapter, and which parameters are trained whole.

    Args:
        rank: rank of every adapter matrix.
        alpha: the low-rank product is scaled by ``alpha / rank``.
        adapters: names of the adapters and, for each, the full names of its layers.
        full: names, in the plain network, of parameters that are trained themselves (``conv_in.weight``).

    Raises:
        ValueError: when there is no layer, or a rank, an alpha or an adapter's name is not usable.
    """

    rank: int
    alpha: float
    adapters: Mapping[str, tuple[str, ...]]
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"expected rank >= 1 and alpha > 0, got rank {self.rank} and alpha {self.alpha}")
        if wrong := [name for name in self.adapters if not name or "." in name]:
            raise ValueError(f"expected names of adapters without a dot, got {wrong}; choose other names")
        if empty := [name for name, targets in self.adapters.items() if not targets]:
            raise ValueError(
                f"expected a network with the layers of this recipe, got one with none for adapter {', '.join(empty)};"
                " give the network that the recipe is for"
            )


def tsd_student(transformer: nn.Module, rank: int = 64, *, adapter: str = "default") -> LoRA:
    """TSD-SR's student (and its teacher's adapter): attention, input and output projections, modulations.

    Args:
        transformer: an ``SD3Transformer2DModel``, with or without adapters.
        rank: rank and alpha, hence scaling 1.
        adapter: its name.
    """
    return LoRA(rank, rank, {adapter: _ending(transformer, STUDENT)})


def tsd_fake(transformer: nn.Module, rank: int = 64, *, adapter: str = "reg") -> LoRA:
    """TSD-SR's fake model: the attention projections alone; arguments as :func:`tsd_student`."""
    return LoRA(rank, rank, {adapter: _ending(transformer, ATTENTION)})


def tsd_vae(vae: nn.Module, rank: int = 64, *, adapter: str = "default") -> LoRA:
    """Every layer of the encoder of an ``AutoencoderKL``; other arguments as :func:`tsd_student`."""
    return LoRA(rank, rank, {adapter: _encoder(vae)})


def osediff_unet(unet: nn.Module, rank: int = 4) -> LoRA:
    """OSEDiff's generator: three adapters on a ``UNet2DConditionModel``, ``conv_in`` trained whole besides."""
    names = _ending(unet, OSEDIFF)
    adapters = {
        adapter: tuple(name for name in names if name.startswith(starts)) for adapter, starts in OSEDIFF_PARTS.items()
    }
    return LoRA(rank, OSEDIFF_ALPHA, adapters, full=("conv_in.weight", "conv_in.bias"))


def osediff_fake(unet: nn.Module, rank: int = 4) -> LoRA:
    """OSEDiff's fake model: the adapters of :func:`osediff_unet`; nothing is trained whole."""
    return replace(osediff_unet(unet, rank), full=())


def osediff_vae(vae: nn.Module, rank: int = 4) -> LoRA:
    """OSEDiff's encoder: every layer of the encoder of an ``AutoencoderKL`` and its ``quant_conv``."""
    return LoRA(rank, OSEDIFF_ALPHA, {"default_encoder": _encoder(vae)})


def add_lora(module: nn.Module, recipe: LoRA, seed: int) -> None:
    """Add the recipe's adapters, gaussian A (std 1 / rank) and zero B, and make exactly these active and trainable.

    The base is frozen but for ``recipe.full``. Adapters that were there keep their weights and become inactive and
    frozen. The global generators stay as they were; the values depend on ``seed``, not on the device. On a base in half
    precision the adapters are float32 all the same: cast the network afterwards where it is only to be used.

    Args:
        module: a diffusers model, on any device, the meta device included.
        recipe: resolved against this network.
        seed: of the initial values of A.

    Raises:
        ValueError: when an adapter of that name is there already or the network has not the recipe's layers.
    """
    from peft import LoraConfig

    names = list(lora_shapes(module, recipe))
    if taken := sorted(set(recipe.adapters) & adapter_names(module)):
        raise ValueError(f"expected new names of adapters, got {', '.join(taken)}, already there; choose other names")
    host: Any = module
    meta = next(module.parameters()).device.type == "meta"
    # Values are drawn on the CPU, from its generator alone: torch.manual_seed would seed the accelerators' as well.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the purpose
        torch.default_generator.manual_seed(seed)
        for adapter, targets in recipe.adapters.items():
            config = LoraConfig(
                r=recipe.rank,
                lora_alpha=recipe.alpha,
                init_lora_weights="gaussian",
                # A list would be matched as endings of names; one expression is matched whole.
                target_modules="|".join(map(re.escape, targets)),
            )
            host.add_adapter(config, adapter_name=adapter)
    host.set_adapter(list(recipe.adapters))
    for _, layer in tuner_layers(module):
        for matrix in (layer.lora_A, layer.lora_B):
            for adapter in recipe.adapters.keys() & matrix.keys():
                if matrix[adapter].weight.dtype.itemsize < 4:  # small updates are lost in half precision
                    matrix[adapter].float()
    own = dict(module.named_parameters())
    assert set(names) <= set(own), sorted(set(names) - set(own))[:3]
    for name in names:
        own[name].requires_grad_(True)


def lora_shapes(module: nn.Module, recipe: LoRA) -> dict[str, tuple[int, ...]]:
    """State-dict names and shapes of the recipe's trainable tensors, whether or not they are there yet.

    Raises:
        ValueError: when the network has not the recipe's layers.
    """
    layers = dict(plain_layers(module))
    targets = {name for names in recipe.adapters.values() for name in names}
    owners = {name: tuple(name.rsplit(".", 1)) for name in recipe.full}
    if missing := sorted((targets | {owner[0] for owner in owners.values()}) - set(layers)):
        raise ValueError(
            f"expected the network of this recipe, got one without {len(missing)} of its layers ("
            f"{', '.join(missing[:3])}, ...); resolve the recipe against this network"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for adapter, names in recipe.adapters.items():
        for name in names:
            out_channels, in_channels, *kernel = layers[name].weight.shape
            shapes[f"{name}.lora_A.{adapter}.weight"] = (recipe.rank, in_channels, *kernel)
            shapes[f"{name}.lora_B.{adapter}.weight"] = (out_channels, recipe.rank, *(1 for _ in kernel))
    for owner, leaf in owners.values():
        wrapped = owner in targets or hasattr(module.get_submodule(owner), "base_layer")
        shape = tuple(getattr(layers[owner], leaf).shape)
        shapes[f"{owner}.base_layer.{leaf}" if wrapped else f"{owner}.{leaf}"] = shape
    return shapes


def lora_parameters(module: nn.Module, recipe: LoRA) -> dict[str, nn.Parameter]:
    """Exactly the recipe's trainable tensors by state-dict name, those trained whole included.

    Raises:
        ValueError: when the adapters have not been added.
    """
    own = dict(module.named_parameters())
    names = lora_shapes(module, recipe)
    if missing := [name for name in names if name not in own]:
        raise ValueError(
            f"expected a network with the adapters {', '.join(recipe.adapters)}, got one without {len(missing)} of "
            f"their tensors ({missing[0]}, ...); add them with add_lora"
        )
    return {name: own[name] for name in names}


def adapter_names(module: nn.Module) -> set[str]:
    """Names of all adapters of a network, active or not."""
    return {name for _, layer in tuner_layers(module) for name in layer.lora_A}


@contextmanager
def only(module: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Within it exactly these adapters are active; none: the base alone. Afterwards everything is as before.

    ``requires_grad`` flags stay as they are, within and after: a network that is switched between forward and backward
    still gets its gradients. With gradient checkpointing the backward pass repeats the forward pass and must therefore
    run within it too. Parameters trained whole (:attr:`LoRA.full`) belong to the base and are not undone.

    Raises:
        ValueError: when the network has no such adapter, or one that is merged into its weights.
    """
    if unknown := sorted(set(adapters) - adapter_names(module)):
        raise ValueError(
            f"expected adapters among {sorted(adapter_names(module))}, got {', '.join(unknown)}; add them with add_lora"
        )
    layers = [layer for _, layer in tuner_layers(module)]
    if any(layer.merged for layer in layers):
        raise ValueError("expected adapters beside the weights, got merged ones; unmerge them first")
    before = [(layer, list(layer.active_adapters), bool(layer.disable_adapters)) for layer in layers]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        _activate(((layer, list(adapters), False) for layer in layers), flags)
        yield
    finally:
        _activate(before, flags)


def _activate(states: Iterable[tuple[Any, list[str], bool]], flags: Iterable[tuple[nn.Parameter, bool]]) -> None:
    for layer, active, disabled in states:
        layer.set_adapter(active)
        layer.enable_adapters(not disabled)
    for parameter, flag in flags:  # both calls above change them
        parameter.requires_grad_(flag)


def tuner_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and peft layers of a network."""
    from peft.tuners.lora import LoraLayer

    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def plain_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Names and layers of the linear and convolution layers as if the network had no adapters."""
    wrapped = dict(tuner_layers(module))
    inside = tuple(f"{name}." for name in wrapped)
    for name, layer in module.named_modules():
        base = wrapped[name].get_base_layer() if name in wrapped else layer
        if isinstance(base, nn.Linear | nn.Conv2d) and not name.startswith(inside):
            yield name, base


def _ending(module: nn.Module, endings: Iterable[str]) -> tuple[str, ...]:
    dotted = tuple(f".{ending}" for ending in endings)
    return tuple(name for name, _ in plain_layers(module) if f".{name}".endswith(dotted))


def _encoder(vae: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in plain_layers(vae) if name.startswith("encoder.") or name == "quant_conv")
