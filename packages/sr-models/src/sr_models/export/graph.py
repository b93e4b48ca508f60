"""From an :class:`SRModel` to one ONNX graph with symbolic batch, height and width."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch

from sr_models.export.parts import Decode, FewSteps, OneStep, Part, Start, Step
from sr_models.model import SRModel


def build_graph(model: SRModel, steps: int, opset: int) -> Any:
    """Trace the model and return an ``onnx.ModelProto`` with inputs ``lr`` and ``noise`` and the output ``sr``.

    A teacher's chain is a Loop whose body is the network, and a student's steps share its weights: the file is hardly
    larger than that of one step.

    Args:
        model: on the CPU, float32, in eval mode.
        steps: 1, the T of a teacher, or the number of a student's timesteps.
        opset: of the graph.
    """
    trace = _Tracer(model, steps, opset)
    if steps == 1:
        proto = trace(OneStep(model), ("lr", "noise"), "sr")
    elif model.kind == "student":
        proto = trace(FewSteps(model), ("lr", "noise"), "sr")
    else:
        pieces = {
            "start": trace(Start(model), ("lr", "noise"), "z_T"),
            "step": trace(Step(model), ("lr", "noise", "z_t", "iteration"), "z_next"),
            "decode": trace(Decode(model), ("z_0",), "sr"),
        }
        proto = _chain(pieces, steps)
    _tidy(proto)
    return proto


class _Tracer:
    """Traces one piece with example tensors of a size that is neither square nor the smallest."""

    def __init__(self, model: SRModel, steps: int, opset: int) -> None:
        self.opset = opset
        height, width = 2 * model.lr_multiple, 3 * model.lr_multiple
        noise_shape = model.noise_shape(2, height, width, steps)
        self.examples = {
            "lr": torch.zeros(2, 3, height, width),
            "noise": torch.zeros(noise_shape),
            "z_t": torch.zeros(noise_shape[1:]),
            "z_0": torch.zeros(noise_shape[1:]),
            "iteration": torch.tensor(0),
        }

    def __call__(self, part: Part, inputs: tuple[str, ...], output: str) -> Any:
        """Return the part as an ``onnx.ModelProto`` with these names."""
        import onnx

        free = {"noise": (1, 3, 4), "iteration": ()}
        axes = {name: {axis: f"{name}_{axis}" for axis in free.get(name, (0, 2, 3))} for name in (*inputs, output)}
        file: Any = io.BytesIO()  # accepted, though not in the annotation
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns about every comparison of sizes; the parity check runs other sizes instead.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                part.eval(),
                tuple(self.examples[name] for name in inputs),
                file,
                # The newer exporter gives the same numbers and needs ten times as long for symbolic sizes.
                dynamo=False,
                opset_version=self.opset,
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes=axes,
            )
        return onnx.load_model_from_string(file.getvalue())


def _chain(pieces: dict[str, Any], steps: int) -> Any:
    """Join start, Loop(step) and decode."""
    from onnx import TensorProto, compose, helper, numpy_helper

    start, step, decode = (compose.add_prefix(pieces[name], f"{name}/") for name in ("start", "step", "decode"))

    def same(source: str, target: str) -> Any:
        return helper.make_node("Identity", [source], [target])

    body = helper.make_graph(
        [
            same("z_t", "step/z_t"),
            same("iteration", "step/iteration"),
            *step.graph.node,
            same("going_on", "going_on_next"),
        ],
        "step",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("z_t", TensorProto.FLOAT, [None] * 4),
        ],
        [
            helper.make_tensor_value_info("going_on_next", TensorProto.BOOL, []),
            helper.make_tensor_value_info("step/z_next", TensorProto.FLOAT, [None] * 4),
        ],
    )
    constants = {"step/count": np.array(steps), "step/always": np.array(True)}
    nodes = [
        *(same(name, f"{part}/{name}") for part in ("start", "step") for name in ("lr", "noise")),
        *start.graph.node,
        helper.make_node("Loop", ["step/count", "step/always", "start/z_T"], ["decode/z_0"], name="chain", body=body),
        *decode.graph.node,
        same("decode/sr", "sr"),
    ]
    initializers = [part.graph.initializer for part in (start, step, decode)]
    graph = helper.make_graph(
        nodes,
        "chain",
        list(pieces["start"].graph.input),
        list(pieces["decode"].graph.output),
        [tensor for group in initializers for tensor in group]
        + [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    functions = {(one.domain, one.name): one for part in (start, step, decode) for one in part.functions}
    return helper.make_model(
        graph,
        opset_imports=pieces["step"].opset_import,
        ir_version=pieces["step"].ir_version,
        functions=list(functions.values()),
    )


def _tidy(proto: Any) -> None:
    """Name the symbolic sizes, and drop the exporter's notes: they hold paths of the machine that exported."""
    graphs = [proto.graph, *(a.g for node in proto.graph.node for a in node.attribute if a.HasField("g"))]
    for graph in graphs:
        del graph.value_info[:]
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            item.doc_string = ""
            del item.metadata_props[:]
        del graph.metadata_props[:]
        graph.doc_string = ""
    for function in proto.functions:
        del function.value_info[:]
        for item in (function, *function.node):
            item.doc_string = ""
            del item.metadata_props[:]
    sizes = {
        "lr": {0: "batch", 2: "height", 3: "width"},
        "noise": {1: "batch", 3: "latent_height", 4: "latent_width"},
        "sr": {0: "batch", 2: "sr_height", 3: "sr_width"},
    }
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in sizes[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
