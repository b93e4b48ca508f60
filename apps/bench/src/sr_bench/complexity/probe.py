"""Where the parts of a restoration begin and end, and what each of them has and computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_bench.complexity.result import NETWORKS
from sr_bench.complexity.subjects import Subject
from sr_models.autoencoder import Quantized

ENCODER = ("encoder.", "quant_conv.")


def restore_in_parts(
    subject: Subject, lr: Tensor, noise: Tensor, steps: int, read: Callable[[], float]
) -> tuple[Tensor, dict[str, float]]:
    """Restore as everybody does, and say by how much a counter rose in encode, network and decode.

    Args:
        subject: restores.
        lr: pixels [-1, 1], (B, 3, h, w).
        noise: of the model's ``noise_shape``.
        steps: network evaluations.
        read: the counter, such as a clock that waits for the device.

    Returns:
        Pixels, not clamped, and the rise by part. What is between encoder and decoder counts as network.
    """
    with _watched(subject.autoencoder, read) as marks:
        begin = read()
        pixels = subject.model.restore(lr, noise, steps)
        reads = [begin, *marks, read()]
    rises = (later - earlier for earlier, later in pairwise(reads))
    return pixels, dict(zip(NETWORKS, rises, strict=True))


@contextmanager
def _watched(autoencoder: Any, read: Callable[[], float]) -> Iterator[list[float]]:
    """Reads the counter where encoding ends and where decoding begins."""
    marks: list[float] = []
    encode, decode = autoencoder.encode, autoencoder.decode

    def encoding(*values: Any, **options: Any) -> Any:
        out = encode(*values, **options)
        marks.append(read())
        return out

    def decoding(*values: Any, **options: Any) -> Any:
        marks.append(read())
        return decode(*values, **options)

    autoencoder.encode, autoencoder.decode = encoding, decoding
    try:
        yield marks
    finally:
        del autoencoder.encode, autoencoder.decode  # the class has its own


@torch.inference_mode()
def count_macs(subject: Subject, lr: Tensor, noise: Tensor, steps: int) -> dict[str, int]:
    """Multiplications with their additions of one restoration, by part; on any device, the meta device included."""
    with _searching_codes_on_meta(subject.autoencoder), FlopCounterMode(display=False) as counter:
        _, flops = restore_in_parts(subject, lr, noise, steps, counter.get_total_flops)
    return {part: int(value) // 2 for part, value in flops.items()}


@contextmanager
def _searching_codes_on_meta(autoencoder: Any) -> Iterator[None]:
    """Replaces the search of a codebook by its product: it switches autocast off, which meta does not have."""
    codebook = getattr(autoencoder, "codebook", None)
    if codebook is None or codebook.weight.device.type != "meta":
        yield
        return

    def quantize(z: Tensor) -> Quantized:
        distances = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) @ codebook.weight.T
        return Quantized(z, distances.argmin(1))

    autoencoder.quantize = quantize
    try:
        yield
    finally:
        del autoencoder.quantize


def count_parameters(subject: Subject) -> tuple[dict[str, int], int]:
    """Parameters by part, adapters included, and those of the adapters."""
    parts = dict.fromkeys(NETWORKS, 0)
    for name, parameter in subject.autoencoder.named_parameters():
        parts["encode" if name.startswith(ENCODER) else "decode"] += parameter.numel()
    parts["network"] = sum(parameter.numel() for parameter in subject.network.parameters())
    return parts, sum(_adapters(network) for network in (subject.network, subject.autoencoder))


def _adapters(network: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in network.named_parameters() if "lora_" in name)
