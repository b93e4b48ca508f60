"""Whether an ONNX graph computes what the model computes in PyTorch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_models.model import SRModel

BOUND = 1e-4
"""Largest difference in pixels [-1, 1], relative to the largest pixel where that exceeds 1: 1/80 of an 8-bit level."""
CODES_BOUND = 0.01
"""Share of codes that may be others than PyTorch's: latents that lie between two codes to within rounding are few."""


class ParityError(RuntimeError):
    """The graph computes something else than the model."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    ``maximum`` and ``mean`` are absolute differences in pixels [-1, 1], not clamped; with a codebook those of what
    PyTorch decodes from the graph's own codes. ``psnr`` is that of the whole (peak 2). ``codes_changed`` counts latent
    positions where rounding chose another code than PyTorch.
    """

    batch: int
    height: int
    width: int
    maximum: float
    mean: float
    psnr: float
    codes_changed: int
    onnx_seconds: float
    torch_seconds: float
    passed: bool


def check_parity(model: SRModel, proto: bytes, steps: int) -> list[Case]:
    """Compare on three sizes and batches, none of which was traced.

    Args:
        model: on the CPU.
        proto: the serialized graph.
        steps: of the graph.

    Returns:
        What was measured; nothing is raised for a difference.
    """
    from sr_models.export.backend import open_session

    session = open_session(_with_codes(proto) if model.autoencoder.codebook is not None else proto)
    edge = model.lr_multiple
    sizes = [(1, edge, edge), (3, edge, 2 * edge), (2, 3 * edge, edge)]
    generator = torch.Generator().manual_seed(0)
    return [_case(model, session, steps, size, generator) for size in sizes]


@torch.inference_mode()
def _case(model: SRModel, session: Any, steps: int, size: tuple[int, int, int], generator: torch.Generator) -> Case:
    batch, height, width = size
    lr = torch.rand((batch, 3, height, width), generator=generator) * 2 - 1
    noise = torch.randn(model.noise_shape(batch, height, width, steps), generator=generator)
    latents: list[Tensor] = []
    start = time.perf_counter()
    hook = model.autoencoder.post_quant_conv.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    try:
        expected = model.restore(lr, noise, steps)
    finally:
        hook.remove()
    middle = time.perf_counter()
    got, *codes = (torch.from_numpy(value) for value in session.run(None, {"lr": lr.numpy(), "noise": noise.numpy()}))
    end = time.perf_counter()
    same_codes, changed, allowed = expected, 0, 0.0
    if codes and got.shape == expected.shape:
        same_codes, changed = _decode_codes(model, latents[-1], codes[0])
        allowed = max(1.0, CODES_BOUND * codes[0].numel())
    difference = (got - same_codes).abs() if got.shape == expected.shape else torch.tensor([math.inf])
    largest = max(1.0, float(expected.abs().max()))
    whole = float((got - expected).square().mean()) if got.shape == expected.shape else math.inf
    return Case(
        *size,
        maximum=float(difference.max()),
        mean=float(difference.mean()),
        psnr=10 * math.log10(4 / max(whole, 1e-20)),
        codes_changed=changed,
        onnx_seconds=end - middle,
        torch_seconds=middle - start,
        # Written so that NaN fails.
        passed=bool(difference.max() <= BOUND * largest) and changed <= allowed,
    )


def _decode_codes(model: SRModel, snapped: Tensor, codes: Tensor) -> tuple[Tensor, int]:
    """Decode the graph's codes in PyTorch; count those that are others than PyTorch's ``snapped`` latent."""
    autoencoder = model.autoencoder
    assert autoencoder.codebook is not None
    batch, channels, height, width = snapped.shape
    chosen = autoencoder.codebook(codes.flatten()).view(batch, height, width, channels).permute(0, 3, 1, 2)
    changed = (chosen - snapped).abs().amax(1) > 1e-6 * (1 + snapped.abs().amax())
    decoded: Tensor = autoencoder.decoder(autoencoder.post_quant_conv(chosen))
    return decoded, int(changed.sum())


def _with_codes(proto: bytes) -> bytes:
    """The same graph with the chosen codes as a second output, for this check only."""
    import onnx

    graph = onnx.load_model_from_string(proto)
    (node,) = [node for node in graph.graph.node if node.op_type == "ArgMin"]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT64, None))
    return bytes(graph.SerializeToString())
