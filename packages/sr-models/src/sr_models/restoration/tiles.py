"""How a picture is cut: which tiles, and which crops the norms are measured on."""

from __future__ import annotations

import math
import random

from sr_models.geometry import TILE_OVERLAP, round_up, tile_spans

BUDGET = {"cpu": 512 * 2**20}
"""Bytes of activations that a piece may need when nobody says how large tiles are. It depends on the kind of device
only, not on what happens to be free: the same picture is cut alike every time."""
OTHER_BUDGET = 4 * 2**30
"""The same on accelerators."""
SIDES = (512, 384, 256, 192, 128, 96, 64)
"""Of tiles that are chosen by themselves, in LR pixels."""
CROP = 64
"""Side of the crops that norms are measured on, in LR pixels."""
PASSES = 8
"""Norms are measured in at most so many passes, each of as many pixels as a tile: all of a small picture, a part of a
large one."""
MAPS_AT_ONCE = 6
"""Feature maps of a decoder's last level, in float32, that are in memory at the same time (docs/restoring.md)."""

Piece = tuple[slice, slice]
"""Rows and columns of a picture, in LR pixels."""


def auto_tile(height: int, width: int, bytes_per_pixel: int, device: str) -> int:
    """Side of the tiles, or 0 for a picture that is restored in one piece."""
    pixels = BUDGET.get(device, OTHER_BUDGET) // bytes_per_pixel
    if height * width <= pixels:
        return 0
    return next((side for side in SIDES if side * side <= pixels), SIDES[-1])


def smallest_tile(multiple: int) -> int:
    """Smallest side, so that a tile overlaps its neighbours and still gets somewhere."""
    return round_up(max(2 * TILE_OVERLAP, TILE_OVERLAP + multiple), multiple)


def whole_tile(tile: int, multiple: int) -> int:
    """Side that is used for a side that is asked for."""
    return max(round_up(tile, multiple), smallest_tile(multiple))


def spans_of(length: int, tile: int, multiple: int) -> list[slice]:
    """Spans of the tiles along one axis; one for the whole where there are no tiles (0) or one is enough."""
    if tile == 0 or tile >= length:
        return [slice(0, length)]
    return tile_spans(length, tile, TILE_OVERLAP, multiple)


def crops_for_norms(height: int, width: int, tile: int, multiple: int) -> list[list[Piece]]:
    """Crops spread over the whole picture, in passes of at most ``tile`` by ``tile`` LR pixels.

    Args:
        height: of the padded picture.
        width: of the padded picture.
        tile: side of the tiles.
        multiple: crops begin and end at multiples.
    """
    side = min(round_up(min(CROP, tile), multiple), height, width)
    tiles = math.ceil(height / tile) * math.ceil(width / tile)
    passes = min(PASSES, tiles)
    wanted = max(tile * tile // (side * side), 1) * passes
    down = min(max(round(math.sqrt(wanted * height / width)), 1), math.ceil(height / side), wanted)
    across = min(max(wanted // down, 1), math.ceil(width / side))
    crops = [
        (rows, columns)
        for rows in _spread(height, side, down, multiple)
        for columns in _spread(width, side, across, multiple)
    ]
    random.Random(0).shuffle(crops)  # in their order every pass could get one column of the picture
    return [crops[first::passes] for first in range(min(passes, len(crops)))]


def _spread(length: int, side: int, count: int, multiple: int) -> list[slice]:
    """``count`` spans of ``side``, evenly spread, each in the middle of its share."""
    last = (length - side) // multiple
    places = (round((index + 0.5) * (last + 1) / count - 0.5) for index in range(count))
    return [slice(place * multiple, place * multiple + side) for place in places]
