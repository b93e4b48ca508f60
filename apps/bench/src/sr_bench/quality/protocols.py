"""Named, versioned protocols: everything about a measurement that changes its figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sr_bench.quality.metrics import WEIGHT_FREE, check_keys


class Protocol(BaseModel):
    """How pictures are measured.

    Args:
        name: for the record and the command line.
        version: rises with every change of a figure's meaning.
        source: what the protocol follows.
        about: which pictures it is meant for, in one sentence.
        metrics: keys of :data:`sr_bench.quality.metrics.METRICS`, in the order of the published table.
        color: what PSNR, SSIM and MS-SSIM are computed on: Y of YCbCr (BT.601, studio swing) or RGB. PSNR does not
            round Y; the SSIMs round it to whole levels first, as pyiqa and MATLAB do.
        crop_border: pixels cut from each side of both pictures before any metric but LR-RMSE, which is that of whole
            pictures; 0 in both papers.
        codec: of the pictures that are measured.
        gt_size: (width, height) that every ground truth must have; None: any.
        scale: of the ground truth to the LR picture.
        notes: what the source leaves open, and what was chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int = Field(ge=1)
    source: str
    about: str
    metrics: Annotated[tuple[str, ...], AfterValidator(check_keys)]
    color: Literal["y", "rgb"] = "y"
    crop_border: int = Field(default=0, ge=0)
    codec: Literal["png"] = "png"
    gt_size: tuple[int, int] | None = None
    scale: int = Field(default=4, ge=1)
    notes: tuple[str, ...] = ()


_TEN = tuple(key for key in WEIGHT_FREE if key != "lr_rmse")
_NETWORK = "the papers do not name the network of LPIPS; that of pyiqa's lpips is taken: AlexNet, version 0.1"
_VERSION = "the papers do not name the version of pyiqa; that of the measurement is recorded with it"

_ALL = (
    Protocol(
        name="weight-free",
        version=1,
        source="sr-bench",
        about="any pictures: the metrics that need no weights",
        metrics=_TEN,
    ),
    Protocol(
        name="sinsr-fullsize",
        version=1,
        source="RSD, Section 4 and Appendix D: Tables 1, 5, 6, 9 and 10",
        about="full-size photographs of RealSR, DRealSR and RealSet65 (the last without ground truth)",
        metrics=("psnr", "ssim", "lpips", "clipiqa", "musiq", "dists", "niqe", "maniqa-pipal"),
        notes=(_NETWORK, _VERSION, "Tables 1, 5, 6 and 10 hold the first five metrics"),
    ),
    Protocol(
        name="osediff-crops512",
        version=1,
        source="RSD, Section 4 and Appendix D: Tables 3 and 12; TSD-SR, Section 5: Tables 1, 2, 4, 5 and 6",
        about="StableSR's crops of RealSR, DRealSR and DIV2K-Val, LR 128x128, ground truth 512x512",
        metrics=("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa-pipal", "clipiqa"),
        gt_size=(512, 512),
        notes=(_NETWORK, _VERSION, "FID is in TSD-SR's tables only; TSD-SR does not say which MANIQA"),
    ),
    Protocol(
        name="imagenet-test",
        version=1,
        source="RSD, Section 4 and Appendix D: Tables 2 and 11",
        about="ImageNet-Test of ResShift: LR 64x64, ground truth 256x256",
        metrics=("psnr", "ssim", "lpips", "clipiqa", "musiq"),
        gt_size=(256, 256),
        notes=(_NETWORK, _VERSION),
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""By name."""


def read_protocol(name: str) -> Protocol:
    """A protocol by its name, or from a YAML file with the fields of :class:`Protocol`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such name, or a file with keys or values that a protocol does not have.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"expected a protocol of {', '.join(PROTOCOLS)} or a YAML file, got {name!r}; give one")
    if not path.is_file():
        raise FileNotFoundError(f"expected a protocol in {name}, got no such file; check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {name}, got something else: {error}; correct the file") from error
    try:
        protocol = Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        fields = ", ".join(Protocol.model_fields)
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"expected a protocol with the keys {fields} in {name}, got {place}: {message}; correct the file"
        ) from error
    if protocol.name in PROTOCOLS and protocol != PROTOCOLS[protocol.name]:
        raise ValueError(f"expected a name of its own in {name}, got {protocol.name!r}, which is built in; rename it")
    return protocol
