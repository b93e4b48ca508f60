"""What is asked of a restoration, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TypedDict

COLORS = ("none", "adain", "wavelet", "lab")
"""Colour corrections (see :mod:`sr_models.restoration.color`)."""


@dataclass(frozen=True)
class Options:
    """What is asked of a restoration; checked when it is made.

    Args:
        scale: enlargement, any positive number; the model runs at its own and the result is resampled. None: the
            model's.
        size: exact (width, height) of the output, instead of ``scale``.
        seed: of the noise; the same seed gives the same picture.
        steps: network evaluations, one of the model's ``steps``; None: the usual number.
        tile: side of the tiles in LR pixels; 0: never; None: by itself, for pictures that need more memory than
            :data:`sr_models.restoration.tiles.BUDGET`.
        color: one of :data:`COLORS`; None: what the model's publication uses.
        fidelity: 0: as the model gives it; 1: averaged down to the LR grid it equals the LR image.
        batch: tiles that are computed at once.

    Raises:
        ValueError: a value that no picture can be restored with.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    steps: int | None = None
    tile: int | None = None
    color: str | None = None
    fidelity: float = 0.0
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("seed", "steps", "tile", "batch"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) or (value is None and name in ("steps", "tile"))):
                raise ValueError(f"expected a whole number for {name}, got {value!r}; give an int")
        for name in ("scale", "fidelity"):
            value = getattr(self, name)
            if not (isinstance(value, Real) or (value is None and name == "scale")):
                raise ValueError(f"expected a number for {name}, got {value!r}; give an int or a float")
        if self.size is not None and not (
            isinstance(self.size, tuple | list)
            and len(self.size) == 2
            and all(isinstance(edge, int) for edge in self.size)
        ):
            raise ValueError(f"expected a size of two whole numbers, got {self.size!r}; give (width, height)")
        if self.scale is not None and self.size is not None:
            raise ValueError(f"expected scale or size, got scale={self.scale:g} and size={self.size}; give one of them")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"expected a positive scale, got {self.scale}; give a number such as 4 or 2.5")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(
                f"expected a size of at least 1x1, got {self.size[0]}x{self.size[1]}; give (width, height)"
            )
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}; give another number")
        if self.tile is not None and self.tile < 0:
            raise ValueError(f"expected the side of a tile, or 0 for no tiles, got {self.tile}; give a positive number")
        if self.color is not None and self.color not in COLORS:
            raise ValueError(f"expected color {', '.join(COLORS)}, got {self.color!r}; give one of them")
        if not 0 <= self.fidelity <= 1:
            raise ValueError(f"expected fidelity from 0 to 1, got {self.fidelity}; 0 leaves the picture as it is")
        if self.batch < 1:
            raise ValueError(f"expected a batch of at least 1, got {self.batch}; give a positive number")

    def output_size(self, height: int, width: int, scale: int) -> tuple[int, int]:
        """(height, width) of the output for an LR image, with a model of this enlargement; at least 1x1."""
        if self.size is not None:
            return self.size[1], self.size[0]
        factor = scale if self.scale is None else self.scale
        return max(round(height * factor), 1), max(round(width * factor), 1)


class OptionValues(TypedDict, total=False):
    """The fields of :class:`Options` as keyword arguments."""

    scale: float | None
    size: tuple[int, int] | None
    seed: int
    steps: int | None
    tile: int | None
    color: str | None
    fidelity: float
    batch: int


@dataclass
class Report:
    """How a picture was restored.

    Attributes:
        scale: enlargement of the model.
        seed: of the noise.
        steps: network evaluations.
        tile: side of the tiles in LR pixels, 0 where there were none.
        tiles: how many there were.
        device: that computed.
        dtype: fp32, bf16 or fp16.
        color: correction.
        fidelity: control.
        lr_consistency: RMSE between the LR image and the restored one averaged down to its grid, in levels of 8 bits;
            measured at the model's own enlargement, before a last resampling.
        notes: what a user should know: smaller tiles, another precision.
    """

    scale: int
    seed: int
    steps: int
    tile: int
    tiles: int
    device: str
    dtype: str
    color: str
    fidelity: float
    lr_consistency: float = math.nan
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)
