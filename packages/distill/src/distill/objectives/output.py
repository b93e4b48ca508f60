"""What every objective returns, and what every latent objective reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from resshift_core import ResShiftSchedule

Pass = TypeVar("Pass")


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss to minimise, with what it is made of.

    Args:
        loss: scalar, differentiable: the sum over the terms of weight times mean.
        terms: name -> (B,) values without the weight, differentiable.
        weights: name -> weight.
        metrics: further detached scalars to log, by name.
        times: (B,) the paper's t of each sample, where the first term depends on it.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    weights: Mapping[str, float]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None

    @property
    def per_sample(self) -> Tensor:
        """(B,) detached loss of each sample: its weighted terms summed."""
        weighted = [self.weights[name] * values.detach() for name, values in self.terms.items()]
        return torch.stack(weighted).sum(0)


class TermValue(NamedTuple):
    """What a term returns: ``values`` (B,), differentiable; detached scalars to log; the t of each sample."""

    values: Tensor
    metrics: Mapping[str, Tensor] = {}
    times: Tensor | None = None


@dataclass(frozen=True)
class WeightedTerm(Generic[Pass]):
    """A term, its name and its weight (lambda in RSD Eq. 9).

    ``term`` reads what it needs of a pass and returns a value for each sample; it has no randomness of its own.
    """

    name: str
    weight: float
    term: Callable[[Pass], TermValue]


def weighted_sum(step: Pass, terms: Sequence[WeightedTerm[Pass]]) -> ObjectiveOutput:
    """Add up terms of one pass: loss = sum over terms of weight times batch mean.

    Source: RSD Eq. 9
    """
    values: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    times = None
    for weighted in terms:
        value = weighted.term(step)
        values[weighted.name] = value.values
        metrics.update(value.metrics)
        times = value.times if times is None else times
    return combine(values, {weighted.name: weighted.weight for weighted in terms}, metrics, times)


def combine(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    metrics: Mapping[str, Tensor] | None = None,
    times: Tensor | None = None,
) -> ObjectiveOutput:
    """Weighted sum of the batch means of ``terms``, name -> (B,)."""
    loss = torch.stack([weights[name] * values.mean() for name, values in terms.items()]).sum()
    detached = {name: value.detach() for name, value in (metrics or {}).items()}
    return ObjectiveOutput(loss, terms, weights, detached, times)


class Latents(NamedTuple):
    """A training batch in latent space.

    Args:
        lr: LR image y_0, pixels [-1, 1], (B, 3, h, w).
        hr: HR image x_0, pixels [-1, 1], (B, 3, h s, w s).
        z_y: scaled latent of the upsampled LR image, (B, C, H, W).
        z_0: scaled latent of the HR image, (B, C, H, W).
    """

    lr: Tensor
    hr: Tensor
    z_y: Tensor
    z_0: Tensor


class Predictor(Protocol):
    """Anything that predicts z_0 as :class:`sr_models.Denoiser` does."""

    @property
    def schedule(self) -> ResShiftSchedule:
        """The schedule that ``t`` refers to."""
        ...

    def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Predict z_0 (B, C, H, W) from z_t at the paper's t (B,)."""
        ...


def widen(values: Tensor) -> Tensor:
    """Return values in float32 at least: a network's half-precision output enters no difference of squares."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def squared_error(values: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, (B, ...) -> (B,)."""
    return mean((values - target).square())


def mean(values: Tensor) -> Tensor:
    """Mean of each sample, (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)
