"""Blending of tiles: what is the same everywhere stays, every position counts, and nothing prefers a side."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sr_models.t2i.tiling import tiled


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Recorder:
    """Predicts pixel by pixel and keeps what it was given."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        self.parts.append(z)
        return z.pow(3) - 2 * z


SIZES = [(16, 16), (17, 23), (9, 8), (5, 20), (20, 5), (3, 9), (31, 14)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 2, 5])
def test_constant_predictions_stay_constant(size: tuple[int, int], overlap: int) -> None:
    out = tiled(lambda part: torch.full_like(part, 3.25), latents(2, 4, *size), 8, overlap)
    torch.testing.assert_close(out, torch.full((2, 4, *size), 3.25), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 2, 5])
def test_a_pixelwise_prediction_is_the_same_as_without_tiles(size: tuple[int, int], overlap: int) -> None:
    z = latents(2, 4, *size)
    kept = z.clone()
    torch.testing.assert_close(tiled(Recorder(), z, 8, overlap), Recorder()(z), rtol=1e-5, atol=1e-5)
    assert torch.equal(z, kept)


@pytest.mark.parametrize("size", [(8, 8), (8, 3), (3, 8), (7, 7), (1, 1)])
def test_what_fits_one_tile_is_given_as_it_is(size: tuple[int, int]) -> None:
    z, predict = latents(1, 4, *size), Recorder()
    out = tiled(predict, z, 8, 2)
    assert len(predict.parts) == 1
    assert predict.parts[0] is z
    assert torch.equal(out, Recorder()(z))


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (17, 23), (5, 20)])
def test_larger_latents_are_cut_into_whole_tiles(size: tuple[int, int]) -> None:
    place = torch.arange(size[0] * size[1], dtype=torch.float32).reshape(1, 1, *size)
    predict = Recorder()
    tiled(predict, place, 8, 2)
    assert {part.shape[-2:] for part in predict.parts} == {(min(size[0], 8), min(size[1], 8))}
    assert len(predict.parts) == math.prod(max(1, math.ceil((side - 2) / 6)) for side in size)
    corners = [tuple(int(x) for x in divmod(int(part[0, 0, 0, 0]), size[1])) for part in predict.parts]
    assert len(set(corners)) == len(corners)
    for side, starts in zip(size, ({row for row, _ in corners}, {column for _, column in corners}), strict=True):
        ordered = sorted(starts)
        assert (ordered[0], ordered[-1]) == (0, max(side - 8, 0))
        assert all(second - first <= 6 for first, second in itertools.pairwise(ordered)), "overlap of 2"


def centre_of_gravity(part: Tensor) -> Tensor:
    """A prediction that no position can make alone."""
    return part.mean((-2, -1), keepdim=True).expand_as(part)


@pytest.mark.parametrize("size", [(14, 8), (8, 14), (14, 20)])
def test_weights_prefer_no_side(size: tuple[int, int]) -> None:
    z = latents(1, 4, *size)
    out = tiled(centre_of_gravity, z, 8, 2)
    for axis in (-1, -2):
        torch.testing.assert_close(tiled(centre_of_gravity, z.flip(axis), 8, 2), out.flip(axis), rtol=0, atol=1e-6)
    torch.testing.assert_close(tiled(centre_of_gravity, z.mT, 8, 2), out.mT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [True, False])
def test_weights_are_gaussian_around_the_tiles_centre(rows: bool) -> None:
    """Two tiles of 8 share positions 6 and 7: of the first they are 2.5 and 3.5 from the centre, of the second 3.5."""

    def first_or_second(part: Tensor) -> Tensor:
        return torch.full_like(part, float(part[0, 0, 0, 0] > 0))

    ramp = torch.arange(14.0)
    z = ramp[None, None, :, None].expand(1, 1, 14, 8) if rows else ramp[None, None, None, :].expand(1, 1, 8, 14)
    out = tiled(first_or_second, z.contiguous(), 8, 2)
    line = out[0, 0, :, 0] if rows else out[0, 0, 0, :]
    near, far = (math.exp(-((distance / 8) ** 2) / (2 * 0.01)) for distance in (2.5, 3.5))
    expected = torch.tensor([0.0] * 6 + [far / (near + far), near / (near + far)] + [1.0] * 6)
    torch.testing.assert_close(line, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    z = latents(1, 4, 17, 23).to(dtype)
    out = tiled(lambda part: torch.full_like(part, 3e4), z, 8, 4)
    assert out.dtype == dtype
    assert torch.equal(out, torch.full_like(z, 3e4)), "the weights' sum times the values would overflow float16"


def test_gradients_pass() -> None:
    z = latents(1, 2, 11, 13).requires_grad_()
    weight = latents(1, 2, 11, 13)
    ours = torch.autograd.grad((tiled(torch.sin, z, 8, 2) * weight).sum(), z)[0]
    torch.testing.assert_close(ours, torch.cos(z) * weight, rtol=1e-5, atol=1e-6)


def test_tiles_of_the_published_side_are_blended_everywhere() -> None:
    """At a corner of a 64 tile the weight is 1e-11 of the centre's: still a weight."""
    z = latents(1, 1, 70, 129)
    torch.testing.assert_close(tiled(Recorder(), z, 64, 8), Recorder()(z), rtol=1e-5, atol=1e-5)
