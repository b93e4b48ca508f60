"""Photographs that arrive as a stream, still encoded: Hugging Face `datasets`, webdataset shards, parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

from PIL import Image

_CHECKED_IMAGES = 64


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory: its name in errors and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class StreamedImages:
    """Which images to stream; the arguments of `datasets.load_dataset`, how to shuffle, and nothing opened yet.

    Args:
        path: "webdataset" (tar shards), "parquet" or "imagefolder" with `data_files`, a local folder, or the id of a
            dataset on the Hugging Face hub.
        data_files: names or patterns of files, for example "shards/*.tar".
        split: which split.
        column: field that holds the image; "auto" takes the only one that holds images.
        shuffle_buffer: images, still encoded, that every rank holds in memory to draw from; shards are shuffled too.
        seed: order, crops and mirroring, >= 0.
    """

    path: str
    data_files: str | tuple[str, ...] | list[str] | None = None
    split: str = "train"
    column: str = "auto"
    shuffle_buffer: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1 or self.seed < 0:
            raise ValueError(
                f"expected shuffle_buffer >= 1 and seed >= 0, got {self.shuffle_buffer} and {self.seed}; "
                "1 shuffles only the shards"
            )

    def open(self) -> Any:
        """Return the `datasets.IterableDataset` of the image column alone, not decoded.

        Raises:
            ValueError: `datasets` is not installed, cannot stream this, or has no such column.
        """
        datasets = _import_datasets()
        files = list(self.data_files) if isinstance(self.data_files, tuple) else self.data_files
        try:
            dataset = datasets.load_dataset(
                self.path, data_files=files and {self.split: files}, split=self.split, streaming=True
            )
        except Exception as error:  # what a builder raises is not documented
            raise ValueError(
                f"expected a dataset that can be streamed, got {self._name}: {_one_line(error)}; "
                "check path, data_files and split"
            ) from error
        column = self._image_column(dataset.features, datasets.Image)
        dataset = dataset.select_columns([column])
        if isinstance((dataset.features or {}).get(column), datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        return dataset

    def validate(self, size: int, what: str = "crop") -> None:
        """Check that crops can be cut from one of the first images; a stream cannot be checked as a whole.

        Args:
            size: side of the crops in pixels.
            what: what the crops are called in the error, for example "validation crop".

        Raises:
            ValueError: the stream does not open, or none of its first images will do.
        """
        problem = "it is empty"
        for image in islice(encoded_images(self.open()), _CHECKED_IMAGES):
            found = find_problem(image, size)
            if found is None:
                return
            problem = f"{image.name}: {found}"
        raise ValueError(
            f"expected images of at least {size}x{size} pixels, got none among the first {_CHECKED_IMAGES} of "
            f"{self._name} ({problem}); name other data, or use a smaller {what}"
        )

    @property
    def _name(self) -> str:
        return f"{self.path!r}" + (f" with {self.data_files}" if self.data_files else "")

    def _image_column(self, features: dict[str, Any] | None, image_type: type) -> str:
        """Return the name of the column that holds the images."""
        columns = list(features or {})
        if self.column != "auto":
            if columns and self.column not in columns:
                raise ValueError(f"expected column {self.column!r}, got {', '.join(columns)}; name one of these")
            return self.column
        found = [name for name, feature in (features or {}).items() if isinstance(feature, image_type)]
        if len(found) != 1:
            raise ValueError(
                f"expected one column of images in {self._name}, got {', '.join(found) or 'none'} of "
                f"{', '.join(columns) or 'unnamed columns'}; name it with column"
            )
        return found[0]


def find_problem(image: EncodedImage, size: int) -> str | None:
    """Return why no crop can be cut, as far as the header tells; None where it can.

    Args:
        image: image to look at.
        size: side of the crop in pixels.
    """
    try:
        # Not open_image: its catch_warnings is not for a thread.
        with Image.open(io.BytesIO(image.content)) as opened:
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return _one_line(error) if image.content else "no content"
    return None if min(width, height) >= size else f"{width}x{height} pixels, smaller than {size}x{size}"


def encoded_images(dataset: Any) -> Iterator[EncodedImage]:
    """Yield the images of a dataset that `StreamedImages.open` returned; what is none has no content."""
    for number, row in enumerate(dataset):
        (value,) = row.values()
        if isinstance(value, dict):
            path, content = value.get("path"), value.get("bytes")
            if content is None and path:
                content = _read_file(path)
        else:
            path, content = None, value
        yield EncodedImage(str(path or f"image {number}"), content if isinstance(content, bytes) else b"")


def _read_file(path: str) -> bytes:
    """Return the content of a file of a dataset, which may lie on the hub or in an archive; empty where unreadable."""
    try:
        with import_module("datasets.utils.file_utils").xopen(path, "rb") as file:
            content: bytes = file.read()
            return content
    except OSError:
        return b""


def _import_datasets() -> Any:
    """Return the module `datasets`; a ValueError that names the extra where it is not installed."""
    try:
        return import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(
            "expected the package datasets to stream images, got none; install the extra sr-data[stream]"
        ) from error


def _one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
