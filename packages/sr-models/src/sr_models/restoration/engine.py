"""Evaluates a model on pieces of one picture: noise, shared norms, precision, colour, and what to do without memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_models.compute import Compute
from sr_models.geometry import scaled, tile_ramps, upsample
from sr_models.options import Options, Report
from sr_models.restorable import Restorable
from sr_models.restoration import tiles
from sr_models.restoration.color import ColorStatistics, correct
from sr_models.restoration.fidelity import back_project
from sr_models.restoration.noise import NoiseField
from sr_models.restoration.norms import SharedNorms
from sr_models.restoration.tiles import Piece

Source = Callable[[slice, slice], Tensor]
"""Rows and columns of the padded LR picture, pixels [-1, 1], (1, 3, h, w) float32."""


@dataclass
class Engine:
    """Restores pieces of one picture.

    Args:
        model: restores.
        compute: on what and how.
        source: the LR picture, padded to whole multiples.
        size: (height, width) of it.
        options: what is asked for.
        report: gets the notes.
    """

    model: Restorable
    compute: Compute
    source: Source
    size: tuple[int, int]
    options: Options
    report: Report

    def __post_init__(self) -> None:
        multiple = self.model.lr_multiple
        fields, _, channels, rows, _ = self.model.noise_shape(1, multiple, multiple, self.report.steps)
        self._noise = NoiseField(self.options.seed, fields, channels)
        self._latents = rows / multiple  # latent positions per LR pixel
        self._norms: SharedNorms | None = None
        self._colors: ColorStatistics | None = None
        self._largest: int | None = None  # side that fits, once something did not

    @torch.inference_mode()
    def survey(self, tile: int) -> None:
        """Measure on crops of the picture what all tiles are to share: statistics of norms, and of colours for adain.

        Args:
            tile: side of the tiles; no pass over the crops takes more pixels than one of them.
        """
        networks = self.model.tiled_networks
        if not networks and self.report.color != "adain":
            return
        if networks and self.compute.compiled:
            self.report.note("tiles are computed without torch.compile, so that they can share their norms")
        side = tile
        while side >= tiles.smallest_tile(self.model.lr_multiple) // 2:
            try:
                if not self._measure(networks, side, exact=False) and self.compute.reduced:
                    self.report.note(f"not finite in {self.report.dtype}: norms measured again in fp32")
                    self._measure(networks, side, exact=True)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                side //= 2  # fewer crops at once
            else:
                return
        # Not even one small crop fits: restoring will say so.

    def _measure(self, networks: tuple[nn.Module, ...], side: int, *, exact: bool) -> bool:
        """Whether all that was measured is finite."""
        self._norms, self._colors = None, None
        norms, colors = SharedNorms(networks), ColorStatistics()
        for crops in tiles.crops_for_norms(*self.size, side, self.model.lr_multiple):
            lr, noise = self._inputs(crops)
            with norms.measuring():
                sr = self._evaluate(lr, noise, exact=exact)
            colors.add(sr.clamp(-1, 1), upsample(lr, self.model.scale))
        if not (norms.finite() and colors.finite()):
            return False
        self._norms, self._colors = norms if networks else None, colors
        return True

    @torch.inference_mode()
    def restore(self, pieces: list[Piece]) -> Tensor:
        """Restore pieces of one size at once: pixels [-1, 1], (B, 3, h * scale, w * scale) on the CPU.

        Raises:
            ValueError: out of memory with the tiles that were asked for, or with the smallest; no finite numbers.
        """
        side = max(span.stop - span.start for span in pieces[0])
        if self._largest is not None and side > self._largest:
            return torch.cat([self._restore_in_tiles(piece) for piece in pieces])
        try:
            return self._finish(*self._inputs(pieces))
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Outside of the except clause: the traceback there holds what the failed attempt had allocated.
        if len(pieces) > 1:
            self.report.note(f"out of memory with {len(pieces)} tiles at once: went on one by one")
            return torch.cat([self.restore([piece]) for piece in pieces])
        self._largest = self._smaller(side, reason)
        return self._restore_in_tiles(pieces[0])

    def _smaller(self, side: int, reason: str) -> int:
        """Side of tiles to go on with."""
        least = tiles.smallest_tile(self.model.lr_multiple)
        if self.options.tile is not None or side <= least:
            asked = "tile=0 (no tiles)" if self.options.tile == 0 else f"tiles of {side} LR pixels"
            remedy = f"give smaller ones, such as tile={side // 2}, or leave the choice open"
            remedy = remedy if side > least else "free memory, or take another device"
            raise ValueError(f"out of memory on {self.compute.device} with {asked} ({reason}); {remedy}")
        smaller = max(tiles.whole_tile(side // 2, self.model.lr_multiple), least)
        self.report.note(f"out of memory with a piece of {side} LR pixels: went on with tiles of {smaller}")
        return smaller

    def _restore_in_tiles(self, piece: Piece) -> Tensor:
        """Restore a piece in tiles that fit, and blend them."""
        assert self._largest is not None
        if self._colors is None:
            self.survey(self._largest)
        scale, multiple = self.model.scale, self.model.lr_multiple
        rows, columns = (tiles.spans_of(span.stop - span.start, self._largest, multiple) for span in piece)
        out = torch.zeros(1, 3, rows[-1].stop * scale, columns[-1].stop * scale)
        for row, down in zip(rows, tile_ramps(rows, scale), strict=True):
            for column, across in zip(columns, tile_ramps(columns, scale), strict=True):
                inner = (_moved(row, piece[0].start), _moved(column, piece[1].start))
                out[..., scaled(row, scale), scaled(column, scale)] += self.restore([inner]) * (down[:, None] * across)
        return out

    def _inputs(self, pieces: list[Piece]) -> tuple[Tensor, Tensor]:
        lr = torch.cat([self.source(*piece) for piece in pieces])
        noise = [self._noise.crop(*(scaled(span, self._latents) for span in piece)) for piece in pieces]
        return lr.to(self.compute.device), torch.cat(noise, 1).to(self.compute.device)

    def _finish(self, lr: Tensor, noise: Tensor) -> Tensor:
        """Evaluate the model, and again in float32 where the result is not finite; correct; bring to the CPU."""
        with self._norms.used() if self._norms else nullcontext():
            sr = self._evaluate(lr, noise)
        if not torch.isfinite(sr).all() and self.compute.dtype != torch.float32:
            self.report.note(f"not finite in {self.report.dtype}: computed again in fp32")
            with self._norms.used() if self._norms else nullcontext():
                sr = self._evaluate(lr, noise, exact=True)
        if not torch.isfinite(sr).all():
            raise ValueError("expected finite pixels, got NaN or infinity from the model; check its weights")
        scale, color = self.model.scale, self.report.color
        sr = sr.clamp(-1, 1)
        if color != "none":
            sr = correct(sr, upsample(lr, scale), color, self._colors)
        return back_project(sr, lr, scale, self.options.fidelity).clamp(-1, 1).cpu()

    def _evaluate(self, lr: Tensor, noise: Tensor, *, exact: bool = False) -> Tensor:
        with nullcontext() if exact else self.compute.autocast():
            return self.model.restore(lr, noise, self.report.steps).float()


def out_of_memory(error: Exception) -> bool:
    """Whether an error of torch, of onnxruntime or of Python says that memory is used up."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in text for words in ("can't allocate memory", "failed to allocate memory", "out of memory")
    )


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)
