"""What happens when memory or precision does not suffice: said, and never silently another tile than asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sr_models import Options, SuperResolver
from sr_models.compute import Compute
from sr_models.restoration import tiles
from sr_models.restoration.engine import out_of_memory

BF16 = Compute(torch.device("cpu"), torch.bfloat16)


class Limited:
    """A model of a norm and a convolution, that cannot take more than ``most`` LR pixels at once."""

    kind, color, scale, lr_multiple, bytes_per_pixel = "student", "none", 2, 8, 100
    steps: tuple[int, ...] = (1,)

    def __init__(self, most: int = 1 << 40, error: Exception | None = None) -> None:
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
        self.tiled_networks: tuple[nn.Module, ...] = (self.network,)
        self.sides: list[int] = []

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        pass

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        return (1, batch, 1, height, width)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        if lr.shape[0] * lr.shape[2] * lr.shape[3] > self.most:
            raise self.error
        self.sides.append(lr.shape[-1])
        out: Tensor = self.network(lr)
        return 0.3 * out


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
        MemoryError(),
    ],
)
def test_out_of_memory_goes_on_with_smaller_tiles_and_says_so(error: Exception) -> None:
    assert out_of_memory(error)
    if not str(error):
        error = MemoryError("no memory")
    lr = picture(96, 160)
    enough, limited = Limited(), Limited(most=80 * 80, error=error)
    whole = SuperResolver(enough).upscale(lr)
    stream = SuperResolver(limited).stream(lr)
    restored = stream.array()
    assert max(limited.sides) == 80
    assert stream.report.notes == ["out of memory with a piece of 160 LR pixels: went on with tiles of 80"]
    assert np.abs(restored.astype(int) - whole).mean() < 3
    # Tiles whose norms are not measured together would show here.
    assert limited.sides.count(80) < len(limited.sides)


def test_other_errors_are_not_taken_for_it() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        SuperResolver(Limited(most=1, error=RuntimeError("mat1 and mat2 shapes"))).upscale(picture(16, 16))


@pytest.mark.parametrize(
    ("tile", "asked", "hint"), [(96, "tiles of 96 LR pixels", 48), (0, r"tile=0 \(no tiles\)", 80)]
)
def test_tiles_that_were_asked_for_are_not_replaced(tile: int, asked: str, hint: int) -> None:
    model = Limited(most=64 * 64)
    model.tiled_networks = ()
    with pytest.raises(
        ValueError,
        match=rf"out of memory on cpu with {asked} \(CUDA out of memory.*give smaller ones, such as tile={hint}, or",
    ):
        SuperResolver(model).upscale(picture(160, 160), tile=tile)
    assert model.sides == []


def test_fewer_tiles_at_once_before_smaller_ones() -> None:
    lr, model = picture(64, 160), Limited(most=64 * 64)
    stream = SuperResolver(model).stream(lr, Options(tile=64, batch=4))
    together = stream.array()
    assert stream.report.notes == ["out of memory with 3 tiles at once: went on one by one"]
    assert np.array_equal(together, SuperResolver(Limited()).upscale(lr, tile=64))


def test_no_memory_for_the_smallest_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Limited(most=10)
    with pytest.raises(ValueError, match=r"out of memory on cpu with tiles of 32 LR pixels .*; free memory"):
        SuperResolver(model).upscale(picture(160, 160))


def test_large_tiles_once_failed_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "BUDGET", {"cpu": 96 * 96 * 100})
    monkeypatch.setattr(tiles, "SIDES", (96,))
    tried: list[int] = []
    model = Limited(most=50 * 50)
    restore = model.restore

    def watched(lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        tried.append(lr.shape[-1] if len(lr) == 1 else 0)
        return restore(lr, noise, steps)

    model.restore = watched  # type: ignore[method-assign]
    stream = SuperResolver(model).stream(picture(96, 400))
    stream.array()
    assert tried.count(96) == 1
    assert len(stream.report.notes) == 1


class Fragile(Limited):
    """Not finite where autocast is on, as networks are whose activations leave float16; or everywhere."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        out = super().restore(lr, noise, steps)
        bad = self.always or (torch.is_autocast_enabled("cpu") and bool(lr[0, 0, 0, 0] > 0))
        return out * float("nan") if bad else out


def test_not_finite_is_computed_again_in_fp32_and_said() -> None:
    lr = picture(40, 40)
    lr[0, 0] = 255
    stream = SuperResolver(Fragile(), BF16).stream(lr)
    assert np.array_equal(stream.array(), SuperResolver(Limited()).upscale(lr))
    assert stream.report.notes == ["not finite in bf16: computed again in fp32"]
    assert stream.report.dtype == "bf16"
    fine = SuperResolver(Fragile(), BF16).stream(255 - lr)
    fine.array()
    assert fine.report.notes == []


def test_norms_that_are_not_finite_are_measured_again_in_fp32() -> None:
    """Otherwise the tiles that are computed again in fp32 would be normalised by the numbers that are not finite."""

    class Overflowing(Limited):
        def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
            return super().restore(lr * (float("inf") if torch.is_autocast_enabled("cpu") else 1.0), noise, steps)

    lr = picture(64, 96)
    stream = SuperResolver(Overflowing(), BF16).stream(lr, Options(tile=48))
    assert np.array_equal(stream.array(), SuperResolver(Limited()).upscale(lr, tile=48))
    assert stream.report.notes == [
        "not finite in bf16: norms measured again in fp32",
        "not finite in bf16: computed again in fp32",
    ]


def test_never_finite_is_an_error() -> None:
    for compute in (BF16, Compute(torch.device("cpu"))):
        with pytest.raises(ValueError, match="expected finite pixels, got NaN or infinity from the model"):
            SuperResolver(Fragile(always=True), compute).upscale(picture(8, 8))


def test_the_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are computed under the autocast that was chosen."""
    seen: list[bool] = []
    enter = Compute.autocast

    def watched(self: Compute) -> AbstractContextManager[object]:
        seen.append(self.reduced)
        return enter(self)

    monkeypatch.setattr(Compute, "autocast", watched)
    exact, rough = (
        SuperResolver(Limited(), path).upscale(picture(8, 8)) for path in (Compute(torch.device("cpu")), BF16)
    )
    assert seen == [False, True]
    assert 0 < np.abs(exact.astype(int) - rough).max() <= 3
