"""What restores pictures: resampling, the models of this project, and checkpoints of other networks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sr_bench.quality import checkpoints
from sr_data.images import to_tensor, to_uint8
from sr_models import Options, SuperResolver, store
from sr_models.options import OptionValues
from sr_models.restorable import choose_steps

Pixels = NDArray[np.uint8]
Restore = Callable[[Pixels, Pixels | None], Pixels]
"""From (LR, ground truth or None) to the restored picture; only ``autoencoder`` looks at the ground truth."""

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
AUTOENCODER = "autoencoder"
SHIPPED_AUTOENCODER = "tiny-autoencoder"
MODEL_PACKAGES = ("torch", "sr-models")

OPTIONS: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "steps": int,
    "tile": int,
    "color": str,
    "fidelity": float,
}
"""What may follow a model's name, and how its value is read."""


@dataclass(frozen=True)
class Asked:
    """A ``--model`` as it was asked for.

    Args:
        label: in tables.
        name: bicubic, lanczos, autoencoder, a shipped model, a model folder or a checkpoint file.
        options: of :class:`sr_models.Options`.
    """

    label: str
    name: str
    options: OptionValues = field(default_factory=OptionValues)


@dataclass(frozen=True)
class Method:
    """What restores pictures.

    Args:
        source: for the record.
        settings: everything that changes its pictures.
        restore: the function.
        packages: whose versions its pictures depend on.
        sees_gt: whether it looks at the ground truth.
    """

    source: str
    settings: Mapping[str, str | int | float | None]
    restore: Restore
    packages: tuple[str, ...]
    sees_gt: bool = False


def parse(text: str) -> Asked:
    """Read ``[LABEL=]NAME[,OPTION=VALUE...]``.

    Raises:
        ValueError: options that there are not, or that this method does not have.
    """
    label, name, assignments = _parts(text)
    options = _options(text, assignments)
    allowed = () if name in (*RESAMPLING, AUTOENCODER) else ("tile",) if is_checkpoint(name) else tuple(OPTIONS)
    if foreign := [key for key in options if key not in allowed]:
        rest = f"only {', '.join(allowed)}" if allowed else "no options"
        raise ValueError(f"expected {rest} for {name}, got {', '.join(foreign)} in {text!r}; remove it")
    return Asked(label or ",".join([_short(name), *assignments]), name, options)


def load(asked: Asked, *, scale: int, seed: int, device: str, steps: int | None = None) -> Method:
    """Make a method ready.

    Args:
        asked: which.
        scale: enlargement.
        seed: of a model's noise, where its options have none.
        device: where models compute, in float32.
        steps: of a model, where its options have none; None: what is usual for it.

    Raises:
        FileNotFoundError: no such model.
        ValueError: files of another kind, or a model of another scale.
    """
    if asked.name in RESAMPLING:
        return _resampling(asked.name, scale)
    if asked.name == AUTOENCODER:
        return _autoencoder(device)
    if is_checkpoint(asked.name):
        return _checkpoint(asked, scale, device)
    return _model(asked, scale, {"seed": seed, "steps": steps, **asked.options}, device)


def is_checkpoint(name: str) -> bool:
    """Whether it names a checkpoint file of another network, by its ending."""
    return Path(name).suffix.lower() in checkpoints.SUFFIXES and not Path(name).is_dir()


def folder_name(label: str) -> str:
    """The folder of a method's pictures."""
    return re.sub(r"[^\w.-]+", "_", label).strip("_.") or "method"


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or that is not there."""
    try:
        torch.zeros(1, device=name).item()  # meta has no values
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected a torch device such as cpu or cuda, got {name!r}: {error}; choose another --device"
        ) from error


def _parts(text: str) -> tuple[str, str, list[str]]:
    """Label or nothing, name, options; a file that is there may have "," and "=" in its name."""
    words = text.split(",")
    for count in range(len(words), 0, -1):
        first = ",".join(words[:count])
        label, _, name = first.partition("=")
        if os.path.exists(first):  # noqa: PTH110 - Path.exists raises where the text is too long for a path
            return "", first, words[count:]
        if label and name and "," not in label and os.path.exists(name):  # noqa: PTH110
            return label, name, words[count:]
    label, equals, name = words[0].partition("=")
    if not equals:
        label, name = "", words[0]
    if not name or (equals and not label):
        raise ValueError(f"expected --model NAME or LABEL=NAME, got {text!r}; give the name of a model, and a label")
    return label, name, words[1:]


def _short(name: str) -> str:
    """A label without folders: model folders are often all called ``model``, so the folder above counts then."""
    if name in (*RESAMPLING, AUTOENCODER) or name in store.shipped():
        return name
    path = Path(name)
    if is_checkpoint(name):
        return path.stem
    return path.parent.name if path.name == "model" and path.parent.name else path.name or name


def _options(text: str, assignments: Sequence[str]) -> OptionValues:
    """``["fidelity=0.5", "color=wavelet"]`` as keyword arguments; checked by making the options of them."""
    options = OptionValues()
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or key not in OPTIONS:
            raise ValueError(f"expected options such as fidelity=0.5 of {', '.join(OPTIONS)}, got {text!r}; change it")
        try:
            options[key] = OPTIONS[key](value)  # type: ignore[literal-required]
        except ValueError as error:
            raise ValueError(f"expected a number for {key}, got {value!r} in {text!r}; give one") from error
    Options(**options)
    return options


def _resampling(name: str, scale: int) -> Method:
    def enlarge(lr: Pixels, gt: Pixels | None) -> Pixels:
        size = (lr.shape[1] * scale, lr.shape[0] * scale)
        return np.asarray(Image.fromarray(lr).resize(size, RESAMPLING[name]))

    return Method(f"{name} of Pillow", {"scale": scale}, enlarge, ("pillow",))


def _autoencoder(device: str) -> Method:
    autoencoder = store.load_autoencoder(SHIPPED_AUTOENCODER).to(device)

    @torch.inference_mode()
    def reconstruct(lr: Pixels, gt: Pixels | None) -> Pixels:
        if gt is None:
            raise ValueError("expected a ground truth for autoencoder, which restores it, got none; give --gt DIR")
        return to_uint8(autoencoder.decode(autoencoder.encode(to_tensor(gt)[None].to(device)))[0].cpu())

    settings = {"dtype": "fp32", **_hashes(store.read_about(SHIPPED_AUTOENCODER)["sha256"])}
    source = f"ground truth through {SHIPPED_AUTOENCODER} and back"
    return Method(source, settings, reconstruct, MODEL_PACKAGES, sees_gt=True)


def _checkpoint(asked: Asked, scale: int, device: str) -> Method:
    network = checkpoints.load(Path(asked.name), device, asked.options.get("tile"))
    _check_scale(asked.name, network.scale, scale)
    settings: dict[str, str | int | float | None] = {
        "architecture": network.architecture,
        "scale": network.scale,
        "tile": network.tile,
        "dtype": "fp32",
        "sha256": store.sha256(Path(asked.name)),
    }
    return Method(
        f"checkpoint {Path(asked.name).name}", settings, lambda lr, gt: network.restore(lr), ("torch", "spandrel")
    )


def _model(asked: Asked, scale: int, values: OptionValues, device: str) -> Method:
    try:
        resolver = SuperResolver.from_pretrained(asked.name, device, "fp32")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; check --model {asked.name}") from error
    _check_scale(asked.name, resolver.scale, scale)
    options = Options(**values)
    try:
        steps = choose_steps(resolver.model, options.steps)
    except ValueError as error:
        raise ValueError(f"{error}; change steps of --model {asked.label}") from error

    def restore(lr: Pixels, gt: Pixels | None) -> Pixels:
        restored: Pixels = resolver.upscale(lr, **values)
        return restored

    settings: dict[str, str | int | float | None] = {
        "scale": resolver.scale,
        "seed": options.seed,
        "steps": steps,
        "tile": "auto" if options.tile is None else options.tile,
        "color": resolver.model.color if options.color is None else options.color,
        "fidelity": options.fidelity,
        "dtype": "fp32",
        **_weights(asked.name),
    }
    return Method(f"model {_short(asked.name)}, seed {options.seed}", settings, restore, MODEL_PACKAGES)


def _check_scale(name: str, scale: int, expected: int) -> None:
    if scale != expected:
        raise ValueError(
            f"expected a model of scale {expected}, got {name} of scale {scale}; "
            f"choose another, or a --protocol file with scale: {scale}"
        )


def _weights(name: str) -> dict[str, str]:
    path = Path(name)
    if path.is_file():
        return {"sha256": store.sha256(path)}
    from sr_models.hub import fetch

    folder = fetch(name, local_files_only=True)  # it has just been loaded
    content = store.read_config(folder)
    hashes: dict[str, str] = dict(content["sha256"])
    if neighbour := content.get("autoencoder_from"):
        hashes |= store.read_config(folder.parent / neighbour)["sha256"]
    return _hashes(hashes)


def _hashes(files: Mapping[str, str]) -> dict[str, str]:
    return {f"sha256 {file}": value for file, value in sorted(files.items())}
