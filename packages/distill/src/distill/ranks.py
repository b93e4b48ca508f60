"""Device and processes of a run, through accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sr_models.compute import choose_device

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(device: str = "auto", precision: str = "fp32", tracker: str = "none") -> Accelerator:
    """Return the accelerator of this process: its device, its rank, its precision, its tracker.

    Started by ``accelerate launch`` (or torchrun) it joins the other processes; otherwise it is alone.

    Args:
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16 or fp16; networks run under autocast, fp16 with a loss scaler.
        tracker: name of a tracker that accelerate knows, or none.

    Raises:
        ValueError: no such device or tracker, or a precision that the device cannot do.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    chosen = choose_device(device)
    if precision == "fp16" and chosen.type != "cuda":
        raise ValueError(f"expected precision fp32 or bf16 on {chosen.type}, got fp16; set precision=bf16")
    mixed = "no" if precision == "fp32" else precision
    _forget_single_process(chosen.type == "cpu", mixed)
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=mixed,
        log_with=_check_tracker(tracker),
        project_dir=".",
        # Frozen networks have no buffers that change, and every parameter of a player takes part in every update.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def leave_group() -> None:
    """End the group of processes, if there is one; the last thing that a process of a run does."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _forget_single_process(cpu: bool, mixed: str) -> None:
    """Let one process do several runs one after another, each with its own device and precision.

    accelerate keeps the first choice for the life of the process and refuses another one.
    """
    from accelerate.state import AcceleratorState

    state: dict[str, Any] = AcceleratorState._shared_state
    if not state or torch.distributed.is_initialized():
        return
    if (state.get("_cpu"), state.get("_mixed_precision")) != (cpu, mixed):
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_tracker(name: str) -> str | None:
    if name == "none":
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(kind) for kind in LOGGER_TYPE_TO_CLASS]
    if name not in known:
        raise ValueError(f"expected tracker none or one of {', '.join(known)}, got {name!r}")
    if name not in [str(kind) for kind in get_available_trackers()]:
        raise ValueError(
            f"expected tracker {name!r} to be installed, got no such package; install it or use tensorboard"
        )
    return name
