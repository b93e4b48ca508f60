"""The metrics: what they are called, which way is better, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HUGGING_FACE = "hf:"
"""Before the name of a weight file that lies in the cache of the Hugging Face hub."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        key: in results, protocols and the papers' tables; pyiqa's name where it is one of pyiqa's.
        title: of columns.
        higher_is_better: which way.
        reads: the picture alone, with its ground truth, with its LR picture, or all pictures together.
        arguments: of ``pyiqa.create_metric``, besides the protocol's colour.
        files: names of the weight files that it needs, as pyiqa stores them: below the folder of torch.hub
            (``$TORCH_HOME/hub``), or ``hf:OWNER/NAME/FILE`` in the cache of the Hugging Face hub; empty: none.
        colored: measured on the protocol's colour; the others have a colour of their own.
    """

    key: str
    title: str
    higher_is_better: bool
    reads: Literal["sr", "gt", "lr", "all"]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    colored: bool = False

    def title_on(self, color: str) -> str:
        """Title of a column: ``PSNR-Y`` where it is measured on Y."""
        return f"{self.title}-Y" if self.colored and color == "y" else self.title

    def arguments_on(self, color: str) -> dict[str, Any]:
        """Arguments of ``pyiqa.create_metric`` for this colour of the protocol."""
        if not self.colored:
            return dict(self.arguments)
        colors = {"test_y_channel": True, "color_space": "ycbcr"} if color == "y" else {"test_y_channel": False}
        return {**self.arguments, **colors}


_VGG = "checkpoints/vgg16-397923af.pth"
_VIT = f"{HUGGING_FACE}timm/vit_base_patch8_224.augreg2_in21k_ft_in1k/model.safetensors"

_ALL = (
    # weight-free: always measured
    Metric("psnr", "PSNR", True, "gt", colored=True),
    Metric("ssim", "SSIM", True, "gt", colored=True),
    Metric("ms_ssim", "MS-SSIM", True, "gt", colored=True),
    Metric("fsim", "FSIM", True, "gt"),
    Metric("gmsd", "GMSD", False, "gt"),
    Metric("nlpd", "NLPD", False, "gt"),
    Metric("vif", "VIF", True, "gt"),
    Metric("vsi", "VSI", True, "gt"),
    Metric("mad", "MAD", False, "gt"),
    Metric("piqe", "PIQE", False, "sr"),
    Metric("lr_rmse", "LR-RMSE", False, "lr"),
    # with weights
    Metric(
        "lpips",
        "LPIPS",
        False,
        "gt",
        {"net": "alex", "version": "0.1"},
        ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
    ),
    Metric(
        "lpips-vgg",
        "LPIPS (VGG)",
        False,
        "gt",
        {"net": "vgg", "version": "0.1"},
        (_VGG, "pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"),
    ),
    Metric("dists", "DISTS", False, "gt", files=(_VGG, "pyiqa/DISTS_weights-f5e65c96.pth")),
    Metric("fid", "FID", False, "all", files=("pyiqa/pt_inception-2015-12-05-6726825d.pth",)),
    Metric("niqe", "NIQE", False, "sr", {"version": "original"}, ("pyiqa/niqe_modelparameters.mat",)),
    Metric("musiq", "MUSIQ", True, "sr", {"pretrained": "koniq10k"}, ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
    Metric("maniqa-pipal", "MANIQA", True, "sr", {"train_dataset": "pipal"}, (_VIT, "pyiqa/MANIQA_PIPAL-ae6d356b.pth")),
    Metric("clipiqa", "CLIPIQA", True, "sr", {"model_type": "clipiqa", "backbone": "RN50"}, ("clip/RN50.pt",)),
)
METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _ALL}
"""By key, in the order of tables."""
WEIGHT_FREE = tuple(metric.key for metric in _ALL if not metric.files)
"""Keys of the metrics that are measured whatever the protocol."""


def check_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return keys of metrics that all exist.

    Raises:
        ValueError: a key that does not.
    """
    if unknown := [key for key in keys if key not in METRICS]:
        raise ValueError(f"expected metrics of {', '.join(METRICS)}, got {', '.join(unknown)}; correct the name")
    return keys


def missing_files(metric: Metric) -> list[str]:
    """Names of the weight files of a metric that are not on this machine."""
    return [name for name in metric.files if weight_file(name) is None]


def weight_file(name: str) -> Path | None:
    """Where a weight file of :attr:`Metric.files` lies; None: not on this machine."""
    if name.startswith(HUGGING_FACE):
        from huggingface_hub import try_to_load_from_cache

        owner, repository, file = name.removeprefix(HUGGING_FACE).split("/", 2)
        found = try_to_load_from_cache(f"{owner}/{repository}", file)
        return Path(found) if isinstance(found, str) else None
    import torch

    path = Path(torch.hub.get_dir()) / name
    return path if path.is_file() else None
