"""What a weight file or a model folder is, and which ones there are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sr_models import store
from sr_models.published.reference_sizes import autoencoder_sizes, swin_unet_sizes
from sr_models.published.weight_files import FAMILIES, WeightFile, read_weights, some
from sr_models.reference import DERIVED

UNSTATED = "not stated"
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Part:
    """A part of a network, named by the first word of its tensors.

    Args:
        file: where its tensors are.
        name: first word of their names.
        tensors: how many.
        parameters: numbers in them.
        dtype: of the tensors, several separated by commas.
    """

    file: str
    name: str
    tensors: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """What a file or folder is; ``dataclasses.asdict`` makes it JSON.

    Args:
        path: as it was asked for.
        what: in words.
        kind: teacher, student, autoencoder, t2i-teacher, t2i-student, or the family of a file.
        bytes: on disk.
        parts: of all its tensors.
        sizes: of the networks and schedule: stored, or as the tensors of a file tell.
        licence: as stated in it.
        source: where it comes from, as stated in it.
        sha256: file -> digest and state: ``ok``, ``changed``, ``missing``, or ``not recorded`` for a loose file.
    """

    path: str
    what: str
    kind: str
    bytes: int
    parts: list[Part]
    sizes: dict[str, Any]
    licence: str
    source: Any
    sha256: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """All numbers in its tensors."""
        return sum(part.parameters for part in self.parts)


@dataclass(frozen=True)
class Listed:
    """A line of the list of models; ``parameters`` and ``bytes`` are those of its own files.

    ``kind`` is ``unreadable`` for a folder whose ``config.json`` is wrong.
    """

    name: str
    kind: str
    scale: int | None
    parameters: int
    bytes: int
    licence: str


def inspect(name: str | os.PathLike[str]) -> Inspection:
    """Describe a model folder, a shipped model by name, or a weight file.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a file that cannot be read safely, or is none of weights.
    """
    path = Path(name)
    if path.is_file():
        return _inspect_onnx(path) if path.suffix == ".onnx" else _inspect_file(read_weights(path))
    return _inspect_folder(str(name), store.find(name))


def list_models(folder: Path | None = None) -> list[Listed]:
    """List the shipped models, then the model folders in ``folder`` and below it.

    Raises:
        FileNotFoundError: no such folder.
    """
    found = dict(store.shipped())
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder, got {folder}; give one with model folders in it")
        below = sorted(path.parent for path in folder.rglob(store.CONFIG))
        found |= {str(path): path for path in below if store.is_model_folder(path)}
    return [_listed(name, path) for name, path in found.items()]


def _inspect_file(file: WeightFile) -> Inspection:
    shapes = (
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in file.tensors.items()
        if not name.endswith(DERIVED)  # masks and indices follow from the sizes
    )
    sizes: dict[str, Any] = {}
    what = FAMILIES[file.family]
    if file.family == "unet":
        unet = swin_unet_sizes(file.tensors)
        sizes["unet"] = unet.model_dump(mode="json")
        what += ": a student of RSD" if unet.noise_channels else ": a teacher of ResShift or a student of SinSR"
    elif file.family == "autoencoder":
        sizes["autoencoder"] = autoencoder_sizes(file.tensors).model_dump(mode="json")
    elif file.family == "unknown":
        what += f", with the tensors {some(file.tensors)}"
    else:
        sizes["rank"] = _rank(file.tensors)
    return Inspection(
        str(file.path),
        f"{what}; {file.stored}",
        file.family,
        file.path.stat().st_size,
        list(_parts(file.path.name, shapes)),
        sizes,
        UNSTATED,
        None,
        {file.path.name: {"digest": store.sha256(file.path), "state": "not recorded"}},
    )


def _rank(tensors: Mapping[str, Tensor]) -> int:
    """Rank of adapters: the most frequent one."""
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name]
    return max(ranks, key=ranks.count, default=0)


def _inspect_onnx(path: Path) -> Inspection:
    """Describe an ONNX graph by its header; its weights stay where they are."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"expected onnx to read {path}; install the extra: sr-models[onnx]") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser raises its own kinds
        raise ValueError(f"expected an ONNX graph in {path}, got something else; export it again") from error
    weights = [
        (one.name, tuple(one.dims), onnx.TensorProto.DataType.Name(one.data_type).lower())
        for one in model.graph.initializer
    ]
    entries = {one.key: one.value for one in model.metadata_props}
    about = _exported(entries.pop("sr_models", ""))
    provenance = about.pop("provenance", None) or {}
    stated = about.pop("licence", UNSTATED)
    sizes = {
        "opset": max((one.version for one in model.opset_import if not one.domain), default=0),
        "inputs": [one.name for one in model.graph.input],
        "outputs": [one.name for one in model.graph.output],
        **about,
        **entries,
    }
    parts = [Part(path.name, "graph", len(weights), sum(math.prod(shape) for _, shape, _ in weights), _dtypes(weights))]
    digest = {path.name: {"digest": store.sha256(path), "state": "not recorded"}}
    source = {"weights": provenance["weights"]} if "weights" in provenance else {}
    if made := provenance.get("source", provenance.get("command")):
        source["made"] = made
    return Inspection(
        str(path), "ONNX graph", "onnx", path.stat().st_size, parts, sizes, str(stated), source or None, digest
    )


def _exported(text: str) -> dict[str, Any]:
    """What ``sr-distill export onnx`` wrote into a graph; nothing for a graph of something else."""
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("provenance", {}), dict) else {}


def read_folder(folder: Path) -> dict[str, Any]:
    """Content of ``config.json``, with entries of the kinds that are read here, and files inside of the folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a ``config.json`` of ours, or one with a wrong entry.
    """
    content = store.read_config(folder)
    kinds = {"kind": str, "model": dict, "t2i": dict, "about": dict}
    wrong = [key for key, kind in kinds.items() if content.get(key) is not None and not isinstance(content[key], kind)]
    if not wrong and not isinstance((content.get("about") or {}).get("licence", UNSTATED), str):
        wrong = ["about.licence"]
    if wrong:
        raise ValueError(f"expected a valid {folder / store.CONFIG}, got a wrong {wrong[0]}; restore the folder")
    for file in content["sha256"]:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(
                f"expected files of {folder} in its {store.CONFIG}, got {file!r}, which is outside; restore the folder"
            )
    return content


def _inspect_folder(name: str, folder: Path) -> Inspection:
    content = read_folder(folder)
    about = content.get("about") or {}
    keys = ("model", "autoencoder", "autoencoder_from", "t2i")
    hashes = {
        file: {"digest": store.sha256(folder / file) if (folder / file).is_file() else "", "state": ""}
        for file in content["sha256"]
    }
    for file, found in hashes.items():
        right = found["digest"] == content["sha256"][file]
        found["state"] = "ok" if right else "changed" if found["digest"] else "missing"
    return Inspection(
        name,
        f"model folder: {content['kind']}",
        content["kind"],
        _bytes(folder),
        [part for file in _network_files(folder, content) for part in _parts(file, _headers(folder / file))],
        {key: content[key] for key in keys if content.get(key) is not None},
        about.get("licence", UNSTATED),
        about.get("source", about.get("command")),
        hashes,
    )


def _listed(name: str, folder: Path) -> Listed:
    try:
        return _described(name, folder)
    except (ValueError, OSError):  # one bad folder must not hide the others; inspecting it says what is wrong
        return Listed(name, "unreadable", None, 0, _bytes(folder), UNSTATED)


def _described(name: str, folder: Path) -> Listed:
    content = read_folder(folder)
    scale = (content.get("model") or content.get("t2i") or {}).get("scale")
    counted = sum(
        math.prod(shape) for file in _network_files(folder, content) for _, shape, _ in _headers(folder / file)
    )
    return Listed(
        name, content["kind"], scale, counted, _bytes(folder), (content.get("about") or {}).get("licence", UNSTATED)
    )


def _network_files(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Safetensors files of networks, prompts left out."""
    files = [file for file in content["sha256"] if file.endswith(".safetensors") and not file.startswith("prompts/")]
    return [file for file in files if (folder / file).is_file()]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


Header = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype of a tensor."""


def _headers(path: Path) -> Iterator[Header]:
    """Headers of a safetensors file, without its numbers; nothing for a damaged one, whose sha256 tells it."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                yield name, tuple(tensor.get_shape()), DTYPE_NAMES.get(tensor.get_dtype(), tensor.get_dtype())
    except SafetensorError:
        return


def _parts(file: str, headers: Iterable[Header]) -> Iterator[Part]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        words = header[0].removeprefix("transformer.").split(".")
        groups.setdefault(words[0], []).append(header)
    for name, group in groups.items():
        yield Part(file, name, len(group), sum(math.prod(shape) for _, shape, _ in group), _dtypes(group))


def _dtypes(group: list[Header]) -> str:
    return ", ".join(sorted({dtype for _, _, dtype in group}))
