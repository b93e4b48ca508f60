"""Models on disk: bases as diffusers folders, students as their adapters; written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sr_models import store
from sr_models.t2i.base import INDEX, NETWORK_FOLDERS, PROMPTS, Base, find_base, load_base
from sr_models.t2i.lora import (
    LoRA,
    add_lora,
    lora_parameters,
    lora_shapes,
    osediff_unet,
    osediff_vae,
    tsd_student,
    tsd_vae,
)
from sr_models.t2i.predictor import FlowPredictor
from sr_models.t2i.prompts import DEFAULT, Prompt, read_prompt, save_prompt
from sr_models.t2i.published import read_osediff, read_tsd, write_tsd
from sr_models.t2i.student import T2IStudent

BASE, STUDENT = "t2i-teacher", "t2i-student"


def save_flow_base(
    base: Base,
    prompts: Mapping[str, Prompt],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any],
) -> None:
    """Write a flow-matching base in diffusers' layout, with its prompts and provenance.

    Args:
        base: of the family ``sd3``.
        prompts: all of them are written.
        folder: a folder that does not exist yet.
        dtype: of the stored networks; prompts stay as they are.
        about: provenance to keep in ``config.json``.
    """
    assert isinstance(base.predictor, FlowPredictor)
    network = base.predictor.network

    def fill(path: Path) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        for name, module in ((NETWORK_FOLDERS["sd3"], network), ("vae", base.vae)):
            _save(module, path / name, dtype)
        FlowMatchEulerDiscreteScheduler(**base.scheduler).save_pretrained(path / "scheduler")
        for name, prompt in prompts.items():
            save_prompt(path / PROMPTS, name, prompt)
        index = {
            "_class_name": "StableDiffusion3Pipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    store.write_folder(folder, fill, {"kind": BASE}, about)


def _save(module: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a diffusers module as its ``save_pretrained`` does, in another dtype."""
    from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

    module.save_config(folder)
    tensors = {name: value.detach().cpu().to(dtype).contiguous() for name, value in module.state_dict().items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def save_student(
    student: T2IStudent, folder: Path, *, dtype: torch.dtype = torch.float32, about: Mapping[str, Any]
) -> None:
    """Write a student's adapters and its prompt; the base is named, not written.

    The adapters lie in the published layout: for SD3 ``transformer.safetensors`` and ``vae.safetensors`` are what
    TSD-SR's own program reads. For SD2 they have OSEDiff's names, in safetensors instead of a pickle
    (:func:`sr_models.t2i.published.write_osediff` writes that).

    Args:
        student: to write.
        folder: a folder that does not exist yet.
        dtype: of the adapters.
        about: provenance to keep in ``config.json``.
    """
    base = student.base

    def fill(path: Path) -> None:
        for name, module, recipe in _parts(student):
            if base.family == "sd3":
                write_tsd(path / name, module, next(iter(recipe.adapters)), dtype)
            else:
                tensors = lora_parameters(module, recipe)
                plain = {key: value.detach().cpu().to(dtype).contiguous() for key, value in tensors.items()}
                save_file(plain, path / name)
        save_prompt(path / PROMPTS, DEFAULT, student.prompt)

    fields = {
        "base": base.name,
        "base_sha256": _base_sha256(base.name),
        "family": base.family,
        "scale": student.scale,
        "tile": student.tile,
    }
    store.write_folder(folder, fill, {"kind": STUDENT, "t2i": fields}, about)


def load_student(
    name: str | os.PathLike[str], base: str | None = None, *, local_files_only: bool = False
) -> T2IStudent:
    """Read a student's folder and its base, on the CPU, frozen, in eval mode.

    Args:
        name: folder of the student.
        base: where the base is; None: where the folder says.
        local_files_only: never ask a hub.

    Raises:
        FileNotFoundError: no such folder, or its base is not there.
        ValueError: a file was changed, or the base is another one.
    """
    folder = store.find(name)
    content = store.check_files(folder)
    if content["kind"] != STUDENT:
        raise ValueError(f"expected a student of a text-to-image model in {folder}, got kind {content['kind']!r}")
    fields = content["t2i"]
    place = base or fields["base"]
    if fields["base_sha256"] is not None and not Path(find_base(place)).is_dir():
        raise FileNotFoundError(
            f"expected the base of {folder} at {place!r}, got no such folder; say where it is with --base (base=)"
        )
    if fields["base_sha256"] not in (None, _base_sha256(place)):
        raise ValueError(f"expected the base that {folder} was trained on, got another {place!r}; give that version")
    loaded = load_base(place, local_files_only=local_files_only)
    if loaded.family != fields["family"]:
        raise ValueError(f"expected a base of the family {fields['family']}, got {loaded.family} at {place!r}")
    recipes = read_adapters(loaded, folder)
    for module in (loaded.predictor.network, loaded.vae):
        module.requires_grad_(False).eval()
    return T2IStudent(loaded, *recipes, read_prompt(folder / PROMPTS, DEFAULT), fields["scale"], fields["tile"])


def read_adapters(base: Base, place: Path) -> tuple[LoRA, LoRA]:
    """Add a student's stored adapters to its base.

    Args:
        base: without adapters; it is changed.
        place: folder of a student, of ours or as TSD-SR publishes it, or an OSEDiff ``.pkl``.

    Returns:
        The recipes of the network's and of the encoder's adapters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that does not fit the base.
    """
    network, vae = base.predictor.network, base.vae
    if place.suffix == ".pkl":
        if base.family != "sd2":
            raise ValueError(f"expected a base of the family sd2 for {place}, got {base.family} at {base.name!r}")
        return read_osediff(place, network, vae)
    files = place / f"{NETWORK_FOLDERS[base.family]}.safetensors", place / "vae.safetensors"
    if base.family == "sd3":
        return read_tsd(files[0], network, targets=tsd_student), read_tsd(files[1], vae, targets=tsd_vae)
    return _read_plain(files[0], network, osediff_unet), _read_plain(files[1], vae, osediff_vae)


def _read_plain(path: Path, module: Any, recipe_of: Callable[[Any, int], LoRA]) -> LoRA:
    """Adapters under the names that they have in the module."""
    if not path.is_file():
        raise FileNotFoundError(f"expected adapters at {path}, got no such file; give a student's folder")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got something else ({error}); restore the file") from error
    ranks = {value.shape[0] for name, value in found.items() if ".lora_A." in name}
    recipe = recipe_of(module, min(ranks, default=1))
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != lora_shapes(module, recipe):
        raise ValueError(f"expected the adapters of this base in {path}, got others; give the base that they belong to")
    add_lora(module, recipe, seed=0)
    with torch.no_grad():
        for name, value in lora_parameters(module, recipe).items():
            value.copy_(found[name])
    return recipe


def _parts(student: T2IStudent) -> tuple[tuple[str, Any, LoRA], ...]:
    """File, module and recipe of the two networks."""
    network = f"{NETWORK_FOLDERS[student.base.family]}.safetensors"
    return (
        (network, student.base.predictor.network, student.network_lora),
        ("vae.safetensors", student.base.vae, student.vae_lora),
    )


def _base_sha256(name: str) -> dict[str, str] | None:
    """What a base of ours says of its files; nothing is known of others."""
    folder = Path(find_base(name))
    if not (folder / store.CONFIG).is_file():
        return None
    hashes: dict[str, str] = store.read_about(folder)["sha256"]
    return {file: digest for file, digest in hashes.items() if file.endswith(".safetensors")}
