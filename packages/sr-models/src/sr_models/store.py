"""Model folders: ``config.json`` + safetensors, checked by sha256. Never a pickle.

A folder holds a whole model (``unet.safetensors``, ``autoencoder.safetensors``) or an autoencoder alone. The shipped
small models share one autoencoder: their ``config.json`` names the neighbouring folder under ``autoencoder_from``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.model import ModelConfig, SRModel
from sr_models.swin_unet import SwinUNet

FORMAT = 1
CONFIG = "config.json"
UNET = "unet.safetensors"
AUTOENCODER = "autoencoder.safetensors"

Config = TypeVar("Config", bound=BaseModel)
Network = TypeVar("Network", bound=nn.Module)


def shipped() -> dict[str, Path]:
    """Names and folders of the small models that come with the package."""
    root = Path(str(files("sr_models"))) / "weights"
    return {folder.name: folder for folder in sorted(root.glob("*/")) if (folder / CONFIG).is_file()}


def find(name: str | os.PathLike[str]) -> Path:
    """Folder of a model given by the name of a shipped one or by its path.

    Raises:
        FileNotFoundError: when it is neither.
    """
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"expected a model folder with a {CONFIG} or one of {', '.join(known)}, got {str(name)!r}"
        )
    return folder


def save_model(
    model: SRModel,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    autoencoder_from: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        model: what to write.
        folder: a folder that does not exist yet.
        dtype: of the stored tensors.
        autoencoder_from: name of a neighbouring folder to take the autoencoder from, instead of writing it again.
        about: provenance to keep in ``config.json`` (command, seed, data, licence, ...).
    """
    tensors = {UNET: model.unet.state_dict()}
    if autoencoder_from is None:
        tensors[AUTOENCODER] = model.autoencoder.state_dict()
    fields = {"kind": model.kind, "model": model.config.model_dump(mode="json"), "autoencoder_from": autoencoder_from}
    write_tensors(folder, tensors, fields, dtype, about)


def save_autoencoder(
    autoencoder: VQAutoencoder,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that holds an autoencoder alone; arguments as :func:`save_model`."""
    fields = {"kind": "autoencoder", "autoencoder": autoencoder.config.model_dump(mode="json")}
    write_tensors(folder, {AUTOENCODER: autoencoder.state_dict()}, fields, dtype, about)


def load_model(name: str | os.PathLike[str]) -> SRModel:
    """Read a model folder (or a shipped model by name) as float32 on the CPU, in eval mode, frozen.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the files are truncated, changed, or of another kind of model.
    """
    folder = find(name)
    content = _read_config(folder)
    if content["kind"] not in ("teacher", "student"):
        raise ValueError(
            f"expected a teacher or student in {folder}, got kind {content['kind']!r}; give another folder"
        )
    config = _validate(ModelConfig, content, "model", folder)
    unet = SwinUNet(config.unet)
    _load_tensors(unet, folder, UNET, content)
    autoencoder = load_autoencoder(folder)
    if autoencoder.config != config.autoencoder:
        raise ValueError(f"expected the autoencoder of {folder}, got that of another model; restore the folder")
    return SRModel(content["kind"], config, _frozen(unet), autoencoder)


def load_autoencoder(name: str | os.PathLike[str]) -> VQAutoencoder:
    """Read the autoencoder of an autoencoder folder or of a model folder; raises like :func:`load_model`."""
    folder = find(name)
    content = _read_config(folder)
    if (neighbour := content.get("autoencoder_from")) is not None:
        if not isinstance(neighbour, str) or neighbour in ("", "..") or Path(neighbour).name != neighbour:
            raise ValueError(f"expected autoencoder_from to name a neighbouring folder in {folder}, got {neighbour!r}")
        folder = find(folder.parent / neighbour)
        content = _read_config(folder)
        if content.get("autoencoder_from") is not None:
            raise ValueError(f"expected a folder with an autoencoder of its own, got {folder}; name another one")
    if content["kind"] == "autoencoder":
        config = _validate(AutoencoderConfig, content, "autoencoder", folder)
    else:
        config = _validate(ModelConfig, content, "model", folder).autoencoder
    autoencoder = VQAutoencoder(config)
    _load_tensors(autoencoder, folder, AUTOENCODER, content)
    return _frozen(autoencoder)


def read_about(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Provenance and sha256 that a model folder carries."""
    content = _read_config(find(name))
    return {**content.get("about", {}), "kind": content["kind"], "sha256": content["sha256"]}


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(
    folder: Path, fill: Callable[[Path], None], fields: Mapping[str, Any], about: Mapping[str, Any] | None
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        folder: a folder that does not exist yet.
        fill: writes the files into the folder it is given.
        fields: of ``config.json``, beside format, sha256 and provenance.
        about: provenance.

    Raises:
        FileExistsError: ``folder`` exists.
    """
    if folder.exists():
        raise FileExistsError(f"expected a new folder, got {folder}, which exists; choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    try:
        partial.chmod(0o755)
        fill(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            path.chmod(0o644)
        hashes = {path.relative_to(partial).as_posix(): sha256(path) for path in files}
        content = {"format": FORMAT, **fields, "sha256": hashes, "about": dict(about or {})}
        (partial / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_tensors(
    folder: Path,
    networks: Mapping[str, Mapping[str, torch.Tensor]],
    fields: Mapping[str, Any],
    dtype: torch.dtype,
    about: Mapping[str, Any] | None,
) -> None:
    """Write a model folder from the tensors of its networks, whole or not at all.

    Args:
        folder: a folder that does not exist yet.
        networks: file name -> our tensors; written one network after the other.
        fields: of ``config.json``: kind, and the sizes that go with it.
        dtype: of the stored tensors.
        about: provenance.

    Raises:
        FileExistsError: ``folder`` exists.
    """

    def fill(path: Path) -> None:
        for name, tensors in networks.items():
            plain = {key: value.detach().cpu().to(dtype).contiguous() for key, value in tensors.items()}
            save_file(plain, path / name)

    write_folder(folder, fill, fields, about)


def add_about(folder: Path, **entries: Any) -> None:
    """Add entries to the provenance in a folder's ``config.json``, or replace them; weights and sha256 stay."""
    content = _read_config(folder)
    content["about"] = {**content.get("about", {}), **entries}
    partial = folder / f".{CONFIG}.tmp"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(folder / CONFIG)


def read_config(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a model folder's ``config.json``: kind, sizes, sha256 and provenance.

    Raises:
        FileNotFoundError: no such model.
        ValueError: not a ``config.json`` of ours.
    """
    return _read_config(find(name))


def is_model_folder(folder: Path) -> bool:
    """Whether it holds a ``config.json`` of ours."""
    try:
        _read_config(folder)
    except (ValueError, OSError):
        return False
    return True


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file that ``config.json`` names with its sha256; return the content of ``config.json``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or changed.
    """
    content = _read_config(folder)
    for name in content["sha256"]:
        check_file(folder, name, content)
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); restore the folder") from error
    if not (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and "kind" in content
        and isinstance(content.get("sha256"), dict)
    ):
        raise ValueError(
            f"expected a model folder of format {FORMAT}, got another {CONFIG} in {folder}; give a model folder"
        )
    return content


def _validate(kind: type[Config], content: Mapping[str, Any], key: str, folder: Path) -> Config:
    try:
        return kind.model_validate(content.get(key))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (key, *first["loc"]))
        raise ValueError(f"expected a valid {folder / CONFIG}, got a wrong {place}: {first['msg']}") from error


def _load_tensors(network: nn.Module, folder: Path, name: str, content: Mapping[str, Any]) -> None:
    path = check_file(folder, name, content)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got something else ({error}); restore the file") from error
    own = network.state_dict()
    if wrong := _differences(own, tensors):
        raise ValueError(f"expected the tensors that {CONFIG} describes in {path}, got others: {wrong}")
    network.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()})


def check_file(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Compare one file with its sha256 in the content of ``config.json``; raises as :func:`check_files`."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"expected weights at {path}, got no such file; restore the folder")
    if sha256(path) != content["sha256"].get(name):
        raise ValueError(
            f"expected {path} with the sha256 in {CONFIG}, got other bytes (truncated or changed); restore the file"
        )
    return path


def _differences(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Every tensor that is missing, surplus or of another shape, by name; empty when all fit."""
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & found.keys())
        if own[name].shape != found[name].shape
    ]
    lists = {
        "missing": sorted(own.keys() - found.keys()),
        "surplus": sorted(found.keys() - own.keys()),
        "of another shape": shapes,
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists.items() if names)


def _frozen(network: Network) -> Network:
    return network.requires_grad_(False).eval()
