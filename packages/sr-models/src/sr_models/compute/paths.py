"""Ways to compute a model on a device: precision, memory layout, compiled or not."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Compute:
    """One way to compute a model.

    Args:
        device: where.
        dtype: of autocast; float32 is no autocast. Weights stay in float32 in any case.
        channels_last: convolution weights, and with them feature maps, keep the channels of a pixel together in memory.
        compiled: networks through ``torch.compile``.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """Context in which to call the networks; float32 also takes away an autocast of the caller's."""
        return torch.autocast(
            self.device.type, dtype=None if self.dtype == torch.float32 else self.dtype, enabled=self.reduced
        )

    @property
    def reduced(self) -> bool:
        """Whether it computes in less than float32."""
        return self.dtype != torch.float32

    def describe(self) -> str:
        """In words, such as ``cpu, bf16 autocast, channels_last``."""
        parts = [str(self.device), NAMES[self.dtype] + " autocast" * self.reduced]
        parts += ["channels_last"] * self.channels_last + ["compiled"] * self.compiled
        return ", ".join(parts)


def choose_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA, MPS or the CPU, in this order; ``cuda:1`` names one of several.

    Raises:
        ValueError: the device that was asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = ", ".join(kind for kind, found in present.items() if found)
    if name == "auto":
        return torch.device(there.split(", ")[0])
    kind, _, index = name.partition(":")
    if not present.get(kind, False) or name.endswith(":") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"expected a device of {there}, got {name!r}; name one of them, or auto")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {name!r}; name one of them")
    return torch.device(name)


def parse_dtype(name: str) -> torch.dtype | None:
    """Resolve ``fp32``, ``bf16`` or ``fp16``; ``auto`` is None.

    Raises:
        ValueError: no such name.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise ValueError(f"expected dtype auto, {', '.join(DTYPES)}, got {name!r}; use one of them")
    return DTYPES[name]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; where it does not, bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # oneDNN's own answer is no use on x86: it is yes wherever it can emulate. AMX tiles always come with bf16.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def candidates(device: torch.device, dtype: torch.dtype | None = None) -> tuple[Compute, ...]:
    """Paths that are worth a measurement on this device, plain fp32 first.

    Args:
        device: where.
        dtype: None: every precision that the device is fast in; otherwise only this one, in the layout that suits it.

    Raises:
        ValueError: the device cannot compute in ``dtype``.
    """
    channels_last = device.type != "mps"  # not measured there
    if dtype == torch.float16 and device.type == "cpu":
        raise ValueError("expected dtype fp32 or bf16 on the cpu, got fp16; give bf16, or auto for the faster one")
    if dtype == torch.bfloat16 and device.type == "mps":
        raise ValueError("expected dtype fp32 or fp16 on mps, got bf16; give fp16")
    if dtype is not None:
        return (Compute(device, dtype, channels_last),)
    paths = [Compute(device)]
    if channels_last:
        paths.append(Compute(device, channels_last=True))
    if has_fast_bf16(device):
        paths.append(Compute(device, torch.bfloat16, channels_last))
    if device.type != "cpu":
        paths.append(Compute(device, torch.float16, channels_last))
    return tuple(paths)
