"""Adapter files in the layouts that TSD-SR and OSEDiff publish: read into our networks, and written.

TSD-SR: one safetensors file per network (``transformer``, ``vae``, ``transformer_reg``, ``teacher``), names
``transformer.<layer>.lora_A.weight`` for the autoencoder too, no alpha (it equals the rank). OSEDiff: one pickle of
both networks, names that keep the adapter's, no alpha (it is 8). A file with a missing, surplus or misshapen tensor is
refused before anything in the network changes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_models.t2i.lora import (
    OSEDIFF_ALPHA,
    LoRA,
    adapter_names,
    add_lora,
    lora_parameters,
    lora_shapes,
    osediff_unet,
    osediff_vae,
    tsd_student,
    tuner_layers,
)

PREFIX = "transformer."
"""Beginning of every name in TSD-SR's files, the autoencoder's included."""

OSEDIFF_LISTS = {
    "unet_lora_encoder_modules": "default_encoder",
    "unet_lora_decoder_modules": "default_decoder",
    "unet_lora_others_modules": "default_others",
}
"""OSEDiff's lists of layer names and the U-Net adapters they belong to."""

OSEDIFF_KEYS = {
    *OSEDIFF_LISTS,
    "vae_lora_encoder_modules",
    "rank_unet",
    "rank_vae",
    "state_dict_unet",
    "state_dict_vae",
}
"""What an OSEDiff file holds."""


def tsd_state(module: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """One adapter's tensors under TSD-SR's names, on the CPU, contiguous; they may share the network's memory.

    Raises:
        ValueError: when there is no such adapter, or its scaling is not the 1 that readers of the file assume.
    """
    layers = {name: layer for name, layer in tuner_layers(module) if adapter in layer.lora_A}
    if not layers:
        raise ValueError(
            f"expected one of the network's adapters {sorted(adapter_names(module))}, got {adapter!r}; name one of them"
        )
    if scaled := sorted({layer.scaling[adapter] for layer in layers.values()} - {1.0}):
        raise ValueError(
            f"expected an adapter with alpha equal to its rank, got scaling {scaled[0]:g}; "
            "the file keeps no alpha: train with alpha equal to the rank"
        )
    return {
        f"{PREFIX}{name}.{matrix}.weight": _plain(getattr(layer, matrix)[adapter].weight)
        for name, layer in layers.items()
        for matrix in ("lora_A", "lora_B")
    }


def write_tsd(path: Path, module: nn.Module, adapter: str = "default", dtype: torch.dtype | None = None) -> None:
    """Write one adapter in TSD-SR's layout, whole or not at all; a file of that name is replaced.

    Args:
        path: ``.../transformer.safetensors``, ``vae.safetensors``, ``transformer_reg.safetensors``, ...
        module: the network that has the adapter.
        adapter: its name.
        dtype: of the stored tensors; ``None``: as they are.

    Raises:
        ValueError: as :func:`tsd_state`.
    """
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tsd_state(module, adapter).items()}
    with _replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def read_tsd(
    path: Path, module: nn.Module, adapter: str = "default", targets: Callable[..., LoRA] = tsd_student
) -> LoRA:
    """Add the adapter in a file of TSD-SR's layout to a network, alone active; rank from the file, scaling 1.

    Args:
        path: safetensors file.
        module: the network that the file was trained with; changed only if the file fits.
        adapter: a name that the network has not yet.
        targets: recipe of the adapter: :func:`tsd_student` (the student, the teacher), :func:`tsd_fake` or
            :func:`tsd_vae` of :mod:`sr_models.t2i.lora`.

    Returns:
        The recipe, resolved against the network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or other tensors than the recipe's; names them.
    """
    tensors = _read_safetensors(path)
    recipe = targets(module, rank=_rank(tensors), adapter=adapter)
    shapes = lora_shapes(module, recipe)
    stored = {name: f"{PREFIX}{name.removesuffix(f'.{adapter}.weight')}.weight" for name in shapes}
    if wrong := _differences({stored[name]: shape for name, shape in shapes.items()}, tensors):
        raise ValueError(
            f"expected the tensors of {getattr(targets, '__name__', targets)} in {path}, got others: {wrong}; "
            "give the file and the recipe of this network"
        )
    add_lora(module, recipe, seed=0)
    _fill(lora_parameters(module, recipe), {name: tensors[key] for name, key in stored.items()})
    return recipe


def write_osediff(path: Path, unet: nn.Module, vae: nn.Module, recipes: tuple[LoRA, LoRA]) -> None:
    """Write the adapters of OSEDiff's generator in its layout, whole or not at all; a file of that name is replaced.

    Args:
        path: ``.../osediff.pkl``.
        unet: U-Net with the adapters of ``recipes[0]`` (:func:`sr_models.t2i.lora.osediff_unet`).
        vae: autoencoder with the adapters of ``recipes[1]`` (:func:`sr_models.t2i.lora.osediff_vae`).
        recipes: those two.

    Raises:
        ValueError: when the recipes are others, or their alpha is not the 8 that readers of the file assume.
    """
    for recipe, expected in zip(recipes, (osediff_unet(unet), osediff_vae(vae)), strict=True):
        if (dict(recipe.adapters), recipe.full) != (dict(expected.adapters), expected.full):
            raise ValueError(
                "expected the recipes osediff_unet and osediff_vae of these networks, got others; use write_tsd"
            )
        if recipe.alpha != OSEDIFF_ALPHA:
            raise ValueError(
                f"expected alpha {OSEDIFF_ALPHA} (the file keeps none), got {recipe.alpha:g}; use osediff's recipes"
            )
    unet_recipe, vae_recipe = recipes
    content = {
        "vae_lora_encoder_modules": list(vae_recipe.adapters["default_encoder"]),
        **{key: list(unet_recipe.adapters[adapter]) for key, adapter in OSEDIFF_LISTS.items()},
        "rank_unet": unet_recipe.rank,
        "rank_vae": vae_recipe.rank,
        "state_dict_unet": {name: _plain(value) for name, value in lora_parameters(unet, unet_recipe).items()},
        "state_dict_vae": {name: _plain(value) for name, value in lora_parameters(vae, vae_recipe).items()},
    }
    with _replacing(path) as partial:
        torch.save(content, partial)


def read_osediff(path: Path, unet: nn.Module, vae: nn.Module) -> tuple[LoRA, LoRA]:
    """Add the adapters in an OSEDiff file to a U-Net and an autoencoder, and set the U-Net's ``conv_in``; alpha is 8.

    Args:
        path: pickle; it is read without running code.
        unet: ``UNet2DConditionModel`` of the base; changed only if the file fits.
        vae: ``AutoencoderKL`` of the base; changed only if the file fits.

    Returns:
        The recipes of the U-Net and of the autoencoder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, code in it, or other tensors than the recipes'; names them.
    """
    content = _read_pickle(path)
    if not isinstance(content, dict) or set(content) != OSEDIFF_KEYS:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected a dictionary of {sorted(OSEDIFF_KEYS)} in {path}, got {found}; give osediff.pkl")
    for key, value in content.items():
        what, fits = _osediff_kind(key, value)
        if not fits:
            raise ValueError(
                f"expected {key} in {path} to be {what}, got another {type(value).__name__}; give osediff.pkl"
            )
    unet_recipe, vae_recipe = osediff_unet(unet, content["rank_unet"]), osediff_vae(vae, content["rank_vae"])
    lists = {key: unet_recipe.adapters[adapter] for key, adapter in OSEDIFF_LISTS.items()}
    lists["vae_lora_encoder_modules"] = vae_recipe.adapters["default_encoder"]
    for key, names in lists.items():
        if differing := sorted(set(names) ^ set(content[key])):
            raise ValueError(
                f"expected {key} in {path} to list this network's {len(names)} layers, got a list that differs in "
                f"{_some(differing)}; give the network that the file was trained with"
            )
    pairs = (("state_dict_unet", unet, unet_recipe), ("state_dict_vae", vae, vae_recipe))
    for key, module, recipe in pairs:
        if wrong := _differences(lora_shapes(module, recipe), content[key]):
            raise ValueError(
                f"expected OSEDiff's tensors in {key} of {path}, got others: {wrong}; "
                "give the network that the file was trained with"
            )
        if taken := sorted(set(recipe.adapters) & adapter_names(module)):
            raise ValueError(f"expected networks without adapters {', '.join(taken)}, got them; give fresh networks")
    for key, module, recipe in pairs:
        add_lora(module, recipe, seed=0)
        _fill(lora_parameters(module, recipe), content[key])
    return unet_recipe, vae_recipe


def _osediff_kind(key: str, value: object) -> tuple[str, bool]:
    """What a value of an OSEDiff file is to be, and whether it is that."""
    if key.startswith("rank"):
        return "a rank", isinstance(value, int) and value >= 1
    if key.startswith("state_dict"):
        return "a dictionary of tensors", isinstance(value, dict)
    return "a list of names", isinstance(value, list) and all(isinstance(name, str) for name in value)


def _differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[Any, Any]) -> str:
    """Tensors that are missing, surplus or misshapen: how many and the first few; empty when all fit."""
    misshapen = [
        f"{name} {_described(found[name])} instead of {shape}"
        for name, shape in expected.items()
        if name in found and _described(found[name]) != str(shape)
    ]
    lists = {
        "missing": [name for name in expected if name not in found],
        "surplus": [str(name) for name in found if name not in expected],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in lists.items() if names)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return str(tuple(value.shape)) if value.is_floating_point() else f"{value.dtype} {tuple(value.shape)}"


def _some(names: list[str], count: int = 3) -> str:
    return f"{len(names)} ({', '.join(names[:count])}{', ...' if len(names) > count else ''})"


def _rank(tensors: Mapping[str, Tensor]) -> int:
    """Most frequent rank of the A matrices: a single misshapen one is reported, not the others."""
    ranks = [value.shape[0] for name, value in tensors.items() if ".lora_A." in name and value.ndim and value.shape[0]]
    return max(ranks, key=ranks.count, default=1)


def _fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got something else ({error}); download it again") from error


def _read_pickle(path: Path) -> Any:
    _check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"expected a file of tensors, lists and numbers by torch.save in {path}, got code in it or a damaged or "
            f"other file ({first}); download it again from its authors"
        ) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"expected a weight file at {path}, got no such file; download it or give its path")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour that takes the file's name at the end, and vanishes when something fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
