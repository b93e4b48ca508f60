"""The path that a model is computed on: measured, named by the caller, compiled."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from sr_models.compute.paths import Compute, candidates, choose_device, parse_dtype
from sr_models.compute.table import Clock, Table, cache_folder, fastest, measure, read_table, trial, write_table
from sr_models.restorable import Restorable


@dataclass(frozen=True)
class Choice:
    """The path to take.

    Args:
        compute: the path.
        table: what was measured, plain fp32 first; empty: nothing was, since there was nothing to choose.
        from_cache: the table was measured earlier.
        notes: what went otherwise than asked for.
    """

    compute: Compute
    table: Table = ()
    from_cache: bool = False
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The table and the notes as lines of text."""
        lines = []
        if self.table:
            when = "measured earlier" if self.from_cache else "measured now"
            lines.append(f"{'path':<36} {'s/Mpixel of LR':>15} {'PSNR to fp32':>13}  {when}")
        # Precision and layout are what is compared; compiling comes after that.
        chosen = replace(self.compute, compiled=False)
        for row in self.table:
            seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
            psnr = "-" if row.psnr is None else f"{row.psnr:.1f} dB"
            remark = row.problem or ("chosen" if row.compute == chosen else "")
            lines.append(f"{row.compute.describe():<36} {seconds:>15} {psnr:>13}  {remark}".rstrip())
        return [*lines, *self.notes]


def choose(
    model: Restorable,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    *,
    compile: bool = False,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Find the path to take, and put the model on it.

    With ``dtype="auto"`` the model restores a small picture on every path that the device is good at, unless it has
    done so before on this machine. Plain fp32 stays unless another path is 1.15 times as fast and its picture close
    to fp32's (30 dB). A model without networks that torch computes, such as an ONNX file, takes plain fp32; with
    ``device="auto"`` the CPU, where it cannot be moved to the other device.

    Args:
        model: moved to the device, eval mode.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16; what is named is taken without a measurement.
        compile: compile the networks; where that fails they run as they are, and the notes say so.
        clock: seconds; for tests.

    Raises:
        ValueError: no such device or precision, or a precision that the device or the model does not have.
    """
    if not model.tiled_networks:
        choice = _outside_torch(model, device, dtype)
        return _compiled(model, choice) if compile else choice
    where = choose_device(device) if isinstance(device, str) else device
    precision = parse_dtype(dtype)
    paths = candidates(where, precision)
    if precision is not None:
        choice = Choice(paths[0])
    else:
        kept = read_table(model, paths)
        table = kept or measure(model, paths, clock)
        notes = () if kept else write_table(model, paths, table)
        choice = Choice(fastest(table), table, kept is not None, notes)
    apply(model, choice.compute)
    return _compiled(model, choice) if compile else choice


def apply(model: Restorable, compute: Compute) -> None:
    """Move the model to the device, in this layout, eval mode; compiled as this path says.

    Networks are compiled at their first call, which takes minutes for large ones and needs a C++ compiler on a CPU.
    """
    model.to(compute.device, compute.memory_format)
    for network in _called(model):
        if compute.compiled:
            # What is compiled is kept beside the measurements, for the next process.
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
            network.compile()
        else:
            network._compiled_call_impl = None  # takes back compile(), for which torch has no function


def _outside_torch(model: Restorable, device: str | torch.device, dtype: str) -> Choice:
    """Plain fp32: autocast and layouts do not reach a model that something else than torch computes."""
    if parse_dtype(dtype) not in (None, torch.float32):
        raise ValueError(
            f"expected dtype auto or fp32 for an ONNX file, which is computed in fp32, got {dtype}; use fp32"
        )
    choice = Choice(Compute(choose_device(device) if isinstance(device, str) else device))
    try:
        apply(model, choice.compute)
    except ValueError:
        if device != "auto" or choice.compute.device.type == "cpu":
            raise
        choice = Choice(Compute(torch.device("cpu")))
        apply(model, choice.compute)
    return choice


def _compiled(model: Restorable, choice: Choice) -> Choice:
    """The choice with compiled networks, if they compile."""
    if not model.tiled_networks:
        return replace(choice, notes=(*choice.notes, "not compiled: torch does not compute this model"))
    compute = replace(choice.compute, compiled=True)
    apply(model, compute)
    try:
        with torch.inference_mode(), compute.autocast():
            model.restore(*trial(model, compute.device))
    except Exception as error:  # the compilers that torch calls raise whatever they like
        apply(model, choice.compute)
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        return replace(choice, notes=(*choice.notes, f"not compiled: {reason}"))
    # Not always all networks: the text-to-image student's transformer or U-Net is not among them.
    names = ", ".join(dict.fromkeys(type(network).__name__ for network in _called(model)))
    return replace(choice, compute=compute, notes=(*choice.notes, f"compiled: {names}"))


def _called(model: Restorable) -> Iterator[nn.Module]:
    """The networks that are called themselves: of an autoencoder that is the encoder and the decoder."""
    for network in model.tiled_networks:
        parts = [getattr(network, name, None) for name in ("encoder", "decoder")]
        yield from [part for part in parts if isinstance(part, nn.Module)] or [network]
