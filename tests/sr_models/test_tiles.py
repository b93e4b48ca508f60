"""Tiles: they cover the picture, share one noise field, and fade into each other without a seam."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models import SRModel, SuperResolver, restorer
from sr_models.geometry import TILE_OVERLAP, tile_spans

Build = Callable[..., SRModel]


@pytest.mark.parametrize("multiple", [8, 16, 48])
@pytest.mark.parametrize("tile", [48, 96, 144])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_spans(multiple: int, tile: int, count: int) -> None:
    length, overlap = 48 * count, min(32, tile - multiple)
    spans = tile_spans(length, tile, overlap, multiple)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    for span in spans:
        assert span.stop - span.start == min(tile, length)
        assert span.start % multiple == span.stop % multiple == 0
    for span, following in pairwise(spans):
        assert span.start < following.start <= span.stop - overlap


def record_tiles(resolver: SuperResolver, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Put in place of the networks what shows the LR image and the noise of a tile; return the sizes of tiles."""
    sizes: list[tuple[int, ...]] = []

    def show(lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        sizes.append(tuple(lr.shape[-2:]))
        size = [edge * resolver.scale for edge in lr.shape[-2:]]
        return F.interpolate(lr, size, mode="nearest") + F.interpolate(noise[-1, :, :3], size, mode="nearest")

    monkeypatch.setattr(resolver, "_restore_whole", show)
    return sizes


@pytest.mark.parametrize(("scale", "multiple"), [(2, 16), (4, 8), (8, 4)])
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_tiles_line_up(
    build_model: Build, monkeypatch: pytest.MonkeyPatch, kind: str, scale: int, multiple: int
) -> None:
    """Where restoring is local, tiles give the whole picture: each sees its own piece of LR image and noise."""
    resolver = SuperResolver(build_model(kind, scale=scale))
    sizes = record_tiles(resolver, monkeypatch)
    lr = torch.rand(2, 3, 90, 140, generator=torch.Generator().manual_seed(0))
    whole, tiled = (resolver.restore(lr, torch.Generator().manual_seed(1), tile=tile) for tile in (0, 70))
    assert tiled.shape == (2, 3, 90 * scale, 140 * scale)
    torch.testing.assert_close(tiled, whole, rtol=0.0, atol=1e-5)
    assert len(sizes) >= 1 + 6
    assert all(size == (-(-70 // multiple) * multiple,) * 2 for size in sizes[1:])


@pytest.mark.parametrize("window_size", [4, 32])
def test_overlaps_fade(build_model: Build, monkeypatch: pytest.MonkeyPatch, window_size: int) -> None:
    """Tiles of different brightness leave no step, also where windows dictate a coarse grid of tiles."""
    model = build_model("student")
    config = model.config.model_copy(update={"unet": model.config.unet.model_copy(update={"window_size": window_size})})
    resolver = SuperResolver(SRModel(model.kind, config, model.unet, model.autoencoder))
    count = [0]

    def alternate(lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        count[0] += 1
        return torch.full((1, 3, 4 * lr.shape[-2], 4 * lr.shape[-1]), float(count[0] % 2))

    monkeypatch.setattr(resolver, "_restore_whole", alternate)
    sr = resolver.restore(torch.zeros(1, 3, 16, 300), torch.Generator(), tile=1)
    assert count[0] > 2
    assert sr.min() < 0.01
    assert sr.max() > 0.99
    assert sr.diff(dim=-1).abs().max() <= 1.01 / (4 * TILE_OVERLAP) * 2


def test_large_pictures_are_tiled_by_themselves(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer, "LARGEST_UNTILED", 80 * 80)
    monkeypatch.setattr(restorer, "AUTO_TILE", 64)
    resolver = SuperResolver(build_model("student"))
    sizes = record_tiles(resolver, monkeypatch)
    for size, tile, expected in (((80, 80), None, 1), ((80, 88), None, 4), ((80, 88), 0, 1), ((64, 64), 64, 1)):
        sizes.clear()
        resolver.restore(torch.zeros(1, 3, *size), torch.Generator(), tile=tile)
        assert len(sizes) == expected, (size, tile)


def test_tiles_of_a_real_network(build_model: Build) -> None:
    """Norms see a tile instead of the picture: not equal, but restored all over and reproducible."""
    resolver = SuperResolver(build_model("student"))
    lr = torch.rand(1, 3, 8, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, tiled, again = (resolver.restore(lr, torch.Generator().manual_seed(1), tile=tile) for tile in (0, 64, 64))
    assert torch.equal(tiled, again)
    assert tiled.shape == whole.shape == (1, 3, 32, 384)
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.5 * whole.std()


def test_negative_tile_is_refused(build_model: Build) -> None:
    with pytest.raises(ValueError, match=r"expected the side of a tile, or 0 for no tiles, got -1"):
        SuperResolver(build_model("student")).restore(torch.zeros(1, 3, 8, 8), torch.Generator(), tile=-1)
