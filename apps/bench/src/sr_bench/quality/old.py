"""Restore a folder of photographs with several methods and measure the results."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sr_data.images import list_images, read_image, to_tensor, to_uint8, write_image
from sr_models import Options, SuperResolver
from sr_models.store import load_autoencoder

DEFAULT_METHODS = ("bicubic", "autoencoder", "tiny-teacher", "tiny-student")
SHIPPED_AUTOENCODER = "tiny-autoencoder"

Pixels = NDArray[np.uint8]

OPTIONS: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "steps": int,
    "tile": int,
    "color": str,
    "fidelity": float,
}
"""What may follow a model's name, and how its value is read."""


@dataclass(frozen=True)
class Metric:
    """A metric of pyiqa: column title, its name and arguments there, and whether more is better."""

    title: str
    name: str
    arguments: Mapping[str, Any]
    higher_is_better: bool


METRICS = (
    Metric("PSNR-Y", "psnr", {"test_y_channel": True, "color_space": "ycbcr"}, True),
    Metric("SSIM-Y", "ssim", {"test_y_channel": True, "color_space": "ycbcr"}, True),
    Metric("GMSD", "gmsd", {}, False),
    Metric("NLPD", "nlpd", {}, False),
    Metric("PIQE", "piqe", {}, False),
)


LR_RMSE = Metric("LR-RMSE", "", {}, False)
"""LR-consistency: RMSE between the LR image and the restored one averaged over scale x scale, in levels of 8 bits."""
COLUMNS = (*METRICS, LR_RMSE)


def measure_folder(
    lr_folder: Path,
    hr_folder: Path,
    methods: Sequence[str],
    *,
    out: Path | None,
    seed: int,
    limit: int | None,
    device: str,
    command: str,
) -> dict[str, Any]:
    """Restore, measure, print a table and, with ``out``, write everything down.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: a folder or a model is missing.
        ValueError: names or sizes of LR and HR do not fit, or the device is not there.
    """
    if out is not None and out.exists():
        raise FileExistsError(f"expected a new folder, got {out}, which exists; choose another --out")
    check_device(device)
    pairs = match(lr_folder, hr_folder)[:limit]
    restorers = {name: restorer(name, seed, device) for name in methods}
    import pyiqa  # 10 s and heavy: only once everything else is known to be there

    measures = {metric.title: pyiqa.create_metric(metric.name, device=device, **metric.arguments) for metric in METRICS}
    console = Console()
    result: dict[str, Any] = {"images": [lr.name for lr, _ in pairs], "methods": {}}
    for name, restore in restorers.items():
        values: dict[str, list[float]] = {metric.title: [] for metric in COLUMNS}
        seconds = 0.0
        for lr_path, hr_path in track(pairs, description=name, console=console):
            lr, hr = read_image(lr_path), read_image(hr_path)
            begin = time.perf_counter()
            restored = restore(lr, hr)
            seconds += time.perf_counter() - begin
            for metric in METRICS:
                values[metric.title].append(score(measures[metric.title], restored, hr))
            values[LR_RMSE.title].append(lr_rmse(restored, lr))
            if out is not None:
                write_image(out / folder_name(name) / lr_path.relative_to(lr_folder).with_suffix(".png"), restored)
        result["methods"][name] = {"seconds_per_image": seconds / len(pairs), "per_image": values}
    result["provenance"] = provenance(command, seed, device)
    console.print(_table(result))
    if out is not None:
        (out / "table.md").write_text(markdown(result))
        (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written to {out}", highlight=False)
    return result


def match(lr_folder: Path, hr_folder: Path) -> list[tuple[Path, Path]]:
    """Pair LR and HR files by name.

    Raises:
        ValueError: names that are in one folder only, or twice in one.
    """
    lr, hr = _by_name(lr_folder), _by_name(hr_folder)
    if missing := sorted(lr.keys() ^ hr.keys()):
        raise ValueError(
            f"expected the same names in {lr_folder} and {hr_folder}, got in one only: {', '.join(missing[:10])}"
        )
    return [(lr[name], hr[name]) for name in lr]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"expected one file per name in {folder}, got {found[name]} and {path}; remove one")
        found[name] = path
    return found


def folder_name(method: str) -> str:
    """The folder of a method's pictures: model folders are often all called ``model``, so the whole path counts."""
    return re.sub(r"[^\w.-]+", "_", method).strip("_")


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a torch device such as cpu or cuda, got {name!r}: {error}") from error


def restorer(method: str, seed: int, device: str, steps: int | None = None) -> Callable[[Pixels, Pixels], Pixels]:
    """A function from (LR, HR) to the restored picture; only ``autoencoder`` looks at HR.

    Args:
        method: bicubic, autoencoder, a shipped model or a model folder; a model with options of
            :class:`sr_models.Options` after commas, such as ``tiny-student,fidelity=0.5,color=wavelet``.
        seed: of a model's noise.
        device: of a model.
        steps: of a model; None: what is usual for it.
    """
    name, *assignments = method.split(",")
    options = _options(method, assignments)
    if assignments and name in ("bicubic", "autoencoder"):
        raise ValueError(f"expected no options for {name}, got {method!r}; they are for models")
    if name == "bicubic":
        return lambda lr, hr: np.asarray(
            Image.fromarray(lr).resize((hr.shape[1], hr.shape[0]), Image.Resampling.BICUBIC)
        )
    if name == "autoencoder":
        autoencoder = load_autoencoder(SHIPPED_AUTOENCODER).to(device)

        @torch.inference_mode()
        def reconstruct(lr: Pixels, hr: Pixels) -> Pixels:
            return to_uint8(autoencoder.decode(autoencoder.encode(to_tensor(hr)[None].to(device)))[0].cpu())

        return reconstruct
    resolver = SuperResolver.from_pretrained(name, device, "fp32")

    def restore(lr: Pixels, hr: Pixels) -> Pixels:
        expected = (lr.shape[0] * resolver.scale, lr.shape[1] * resolver.scale)
        if hr.shape[:2] != expected:
            raise ValueError(
                f"expected HR of {expected[1]}x{expected[0]} (x{resolver.scale}), got {hr.shape[1]}x{hr.shape[0]}"
            )
        restored: Pixels = resolver.upscale(lr, **{"seed": seed, "steps": steps, **options})
        return restored

    return restore


def _options(method: str, assignments: Sequence[str]) -> dict[str, Any]:
    """``["fidelity=0.5", "color=wavelet"]`` as keyword arguments; checked by making the options of them."""
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or key not in OPTIONS:
            raise ValueError(
                f"expected options such as fidelity=0.5 of {', '.join(OPTIONS)}, got {method!r}; change it"
            )
        try:
            options[key] = OPTIONS[key](value)
        except ValueError as error:
            raise ValueError(f"expected a number for {key}, got {value!r} in {method!r}; give one") from error
    Options(**options)
    return options


def lr_rmse(restored: Pixels, lr: Pixels) -> float:
    """RMSE between the LR image and a restored one averaged down to it, in levels of 8 bits."""
    height, width = lr.shape[:2]
    down, across = restored.shape[0] // height, restored.shape[1] // width
    averaged = restored.reshape(height, down, width, across, 3).mean((1, 3))
    return float(np.sqrt(np.square(averaged - lr).mean()))


def score(metric: Any, restored: Pixels, hr: Pixels) -> float:
    """Value of a pyiqa metric on 8-bit pictures."""
    images = [to_tensor(pixels)[None].add(1).div(2) for pixels in (restored, hr)]
    with torch.inference_mode():
        value = metric(*images) if metric.metric_mode == "FR" else metric(images[0])
    return float(value.mean())


def provenance(command: str, seed: int, device: str) -> dict[str, Any]:
    """What somebody needs to repeat the measurement."""
    packages = ("torch", "pyiqa", "numpy", "pillow", "sr-models")
    return {
        "command": command,
        "seed": seed,
        "device": device,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in packages},
        "protocol": "full size, no border cropped, 8 bit, PSNR and SSIM on Y of YCbCr (BT.601)",
    }


def means(result: Mapping[str, Any], method: str) -> list[float]:
    """Mean of every metric over the images."""
    values = result["methods"][method]["per_image"]
    return [float(np.mean(values[metric.title])) for metric in COLUMNS]


def markdown(result: Mapping[str, Any]) -> str:
    """The table of means as Markdown."""
    titles = [f"{metric.title} {'↑' if metric.higher_is_better else '↓'}" for metric in COLUMNS]
    lines = ["| " + " | ".join(["method", *titles]) + " |", "| --- |" + " ---: |" * len(titles)]
    for method in result["methods"]:
        lines.append("| " + " | ".join([method, *(f"{value:.4g}" for value in means(result, method))]) + " |")
    return "\n".join(lines) + "\n"


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(f"{len(result['images'])} images", *(metric.title for metric in COLUMNS), "s/image")
    for method, content in result["methods"].items():
        table.add_row(
            method,
            *(f"{value:.4g}" for value in means(result, method)),
            f"{content['seconds_per_image']:.2f}",
        )
    return table
