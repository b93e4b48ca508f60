"""``result.json`` of ``sr-bench quality``: what it holds, how it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sr_bench.quality.protocols import Protocol
from sr_bench.record import Provenance

FORMAT: Literal["sr-bench quality 2"] = "sr-bench quality 2"
RESULT = "result.json"


class MethodResult(BaseModel):
    """What was measured of one method.

    Args:
        source: what made the pictures, such as ``model tiny-student, seed 0`` or ``folder``.
        sees_gt: the ground truth went into its pictures, so that no ranking may hold it.
        pictures: folder of the pictures, relative to the folder of ``result.json``; None: not kept.
        settings: of a model: seed, steps, tile, color, fidelity, dtype, sha256 of its weights; empty for folders.
        values: metric key -> value of every picture, in the order of :attr:`QualityResult.images`.
        whole: metric key -> value of all pictures together (FID).
        missing: metric key -> why there are no values: ``not available: needs FILE``.
        seconds_per_image: of restoring alone; None for folders.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sees_gt: bool = False
    pictures: str | None = None
    settings: Mapping[str, str | int | float | None] = Field(default_factory=dict)
    values: Mapping[str, tuple[float, ...]]
    whole: Mapping[str, float] = Field(default_factory=dict)
    missing: Mapping[str, str] = Field(default_factory=dict)
    seconds_per_image: float | None = None


class QualityResult(BaseModel):
    """One or more methods, measured on the same pictures by one protocol.

    Args:
        format: of this file.
        protocol: complete, not by name alone.
        images: names without suffix, ``/`` between folders.
        lr: folder of the LR pictures, relative to the folder of ``result.json``; None: not given.
        gt: folder of the ground truth, likewise.
        methods: by label.
        reference: label of the method that the others are compared with; None: the first.
        provenance: see there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["sr-bench quality 2"] = FORMAT
    protocol: Protocol
    images: tuple[str, ...] = Field(min_length=1)
    lr: str | None = None
    gt: str | None = None
    methods: Mapping[str, MethodResult] = Field(min_length=1)
    reference: str | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _reference_is_a_method(self) -> Self:
        if self.reference is not None and self.reference not in self.methods:
            raise ValueError(f"expected a reference of {', '.join(self.methods)}, got {self.reference}; measure again")
        return self

    @model_validator(mode="after")
    def _every_image_has_a_value(self) -> Self:
        for label, method in self.methods.items():
            for key, values in method.values.items():
                if len(values) != len(self.images):
                    raise ValueError(
                        f"expected {len(self.images)} values of {key} for {label}, got {len(values)}; measure again"
                    )
        return self


def read_result(path: Path) -> QualityResult:
    """Read ``result.json``, or the one in a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a result of ``sr-bench quality``.
    """
    file = path / RESULT if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"expected a {RESULT} of sr-bench quality or its folder, got {path}; check the path")
    try:
        return QualityResult.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ValueError(
            f"expected a result of sr-bench quality in {file}, got another file: {first}; check the path"
        ) from error
