"""Tiles: they cover the picture, share one noise field and their norms, and fade into each other without a seam."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sr_models import Options, SRModel, SuperResolver
from sr_models.geometry import TILE_OVERLAP, tile_ramps, tile_spans
from sr_models.restoration import tiles
from sr_models.restoration.norms import SharedNorms

Build = Callable[..., SRModel]


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


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


@pytest.mark.parametrize("length", [48, 96, 112, 240])
def test_ramps_sum_to_one_and_are_smooth(length: int) -> None:
    spans = tile_spans(length, 48, TILE_OVERLAP, 16)
    total = torch.zeros(4 * length)
    for span, ramp in zip(spans, tile_ramps(spans, 4), strict=True):
        total[4 * span.start : 4 * span.stop] += ramp
        assert ramp.min() > 0
        steepest = torch.pi / 2 / (4 * TILE_OVERLAP)
        assert ramp.diff().abs().max() <= 1.001 * steepest
        ends = [(ramp[:4], span.start > 0), (ramp[-4:], span.stop < length)]
        assert all(end.max() < 0.02 if inside else torch.all(end == 1) for end, inside in ends)
    torch.testing.assert_close(total, torch.ones_like(total))


class Local:
    """A model whose every output pixel follows from one LR pixel and its noise; it counts what it is given."""

    kind, color, bytes_per_pixel = "student", "none", 1000
    steps: tuple[int, ...] = (1, 3)
    tiled_networks: tuple[torch.nn.Module, ...] = ()

    def __init__(self, scale: int = 4, multiple: int = 8) -> None:
        self.scale, self.lr_multiple = scale, multiple
        self.sizes: list[tuple[int, ...]] = []

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        pass

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        return (steps, batch, 3, height * self.scale // 4, width * self.scale // 4)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        self.sizes.append(tuple(lr.shape))
        size = [edge * self.scale for edge in lr.shape[-2:]]
        return 0.5 * F.interpolate(lr, size) + 0.1 * F.interpolate(noise.sum(0), size)


@pytest.mark.parametrize(("scale", "multiple"), [(2, 16), (4, 8), (8, 4)])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiles_line_up(scale: int, multiple: int, steps: int, batch: int) -> None:
    """Where restoring is local, tiles give the whole picture: each sees its own piece of LR image and noise."""
    model = Local(scale, multiple)
    resolver = SuperResolver(model)
    lr = picture(90, 140)
    whole, tiled = (resolver.upscale(lr, tile=tile, seed=1, steps=steps, batch=batch) for tile in (0, 70))
    assert tiled.shape == (90 * scale, 140 * scale, 3)
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert (tiled != whole).mean() < 1e-3
    side = -(-70 // multiple) * multiple
    assert model.sizes[0] == (1, 3, -(-90 // multiple) * multiple, -(-140 // multiple) * multiple)
    assert all(size[1:] == (3, side, side) for size in model.sizes[1:])
    assert (max(size[0] for size in model.sizes[1:]) > 1) == (batch > 1)
    assert not np.array_equal(whole, resolver.upscale(lr, tile=0, seed=2, steps=steps))


def test_overlaps_fade() -> None:
    """Tiles of different brightness leave no step."""

    class Alternating(Local):
        def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
            self.sizes.append(tuple(lr.shape))
            return torch.full((1, 3, 4 * lr.shape[-2], 4 * lr.shape[-1]), float(len(self.sizes) % 2))

    model = Alternating()
    sr = SuperResolver(model).upscale(torch.zeros(3, 16, 300), tile=1)
    assert len(model.sizes) > 2
    assert sr.min() < 0.01
    assert sr.max() > 0.99
    assert sr.diff(dim=-1).abs().max() <= 1.001 * torch.pi / 2 / (4 * TILE_OVERLAP)


@pytest.mark.parametrize(
    ("size", "tile", "count", "note"),
    [((80, 80), None, 1, 0), ((80, 88), None, 4, 0), ((80, 88), 0, 1, 0), ((64, 64), 64, 1, 0), ((80, 88), 61, 4, 1)],
)
def test_who_chooses_the_tiles(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tile: int | None, count: int, note: int
) -> None:
    """By themselves from a size on that depends on the model alone; sides are rounded to what fits, and said."""
    monkeypatch.setattr(tiles, "BUDGET", {"cpu": 80 * 80 * Local.bytes_per_pixel})
    monkeypatch.setattr(tiles, "SIDES", (96, 64))
    stream = SuperResolver(Local()).stream(picture(*size), Options(tile=tile))
    stream.array()
    assert (stream.report.tiles, len(stream.report.notes)) == (count, note)
    assert stream.report.tile == (0 if count == 1 else 64)


def test_shared_norms_make_tiles_agree(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms of their own tiles differ from the whole picture far more than with norms measured together."""
    model = build_model("student")
    resolver = SuperResolver(model)
    across = np.linspace(0, 1, 384)[None, :, None]
    lr = (picture(128, 384) * across * 0.6 + 100 * (1 - across)).astype(np.uint8)  # flat on the left, busy on the right

    def error(**options: Any) -> float:
        difference = resolver.upscale(lr, tile=128, **options).astype(float) - whole
        return float(np.sqrt(np.square(difference).mean()))

    monkeypatch.setattr(tiles, "CROP", 32)
    whole = resolver.upscale(lr, tile=0).astype(float)
    shared = error()
    assert error() == shared
    monkeypatch.setattr(SRModel, "tiled_networks", ())
    assert shared < 0.7 * error()


@pytest.mark.parametrize(("kind", "steps"), [("student", 1), ("teacher", 3)])
@torch.no_grad()
def test_norms_are_measured_as_an_untiled_pass_has_them(build_model: Build, kind: str, steps: int) -> None:
    """Measured on pictures and used on them, they change nothing; one of them alone looks different."""
    model = build_model(kind)
    model.to(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(2, 3, 16, 16, generator=generator)
    noise = torch.randn(model.noise_shape(2, 16, 16, steps), generator=generator)
    norms = SharedNorms(model.tiled_networks)
    alone = model.restore(lr[:1], noise[:, :1], steps)
    with norms.measuring():
        together = model.restore(lr, noise, steps)
    for _ in range(2):
        with norms.used():
            torch.testing.assert_close(model.restore(lr, noise, steps), together, rtol=0, atol=1e-4)
            # the calls are counted anew for every evaluation
        with norms.used():
            torch.testing.assert_close(model.restore(lr[:1], noise[:, :1], steps), together[:1], rtol=0, atol=1e-4)
    assert (together[:1] - alone).abs().max() > 1e-3
    with norms.measuring():  # a pass over one picture alone pools over it alone, but earlier passes count as well
        both = model.restore(lr[:1], noise[:, :1], steps)
    assert (both - alone).abs().max() > 1e-3


def test_a_single_picture_has_the_norms_of_pytorch(build_model: Build) -> None:
    network = build_model("student").autoencoder
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    norms = SharedNorms([network])
    with norms.measuring():
        measured = network.encode(x)
    torch.testing.assert_close(measured, network.encode(x), rtol=0, atol=1e-5)


def test_norms_forget_nothing(build_model: Build) -> None:
    """After a tiled picture the networks are what they were, also when something goes wrong on the way."""
    model = build_model("student")
    resolver = SuperResolver(model)
    before = resolver.upscale(picture(16, 16))
    resolver.upscale(picture(40, 72), tile=32)
    with pytest.raises(RuntimeError, match="interrupted"):
        resolver.stream(picture(40, 72), Options(tile=32), progress=lambda *_: _raise()).array()
    assert np.array_equal(resolver.upscale(picture(16, 16)), before)
    assert not any("forward" in module.__dict__ for network in model.tiled_networks for module in network.modules())


def _raise() -> None:
    raise RuntimeError("interrupted")


class Loud(Local):
    """Goes beyond the range of pixels."""

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        return 4 * super().restore(lr, noise, steps)


class Clamped(Loud):
    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        return super().restore(lr, noise, steps).clamp(-1, 1)


@pytest.mark.parametrize(("name", "tile"), [("wavelet", 0), ("adain", 0), ("adain", 48)])
def test_colours_are_corrected_within_the_range_of_pixels(name: str, tile: int) -> None:
    lr = torch.rand(3, 48, 96, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    loud, clamped = (SuperResolver(model).upscale(lr, color=name, tile=tile) for model in (Loud(), Clamped()))
    assert torch.equal(loud, clamped)


def test_alpha_of_every_band_is_its_own() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 8, 4), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(rgba[..., 3].astype(np.float32)).resize((32, 160), Image.Resampling.BICUBIC))
    assert np.abs(SuperResolver(Local()).upscale(rgba)[..., 3] - wanted.clip(0, 255)).max() <= 0.51


def test_pieces_that_do_not_fit_are_cut_where_they_are() -> None:
    """Without memory for a piece its parts keep their places in the picture."""

    class Few(Local):
        def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
            if lr.shape[-1] * lr.shape[-2] > 50 * 50:
                raise MemoryError("out of memory")
            return super().restore(lr, noise, steps)

    for size in ((300, 96), (96, 300)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "BUDGET", {"cpu": 96 * 96 * Local.bytes_per_pixel})
            patch.setattr(tiles, "SIDES", (96,))
            whole, cut = (SuperResolver(model).upscale(picture(*size)) for model in (Local(), Few()))
            assert np.abs(cut.astype(int) - whole).max() <= 1


def test_sides_and_crops() -> None:
    assert tiles.auto_tile(999, 999, 2**40, "cpu") == tiles.SIDES[-1]
    crops = [crop for one in tiles.crops_for_norms(2048, 256, 128, 16) for crop in one]
    assert len({rows.start for rows, _ in crops}) > 2 * len({columns.start for _, columns in crops})
    across = sorted({columns.start for _, columns in crops} | {columns.stop for _, columns in crops})
    assert abs(across[0] - (256 - across[-1])) <= 16


def test_thin_pictures_count_with_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "BUDGET", {"cpu": 80 * 80 * Local.bytes_per_pixel})
    model = Local(multiple=64)
    SuperResolver(model).upscale(picture(1, 2000))
    assert max(height * width for _, _, height, width in model.sizes) <= 128 * 64


def test_adain_takes_the_colours_of_the_whole_picture() -> None:
    """A dark half and a light half keep their places, in tiles as in one piece."""
    lr = picture(48, 200) // 4
    lr[:, 100:] += 150
    model = Local()
    whole, tiled = (SuperResolver(model).upscale(lr, color="adain", tile=tile).astype(int) for tile in (0, 48))
    assert np.abs(whole - tiled).mean() < 3
    assert np.abs(tiled.mean((0, 1)) - lr.mean((0, 1))).max() < 3


@pytest.mark.parametrize(
    ("height", "width", "tile"), [(512, 512, 256), (3008, 4000, 256), (64, 2000, 128), (96, 96, 48)]
)
def test_crops_for_norms(height: int, width: int, tile: int) -> None:
    """They lie in the picture, reach all its parts, and no pass needs more memory than a tile."""
    passes = tiles.crops_for_norms(height, width, tile, 16)
    assert 1 <= len(passes) <= tiles.PASSES
    crops = [crop for one in passes for crop in one]
    assert len(set(map(str, crops))) == len(crops)
    for rows, columns in crops:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        assert rows.start % 16 == columns.start % 16 == 0
    for one in passes:
        assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in one) <= tile * tile
    ends = [edge for _, c in crops for edge in (c.start, c.stop)]
    assert min(ends) < 0.2 * width
    assert max(ends) > 0.8 * width
