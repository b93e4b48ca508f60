"""Models as ONNX files: written by :func:`export_onnx`, used through :func:`load_onnx`."""

from sr_models.export.backend import OnnxModel, is_onnx, load_onnx
from sr_models.export.onnx import export_onnx
from sr_models.export.parity import Case, ParityError

__all__ = ["Case", "OnnxModel", "ParityError", "export_onnx", "is_onnx", "load_onnx"]
