"""What every objective returns, and what every latent objective reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from resshift_core import ResShiftSchedule


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss to minimise, with what it is made of.

    Args:
        loss: scalar, differentiable.
        per_sample: (B,) detached loss of each sample, before the mean.
        metrics: further detached scalars to log, by name.
    """

    loss: Tensor
    per_sample: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Latents(NamedTuple):
    """A training batch in latent space.

    Args:
        lr: LR image y_0, pixels [-1, 1], (B, 3, h, w).
        z_y: scaled latent of the upsampled LR image, (B, C, H, W).
        z_0: scaled latent of the HR image, (B, C, H, W).
    """

    lr: Tensor
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


def mean_output(per_sample: Tensor, **metrics: Tensor) -> ObjectiveOutput:
    """Average a per-sample loss over the batch."""
    return ObjectiveOutput(
        per_sample.mean(), per_sample.detach(), {name: value.detach() for name, value in metrics.items()}
    )
