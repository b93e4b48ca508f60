"""The metrics: what they are called, which way is better, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        key: in results, protocols and the papers' tables; pyiqa's name where it is one of pyiqa's.
        title: of columns.
        higher_is_better: which way.
        reads: the picture alone, with its ground truth, with its LR picture, or all pictures together.
        arguments: of ``pyiqa.create_metric``, besides the protocol's colour.
        files: names of the weight files that it needs, as pyiqa stores them; empty: none.
    """

    key: str
    title: str
    higher_is_better: bool
    reads: Literal["sr", "gt", "lr", "all"]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


_ALL = (
    # weight-free: always measured
    Metric("psnr", "PSNR", True, "gt"),
    Metric("ssim", "SSIM", True, "gt"),
    Metric("ms_ssim", "MS-SSIM", True, "gt"),
    Metric("fsim", "FSIM", True, "gt"),
    Metric("gmsd", "GMSD", False, "gt"),
    Metric("nlpd", "NLPD", False, "gt"),
    Metric("vif", "VIF", True, "gt"),
    Metric("vsi", "VSI", True, "gt"),
    Metric("mad", "MAD", False, "gt"),
    Metric("piqe", "PIQE", False, "sr"),
    Metric("lr_rmse", "LR-RMSE", False, "lr"),
    # with weights
    Metric("lpips", "LPIPS", False, "gt"),
    Metric("dists", "DISTS", False, "gt"),
    Metric("fid", "FID", False, "all"),
    Metric("niqe", "NIQE", False, "sr"),
    Metric("musiq", "MUSIQ", True, "sr"),
    Metric("maniqa-pipal", "MANIQA", True, "sr"),
    Metric("clipiqa", "CLIPIQA", True, "sr"),
)
METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _ALL}
"""By key, in the order of tables."""
