"""Restore one picture: bytes in, a whole file out, and what there is to say about it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sr_cli.upscale.memory import PeakMemory
from sr_cli.upscale.plan import Job
from sr_cli.upscale.record import Stamp, stamp
from sr_cli.upscale.report import Entry
from sr_data.pictures import Picture, read_picture
from sr_data.writers import PictureWriter
from sr_models.options import Options, Report
from sr_models.restorable import Stepping

TileProgress = Callable[[int, int], None]


class Bands(Protocol):
    """What a restoration gives; see :class:`sr_models.restorer.Restoration`."""

    height: int
    width: int
    channels: int
    dtype: Any
    report: Report

    def __iter__(self) -> Iterator[Any]:
        """Bands of finished rows, (rows, width, channels), from the top down."""
        ...


class Resolver(Protocol):
    """What is asked of :class:`sr_models.SuperResolver` here."""

    @property
    def model(self) -> Stepping:
        """The model that restores."""
        ...

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        ...

    def stream(self, pixels: Any, options: Options | None = None, progress: TileProgress | None = None) -> Bands:
        """Restore (H, W, C) uint8 or uint16 band by band."""
        ...


def read_source(job: Job, max_pixels: int | None = None) -> tuple[Picture, Stamp]:
    """Read the input of a job, and what a record has to know of it.

    Args:
        job: says where it is.
        max_pixels: the most that are accepted; None: Pillow's limit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, or none that can be restored.
    """
    if job.source.is_stream:
        content = sys.stdin.buffer.read()
        if not content:
            raise ValueError("expected an image, got stdin: it is empty; check the command before the pipe")
        return read_picture("stdin", content, max_pixels=max_pixels), Stamp(len(content), 0)
    path = job.source.path
    if not path.is_file():
        return read_picture(path), Stamp(0, 0)  # which says what is wrong
    content = path.read_bytes()
    return read_picture(path, content, max_pixels=max_pixels), stamp(path, content)


def restore(
    job: Job,
    picture: Picture,
    resolver: Resolver,
    options: Options,
    entry: Entry,
    *,
    stdout: BinaryIO,
    format: str,
    quality: int | None,
    progress: TileProgress | None = None,
) -> None:
    """Restore a picture into its place, and complete its entry.

    Args:
        job: says where it goes.
        picture: the input.
        resolver: restores.
        options: of the resolver.
        entry: of the report.
        stdout: what a job without a target is written to.
        format: of the output, such as ``.png``.
        quality: of the output; None: of the writer's choice.
        progress: is called with the tiles that are done and their number.

    Raises:
        ValueError: what was asked for does not fit this picture or the model.
    """
    begin = time.monotonic()
    with PeakMemory() as memory:
        bands = resolver.stream(picture.pixels, options, progress)
        if job.target is not None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        target: Path | BinaryIO = stdout if job.target is None else job.target
        with PictureWriter(
            target,
            bands.height,
            bands.width,
            bands.channels,
            bands.dtype,
            picture.metadata,
            format=format,
            quality=quality,
        ) as writer:
            for band in bands:
                writer.write(band)
    report = asdict(bands.report)
    notes = report.pop("notes")
    consistency = report.pop("lr_consistency")
    entry.status = "done"
    entry.output_size = (bands.width, bands.height)
    entry.seconds = round(time.monotonic() - begin, 3)
    entry.peak_memory_mb = round(memory.megabytes, 1)
    entry.lr_consistency = None if math.isnan(consistency) else round(consistency, 4)
    entry.restoration = report
    entry.notes += [*picture.notes, *notes]
    entry.dropped = list(writer.dropped)
