"""Read and write pictures as 8-bit RGB arrays, with errors that say what to do.

Alpha, grey and 16 bit are converted to 8-bit RGB here, as training takes them; `sr_data.pictures` and
`sr_data.writers` keep them, and the metadata, for restored photographs.
"""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sr_data.limits import too_large

Pixels = NDArray[np.uint8]

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
"""File name endings, lower case, that this package reads and writes."""


def _one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def open_image(path: str | os.PathLike[str], content: bytes | None = None) -> Image.Image:
    """Return the opened, not yet decoded picture: `.size` and `.mode` are known, pixels are read on demand.

    Args:
        path: file to open; the caller closes the picture.
        content: the bytes of the file where they are at hand; then `path` is only its name in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, something Pillow cannot read, or more pixels than Pillow accepts.
    """
    if content is None:
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"expected an image, got the folder {path}; name one file in it")
        if not path.exists():
            raise FileNotFoundError(f"expected an image, got {path}: no such file; check the path")
        if not path.is_file():
            raise ValueError(f"expected an image, got {path}: a pipe or device; name a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise ValueError(
            f"expected an image, got {path}: not a picture Pillow can read; "
            f"convert it to one of {', '.join(IMAGE_SUFFIXES)} or remove it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(path, _one_line(error)) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"expected an image, got {path}: {_one_line(error)}; check or replace the file") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (height, width) as `read_image` would give them, from the header only.

    Args:
        path: file to look at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a readable picture.
    """
    with open_image(path) as image:
        width, height = image.size
        try:
            # EXIF orientations 5..8 turn the picture by a quarter. For a PNG this may read on to the end of the file.
            # The size of a TIFF is that of the turned picture already.
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"expected a complete image, got {path}: {_one_line(error)}; replace or remove the file"
            ) from error
    return (width, height) if turned else (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB: 16 bit keeps its high byte, transparent pixels lie on white."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        high = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(high), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_image(path: str | os.PathLike[str], content: bytes | None = None) -> Pixels:
    """Return a picture as 8-bit RGB, upright.

    The EXIF orientation is applied; grey, palette, RGBA (over white), CMYK and 16-bit pictures are converted.

    Args:
        path: file to read.
        content: the bytes of the file where they are at hand; then `path` is only its name in errors.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, not a picture, a truncated file, or a decompression bomb.
    """
    with open_image(path, content) as image:
        try:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ValueError(
                f"expected a complete image, got {path}: {_one_line(error)}; replace or remove the file"
            ) from error


def write_image(path: str | os.PathLike[str], image: Pixels) -> None:
    """Write a picture in the format its suffix names; readers see the old file or the whole new one.

    Args:
        path: file to write; missing parent folders are created.
        image: (H, W, 3) uint8.

    Raises:
        ValueError: unknown suffix, or not an (H, W, 3) uint8 array.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"expected a file name ending in {', '.join(IMAGE_SUFFIXES)}, got {path.name!r}; use one of them"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}; convert with to_uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a file cannot be moved atomically to another disk; hidden from list_images.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format=kind, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class ImageFiles:
    """The image files in a folder and its subfolders, sorted; hidden files and folders are ignored.

    The names are kept as one string of bytes: a million take some tens of megabytes, and worker processes share them
    (a list of a million objects would be copied page by page into every worker, as counting references writes).

    Args:
        folder: where to look.
        names: paths below the folder with "/" between their parts, in the order to keep; None looks for all images.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file instead of a folder, a folder that cannot be read, or no image in it.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
        self.folder = Path(folder)
        if names is None:
            names = _image_names(self.folder)
        encoded = [os.fsencode(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int) -> Path:
        return self.folder / self.name(position)

    def __iter__(self) -> Iterator[Path]:
        return (self[position] for position in range(len(self)))

    def name(self, position: int) -> str:
        """Return a path below the folder, with "/" between its parts."""
        if not 0 <= position < len(self):
            raise IndexError(f"expected a position in 0 ... {len(self) - 1}, got {position}")
        start = self._ends[position - 1] if position else 0
        return os.fsdecode(self._text[start : self._ends[position]])

    def names(self) -> Iterator[str]:
        """Yield all paths below the folder, in order."""
        return (self.name(position) for position in range(len(self)))


def _image_names(folder: Path) -> list[str]:
    """Return the sorted paths of all images below a folder; one that has none is a ValueError."""
    if folder.is_file():
        raise ValueError(f"expected a folder of images, got the file {folder}; name the folder it is in")
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images, got {folder}: no such folder; check the path")
    names: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # Links to files count, links to folders are not followed: they could lead in circles.
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif os.path.splitext(entry.name)[1].lower() in _FORMATS and entry.is_file():  # noqa: PTH122 (a Path a file is slow)
                        names.append(below + entry.name)
        except OSError as error:
            raise ValueError(
                f"expected a readable folder, got {folder / below}: {error.strerror}; allow reading it or move it away"
            ) from error
    if not names:
        raise ValueError(f"no images in {folder}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    names.sort()
    return names


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted; hidden files and folders are ignored.

    Args:
        folder: where to look; `ImageFiles` lists a folder of millions.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file instead of a folder, a folder that cannot be read, or no image in it.
    """
    return list(ImageFiles(folder))


def to_tensor(image: Pixels) -> torch.Tensor:
    """Return an 8-bit picture as a tensor.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (3, H, W) float32, pixels [-1,1].

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}; read it with read_image")
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return planes.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(tensor: torch.Tensor) -> Pixels:
    """Return a tensor as an 8-bit picture, rounded to nearest; values outside the domain are clamped.

    Args:
        tensor: (3, H, W) floating point, pixels [-1,1].

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: another shape or not floating point.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point():
        raise ValueError(
            f"expected (3, H, W) floating point, got {tuple(tensor.shape)} {tensor.dtype}; "
            "pass one image of pixels [-1,1]"
        )
    # float32 first: half precision cannot tell 254.5 from 255.
    levels = tensor.detach().to(torch.float32).add(1.0).mul(127.5).clamp(0.0, 255.0).round()
    return np.ascontiguousarray(levels.to(torch.uint8).cpu().numpy().transpose(1, 2, 0))
