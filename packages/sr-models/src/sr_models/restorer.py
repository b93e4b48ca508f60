"""SuperResolver: an LR image of any size and kind -> the SR image, in one network evaluation."""

from __future__ import annotations

import os
from typing import Any, Self, TypeVar, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sr_models import compute as computing
from sr_models import store
from sr_models.compute import Compute
from sr_models.hub import fetch
from sr_models.options import Options, OptionValues
from sr_models.restorable import Restorable
from sr_models.restoration.picture import Progress, Restoration, restoration

Levels = TypeVar("Levels", np.uint8, np.uint16)
KEPT = ("icc_profile", "exif", "xmp", "dpi")
"""What of a PIL image's ``info`` goes with the result."""
ORIENTATION, TURNED = 0x0112, 5
"""EXIF's tag, and the first of its values that turn a picture by a quarter."""


class SuperResolver:
    """Restores photographs with a model: one step for a student, the whole chain for a teacher.

    Args:
        model: networks, schedule and scale, such as :class:`sr_models.SRModel`.
        device: where to compute, in float32; or a :class:`sr_models.compute.Compute`.
    """

    def __init__(self, model: Restorable, device: torch.device | str | Compute = "cpu") -> None:
        self.model = model
        self.compute = device if isinstance(device, Compute) else Compute(torch.device(device))
        computing.apply(model, self.compute)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "tiny-student",
        device: torch.device | str = "auto",
        dtype: str = "auto",
        *,
        base: str | None = None,
        compile: bool = False,
        backend: str = "auto",
    ) -> Self:
        """Load a shipped model by name, a model folder, one on the Hugging Face hub, or an ONNX file.

        Args:
            name: of the model: of a shipped one, of a folder, ``owner/name`` on the hub, or a ``.onnx`` file.
            device: where to compute: auto, cpu, cuda or mps.
            dtype: auto, fp32, bf16 or fp16; auto measures which of them is fastest for this model on this machine,
                once, and remembers it (:func:`sr_models.compute.choose`).
            base: where the base of a text-to-image student is; None: where it was in training.
            compile: compile the networks with torch.compile.
            backend: auto, torch or onnx.

        Raises:
            FileNotFoundError: no such model.
            ValueError: the files are truncated, changed, or of another kind; a device or dtype that is not there.
        """
        model = _load(name, base, backend)
        choice = computing.choose(model, str(device), dtype, compile=compile)
        resolver = cls(model, choice.compute)
        resolver.choice = choice
        return resolver

    choice: computing.Choice | None = None
    """How ``device`` and ``dtype`` were chosen, where :meth:`from_pretrained` did."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.compute.device

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        return self.model.scale

    @property
    def lr_multiple(self) -> int:
        """LR height and width are padded to a multiple of this."""
        return self.model.lr_multiple

    @overload
    def upscale(self, image: Image.Image, **options: Unpack[OptionValues]) -> Image.Image: ...
    @overload
    def upscale(self, image: NDArray[Levels], **options: Unpack[OptionValues]) -> NDArray[Levels]: ...
    @overload
    def upscale(self, image: Tensor, **options: Unpack[OptionValues]) -> Tensor: ...
    def upscale(self, image: Any, **options: Unpack[OptionValues]) -> Any:
        """Restore one picture, or a batch of tensors.

        Args:
            image: a PIL image (grey, grey with alpha, RGB, RGBA, palette, 16-bit grey; turned upright by its EXIF
                orientation), an array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) of uint8 or uint16, the
                last channel of 2 and 4 being alpha, or a tensor (3, H, W) or (B, 3, H, W), pixels [-1, 1].
            options: of :class:`sr_models.Options`: scale, size, seed, steps, tile, color, fidelity, batch.

        Returns:
            The same kind of picture, enlarged; a tensor comes back on the CPU, in float32. A PIL image has profile,
            EXIF, XMP and DPI in its ``info``; they are written only if they are handed to ``save``.

        Raises:
            ValueError: a picture of another kind, an option that cannot be, no memory for the tiles asked for.
        """
        chosen = Options(**options)
        if isinstance(image, Image.Image):
            return self._upscale_pil(image, chosen)
        if isinstance(image, Tensor):
            return self._upscale_tensor(image, chosen)
        if not isinstance(image, np.ndarray):
            raise ValueError(
                f"expected a PIL image, an array or a tensor, got {type(image).__name__}; open files by PIL.Image.open"
            )
        if image.ndim == 2:
            return self.stream(image[..., None], chosen).array()[..., 0]
        return self.stream(image, chosen).array()

    def stream(
        self,
        pixels: NDArray[Any],
        options: Options | None = None,
        progress: Progress | None = None,
    ) -> Restoration:
        """Restore one picture band by band, so that the output need not fit into memory.

        Args:
            pixels: (H, W, C) of uint8 or uint16, C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
            options: what is asked for.
            progress: is told how many tiles are done, and of how many.

        Returns:
            An iterator of bands of rows with the size of the whole and a report.
        """
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"expected a picture (H, W, 1 to 4) of uint8 or uint16, got {pixels.shape} of {pixels.dtype}; "
                "convert it first"
            )
        if 0 in pixels.shape:
            raise ValueError(f"expected a picture of at least 1x1, got {pixels.shape[1]}x{pixels.shape[0]}; check it")
        return restoration(self.model, self.compute, pixels, options or Options(), progress)

    def _upscale_pil(self, image: Image.Image, options: Options) -> Image.Image:
        upright = ImageOps.exif_transpose(image)  # which sets the orientation right in EXIF and XMP, too
        kept = {key: value for key, value in upright.info.items() if key in KEPT}
        if "dpi" in kept and image.getexif().get(ORIENTATION, 1) >= TURNED:
            kept["dpi"] = tuple(reversed(kept["dpi"]))
        array = _array_of(upright)
        restored = self.stream(array, options).array()
        out = Image.fromarray(restored[..., 0] if restored.shape[2] == 1 else restored)
        out.info.update(kept)
        return out

    def _upscale_tensor(self, images: Tensor, options: Options) -> Tensor:
        batch = images[None] if images.ndim == 3 else images
        if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape or not batch.is_floating_point():
            raise ValueError(
                f"expected pixels [-1, 1], (3, h, w) or (B, 3, h, w) floating point, got {tuple(images.shape)} of "
                f"{images.dtype}; convert them first"
            )
        if not torch.isfinite(batch).all():
            raise ValueError("expected finite pixels, got NaN or infinity in the tensor; check where it comes from")
        if batch.abs().max() > 1.001:
            raise ValueError(
                f"expected pixels [-1, 1], got {batch.min():g} to {batch.max():g}; bring 0..255 there by x / 127.5 - 1"
            )
        out = []
        for image in batch:  # one by one: the same picture whatever its place in the batch
            pixels = image.detach().to("cpu", torch.float32).permute(1, 2, 0).numpy()
            restored = restoration(self.model, self.compute, pixels, options).array()
            out.append(torch.from_numpy(restored.transpose(2, 0, 1).copy()))
        return torch.stack(out) if images.ndim == 4 else out[0]


def _load(name: str | os.PathLike[str], base: str | None, backend: str) -> Restorable:
    if backend not in ("auto", "torch", "onnx"):
        raise ValueError(f"expected backend auto, torch or onnx, got {backend!r}; give one of them")
    onnx = backend == "onnx" or (backend == "auto" and str(name).lower().endswith(".onnx"))
    if onnx:
        # onnxruntime is optional: only this backend needs it
        from sr_models.export import load_onnx

        model: Restorable = load_onnx(name)
        return model
    folder = fetch(name)
    if store.read_about(folder)["kind"] == "t2i-student":
        # diffusers is heavy and optional: only this family needs it
        from sr_models.t2i.folder import load_student

        return load_student(folder, base)
    if base is not None:
        raise ValueError(f"expected base=None for {str(name)!r}, which is not a student of a text-to-image model")
    return store.load_model(folder)


def _array_of(image: Image.Image) -> NDArray[Any]:
    """(H, W, C) of uint8 or uint16."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode in ("I", "F", "CMYK", "LAB"):
        raise ValueError(
            f"expected a picture of grey or RGB in 8 or 16 bits, got mode {image.mode!r}; convert it first, "
            'such as by image.convert("RGB")'
        )
    if image.mode in ("1", "L", "LA", "La"):
        grey = np.asarray(image.convert("LA" if image.mode in ("LA", "La") or "transparency" in image.info else "L"))
        return grey.reshape(*grey.shape[:2], -1)
    clear = image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if clear else "RGB"))
