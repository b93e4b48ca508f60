"""Weight files as they are published: read without running code, and recognised by their tensors."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sr_models.reference import unwrap

Family = Literal["unet", "autoencoder", "osediff", "tsd-network", "tsd-vae", "unknown"]

FAMILIES: dict[Family, str] = {
    "unet": "U-Net of ResShift, SinSR or RSD",
    "autoencoder": "VQ autoencoder of latent diffusion",
    "osediff": "adapters of OSEDiff",
    "tsd-network": "adapters of an SD3 transformer, in TSD-SR's layout",
    "tsd-vae": "adapters of an SD3 autoencoder, in TSD-SR's layout",
    "unknown": "something else",
}
"""What a file can be recognised as, in words."""

SUFFIXES = (".pth", ".pt", ".ckpt", ".pkl", ".safetensors")
"""Endings of weight files, for looking into a folder; the content decides what a file is."""

_AGAIN = "download it again"
DAMAGED = "a truncated, damaged or other file"


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A file of tensors.

    Args:
        path: where it is.
        family: what its tensors' names say it is.
        tensors: name -> tensor, out of a ``state_dict`` and without ``module.``; of OSEDiff's file, both networks.
        stored: how it is stored: safetensors or pickle.
    """

    path: Path
    family: Family
    tensors: Mapping[str, Tensor]
    stored: str


def read_weights(path: Path) -> WeightFile:
    """Read a safetensors file or a pickle of tensors, mapped into memory where its format allows it.

    A pickle that holds anything else is refused before any of it runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: code or other objects in it, a damaged file, or no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a weight file at {path}, got no such file; download it or give its path")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"expected weights in {path}, got an empty file; {_AGAIN}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"version https://git-lfs")):
        raise ValueError(
            f"expected weights in {path}, got a web page or a pointer to the file; download the file itself"
        )
    if start[8:9] == b"{":
        return _of_tensors(path, _safetensors(path), "safetensors")
    content = _pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary of tensors in {path}, got {type(content).__name__}; give another file")
    if {"state_dict_unet", "state_dict_vae"} <= set(content):
        parts = [content["state_dict_unet"], content["state_dict_vae"]]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"expected OSEDiff's dictionaries of tensors in {path}, got others; {_AGAIN}")
        tensors = {
            f"{name}.{key}": value
            for name, part in zip(("unet", "vae"), parts, strict=True)
            for key, value in part.items()
        }
        return _of_tensors(path, tensors, "pickle", "osediff")
    inner = content.get("state_dict", content)
    if not isinstance(inner, dict) or not all(isinstance(name, str) for name in inner):
        raise ValueError(f"expected a dictionary of named tensors in {path}, got something else; give another file")
    return _of_tensors(path, unwrap(content), "pickle")


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _of_tensors(path: Path, tensors: Mapping[str, Any], stored: str, family: Family | None = None) -> WeightFile:
    others = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others or not tensors:
        raise ValueError(
            f"expected tensors alone in {path}, got {some(others) if others else 'none'}; give the file of weights"
        )
    return WeightFile(path, family or _recognise(tensors), tensors, stored)


def _recognise(tensors: Mapping[str, Tensor]) -> Family:
    if any(name.startswith("input_blocks.") and ".patch_embed." in name for name in tensors):
        return "unet"
    if {"encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"} <= set(tensors):
        return "autoencoder"
    if all(name.startswith("transformer.") and ".lora_" in name for name in tensors):
        return "tsd-vae" if any(name.startswith("transformer.encoder.") for name in tensors) else "tsd-network"
    return "unknown"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return unwrap({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got a damaged file ({error}); {_AGAIN}") from error


def _pickle(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _refuse_code(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if found := _refused(str(error)):
            raise _code(path, found) from error
        with path.open("rb") as file:
            other = file.read(1) == b"\x80"
        raise _unreadable(
            path, "a pickle that something else wrote, of which nothing was run" if other else DAMAGED
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        if "TorchScript" in str(error):
            raise ValueError(f"expected tensors in {path}, got a TorchScript program; give the state dict") from error
        raise _unreadable(path, DAMAGED) from error


def _refuse_code(path: Path) -> None:
    """Raise for a zipped checkpoint that names anything but tensors and plain containers."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, MemoryError):
        raise
    except Exception:  # loading it says what is wrong
        return
    if found:
        raise _code(path, found)


def _refused(message: str) -> list[str]:
    """Objects that the loader named when it refused a pickle of the old format."""
    return re.findall(r"GLOBAL ([\w.]+)", message)[:1]


def _unreadable(path: Path, found: str) -> ValueError:
    return ValueError(f"expected a file of tensors by torch.save in {path}, got {found}; {_AGAIN}")


def _code(path: Path, found: list[str]) -> ValueError:
    return ValueError(
        f"expected tensors alone in {path}, got a pickle that also holds {some(sorted(found))}; nothing of it was run: "
        "ask its authors for a file of tensors"
    )
