"""Writing an ONNX file: trace, describe, compare with PyTorch, and only then let it appear under its name."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sr_models import store
from sr_models.export.backend import FORMAT, is_onnx
from sr_models.export.graph import build_graph
from sr_models.export.parity import BOUND, Case, ParityError, check_parity
from sr_models.model import SRModel

OPSET = 17
OPSETS = range(17, 21)
LARGEST = 2 * 1024**3 - 1024**2
"""Bytes that fit in one ONNX file."""


def export_onnx(
    weights: str | os.PathLike[str], output: Path, *, steps: int | None = None, opset: int = OPSET
) -> list[Case]:
    """Write a model as one ONNX file, whole or not at all, with the comparison beside it in ``NAME.onnx.json``.

    Args:
        weights: name of a shipped model or a model folder.
        output: a file that does not exist yet, ending in ``.onnx``.
        steps: 1, a teacher's T or the number of a student's timesteps; None: the model's usual one.
        opset: of the graph, 17 to 20.

    Returns:
        The comparison with PyTorch.

    Raises:
        ValueError: an option or the kind of model does not fit.
        FileExistsError: ``output`` exists.
        ParityError: the graph computes something else; nothing was written.
        ModuleNotFoundError: the extra ``onnx`` is not installed.
    """
    if not is_onnx(output):
        raise ValueError(f"expected an output that ends in .onnx, got {output}; rename it")
    report = output.with_name(output.name + ".json")
    for path in (output, report):
        if path.exists():
            raise FileExistsError(f"expected a new file, got {path}, which exists; choose another name")
    if opset not in OPSETS:
        raise ValueError(f"expected an opset of {OPSETS.start} to {OPSETS.stop - 1}, got {opset}; leave it out")
    _require_extra()
    about = store.read_about(weights)
    if str(about["kind"]).startswith("t2i"):
        raise ValueError(
            f"expected a ResShift teacher or student to export, got the text-to-image model {str(weights)!r}; "
            "ONNX files of text-to-image models are not supported, restore with PyTorch"
        )
    model = store.load_model(weights)
    chosen = model.steps[0] if steps is None else steps
    if chosen not in model.steps:
        options = " or ".join(str(option) for option in sorted(model.steps))
        raise ValueError(f"expected steps={options} for this {model.kind}, got {chosen}")
    parameters = sum(p.numel() for network in (model.unet, model.autoencoder) for p in network.parameters())
    if 4 * parameters > LARGEST:
        raise ValueError(
            f"expected weights below 2 GB for one ONNX file, got {4 * parameters / 1e9:.1f} GB; use PyTorch"
        )
    proto = to_onnx(model, chosen, opset=opset, provenance={"weights": Path(weights).name, **about})
    cases = check_parity(model, proto, chosen)
    if not all(case.passed for case in cases):
        worst = max(case.maximum for case in cases)
        raise ParityError(
            f"expected the graph to agree with PyTorch within {BOUND:g}, got a difference of {worst:.3g} "
            f"(codes changed: {max(case.codes_changed for case in cases)}); nothing was written"
        )
    record = {"bound": BOUND, "versions": _versions(), "cases": [dataclasses.asdict(case) for case in cases]}
    _write(output, proto)
    _write(report, (json.dumps(record, indent=2) + "\n").encode())
    return cases


def to_onnx(model: SRModel, steps: int, *, opset: int = OPSET, provenance: dict[str, Any] | None = None) -> bytes:
    """Return the serialized graph of a model with everything in it that :class:`OnnxModel` needs.

    Args:
        model: on the CPU, float32, in eval mode.
        steps: one of its ``steps``.
        opset: of the graph.
        provenance: where the weights come from; its ``licence`` also becomes the metadata's own ``licence``.
    """
    proto = build_graph(model, steps, opset)
    shape = model.noise_shape(1, model.lr_multiple, model.lr_multiple, steps)
    provenance = dict(provenance or {})
    about = {
        "format": FORMAT,
        "kind": model.kind,
        "scale": model.scale,
        "lr_multiple": model.lr_multiple,
        "steps": steps,
        "color": model.color,
        "bytes_per_pixel": model.bytes_per_pixel,
        "noise": {
            "fields": shape[0],
            "channels": shape[2],
            "latent_factor": model.config.autoencoder.factor,
            "rule": "(fields, batch, channels, height * scale / latent_factor, width * scale / latent_factor), N(0, 1)",
        },
        "quantized": model.autoencoder.codebook is not None,
        "licence": provenance.get("licence", provenance.get("license", "not stated")),
        "versions": _versions(),
        "provenance": provenance,
    }
    proto.producer_name, proto.producer_version = "sr-models", version("sr-models")
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = "sr_models", json.dumps(about)
    return bytes(proto.SerializeToString())


def _versions() -> dict[str, str]:
    names = ("sr-models", "torch", "onnx", "onnxruntime")
    return {name: torch.__version__ if name == "torch" else version(name) for name in names}


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected the extra 'onnx', got no {error.name}; pip install 'sr-models[onnx]'"
        ) from error


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
