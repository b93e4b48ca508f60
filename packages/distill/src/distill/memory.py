"""How much memory a training run will need, found without running it.

:func:`forecast` lets the run's own code take its turns on torch's fake tensors, which have shapes and dtypes but no
numbers, and :class:`PeakBytes` adds up the storages that are alive. What a process holds beside its tensors is measured
(the loaded libraries) or stands in this file as a constant, with the measurement it comes from.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import resource
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.trainer import Trainer

PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS = "parameters", "gradients", "optimizer", "activations"
AVERAGES, FROZEN = "averages", "frozen networks"

CUDA_BLOCK = 512
"""torch's CUDA allocator rounds every block up to this many bytes."""

CPU_SLACK_BYTES = 50 * 2**20
CPU_SLACK_OF_ACTIVATIONS = 0.2
"""What a process on the CPU holds beyond libraries and tensors: kernels and workspaces of convolutions, and freed
blocks that malloc keeps because others lie between them. Measured (Linux, glibc, x86, 1 thread, float32) as peak
resident set less libraries less peak of tensors: 84 MB at 180 MB of activations, 188 at 714 (RSD of the tiny model,
batches of 8 and 32), 524 at 1451, 560 at 2626 (published sizes, batch 1, without and with LPIPS). The two constants
give 86, 193, 340 and 575."""


class PeakBytes(TorchDispatchMode):
    """Context manager: the peak of the bytes in live tensors, per kind of device, of whatever runs inside.

    Storages are counted, not tensors: views cost nothing, and what autograd keeps counts until autograd lets go. Real
    and fake tensors both work; fake ones need their mode entered first (outside). Memory that an operator uses inside
    itself (workspaces of convolutions) is not seen.

    Tensors from before count from when they are given to :meth:`track` or an operator returns a view of them.
    Parameters, their gradients and optimizer states are told apart when an optimizer steps; everything else is
    "activations" unless :meth:`track` names it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count the storages of its results."""
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor):
                self._number(tensor)
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
            weakref.finalize(storage, self._forget, address).atexit = False
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


class _FakePeakBytes(PeakBytes):  # type: ignore[no-untyped-call]
    """The same for code that mixes real tensors from before with fake ones: real ones become fake when they are met."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self._mode = mode
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}  # id of a real tensor -> itself and its fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator on fakes."""
        if func.namespace == "prim":  # a question for device or layout, by far the most frequent
            return func(*args, **(kwargs or {}))
        fakes = {key: self._fake(value) for key, value in (kwargs or {}).items()}
        return super().__torch_dispatch__(func, types, tuple(map(self._fake, args)), fakes)

    def _fake(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self._fake, value))
        if not isinstance(value, Tensor) or self._mode.is_our_fake(value):
            return value
        if id(value) not in self._fakes:
            self._fakes[id(value)] = (value, self._mode.from_tensor(value))
            self.track(value, PARAMETERS if isinstance(value, nn.Parameter) else None)
        return self._fakes[id(value)][1]

    def _number(self, tensor: Tensor) -> int:
        return super()._number(self._fake(tensor))


class _Ones(TorchFunctionMode):
    """Answers code that asks a fake tensor for its values: 1 or 0.5 (a valid t, a draw, a loss), no element is odd.

    ``any()`` is what code asks before it repeats or refuses something, so its answer is no.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer for fake tensors, pass everything else on."""
        from torch._subclasses.fake_tensor import FakeTensor

        if func in _READS and isinstance(args[0], FakeTensor):
            dtype = str(args[0].dtype).removeprefix("torch.")
            answer = getattr(args[0], _ANSWER, 0.5 if args[0].is_floating_point() else 1)
            return _READS[func](np.full(tuple(args[0].shape), answer, dtype))
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any) and isinstance(out, FakeTensor):
            setattr(out, _ANSWER, 0)
        return out


_ANSWER = "_distill_answer"
_READS: dict[Any, Callable[[Any], Any]] = {
    Tensor.__array__: lambda values: values,
    Tensor.numpy: lambda values: values,
    Tensor.tolist: lambda values: values.tolist(),
    Tensor.item: lambda values: values.item(),
    Tensor.__bool__: lambda values: bool(values.item()),
    Tensor.__int__: lambda values: int(values.item()),
    Tensor.__float__: lambda values: float(values.item()),
    Tensor.__index__: lambda values: int(values.item()),
}


@dataclass(frozen=True)
class Forecast:
    """Memory that a run will need at its peak, in this process on one kind of device.

    On a GPU it is what torch's allocator will have handed out (``torch.cuda.max_memory_allocated``), without the
    workspaces of cuBLAS and cuDNN. On the CPU it is the resident set of the process; the processes that load data, and
    their share of the machine's memory, come on top.

    Args:
        device: "cpu", "cuda" or "mps".
        tensor_bytes: peak of the bytes in tensors.
        baseline_bytes: what the process holds without any tensor: the loaded libraries.
        total_bytes: what will be measured.
        by_part: what ``tensor_bytes`` is made of, the largest first.
    """

    device: str
    tensor_bytes: int
    baseline_bytes: int
    total_bytes: int
    by_part: Mapping[str, int]


def forecast(
    simulate: Callable[[], object],
    device: torch.device | str,
    baseline_bytes: int | None = None,
    held: Mapping[str, Any] | None = None,
    mode: Any = None,
) -> Forecast:
    """Run something on fake tensors and say how much memory it will take when it is run.

    Tensors from before may be real: they are met as fakes of the same size and keep their values. What was trained is
    of no use afterwards, because gradients and optimizer states are fake; drop it.

    Args:
        simulate: does what the run will do, twice, as the first turn makes the optimizers' states. It may return
            a dictionary from part to modules or tensors, which names them in ``by_part``. Where it asks for values it
            gets 1, or 0.5 of floats. It must not load data in other processes.
        device: where the run will compute.
        baseline_bytes: of the process on the CPU, from before the run's networks were built; None: measured now.
        held: part -> modules or tensors that are there from the beginning. Fake ones have to be named here: an operator
            that returns no view of them does not tell that they exist.
        mode: the FakeTensorMode in which fake networks were built (:func:`fake_weights`); None: a new one.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sr_models.swin_unet import shift_mask

    kind = torch.device(device).type
    baseline = 0
    if kind == "cpu":
        baseline = library_bytes() if baseline_bytes is None else baseline_bytes
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, _FakePeakBytes(mode) as meter, _Ones():
            for part, things in (held or {}).items():
                meter.track(things, part)
            named = simulate()
            for part, things in named.items() if isinstance(named, Mapping) else ():
                meter.track(things, part)
    finally:
        shift_mask.cache_clear()  # the masks that were made meanwhile are fake
    parts = meter.by_part(kind)
    total = baseline + meter.peak(kind)
    if kind == "cpu":
        total += CPU_SLACK_BYTES + int(CPU_SLACK_OF_ACTIVATIONS * parts.get(ACTIVATIONS, 0))
    return Forecast(kind, meter.peak(kind), baseline, total, parts)


def fake_weights(networks: Iterable[nn.Module], device: torch.device) -> Any:
    """Replace the weights of networks on the meta device by fake ones, as if they lay in memory.

    Args:
        networks: changed.
        device: where the weights seem to lie.

    Returns:
        The FakeTensorMode that they belong to; what is built on them is built within it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for network in networks:
            for module in network.modules():
                for name, value in module._parameters.items():
                    if value is not None:
                        empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                        module._parameters[name] = nn.Parameter(empty, requires_grad=value.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return mode


def forecast_trainer(
    trainer: Trainer, baseline_bytes: int, frozen: Sequence[nn.Module] = (), mode: Any = None
) -> Forecast:
    """Load one batch of a run's data and forecast the memory of its training; the trainer is of no use afterwards.

    Measuring before and after the training and writing checkpoints are not part of it.

    Args:
        trainer: of the run, fresh.
        baseline_bytes: :func:`library_bytes` from before the run's networks were built; 0 for a GPU.
        frozen: networks that are used and not trained, for the name of what they hold.
        mode: as :func:`forecast`.
    """
    batch = next(trainer.batches(0))
    trainer.use_batches(lambda start: itertools.repeat(batch))
    trainer.accumulate = min(trainer.accumulate, 2)  # the second one meets gradients; more are no larger
    for player in trainer.players:
        player.updates, player.first_step = 1, 0
    trainer.step = 1 << 30  # what joins later has joined

    def simulate() -> None:
        for _ in range(2):
            trainer.run_step()

    averages = [player.ema for player in trainer.players if player.ema is not None]
    trained = [player.network for player in trainer.players]
    held = {FROZEN: list(frozen), PARAMETERS: trained, AVERAGES: averages}  # adapters are parts of frozen networks
    return forecast(simulate, trainer.device, baseline_bytes, held, mode)


def library_bytes(more: Sequence[str] = ()) -> int:
    """Resident set of this process with the libraries loaded that a run loads on its way, and ``more`` of them."""
    for name in ("torchmetrics.functional.image", "torch.utils.tensorboard", *more):
        importlib.import_module(name)
    layer = nn.Conv2d(1, 1, 1)
    optimizer = torch.optim.AdamW(layer.parameters())  # brings torch's compiler in, 150 MB
    layer(torch.zeros(1, 1, 1, 1)).sum().backward()
    optimizer.step()
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmRSS:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere the peak so far has to do
    return peak if sys.platform == "darwin" else peak * 2**10
