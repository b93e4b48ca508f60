"""How much tiles show: against the picture restored in one piece, and as jumps where tiles meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from distill.folder import write_text
from distill.run import machine
from sr_data.images import list_images, read_image
from sr_models import Options, Restorable, SuperResolver
from sr_models.geometry import round_up
from sr_models.restoration.tiles import spans_of

Pixels = NDArray[np.uint8]


class OwnNorms:
    """A model whose tiles keep the norms that each of them has by itself.

    Args:
        model: does everything else.
    """

    tiled_networks: tuple[torch.nn.Module, ...] = ()

    def __init__(self, model: Restorable) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True)
class Seams:
    """Jumps between neighbouring rows and columns, in levels of 8 bits, each the mean over its whole length.

    Args:
        largest_within: where tiles overlap.
        largest_elsewhere: everywhere else.
        ratio: of the means of all jumps, where tiles overlap to elsewhere.
    """

    largest_within: float
    largest_elsewhere: float
    ratio: float


def measure_tiles(
    folder: Path, weights: str, sides: Sequence[int], *, limit: int | None, out: Path | None, command: str
) -> dict[str, Any]:
    """Restore pictures in one piece and in tiles, compare, print a table.

    Args:
        folder: of pictures that are taken as LR.
        weights: a model.
        sides: of tiles, in LR pixels.
        limit: number of pictures.
        out: JSON file to write.
        command: for the record.

    Raises:
        ValueError: pictures that are not larger than the tiles.
    """
    resolver = SuperResolver.from_pretrained(weights, "cpu", "fp32")
    kinds = {"shared": resolver, "own": SuperResolver(OwnNorms(resolver.model), resolver.compute)}
    rows: list[dict[str, Any]] = []
    console = Console()
    for path in track(list_images(folder)[:limit], description="pictures", console=console):
        lr = read_image(path)
        whole = resolver.upscale(lr, tile=0)
        for side in sides:
            for norms, restorer in kinds.items():
                stream = restorer.stream(lr, Options(tile=side))
                restored = stream.array()
                if stream.report.tiles == 1:
                    raise ValueError(
                        f"expected pictures larger than tiles of {side}, got {path.name} of "
                        f"{lr.shape[1]}x{lr.shape[0]}; leave it out, or give smaller tiles"
                    )
                seams = seams_of(restored, lr.shape[:2], stream.report.tile, resolver.model)
                difference = restored.astype(np.float64) - whole
                rows.append(
                    {
                        "picture": path.name,
                        "tile": stream.report.tile,
                        "norms": norms,
                        "psnr": float(10 * np.log10(255**2 / np.square(difference).mean())),
                        "largest_difference": float(np.abs(difference).max()),
                        **vars(seams),
                    }
                )
    result = {"rows": rows, "weights": weights, "command": command, "machine": machine(resolver.device)}
    console.print(_table(rows))
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    return result


def seams_of(restored: Pixels, lr_size: tuple[int, int], tile: int, model: Restorable) -> Seams:
    """Compare the jumps where tiles overlap with those elsewhere.

    Args:
        restored: (H, W, 3), at the model's own enlargement.
        lr_size: (height, width) of the LR image.
        tile: side of the tiles.
        model: that restored it.
    """
    within, elsewhere = [], []
    for axis, length in enumerate(lr_size):
        spans = spans_of(round_up(length, model.lr_multiple), tile, model.lr_multiple)
        jumps = _jumps(restored, axis)
        zone = np.zeros(len(jumps), bool)
        for before, after in pairwise(spans):
            zone[after.start * model.scale - 1 : before.stop * model.scale] = True
        within.append(jumps[zone])
        elsewhere.append(jumps[~zone])
    inside, outside = np.concatenate(within), np.concatenate(elsewhere)
    return Seams(float(inside.max()), float(outside.max()), float(inside.mean() / outside.mean()))


def _jumps(image: Pixels, axis: int) -> NDArray[np.float64]:
    """Mean absolute difference between neighbouring rows (axis 0) or columns (1); one by one, for large pictures."""
    across = np.moveaxis(image, axis, 0)
    return np.array(
        [np.abs(across[place + 1].astype(np.int16) - across[place]).mean() for place in range(len(across) - 1)]
    )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("tile", "norms", "PSNR to whole", "least", "largest difference", "jumps: overlaps / elsewhere")
    for tile, norms in dict.fromkeys((row["tile"], row["norms"]) for row in rows):
        those = [row for row in rows if (row["tile"], row["norms"]) == (tile, norms)]
        psnr = [row["psnr"] for row in those]
        table.add_row(
            str(tile),
            norms,
            f"{np.mean(psnr):.1f} dB",
            f"{min(psnr):.1f} dB",
            f"{max(row['largest_difference'] for row in those):.0f}",
            f"{np.mean([row['ratio'] for row in those]):.3f}",
        )
    return table
