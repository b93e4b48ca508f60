"""Compute paths: which ones a device has, which one is chosen, what is remembered, what happens when one fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_models import SRModel, compute
from sr_models.compute import Choice, Compute, Timing, apply, candidates, choose, choose_device, fastest, parse_dtype
from sr_models.compute import paths as compute_paths
from sr_models.compute import table as compute_table
from sr_models.compute.table import cache_folder, measure

CPU = torch.device("cpu")
PLAIN, LAST = Compute(CPU), Compute(CPU, channels_last=True)
BF16 = Compute(CPU, torch.bfloat16, channels_last=True)


@dataclass
class Fake:
    """A model whose result, speed and failures on every path are given; its clock advances when it restores."""

    seconds: dict[Compute, Sequence[float]]
    errors: dict[Compute, float] = field(default_factory=dict)
    fails: dict[Compute, Exception] = field(default_factory=dict)
    kind: str = "student"
    scale: int = 2
    lr_multiple: int = 48
    steps: tuple[int, ...] = (5, 1)
    color: str = "none"
    bytes_per_pixel: int = 1
    network: nn.Conv2d = field(default_factory=lambda: nn.Conv2d(3, 3, 1))
    now: float = 0.0
    calls: list[Compute] = field(default_factory=list)
    moves: list[torch.memory_format] = field(default_factory=list)
    sizes: list[tuple[tuple[int, ...], tuple[int, ...], int]] = field(default_factory=list)

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def clock(self) -> float:
        return self.now

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        assert device == CPU
        self.moves.append(memory_format)

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        return (steps, batch, 1, height, width)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        reduced = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if reduced else torch.float32
        path = Compute(CPU, dtype, self.moves[-1] == torch.channels_last)
        turn = self.calls.count(path)
        self.calls.append(path)
        self.sizes.append((tuple(lr.shape), tuple(noise.shape), steps))
        if path in self.fails:
            raise self.fails[path]
        self.now += self.seconds[path][min(turn, len(self.seconds[path]) - 1)]
        return torch.zeros(1, 3, 4, 4) + self.errors.get(path, 0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a CPU with bf16 whatever it is."""
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compute_paths, "has_fast_bf16", lambda device: True)
    return tmp_path / "cache"


def fake(plain: float = 1.0, last: float = 1.0, bf16: float = 1.0, **options: Any) -> Fake:
    return Fake({PLAIN: [plain], LAST: [last], BF16: [bf16]}, **options)


def table(**seconds: float) -> tuple[Timing, ...]:
    rows = {"plain": PLAIN, "last": LAST, "bf16": BF16}
    return tuple(Timing(rows[name], value, 50.0) for name, value in seconds.items())


def test_paths_describe_themselves() -> None:
    assert PLAIN.describe() == "cpu, fp32"
    assert replace(BF16, compiled=True).describe() == "cpu, bf16 autocast, channels_last, compiled"
    assert (PLAIN.memory_format, LAST.memory_format) == (torch.contiguous_format, torch.channels_last)


def test_autocast_is_what_the_path_says() -> None:
    a = torch.ones(2, 2)
    with BF16.autocast():
        assert (a @ a).dtype == torch.bfloat16
        with PLAIN.autocast():  # not that of the caller
            assert (a @ a).dtype == torch.float32


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cpu:0", "cuda:", "cuda:x", "mps:0", ""):
        with pytest.raises(ValueError, match=r"expected a device of .*cpu, got "):
            choose_device(name)


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="expected cuda:0 to cuda:1, got 'cuda:2'"):
        choose_device("cuda:2")


def test_precisions_by_name() -> None:
    assert parse_dtype("auto") is None
    assert [parse_dtype(name) for name in compute.DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(ValueError, match="expected dtype auto, fp32, bf16, fp16, got 'half'"):
        parse_dtype("half")


def test_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert candidates(CPU) == (PLAIN, LAST, BF16)
    assert candidates(CPU, torch.float32) == (LAST,)
    assert candidates(CPU, torch.bfloat16) == (BF16,)
    with pytest.raises(ValueError, match="got fp16; give bf16"):
        candidates(CPU, torch.float16)
    cuda, mps = torch.device("cuda"), torch.device("mps")
    assert [path.dtype for path in candidates(cuda)] == [*[torch.float32] * 2, torch.bfloat16, torch.float16]
    with pytest.raises(ValueError, match="got bf16; give fp16"):
        candidates(mps, torch.bfloat16)
    monkeypatch.setattr(compute_paths, "has_fast_bf16", lambda device: False)
    assert candidates(CPU) == (PLAIN, LAST)
    assert candidates(mps) == (Compute(mps), Compute(mps, torch.float16))


@pytest.mark.parametrize(("avx", "amx", "expected"), [(False, False, False), (True, False, True), (False, True, True)])
def test_bf16_needs_instructions(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool, expected: bool) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(compute_paths.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert compute.has_fast_bf16(CPU) is expected
    assert not compute.has_fast_bf16(torch.device("mps"))


def test_the_fastest_if_clearly() -> None:
    assert fastest(table(plain=1.15, last=1.1, bf16=1.0)) == BF16
    assert fastest(table(plain=1.14, last=1.1, bf16=1.0)) == PLAIN
    assert fastest(table(plain=2.0, last=0.9, bf16=1.0)) == LAST
    assert fastest(table(plain=1.0)) == PLAIN


def test_what_has_a_problem_is_not_chosen() -> None:
    rows = table(plain=2.0, last=1.5, bf16=0.1)
    assert fastest((*rows[:2], replace(rows[2], problem="not finite"))) == LAST
    assert fastest((rows[0], replace(rows[2], seconds=None, problem="failed: x"))) == PLAIN


def test_measurement_takes_the_best_turn_of_each() -> None:
    # Something else runs during the second turn; the first is the warm-up.
    model = Fake(
        {PLAIN: [0.3, 0.9, 0.2], LAST: [0.3, 0.9, 0.1], BF16: [0.3, 0.05, 0.4]}, errors={LAST: 0.002, BF16: 0.02}
    )
    rows = measure(model, (PLAIN, LAST, BF16), model.clock)
    assert model.calls == [PLAIN, LAST, BF16] * 3
    megapixels = 96 * 96 / 1e6  # the least multiple of 48 that is not below 64
    assert [row.seconds for row in rows] == pytest.approx([0.2 / megapixels, 0.1 / megapixels, 0.05 / megapixels])
    assert [row.psnr for row in rows] == [None, pytest.approx(60.0), pytest.approx(40.0)]  # 20 lg (2 / error)
    assert set(model.sizes) == {((1, 3, 96, 96), (1, 1, 1, 96, 96), 1)}  # one step, even where five are usual


def test_slow_models_are_not_asked_more_than_twice() -> None:
    model = fake(2.0, 2.0, 1.0)
    measure(model, (PLAIN, LAST, BF16), model.clock)
    assert model.calls == [PLAIN, LAST, BF16] * 2


@pytest.mark.parametrize(
    ("error", "problem"),
    [(0.06, ""), (0.07, "below 30 dB"), (float("nan"), "not finite"), (float("inf"), "not finite")],
)
def test_pictures_that_differ_are_refused(error: float, problem: str) -> None:
    model = fake(2.0, 1.0, 0.1, errors={BF16: error})
    choice = choose(model, "cpu", clock=model.clock)
    assert choice.table[2].problem == problem
    assert choice.compute == (LAST if problem else BF16)


def test_paths_that_fail_are_left_out() -> None:
    model = fake(2.0, 1.0, 0.1, fails={BF16: torch.OutOfMemoryError("no room\nat all")})
    choice = choose(model, "cpu", clock=model.clock)
    assert choice.compute == LAST
    assert model.calls.count(BF16) == 1
    assert choice.table[2] == Timing(BF16, None, None, "failed: no room")
    broken = fake(fails={PLAIN: RuntimeError("broken")})
    with pytest.raises(RuntimeError, match="broken"):
        choose(broken, "cpu", clock=broken.clock)


def test_the_choice_is_remembered(cache: Path) -> None:
    model = fake(0.2, 0.2, 0.1, errors={BF16: 0.01})
    first = choose(model, "cpu", clock=model.clock)
    assert (first.compute, first.from_cache) == (BF16, False)
    assert model.moves[-1] == torch.channels_last
    again = fake(0.1, 0.2, 0.2, network=model.network)  # would choose another path now
    second = choose(again, "cpu", clock=again.clock)
    assert not again.calls
    assert second == replace(first, from_cache=True)
    assert again.moves == [torch.channels_last]
    assert [path.suffix for path in (cache / "compute").iterdir()] == [".json"]  # and nothing half written
    said = second.lines()
    assert said[0].endswith("measured earlier")
    assert [line.endswith("chosen") for line in said[1:]] == [False, False, True]
    assert "46.0 dB" in said[3]


@pytest.mark.parametrize("change", ["weights", "threads", "torch", "processor", "scale", "paths"])
def test_other_circumstances_are_measured_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake()
    choose(model, "cpu", clock=model.clock)
    model.calls.clear()
    choose(model, "cpu", clock=model.clock)
    assert not model.calls
    if change == "weights":
        with torch.no_grad():
            model.network.weight[0, 0] += 1
    elif change == "scale":
        model.scale = 4
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "99")
    elif change == "processor":
        monkeypatch.setattr(compute_table, "processor_name", lambda: "another")
    else:
        monkeypatch.setattr(compute_paths, "has_fast_bf16", lambda device: False)
    choose(model, "cpu", clock=model.clock)
    assert model.calls


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"key": 1, "table": []}'])
def test_damaged_files_are_measured_again(cache: Path, text: str) -> None:
    model = fake(0.2, 0.2, 0.1)
    choose(model, "cpu", clock=model.clock)
    (file,) = (cache / "compute").iterdir()
    whole = json.loads(file.read_text())
    file.write_text(text)
    choice = choose(model, "cpu", clock=model.clock)
    assert (choice.compute, choice.from_cache) == (BF16, False)
    assert json.loads(file.read_text())["key"] == whole["key"]


def test_without_a_folder_to_write_it_says_so(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    model = fake(0.2, 0.2, 0.1)
    choice = choose(model, "cpu", clock=model.clock)
    assert choice.compute == BF16
    assert "set SR_DISTILL_CACHE" in choice.lines()[-1]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SR_DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sr-distill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "sr-distill"


def test_a_named_precision_is_not_measured(cache: Path) -> None:
    model = fake()
    choice = choose(model, CPU, "bf16", clock=model.clock)
    assert choice == Choice(BF16)
    assert choice.lines() == []
    assert (model.calls, model.moves) == ([], [torch.channels_last])
    assert not cache.exists()


class Outside(Fake):
    """A model that something else than torch computes."""

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        return ()


def test_what_torch_does_not_compute_is_plain_fp32(cache: Path) -> None:
    model = Outside({PLAIN: [2.0], LAST: [1.0], BF16: [0.1]})
    assert choose(model, "cpu", clock=model.clock) == Choice(PLAIN)
    assert (model.calls, model.moves, cache.exists()) == ([], [torch.contiguous_format], False)
    for dtype in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"expected dtype auto or fp32 for an ONNX file, .* got {dtype}; use fp32"):
            choose(model, "cpu", dtype)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """In place of torch's, which takes minutes: the modules that it was asked for, which run as they are."""
    asked: list[nn.Module] = []

    def compile_(module: nn.Module) -> None:
        asked.append(module)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return asked


class Autoencoder(nn.Module):
    """Two networks that are called themselves; the whole is not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)


class Parts(Fake):
    """An autoencoder and a network between its parts."""

    autoencoder = Autoencoder()

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        return self.network, self.autoencoder

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        out: Tensor = self.autoencoder.decoder(self.network(self.autoencoder.encoder(lr)))
        return out


def test_compiled_networks(compiler: list[nn.Module]) -> None:
    model = Parts({})
    networks = [model.network, model.autoencoder.encoder, model.autoencoder.decoder]
    lr = torch.rand(1, 3, 8, 8)
    expected = model.restore(lr, lr, 1)
    choice = choose(model, "cpu", "fp32", compile=True)
    assert (choice.compute, choice.notes) == (replace(LAST, compiled=True), ("compiled: Conv2d",))
    assert compiler == networks
    assert all(network._compiled_call_impl is not None for network in networks)
    assert torch.allclose(model.restore(lr, lr, 1), expected)
    apply(model, LAST)
    assert all(network._compiled_call_impl is None for network in networks)


def test_what_does_not_compile_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> Tensor:
        raise OSError("no compiler\nhere")

    def compile_(module: nn.Module) -> None:
        module._compiled_call_impl = explode

    monkeypatch.setattr(nn.Module, "compile", compile_)
    model = fake(0.2, 0.2, 0.1)
    model.restore = lambda lr, noise, steps: model.network(lr)  # type: ignore[method-assign]
    choice = choose(model, "cpu", "bf16", compile=True)
    assert choice == Choice(BF16, notes=("not compiled: no compiler",))
    assert model.network._compiled_call_impl is None
    assert model.network(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)


def test_accuracy_of_bf16_on_the_shipped_student() -> None:
    """It is far inside the bound: the weights were trained in fp32, and nothing that matters is rounded."""
    from sr_models import store

    rows = measure(store.load_model("tiny-student"), (PLAIN, BF16), lambda: 0.0)
    assert rows[1].psnr is not None
    assert 55 < rows[1].psnr < 75  # equal would mean that there was no autocast


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda(build_model: Callable[..., SRModel]) -> None:
    choice = choose(build_model(), "cuda")
    assert len(choice.table) >= 3
    assert all(not row.problem.startswith("failed") for row in choice.table)
