"""What this machine can do at best, measured now: rates of copying memory and of multiplying matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

MATRIX_SIZE = {"cpu": 2048, "other": 8192}
CONVOLUTION = {"cpu": (1, 256, 128), "other": (16, 256, 128)}
"""(batch, channels, side) of a 3x3 convolution."""
COPY_MB = {"cpu": 256, "other": 1024}
"""Larger than any cache."""
ROUNDS = 5
Clock = Callable[[], float]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter) -> float:
    """GFLOP/s of the faster one of :func:`matrix_rates`."""
    return max(matrix_rates(device, dtype, clock).values())


@torch.inference_mode()
def matrix_rates(device: torch.device, dtype: torch.dtype, clock: Clock = time.perf_counter) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a large 3x3 convolution by their names, the best turn of each.

    On some processors the convolution is the faster one. A multiplication with its addition counts as two operations.

    Args:
        device: to measure.
        dtype: of the numbers.
        clock: seconds; for tests.
    """
    kind = device.type if device.type in MATRIX_SIZE else "other"
    size = MATRIX_SIZE[kind]
    batch, channels, side = CONVOLUTION[kind]
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator).to(device, dtype)
    image = torch.randn(batch, channels, side, side, generator=generator).to(device, dtype)
    image = image.to(memory_format=torch.channels_last)
    layer = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    layer.to(memory_format=torch.channels_last)
    product = 2 * size**3 / _best(lambda: matrix @ matrix, device, clock)
    convolution = 2 * 9 * batch * (channels * side) ** 2 / _best(lambda: layer(image), device, clock)
    matmul, conv = tf32_allowed(device, dtype)
    return {f"matrix product{matmul}": product / 1e9, f"3x3 convolution{conv}": convolution / 1e9}


def tf32_allowed(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """What to add to the names of matrix product and convolution: by default torch allows TF32 for the latter alone."""
    if device.type != "cuda" or dtype != torch.float32:
        return "", ""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    matmul, conv = (" (TF32 allowed)" if one else " (no TF32)" for one in allowed)
    return matmul, conv


@torch.inference_mode()
def copy_rate(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """GB/s of copying a large tensor on the device: bytes read and bytes written, the best turn.

    Args:
        device: to measure.
        clock: seconds; for tests.
    """
    size = COPY_MB.get(device.type, COPY_MB["other"]) * 2**20
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device, clock) / 1e9


def _best(work: Callable[[], Tensor], device: torch.device, clock: Clock) -> float:
    """Least seconds of several turns, after one that is not counted."""
    best = float("inf")
    for turn in range(ROUNDS + 1):
        synchronize(device)
        begin = clock()
        work()
        synchronize(device)
        seconds = clock() - begin
        if turn:
            best = min(best, seconds)
    return max(best, 1e-9)
