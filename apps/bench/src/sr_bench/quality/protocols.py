"""Named, versioned protocols: everything about a measurement that changes its figures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Protocol(BaseModel):
    """How pictures are measured.

    Args:
        name: for the record and the command line.
        version: rises with every change of a figure's meaning.
        source: what the protocol follows.
        about: which pictures it is meant for, in one sentence.
        metrics: keys of :data:`sr_bench.quality.metrics.METRICS`, in the order of the published table.
        color: what PSNR and SSIM are computed on: Y of YCbCr (BT.601, studio swing, not rounded) or RGB.
        crop_border: pixels cut from each side of both pictures before any metric; 0 in both papers.
        codec: of the pictures that are measured.
        gt_size: (width, height) that every ground truth must have; None: any.
        scale: of the ground truth to the LR picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(ge=1)
    source: str
    about: str
    metrics: tuple[str, ...]
    color: Literal["y", "rgb"] = "y"
    crop_border: int = Field(default=0, ge=0)
    codec: Literal["png"] = "png"
    gt_size: tuple[int, int] | None = None
    scale: int = Field(default=4, ge=1)
