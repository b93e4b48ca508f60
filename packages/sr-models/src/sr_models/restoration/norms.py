"""GroupNorm statistics that all tiles of a picture share.

A GroupNorm that sees only a tile normalises it by the tile's own mean and variance; neighbours then differ in contrast
and colour, and no overlap hides that (docs/restoring.md has the measurement). So the statistics are measured first, on
small crops spread over the picture that go through the networks side by side as one batch, with every norm pooling over
the batch: one pass then gives what an untiled pass over those crops together would have. More passes, over other crops,
add to the same sums. All tiles use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class _Moments:
    """Weighted sums over passes of mean and mean square, per group."""

    mean: Tensor
    square: Tensor
    weight: float = 0.0


@dataclass
class SharedNorms:
    """Statistics of the GroupNorms of some networks, measured in one place and used in another.

    A network that is evaluated several times (a chain of steps) has statistics of its own for every evaluation.

    Args:
        networks: whose norms take part.
    """

    networks: Iterable[nn.Module]
    _norms: list[nn.GroupNorm] = field(init=False)
    _moments: dict[tuple[int, int], _Moments] = field(default_factory=dict, init=False)
    _passes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._norms = [
            module for network in self.networks for module in network.modules() if isinstance(module, nn.GroupNorm)
        ]

    def measuring(self) -> _Patched:
        """Within it every norm pools its statistics over the batch and adds them to those of earlier passes."""
        self._passes += 1
        return _patched(self._norms, self._measure)

    def used(self) -> _Patched:
        """Within it every norm uses the statistics that were measured."""
        return _patched(self._norms, self._use)

    def finite(self) -> bool:
        """Whether all that was measured is."""
        sums = [value for moments in self._moments.values() for value in (moments.mean, moments.square)]
        return all(bool(torch.isfinite(value).all()) for value in sums)

    def _measure(self, key: tuple[int, int], norm: nn.GroupNorm, x: Tensor) -> Tensor:
        # By channels first: no copy of the feature map, whatever its layout.
        wide = _wide(x)
        variance, mean = torch.var_mean(wide, [axis for axis in range(x.ndim) if axis != 1], correction=0)
        square = (variance + mean.square()).view(norm.num_groups, -1).mean(1)
        mean = mean.view(norm.num_groups, -1).mean(1)
        known = self._moments.setdefault(key, _Moments(torch.zeros_like(mean), torch.zeros_like(mean)))
        weight = float(self._passes)  # later passes have seen better statistics in the layers before
        known.mean, known.square = known.mean + weight * mean, known.square + weight * square
        known.weight += weight
        # What is known by now, not this pass's alone: the layers that follow see what they will see in the end.
        return self._use(key, norm, x, wide)

    def _use(self, key: tuple[int, int], norm: nn.GroupNorm, x: Tensor, wide: Tensor | None = None) -> Tensor:
        moments = self._moments[key]
        mean = moments.mean / moments.weight
        variance = (moments.square / moments.weight - mean.square()).clamp(min=0)
        return _normalise(norm, x, _wide(x) if wide is None else wide, mean, variance)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(norm: nn.GroupNorm, x: Tensor, wide: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise (B, C, ...), also given in float32, by statistics per group, in a multiplication and an addition."""
    each = norm.num_channels // norm.num_groups
    slope = (variance + norm.eps).rsqrt().repeat_interleave(each)
    offset = -mean.repeat_interleave(each) * slope
    if norm.affine:
        weight = norm.weight.to(slope.dtype)
        slope, offset = slope * weight, offset * weight + norm.bias.to(slope.dtype)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    if wide is not x:  # a copy of our own: no need for another one
        return wide.mul_(slope.view(shape)).add_(offset.view(shape)).to(x.dtype)
    return torch.addcmul(offset.view(shape), x, slope.view(shape))


_Compute = Callable[[tuple[int, int], nn.GroupNorm, Tensor], Tensor]
_Patched = AbstractContextManager[None]


@contextmanager
def _patched(norms: list[nn.GroupNorm], compute: _Compute) -> Iterator[None]:
    """Let ``compute`` stand for every norm; its key is the norm's number and how often it was called before."""

    def stand_in(number: int, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        calls = iter(range(1 << 30))
        return lambda x: compute((number, next(calls)), norm, x)

    try:
        for number, norm in enumerate(norms):
            norm.__dict__["forward"] = stand_in(number, norm)  # found before the class's own
        # torch.compile would not get through the stand-ins: a network that is compiled runs as it is written.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
