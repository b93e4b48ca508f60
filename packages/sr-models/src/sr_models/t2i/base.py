"""Base models: a diffusers folder, shipped name or hub id of SD3 or SD2.1 becomes network, VAE and schedule."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from resshift_core import DiffusionSchedule, FlowMatchingSchedule
from sr_models import store
from sr_models.t2i import sizes
from sr_models.t2i.predictor import FlowPredictor, NoisePredictor
from sr_models.t2i.prompts import Prompt

Family = Literal["sd3", "sd2"]

PIPELINES: dict[str, Family] = {"StableDiffusion3Pipeline": "sd3", "StableDiffusionPipeline": "sd2"}
NETWORK_FOLDERS: dict[Family, str] = {"sd3": "transformer", "sd2": "unet"}
PROMPT_TOKENS: dict[Family, int] = {"sd3": 333, "sd2": 77}
"""Length of a prompt: 77 tokens of CLIP, and for SD3 256 of T5."""
PROMPTS = "prompts"
INDEX = "model_index.json"


@dataclass(frozen=True)
class Base:
    """A text-to-image model as it was pretrained, frozen.

    Args:
        name: as it was asked for.
        family: ``sd3`` or ``sd2``.
        predictor: network and schedule.
        vae: an AutoencoderKL.
        scheduler: configuration of its diffusers scheduler.
        prompts: folder of prompt embeddings that comes with it, if one does.
    """

    name: str
    family: Family
    predictor: FlowPredictor | NoisePredictor
    vae: Any
    scheduler: Mapping[str, Any]
    prompts: Path | None = None

    def mismatch(self, prompt: Prompt) -> str:
        """What is wrong with a prompt for this network; empty when it fits."""
        config = self.predictor.network.config
        if self.family == "sd3":
            width, pooled = config.joint_attention_dim, (config.pooled_projection_dim,)
        else:
            width, pooled = config.cross_attention_dim, None
        (_, found), found_pooled = prompt.shape
        if (found, found_pooled) == (width, pooled):
            return ""
        return f"tokens of {width} and pooled {pooled}, got {found} and {found_pooled}"


def find_base(name: str | os.PathLike[str]) -> str:
    """Folder of a shipped base by name; any other name as it is, a folder or a hub id."""
    return str(store.shipped().get(str(name), name))


@dataclass(frozen=True)
class Sizes:
    """What a base is, without its weights.

    Args:
        family: ``sd3`` or ``sd2``.
        network: configuration of the transformer or U-Net.
        vae: configuration of the AutoencoderKL.
        scheduler: configuration of the scheduler.
    """

    family: Family
    network: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]


PUBLISHED: dict[Family, Sizes] = {
    "sd3": Sizes("sd3", sizes.sd3_medium_transformer(), sizes.sd3_vae(), {"shift": 3.0}),
    "sd2": Sizes(
        "sd2",
        sizes.sd21_unet(),
        sizes.sd2_vae(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
}
"""SD3-medium and SD2.1-base, for what needs no weights: counting and forecasting."""


def load_base(
    name: str | os.PathLike[str], *, dtype: torch.dtype | None = None, local_files_only: bool = False
) -> Base:
    """Load a base model on the CPU, frozen, in eval mode.

    Args:
        name: shipped name, diffusers folder or hub id.
        dtype: of the weights; None: float32.
        local_files_only: never ask a hub.

    Raises:
        FileNotFoundError: there is no such folder, and no hub gives it.
        ValueError: it is neither of SD3 nor of SD2 kind, or a shipped file was changed.
    """
    place = find_base(name)
    if (Path(place) / store.CONFIG).is_file():
        store.check_files(Path(place))
    found = read_sizes(name, local_files_only=local_files_only)
    options: dict[str, Any] = {
        "torch_dtype": dtype or torch.float32,
        "local_files_only": local_files_only,
        "use_safetensors": True,  # never a pickle
    }
    network, vae = (
        _asked(str(name), partial(kind.from_pretrained, place, subfolder=folder, **options))
        .requires_grad_(False)
        .eval()
        for kind, folder in _classes(found.family)
    )
    predictor = make_predictor(network, found.family, found.scheduler)
    return Base(str(name), found.family, predictor, vae, found.scheduler, prompts_of(place))


def read_sizes(name: str | os.PathLike[str], *, local_files_only: bool = False) -> Sizes:
    """Read what a base is, without loading it; arguments and errors as :func:`load_base`."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    place, options = find_base(name), {"local_files_only": local_files_only}
    kind = _asked(str(name), partial(DiffusionPipeline.load_config, place, **options)).get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(f"expected a model of {' or '.join(PIPELINES)}, got {kind} in {name!r}; give SD3 or SD2.1")
    family = PIPELINES[kind]
    (network, network_folder), (vae, vae_folder) = _classes(family)
    # Only its configuration is read, which any scheduler class does.
    readers = ((network, network_folder), (vae, vae_folder), (FlowMatchEulerDiscreteScheduler, "scheduler"))
    return Sizes(
        family,
        *(_asked(str(name), partial(reader.load_config, place, subfolder=part, **options)) for reader, part in readers),
    )


def empty_base(name: str, found: Sizes, *, dtype: torch.dtype | None = None) -> Base:
    """Build a base on the meta device: shapes without values, of any size in no time."""
    (network_class, _), (vae_class, _) = _classes(found.family)
    with torch.device("meta"):
        network, vae = (
            # diffusers' own `to` warns about something that cannot be here
            nn.Module.to(kind.from_config(config), dtype or torch.float32).requires_grad_(False).eval()
            for kind, config in ((network_class, found.network), (vae_class, found.vae))
        )
    return Base(name, found.family, make_predictor(network, found.family, found.scheduler), vae, found.scheduler)


def fresh_network(family: Family, config: Mapping[str, Any], seed: int) -> Any:
    """Build a network with random weights.

    Args:
        family: ``sd3`` or ``sd2``.
        config: keyword arguments of the diffusers class.
        seed: of the weights; the global generator stays as it was.
    """
    (kind, _), _ = _classes(family)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(**config)


def make_predictor(network: Any, family: Family, scheduler: Mapping[str, Any]) -> FlowPredictor | NoisePredictor:
    """Put a network and the schedule that its scheduler's configuration describes together.

    Raises:
        ValueError: the scheduler is of a kind that this package does not know.
    """
    steps = scheduler.get("num_train_timesteps", 1000)
    if family == "sd3":
        if scheduler.get("use_dynamic_shifting"):
            raise ValueError("expected a scheduler with a fixed shift, got use_dynamic_shifting; give an SD3 model")
        return FlowPredictor(network, FlowMatchingSchedule.shifted(steps, scheduler.get("shift", 1.0)))
    if scheduler.get("beta_schedule") != "scaled_linear":
        raise ValueError(
            f"expected a scheduler with beta_schedule=scaled_linear, got {scheduler.get('beta_schedule')!r}; "
            "give an SD2.1 model"
        )
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if scheduler.get(key):
            raise ValueError(f"expected a scheduler without {key}, which changes the table; give an SD2.1 model")
    # diffusers' own defaults are others than SD2's values; a configuration that lacks them is of something else
    if missing := [key for key in ("beta_start", "beta_end") if key not in scheduler]:
        raise ValueError(f"expected a scheduler with {', '.join(missing)}, got one without; give an SD2.1 model")
    schedule = DiffusionSchedule.scaled_linear(steps, scheduler["beta_start"], scheduler["beta_end"])
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"expected prediction_type epsilon or v_prediction, got {prediction!r}; give an SD2.1 model")
    return NoisePredictor(network, schedule, prediction)


def _classes(family: Family) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """Class and folder of the network and of the autoencoder."""
    import diffusers

    network = diffusers.SD3Transformer2DModel if family == "sd3" else diffusers.UNet2DConditionModel
    return (network, NETWORK_FOLDERS[family]), (diffusers.AutoencoderKL, "vae")


def prompts_of(place: str) -> Path | None:
    """Folder of the prompt embeddings that come with a base, if some do."""
    prompts = Path(place) / PROMPTS
    return prompts if prompts.is_dir() else None


def _asked(name: str, read: Any) -> Any:
    """Read from a folder or a hub; what is not there is one clear error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # diffusers passes an argument that the hub's client dropped
            return read()
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"expected a base model at {name!r}: a diffusers folder with {INDEX}, a hub id that this machine may "
            f"download (without --offline), or one of {', '.join(sorted(shipped_bases()))}; got: {first}"
        ) from error


def shipped_bases() -> dict[str, Path]:
    """Names and folders of the base models that come with the package."""
    return {name: folder for name, folder in store.shipped().items() if (folder / INDEX).is_file()}
