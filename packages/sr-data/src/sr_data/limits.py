"""How many pixels a file may promise before it is decoded: a small file can ask for more memory than there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def pixel_limit(most: int | None) -> Iterator[None]:
    """Let Pillow, and `check_size`, accept up to `most` pixels meanwhile; None leaves Pillow's own limit.

    Raises:
        ValueError: less than one pixel.
    """
    if most is None:
        yield
        return
    if most < 1:
        raise ValueError(f"expected a limit of at least 1 pixel, got {most}; give a number of pixels such as 200000000")
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def too_large(path: str | os.PathLike[str], what: str) -> ValueError:
    """Return the error for a file of more pixels than are accepted; `what` says how many it has."""
    return ValueError(
        f"expected at most {Image.MAX_IMAGE_PIXELS} pixels, got {path}: {what}; cut it into parts, or raise the limit "
        "if you trust the file (sr-distill upscale --max-pixels, elsewhere PIL.Image.MAX_IMAGE_PIXELS)"
    )


def check_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    """Raise ValueError where a header promises no pixels, or more than are accepted."""
    limit = Image.MAX_IMAGE_PIXELS
    if width < 1 or height < 1:
        raise ValueError(f"expected a picture, got {path}: {width}x{height} pixels; replace or remove the file")
    if limit is not None and width * height > limit:
        raise too_large(path, f"{width}x{height}")
