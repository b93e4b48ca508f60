"""One picture on its way: bands of finished rows from the top down, whatever its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_models.compute.paths import NAMES, Compute
from sr_models.geometry import padded_part, round_up, scaled, tile_ramps
from sr_models.options import Options, Report
from sr_models.restorable import Restorable, choose_steps
from sr_models.restoration import rows as row
from sr_models.restoration import tiles
from sr_models.restoration.engine import Engine
from sr_models.restoration.fidelity import downscale
from sr_models.restoration.memory import give_back

Progress = Callable[[int, int], None]
"""Is told how many tiles are done, and of how many."""
BAND = 64
"""Rows, about, that are turned into whole numbers at once."""


class Restoration(Iterator[NDArray[Any]]):
    """Bands (rows, width, channels) of the restored picture, from the top down.

    Attributes:
        height: of the output.
        width: of the output.
        channels: as in the input.
        dtype: as in the input.
        report: complete when the last band is out.
    """

    def __init__(
        self,
        bands: Iterator[NDArray[Any]],
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        report: Report,
    ) -> None:
        self._bands = bands
        self.height, self.width, self.channels = shape
        self.dtype = dtype
        self.report = report

    def __next__(self) -> NDArray[Any]:
        return next(self._bands)

    def array(self) -> NDArray[Any]:
        """Collect all bands: (height, width, channels)."""
        out = np.empty((self.height, self.width, self.channels), self.dtype)
        filled = 0
        for band in self:
            out[filled : filled + len(band)] = band
            filled += len(band)
        return out


def restoration(
    model: Restorable,
    compute: Compute,
    pixels: NDArray[Any],
    options: Options,
    progress: Progress | None = None,
) -> Restoration:
    """Start the restoration of one picture; the work is done while its bands are taken.

    Args:
        model: restores.
        compute: on what and how; the model is there already.
        pixels: (H, W, C) of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels of uint8 or uint16, or (H, W, 3)
            of float32 in [-1, 1].
        options: what is asked for.
        progress: told about tiles.
    """
    height, width, channels = pixels.shape
    steps, tile, notes = choose_steps(model, options.steps), *_tile(model, compute, options, (height, width))
    report = Report(
        scale=model.scale,
        seed=options.seed,
        steps=steps,
        tile=tile,
        tiles=0,
        device=str(compute.device),
        dtype=NAMES[compute.dtype],
        color=model.color if options.color is None else options.color,
        fidelity=options.fidelity,
        notes=notes,
    )
    target = options.output_size(height, width, model.scale)
    finish = _Finish(pixels, target, model.scale, report)
    bands = finish.bands(_native_rows(model, compute, finish.color, options, report, progress))
    return Restoration(bands, (*target, channels), pixels.dtype, report)


def _tile(model: Restorable, compute: Compute, options: Options, size: tuple[int, int]) -> tuple[int, list[str]]:
    """Side of the tiles, 0 for none, and what there is to say about it."""
    padded = [round_up(edge, model.lr_multiple) for edge in size]
    auto = tiles.auto_tile(padded[0], padded[1], model.bytes_per_pixel, compute.device.type)
    tile = auto if options.tile is None else options.tile
    used = tiles.whole_tile(tile, model.lr_multiple) if tile else 0
    if used == 0 or used >= max(padded):
        return 0, []
    if options.tile is None or used == tile:
        return used, []
    return used, [f"tiles of {tile} LR pixels were rounded up to {used}, which the networks can take"]


def _native_rows(
    model: Restorable,
    compute: Compute,
    color: NDArray[Any],
    options: Options,
    report: Report,
    progress: Progress | None,
) -> Iterator[Tensor]:
    """Yield rows of the padded picture at the model's enlargement, (3, n, W * scale), that no later tile changes."""
    multiple, scale = model.lr_multiple, model.scale
    height, width = (round_up(edge, multiple) for edge in color.shape[:2])

    def source(rows: slice, columns: slice) -> Tensor:
        part = padded_part(color, rows, columns, multiple)
        floats = part if part.dtype == np.float32 else row.to_float(part)
        return torch.from_numpy(np.ascontiguousarray(floats.transpose(2, 0, 1)))[None]

    engine = Engine(model, compute, source, (height, width), options, report)
    down, across = (tiles.spans_of(length, report.tile, multiple) for length in (height, width))
    down_ramps, across_ramps = tile_ramps(down, scale), tile_ramps(across, scale)
    report.tiles = len(down) * len(across)
    if report.tiles > 1:
        engine.survey(report.tile)
        give_back()
    done, carried = 0, 0
    # One buffer for all rows of tiles: the rows that the next one overlaps move to its top.
    band = torch.zeros(3, max(rows.stop - rows.start for rows in down) * scale, width * scale)
    for index, rows in enumerate(down):
        band[:, carried:] = 0
        for first in range(0, len(across), options.batch):
            group = range(first, min(first + options.batch, len(across)))
            restored = engine.restore([(rows, across[place]) for place in group])
            for place, part in zip(group, restored, strict=True):
                where = (slice(None), slice(0, part.shape[1]), scaled(across[place], scale))
                band[where] += part * (down_ramps[index][:, None] * across_ramps[place])
            done += len(group)
            if progress:
                progress(done, report.tiles)
        end = down[index + 1].start if index + 1 < len(down) else height
        finished, restored_rows = (end - rows.start) * scale, (rows.stop - rows.start) * scale
        yield band[:, :finished]
        carried = restored_rows - finished
        band[:, :carried] = band[:, finished:restored_rows].clone()
        give_back()


class _Finish:
    """From rows at the model's enlargement to rows of the output.

    Args:
        pixels: the LR picture.
        target: (height, width) of the output.
        scale: of the model.
        report: gets the LR-consistency error.
    """

    def __init__(self, pixels: NDArray[Any], target: tuple[int, int], scale: int, report: Report) -> None:
        self._target, self._scale, self._report = target, scale, report
        self._dtype, channels = pixels.dtype, pixels.shape[2]
        self._grey = channels < 3
        self._alpha = pixels[..., -1:] if channels in (2, 4) else None
        self.color = np.repeat(pixels[..., :1], 3, axis=2) if self._grey else pixels[..., :3]

    def bands(self, native: Iterator[Tensor]) -> Iterator[NDArray[Any]]:
        """Crop, resample, join alpha, round."""
        height, width = (edge * self._scale for edge in self.color.shape[:2])
        resampler = row.RowResampler((height, width), self._target)
        squares, taken, out = 0.0, 0, 0
        at_once = self._scale * max(BAND // self._scale, 1)
        for padded in native:
            part = padded[:, : height - taken, :width]
            for strip in torch.split(part, at_once, dim=1):
                squares += self._squares(strip, taken)
                taken += strip.shape[1]
                finished = resampler.push(np.ascontiguousarray(strip.numpy().transpose(1, 2, 0)))
                if finished is not None:
                    yield self._whole_numbers(finished, out)
                    out += len(finished)
        self._report.lr_consistency = 127.5 * math.sqrt(squares / self.color.size)

    def _squares(self, part: Tensor, start: int) -> float:
        """Sum of squared differences from the LR rows that a band of whole LR rows shows."""
        if part.shape[1] == 0:
            return 0.0
        averaged = downscale(part[None], self._scale)[0].numpy().transpose(1, 2, 0)
        first = start // self._scale
        lr = self.color[first : first + len(averaged)]
        return float(np.square(averaged - (lr if lr.dtype == np.float32 else row.to_float(lr)), dtype=np.float64).sum())

    def _whole_numbers(self, pixels: row.Floats, start: int) -> NDArray[Any]:
        if self._grey:
            pixels = row.to_grey(pixels)
        if self._dtype == np.float32:
            return pixels
        levels = row.to_levels(pixels, self._dtype)
        if self._alpha is None:
            return levels
        top = np.float32(np.iinfo(self._dtype).max)
        alpha = row.enlarge_rows(self._alpha, self._target, start, start + len(pixels))
        return np.concatenate([levels, np.clip(np.rint(alpha), 0, top).astype(self._dtype)], axis=2)
