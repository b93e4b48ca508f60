"""What a model has to be, so that :class:`sr_models.SuperResolver` can restore pictures with it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Restorable(Protocol):
    """What :class:`sr_models.SuperResolver` asks of a model."""

    @property
    def kind(self) -> str:
        """What it is called in errors."""
        ...

    @property
    def scale(self) -> int:
        """Enlargement."""
        ...

    @property
    def lr_multiple(self) -> int:
        """LR height and width have to be multiples of this."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of network evaluations that it can restore in, the usual one first."""
        ...

    @property
    def color(self) -> str:
        """Colour correction that its publication uses, one of :data:`sr_models.options.COLORS`."""
        ...

    @property
    def bytes_per_pixel(self) -> int:
        """Memory of the largest activations, for one LR pixel, roughly."""
        ...

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        """Networks whose GroupNorms all tiles of a picture can share; every tile calls each equally often."""
        ...

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        """Move the networks and put them in eval mode."""
        ...

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        """Shape (S, B, C, H, W) of the N(0, 1) that :meth:`restore` takes for LR images of this size."""
        ...

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """LR images, pixels [-1, 1], (B, 3, h, w) of whole multiples, to SR images, not clamped."""
        ...


class Stepping(Protocol):
    """What has a number of steps to choose from."""

    @property
    def kind(self) -> str:
        """What it is called in errors."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers, the usual one first."""
        ...


def choose_steps(model: Stepping, steps: int | None) -> int:
    """Return the number of network evaluations: what is asked for, or what is usual for the model.

    Raises:
        ValueError: a number that the model does not have.
    """
    chosen = model.steps[0] if steps is None else steps
    if chosen not in model.steps:
        choice = " or ".join(str(option) for option in sorted(model.steps))
        raise ValueError(f"expected steps={choice} for this {model.kind}, got {chosen}")
    return chosen
