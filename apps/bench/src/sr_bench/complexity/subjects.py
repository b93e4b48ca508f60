"""What is measured: models by name, with stored weights, with random ones, or as shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import nn

from sr_models import SRModel, SuperResolver, SwinUNet, VQAutoencoder, make_student, store
from sr_models.presets import PRESETS

Weights = Literal["stored", "random", "none"]
TEACHER = "-teacher"
TILE = 64
"""Latent positions along a side that text-to-image students are trained on."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a published text-to-image student.

    Args:
        family: of its base.
        rank: of the adapters of network and encoder.
        parameters: of all networks, adapters included; text encoders are none of it, its prompt is encoded once.
    """

    family: Literal["sd3", "sd2"]
    rank: int
    parameters: int


T2I = {
    "sd3-student": Sizes("sd3", 64, 2_207_326_115),  # TSD-SR on SD3-medium
    "sd21-student": Sizes("sd2", 4, 953_989_655),  # OSEDiff on SD2.1-base
}


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Args:
        model: restores (:class:`sr_models.restorable.Restorable`).
        weights: ``stored``; ``random``, which changes nothing about the speed; ``none``: shapes alone, nothing to time.
        network: its U-Net or transformer.
        autoencoder: that encodes and decodes.
    """

    model: Any
    weights: Weights
    network: nn.Module
    autoencoder: nn.Module


def known_names() -> tuple[str, ...]:
    """Names besides folders and those on the hub."""
    models = (
        name for name in store.shipped() if store.read_about(name)["kind"] in ("teacher", "student", "t2i-student")
    )
    presets = (name for preset in PRESETS for name in (preset, preset + TEACHER))
    return tuple(dict.fromkeys((*models, *presets, *T2I)))


def build(name: str, *, real: bool, device: torch.device) -> Subject:
    """Find or build a model.

    Args:
        name: of a shipped model, a preset (``x4``, ``x4-teacher``) or a published text-to-image student
            (``sd3-student``, ``sd21-student``); a model folder; ``owner/name`` on the hub.
        real: give presets and published students random weights, on ``device``; otherwise they have shapes alone.
        device: where the model is going to compute.

    Raises:
        FileNotFoundError: no such model.
        ValueError: not a model that torch computes, or no memory for it.
    """
    if name in T2I:
        return _t2i_student(name, real, device)
    preset = name.removesuffix(TEACHER)
    if name not in store.shipped() and preset in PRESETS:
        with device if real else torch.device("meta"):
            model = empty_model(preset, "teacher" if name.endswith(TEACHER) else "student")
        if real:
            fill(model.unet)
            fill(model.autoencoder)
        return Subject(model, "random" if real else "none", model.unet, model.autoencoder)
    try:
        loaded: Any = SuperResolver.from_pretrained(name, "cpu", "fp32").model
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; names that need no folder: {', '.join(known_names())}") from error
    if isinstance(loaded, SRModel):
        return Subject(loaded, "stored", loaded.unet, loaded.autoencoder)
    if not loaded.tiled_networks:
        raise ValueError(f"expected a model that torch computes, got {name}; give the folder that it was exported from")
    return Subject(loaded, "stored", loaded.base.predictor.network, loaded.base.vae)


def empty_model(preset: str, kind: Literal["teacher", "student"]) -> SRModel:
    """A model of a preset's sizes as it is before training.

    Args:
        preset: one of :data:`sr_models.presets.PRESETS`.
        kind: students have RSD's noise input besides.
    """
    config = PRESETS[preset]()
    unet = SwinUNet(config.unet)
    if kind == "student":
        unet = make_student(unet)
    return SRModel(kind, config.model_copy(update={"unet": unet.config}), unet, VQAutoencoder(config.autoencoder))


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Draw weights so that activations neither vanish nor explode: matrices by their fan-in, norms around one."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in network.named_parameters():
        where = parameter.device
        generator = generators.setdefault(where, torch.Generator(where).manual_seed(0))
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:  # biases, and weights of norms
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)


def _t2i_student(name: str, real: bool, device: torch.device) -> Subject:
    # diffusers is heavy: only this family needs it
    from sr_models.t2i.base import PROMPT_TOKENS, PUBLISHED, empty_base
    from sr_models.t2i.prompts import Prompt
    from sr_models.t2i.student import make_student as make_t2i_student

    family, rank = T2I[name].family, T2I[name].rank
    base = empty_base(name, PUBLISHED[family])
    config = base.predictor.network.config
    width = config.joint_attention_dim if family == "sd3" else config.cross_attention_dim
    pooled = torch.zeros(1, config.pooled_projection_dim) if family == "sd3" else None
    prompt = Prompt(torch.zeros(1, PROMPT_TOKENS[family], width), pooled)  # goes to the networks' device by itself
    networks = base.predictor.network, base.vae
    if real:
        _check_memory(name, device)
        for network in networks:
            nn.Module.to_empty(network, device=device)
            fill(network)
            for buffer in network.buffers():
                buffer.zero_()
    student = make_t2i_student(base, prompt, scale=4, tile=TILE, rank=rank, vae_rank=rank, seed=0)
    return Subject(student, "random" if real else "none", *networks)


def _check_memory(name: str, device: torch.device) -> None:
    needed, free = 1.3 * 4 * T2I[name].parameters, free_bytes(device)  # a third more, for activations
    if needed > free:
        raise ValueError(
            f"expected {needed / 1e9:.1f} GB of free memory on {device} for {name}, got {free / 1e9:.1f}; "
            "free some, take another device, or leave out --real"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that is left on a device."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
