"""What was asked for: the options that decide about the pixels, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sr_models import store
from sr_models.compute import choose_device, parse_dtype
from sr_models.export import is_onnx, load_onnx
from sr_models.export.backend import FILE
from sr_models.hub import fetch
from sr_models.options import Options

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff", "avif": ".avif", "bmp": ".bmp"}
"""Names of ``--format`` and the suffixes they give."""
SAME = "same"
_ALIASES = {"jpeg": "jpg", "tif": "tiff"}
BACKENDS = ("auto", "torch", "onnx")
_WITHOUT_INFLUENCE = ("device", "batch", "compile")
"""Settings that change how it is computed and not what is asked for."""


@dataclass(frozen=True)
class Settings:
    """Options of ``upscale`` as they were given.

    Raises:
        ValueError: a value that will not do, whatever the picture.
    """

    weights: str = "tiny-student"
    scale: float | None = None
    size: str | None = None
    steps: int | None = None
    seed: int = 0
    color: str | None = None
    fidelity: float = 0.0
    base: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    tile: str = "auto"
    batch: int = 1
    backend: str = "auto"
    compile: bool = False
    format: str | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            plain = self.format.lower()
            object.__setattr__(self, "format", _ALIASES.get(plain, plain))
        if self.format is not None and self.format not in (*FORMATS, SAME):
            raise ValueError(f"expected --format {', '.join(FORMATS)} or {SAME}, got {self.format!r}; use one of them")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"expected --quality 1 to 100, got {self.quality}; 90 is usual")
        if self.backend not in BACKENDS:
            raise ValueError(f"expected --backend {', '.join(BACKENDS)}, got {self.backend!r}; use one of them")
        if self.scale is not None and self.size is not None:
            raise ValueError(f"expected --scale or --size, got both: {self.scale:g} and {self.size}; leave one out")
        choose_device(self.device)
        parse_dtype(self.dtype)
        self.options(1, 1)

    def options(self, height: int, width: int) -> Options:
        """Return the restorer's options for an input of this size.

        Args:
            height: of the input, pixels.
            width: of the input, pixels.
        """
        return Options(
            scale=self.scale,
            size=None if self.size is None else fitted(self.size, height, width),
            seed=self.seed,
            steps=self.steps,
            tile=_tile(self.tile),
            color=self.color,
            fidelity=self.fidelity,
            batch=self.batch,
        )

    @property
    def label(self) -> str | None:
        """What an output's name says about the enlargement, such as ``x2``; None: the model's own scale."""
        if self.size is not None:
            return self.size
        return None if self.scale is None else f"x{self.scale:g}"

    def identity(self) -> dict[str, Any]:
        """Return all that the output's bytes depend on, beside the input: as JSON, to be compared with another run's.

        The weights are named by the hashes of their files, wherever they lie.
        """
        asked = {name: value for name, value in asdict(self).items() if name not in _WITHOUT_INFLUENCE}
        return {**asked, "weights": _digest(self.weights, self.backend)}


def fitted(text: str, height: int, width: int) -> tuple[int, int]:
    """Return the (width, height) that ``WIDTHxHEIGHT``, ``WIDTHx`` or ``xHEIGHT`` asks for.

    Args:
        text: what was given.
        height: of the input, pixels; a side that is not given keeps the input's aspect ratio.
        width: of the input, pixels.
    """
    found = re.fullmatch(r"(\d*)x(\d*)", text)
    wide, high = (int(side) if side else None for side in found.groups()) if found else (None, None)
    if (wide is None and high is None) or 0 in (wide, high):
        raise ValueError(
            f"expected --size WIDTHxHEIGHT, WIDTHx or xHEIGHT, got {text!r}; for example 1920x1080 or 1920x"
        )
    if wide is None:
        assert high is not None
        wide = max(1, round(width * high / height))
    elif high is None:
        high = max(1, round(height * wide / width))
    return wide, high


def _tile(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected --tile auto or a number of pixels, got {text!r}; for example 256") from None


def _digest(weights: str, backend: str) -> str:
    """Sha256 of the file that is used, or over a model folder's own hashes."""
    path = Path(weights)
    if backend == "onnx" or (backend == "auto" and is_onnx(weights)):
        path = path if is_onnx(weights) else path / FILE  # config.json knows nothing of it
        if not path.is_file():
            load_onnx(weights)  # which says what is missing
    if path.is_file():
        return store.sha256(path)
    hashes = store.read_about(fetch(weights))["sha256"]
    return hashlib.sha256("".join(f"{name}:{hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()
