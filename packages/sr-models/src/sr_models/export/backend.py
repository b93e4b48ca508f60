"""ONNX files as a model for :class:`sr_models.SuperResolver`, through onnxruntime."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "sr-models onnx 1"
FILE = "model.onnx"


@dataclass(frozen=True)
class OnnxModel:
    """A model in an ONNX file; everything about it is in the file.

    Args:
        session: of onnxruntime.
        about: what the exporter wrote into the file: kind, scale, lr_multiple, steps, noise and provenance.
    """

    session: Any = field(repr=False)
    about: dict[str, Any]

    @property
    def kind(self) -> str:
        """Teacher or student."""
        return str(self.about["kind"])

    @property
    def scale(self) -> int:
        """Enlargement."""
        return int(self.about["scale"])

    @property
    def lr_multiple(self) -> int:
        """LR height and width have to be multiples of this."""
        return int(self.about["lr_multiple"])

    @property
    def steps(self) -> tuple[int, ...]:
        """The one number of network evaluations that the graph was exported with."""
        return (int(self.about["steps"]),)

    @property
    def color(self) -> str:
        """Colour correction that its publication uses."""
        return str(self.about["color"])

    @property
    def bytes_per_pixel(self) -> int:
        """Memory of the largest activations, for one LR pixel, roughly."""
        return int(self.about["bytes_per_pixel"])

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        """None: tiles cannot share GroupNorm statistics through a graph."""
        return ()

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        """Choose the execution provider of a device.

        Raises:
            ValueError: onnxruntime has none for it.
        """
        del memory_format  # onnxruntime lays tensors out itself
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
        if wanted not in _available():
            raise ValueError(
                f"expected a device of this onnxruntime ({', '.join(_available())}), got {device}; "
                "use device cpu, or install onnxruntime-gpu for cuda"
            )
        if device.type == "cuda":
            options = {"device_id": str(device.index or 0)}
            self.session.set_providers([wanted, "CPUExecutionProvider"], [options, {}])
        elif self.session.get_providers() != [wanted]:
            self.session.set_providers([wanted])

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        """Shape (fields, B, channels, H, W) of the N(0, 1) noise for LR images of this size."""
        del steps  # there is only one
        noise = self.about["noise"]
        latent = (edge * self.scale // noise["latent_factor"] for edge in (height, width))
        return (noise["fields"], batch, noise["channels"], *latent)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """LR images, pixels [-1, 1], (B, 3, h, w) of whole multiples, to SR images, not clamped; float32.

        Raises:
            ValueError: another number of steps than the graph's.
            torch.OutOfMemoryError: onnxruntime could not allocate.
        """
        if (steps,) != self.steps:
            raise ValueError(f"expected steps={self.steps[0]}, which this file holds, got {steps}; export another file")
        inputs = {"lr": lr.float().cpu().numpy(), "noise": noise.float().cpu().numpy()}
        try:
            (sr,) = self.session.run(["sr"], inputs)
        except Exception as error:  # onnxruntime's errors share no public base class
            if "allocat" in str(error):
                raise torch.OutOfMemoryError(f"onnxruntime is out of memory: {error}") from error
            raise
        return torch.from_numpy(sr).to(lr.device)


def is_onnx(name: str | os.PathLike[str]) -> bool:
    """Tell whether a name is that of an ONNX file."""
    return str(name).lower().endswith(".onnx")


def load_onnx(name: str | os.PathLike[str]) -> OnnxModel:
    """Read an ONNX file, or ``model.onnx`` in a model folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or was not written by ``sr-distill export onnx``.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    path = Path(name) if is_onnx(name) else Path(name) / FILE
    if not path.is_file():
        if is_onnx(name):
            told = f"got {str(path)!r}, which does not exist; write it with sr-distill export onnx"
        elif Path(name).is_dir():
            told = f"got none at {path}; write it with: sr-distill export onnx {name} -o {path}"
        else:
            file = f"{Path(name).name}.onnx"
            told = f"got {str(name)!r}; write it with: sr-distill export onnx {name} -o {file}, then --weights {file}"
        raise FileNotFoundError(f"expected an ONNX file, {told}")
    session = open_session(path)
    written = session.get_modelmeta().custom_metadata_map.get("sr_models")
    about = json.loads(written) if written else {}
    if about.get("format") != FORMAT:
        raise ValueError(f"expected a file of 'sr-distill export onnx', got another ONNX file {path}; export it again")
    return OnnxModel(session, about)


def open_session(model: Path | bytes) -> Any:
    """Open an ONNX file, or its bytes, on the CPU with torch's number of threads."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected onnxruntime, got none installed; pip install 'sr-models[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base class
        where = "" if isinstance(model, bytes) else f" in {model}"
        raise ValueError(f"expected an ONNX graph{where}, got a damaged file ({error}); export it again") from error


def _available() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())
