"""How much memory a training run will need, found without running it.

:func:`forecast` lets the run's own code take its turns on torch's fake tensors, which have shapes and dtypes but no
numbers, and :class:`PeakBytes` adds up the storages that are alive. What a process holds beside its tensors is measured
(the loaded libraries) or stands in this file as a constant, with the measurement it comes from.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS = "parameters", "gradients", "optimizer", "activations"

CUDA_BLOCK = 512
"""torch's CUDA allocator rounds every block up to this many bytes."""


class PeakBytes(TorchDispatchMode):
    """Context manager: the peak of the bytes in live tensors, per kind of device, of whatever runs inside.

    Storages are counted, not tensors: views cost nothing, and what autograd keeps counts until autograd lets go. Real
    and fake tensors both work; fake ones need their mode entered first (outside). Memory that an operator uses inside
    itself (workspaces of convolutions) is not seen.

    Tensors from before count from when they are given to :meth:`track`. Parameters, their gradients and optimizer
    states are told apart when an optimizer steps; everything else is "activations" unless :meth:`track` names it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._serials: dict[int, int] = {}  # address of a live storage -> its number
        self._numbers: list[tuple[str, int]] = []  # of each storage ever seen: kind of device, bytes
        self._parts: dict[int, str] = {}  # storage's number -> part
        self._events: list[tuple[int, int]] = []  # storage's number, +1 born or -1 dead
        self._live: Counter[str] = Counter()
        self._peaks: dict[str, tuple[int, int]] = {}  # kind of device -> peak bytes, number of events until then
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        """Start counting."""
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop counting; the figures stay."""
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count the storages of its results."""
        out = func(*args, **(kwargs or {}))
        self.track(out)
        return out

    def track(self, things: Any, part: str | None = None) -> None:
        """Count tensors that are alive now, and name what they are.

        Args:
            things: a tensor, module or optimizer, or any nesting of lists, tuples and dictionaries of these.
            part: what to call them in :meth:`by_part`; None: leaves the name as it is.
        """
        for tensor in _tensors(things):
            number = self._number(tensor)
            if part is not None:
                self._parts[number] = part

    def live(self, device: str = "cpu") -> int:
        """Bytes alive now on a kind of device."""
        return self._live[device]

    def peak(self, device: str = "cpu") -> int:
        """Largest number of bytes that were alive at a time on a kind of device."""
        return self._peaks.get(device, (0, 0))[0]

    def by_part(self, device: str = "cpu") -> dict[str, int]:
        """What the peak is made of: part -> bytes, the largest first."""
        alive: set[int] = set()
        for number, change in self._events[: self._peaks.get(device, (0, 0))[1]]:
            (alive.add if change > 0 else alive.discard)(number)
        parts: Counter[str] = Counter()
        for number in alive:
            kind, size = self._numbers[number]
            if kind == device:
                parts[self._parts.get(number, ACTIVATIONS)] += size
        return dict(parts.most_common())

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._serials:
            number, kind, size = len(self._numbers), tensor.device.type, storage.nbytes()
            if kind == "cuda":
                size = math.ceil(size / CUDA_BLOCK) * CUDA_BLOCK
            self._serials[address] = number
            self._numbers.append((kind, size))
            self._change(number, 1)
            # torch keeps a storage's Python object alive as long as the storage, also when only autograd holds it.
            weakref.finalize(storage, self._forget, address)
        return self._serials[address]

    def _forget(self, address: int) -> None:
        self._change(self._serials.pop(address), -1)

    def _change(self, number: int, change: int) -> None:
        kind, size = self._numbers[number]
        self._events.append((number, change))
        self._live[kind] += change * size
        if self._live[kind] > self.peak(kind):
            self._peaks[kind] = (self._live[kind], len(self._events))

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = _parameters(optimizer)
        self.track(parameters, PARAMETERS)
        self.track([parameter.grad for parameter in parameters], GRADIENTS)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.track(list(optimizer.state.values()), OPTIMIZER)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(things: Any) -> Iterable[Tensor]:
    """All tensors in a nesting of modules, optimizers and containers; a parameter's gradient is not part of it."""
    for thing in tree_leaves(things):
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        elif isinstance(thing, Optimizer):
            yield from _parameters(thing)
            yield from _tensors(list(thing.state.values()))


class _Ones(TorchFunctionMode):
    """Answers 1 (or true) wherever code asks a fake tensor for its values: a valid t, a finite loss, a first step."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer for fake tensors, pass everything else on."""
        from torch._subclasses.fake_tensor import FakeTensor

        if func in _READS and isinstance(args[0], FakeTensor):
            dtype = str(args[0].dtype).removeprefix("torch.")
            return _READS[func](np.full(tuple(args[0].shape), getattr(args[0], _ANSWER, 1), dtype))
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any) and isinstance(out, FakeTensor):
            setattr(out, _ANSWER, 0)
        return out


_ANSWER = "_distill_answer"
_READS: dict[Any, Callable[[Any], Any]] = {
    Tensor.__array__: lambda ones: ones,
    Tensor.numpy: lambda ones: ones,
    Tensor.tolist: lambda ones: ones.tolist(),
    Tensor.item: lambda ones: ones.item(),
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__float__: float,
    Tensor.__index__: int,
}


@dataclass(frozen=True)
class Forecast:
    """Memory that a run will need at its peak, on one kind of device.

    Args:
        device: "cpu", "cuda" or "mps".
        tensor_bytes: peak of the bytes in tensors.
        baseline_bytes: what the process holds without any tensor.
        total_bytes: what will be measured.
        by_part: what ``tensor_bytes`` is made of, the largest first.
    """

    device: str
    tensor_bytes: int
    baseline_bytes: int
    total_bytes: int
    by_part: Mapping[str, int]


def forecast(simulate: Callable[[], object], device: torch.device | str) -> Forecast:
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind = torch.device(device).type
    with FakeTensorMode(allow_non_fake_inputs=True), PeakBytes() as meter, _Ones():
        named = simulate()
        if isinstance(named, Mapping):
            for part, things in named.items():
                meter.track(things, part)
    return Forecast(kind, meter.peak(kind), 0, meter.peak(kind), meter.by_part(kind))
