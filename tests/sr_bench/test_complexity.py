"""`sr-bench complexity`: what is counted, how time is split and set beside the ceiling, which rows there are."""

from __future__ import annotations

import itertools
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sr_bench import machine
from sr_bench.complexity import measure as measuring
from sr_bench.complexity import run as running
from sr_bench.complexity.measure import META, Measured, Task, complete, measure
from sr_bench.complexity.probe import count_macs, count_parameters, restore_in_parts
from sr_bench.complexity.result import NETWORKS, PARTS, Ceiling, Complexity, Memory, Row, Spread
from sr_bench.complexity.run import Wanted, best_ceilings, measure_complexity, provenance_of, published_rows, tasks_of
from sr_bench.complexity.subjects import T2I, Subject, build
from sr_bench.paper.tables import paper_table
from sr_models.compute import Compute, paths

CPU = torch.device("cpu")


class Coder(nn.Module):
    """An autoencoder of two convolutions; the second one is the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.decoder = nn.Conv2d(4, 3, 1)
        self.work: list[int] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.work.append(1)
        return self.encoder(pixels)

    def decode(self, latent: Tensor) -> Tensor:
        self.work.append(100)
        return self.decoder(latent)


@dataclass
class Model:
    """Enlarges by 1, with two evaluations of a 3x3 convolution."""

    autoencoder: Coder = field(default_factory=Coder)
    unet: nn.Module = field(default_factory=lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False))
    color: str = "none"
    scale: int = 1
    lr_multiple: int = 8
    steps: tuple[int, ...] = (2,)

    @property
    def tiled_networks(self) -> tuple[nn.Module, ...]:
        return self.unet, self.autoencoder

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> None:
        for network in self.tiled_networks:
            network.to(device)

    def noise_shape(self, batch: int, height: int, width: int, steps: int) -> tuple[int, ...]:
        return (steps, batch, 4, height, width)

    def restore(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        latent = self.autoencoder.encode(lr)
        for draw in noise:
            self.autoencoder.work.append(10)
            latent = self.unet(latent + draw)
        return self.autoencoder.decode(latent)


def subject(**options: Any) -> Subject:
    model = Model(**options)
    return Subject(model, "random", model.unet, model.autoencoder)


def task(**changes: Any) -> Task:
    return replace(Task("tiny-student", Compute(CPU), 16, 1, 0.0, 1, torch.get_num_threads()), **changes)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings in no time, on a processor that is fast in bf16."""
    monkeypatch.setitem(machine.MATRIX_SIZE, "cpu", 16)
    monkeypatch.setitem(machine.CONVOLUTION, "cpu", (1, 8, 8))
    monkeypatch.setitem(machine.COPY_MB, "cpu", 1)
    monkeypatch.setattr(paths, "has_fast_bf16", lambda device: True)


def test_parts_of_a_restoration_by_any_counter() -> None:
    """One encoding of 1, two evaluations of 10, one decoding of 100."""
    found = subject()
    lr, noise = torch.rand(1, 3, 8, 8), torch.rand(2, 1, 4, 8, 8)
    pixels, parts = restore_in_parts(found, lr, noise, 2, lambda: float(sum(found.model.autoencoder.work)))
    assert parts == {"encode": 1.0, "network": 20.0, "decode": 100.0}
    assert torch.equal(pixels, found.model.restore(lr, noise, 2))
    assert "encode" not in vars(found.autoencoder)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_by_hand(device: str) -> None:
    """k * k * input channels * output channels for each position."""
    found = subject()
    found.model.to(torch.device(device))
    lr, noise = torch.rand(2, 3, 8, 8, device=device), torch.rand(2, 2, 4, 8, 8, device=device)
    positions = 2 * 8 * 8
    expected = {"encode": positions * 9 * 3 * 4, "network": 2 * positions * 9 * 4 * 4, "decode": positions * 4 * 3}
    assert count_macs(found, lr, noise, 2) == expected


def test_parameters_by_hand() -> None:
    found = subject()
    found.network.register_parameter("lora_A", nn.Parameter(torch.zeros(7)))
    counted = {"encode": 9 * 3 * 4 + 4, "network": 9 * 4 * 4 + 7, "decode": 4 * 3 + 3}
    assert count_parameters(found) == (counted, 7)


def test_published_sizes_have_the_parameters_of_table_4() -> None:
    teacher, _ = count_parameters(build("x4-teacher", real=False, device=CPU))
    assert teacher["network"] == 118_593_583
    assert teacher["encode"] + teacher["decode"] == 55_322_782
    student = measure(task(model="x4", compute=Compute(META), size=64)).row
    table = paper_table("rsd-4")
    column = [column.metric for column in table.columns].index("parameters_m")
    published = {row.method: row.values[column] for row in table.rows}
    for counted, method in ((teacher, "ResShift"), (student.parameters, "RSD")):
        assert f"{sum(counted.values()) / 1e6:.0f}" == published[method] == "174"
    assert 0 < student.parameters["network"] - teacher["network"] < 2000  # one more channel into the first convolution
    gflop = {part: round(2 * count / 1e9) for part, count in student.macs.items()}
    assert gflop == {"encode": 345, "network": 101, "decode": 671}  # as counted with the weights, on a CPU
    assert not student.seconds
    assert student.memory is None


@pytest.mark.parametrize(("name", "base"), [("sd3-student", 2_028_328_000 + 83_819_683), ("sd21-student", 949_564_587)])
def test_published_text_to_image_sizes(name: str, base: int) -> None:
    """Bases as published: SD3-medium and its VAE; SD2.1-base (865,910,724) and its VAE (83,653,863)."""
    row = measure(task(model=name, compute=Compute(META), size=64)).row
    assert sum(row.parameters.values()) - row.adapters == base
    assert sum(row.parameters.values()) == T2I[name].parameters
    assert row.adapters > 0
    assert all(row.macs[part] > 0 for part in NETWORKS)
    assert (row.weights, row.seconds, row.evaluations) == ("none", {}, 1)


def test_random_weights_are_the_same_and_not_zero() -> None:
    one, two = (build("tiny", real=True, device=CPU) for _ in range(2))
    assert one.weights == "random"
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.any()


def test_what_a_row_holds() -> None:
    """Every reading of the clock is a second later, so a part takes as many seconds as there are readings in it."""
    ticks = itertools.count()
    found = measure(task(rounds=2, size=32, batch=2), clock=lambda: float(next(ticks)))
    row = found.row
    assert (row.model, row.device, row.dtype, row.path) == ("tiny-student", "cpu", "fp32", "cpu, fp32")
    assert (row.weights, row.rounds, row.scale, row.evaluations) == ("stored", 2, 4, 1)
    assert list(row.seconds) == [*PARTS, "total"]
    assert {row.seconds[part].median for part in PARTS} == {1.0, 2.0} - {2.0}
    assert row.seconds["total"].median == 6.0
    one = measure(task(size=32, compute=Compute(META))).row
    assert one.macs == {part: count // 2 for part, count in row.macs.items()}
    assert found.ceiling is not None
    assert found.ceiling.matrix_gflops == pytest.approx(2 * 9 * (8 * 8) ** 2 / 1e9)  # in a second
    assert found.ceiling.copy_gbs == pytest.approx(2 * 2**20 / 1e9)


def test_pictures_go_through_files_and_the_colour_correction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected: list[str] = []
    monkeypatch.setattr(measuring, "correct", lambda sr, lr, color: (corrected.append(color), lr.flip(1))[1])
    restoration = measuring.Restoration(subject(color="wavelet"), task(batch=2), tmp_path, lambda: 0.0)
    restoration.run()
    assert corrected == ["wavelet"]
    for index in range(2):
        before, after = (measuring.read_picture(tmp_path / f"{kind}-{index}.png").pixels for kind in ("lr", "sr"))
        assert (after == before[..., ::-1]).all()
    assert (before != measuring.picture(16, 0)).any()  # all pictures of a batch differ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_compute_in_the_precision_of_the_path(dtype: torch.dtype, tmp_path: Path) -> None:
    found = subject()
    seen: list[torch.dtype] = []
    found.network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    measuring.Restoration(found, task(compute=Compute(CPU, dtype)), tmp_path, lambda: 0.0).run()
    assert seen == [dtype, dtype]


def test_rounds() -> None:
    """At least 3, at most 20, otherwise as many as fit."""

    def rounds(each: float, asked: int | None = None) -> int:
        return len(
            measuring._repeat(lambda: {"read": each / 4, "write": 3 * each / 4}, task(rounds=asked, seconds=5.0))
        )

    assert [rounds(each) for each in (100.0, 1.0, 0.125)] == [3, 5, 20]
    assert rounds(100.0, asked=7) == 7


def test_median_and_deciles() -> None:
    rounds = [{part: float(turn) for part in PARTS} for turn in (5, 1, 4, 2, 3)]
    spreads = measuring._spreads(rounds)
    assert spreads["network"] == Spread(median=3.0, p10=1.0, p90=5.0)  # of few rounds the ends: no deciles
    assert spreads["total"] == Spread(median=18.0, p10=6.0, p90=30.0)
    many = measuring._spreads([{part: float(turn) for part in PARTS} for turn in range(21)])
    assert many["network"] == Spread(median=10.0, p10=2.0, p90=18.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from Linux")
def test_peak_is_the_greatest_since_the_reset_not_before() -> None:
    before = np.ones(2**25)  # 256 MiB
    del before
    loaded = measuring._reset_peak(CPU)
    if loaded is None:
        pytest.skip("the system does not let a process reset its peak (no /proc/self/clear_refs)")
    during = np.ones(2**23)  # 64 MiB
    del during
    peak = measuring._peak(CPU)
    assert peak is not None
    assert loaded + 60 < peak < loaded + 128


def test_without_a_reset_there_is_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CLEAR", tmp_path / "absent" / "clear_refs")
    assert measure(task()).row.memory is None
    assert measuring._reset_peak(torch.device("mps")) is None


def test_order_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is that of the warm-up, which no time is taken of."""
    log: list[str] = []

    def logged(name: str, value: Any) -> Any:
        return lambda *_: (log.append(name), value)[1]

    seconds = dict.fromkeys(PARTS, 1.0)
    monkeypatch.setattr(measuring.Restoration, "run", logged("run", seconds))
    monkeypatch.setattr(measuring, "_reset_peak", logged("reset", 1.0))
    monkeypatch.setattr(measuring, "_peak", logged("peak", 3.0))
    monkeypatch.setattr(measuring, "matrix_rates", logged("ceiling", {"slow": 1.0, "fast": 2.0, "other": 0.5}))
    found = measure(task(rounds=2))
    assert log == ["reset", "run", "peak", "ceiling", "run", "run"]
    assert found.row.memory == Memory(kind="resident", loaded=1.0, peak=3.0)
    assert found.ceiling is not None
    assert (found.ceiling.operation, found.ceiling.matrix_gflops) == ("fast", 2.0)


def test_every_reading_of_the_clock_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for module in (measuring, machine):
        monkeypatch.setattr(module, "synchronize", lambda device: log.append("wait"))

    def clock() -> float:
        log.append("read")
        return 0.0

    measuring.Restoration(subject(), task(), tmp_path, clock).run()
    assert log == ["wait", "read"] * 9  # 5 of the whole, 4 around and between the networks
    log.clear()
    machine.copy_rate(CPU, clock)
    assert log == ["wait", "read"] * 2 * (machine.ROUNDS + 1)


def test_the_peak_of_a_gpu_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: (log.append("read"), 2**21)[1])
    assert measuring._reset_peak(torch.device("cuda")) == 2.0
    assert log == ["reset", "read"]


def row(**changes: Any) -> Row:
    seconds = {part: Spread(median=2.0, p10=1.0, p90=3.0) for part in (*PARTS, "total")}
    macs = {"encode": 10**9, "network": 2 * 10**9, "decode": 3 * 10**9}
    fields = {"path": "cpu, fp32", "size": 64, "batch": 2, "scale": 4, "macs": macs, "seconds": seconds}
    return Row(model="m", device="cpu", dtype="fp32", rounds=3, evaluations=1, **{**fields, **changes})


def test_shares_of_the_ceiling() -> None:
    ceiling = Ceiling(device="cpu", dtype="fp32", operation="matrix product", matrix_gflops=10.0, copy_gbs=0.001)
    shares = complete(row(), ceiling).shares
    assert shares["network"] == pytest.approx(2 * 2 / 2 / 10)  # 2 GMAC in 2 s
    assert shares["networks"] == pytest.approx(2 * 6 / 6 / 10)
    pixels = 2 * 3 * 256 * 256
    assert shares["color"] == pytest.approx(2 * 4 * pixels / 2 / 1e6)
    assert complete(row(color="adain"), ceiling).shares["color"] == pytest.approx(3 * 4 * pixels / 2 / 1e6)
    assert complete(row(seconds={}), ceiling).shares == complete(row(), None).shares == {}


def test_ceilings_are_the_best_of_the_run() -> None:
    found = [
        Ceiling(device="cpu", dtype=dtype, operation="convolution", matrix_gflops=rate, copy_gbs=copy)
        for dtype, rate, copy in (("fp32", 10, 3), ("bf16", 30, 5), ("fp32", 12, 2))
    ]
    best = best_ceilings(found)
    assert {key: (value.matrix_gflops, value.copy_gbs) for key, value in best.items()} == {
        ("cpu", "fp32"): (12, 5),
        ("cpu", "bf16"): (30, 5),
    }


@pytest.mark.parametrize(("convolution", "expected"), [(40, 2 * 16**3 / 2), (8, 2 * 9 * 64**2 / 8)])
def test_rates_are_the_best_turn_of_the_faster_work(convolution: int, expected: float) -> None:
    """The warm-up of both takes 1 s, the turns of the product 4, 2, 4, 4 and 4."""
    product = [second for seconds in (1, 4, 2, 4, 4, 4) for second in (0, seconds)]
    times = iter([*product, 0, 1, *[0, convolution] * 5])
    assert machine.matrix_rate(CPU, torch.float32, lambda: float(next(times))) == pytest.approx(expected / 1e9)


def test_operations_of_a_gpu_in_fp32_say_whether_they_may_take_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=True))
    gpu = torch.device("cuda")
    assert machine.tf32_allowed(gpu, torch.float32) == (" (no TF32)", " (TF32 allowed)")
    assert machine.tf32_allowed(gpu, torch.bfloat16) == machine.tf32_allowed(CPU, torch.float32) == ("", "")
    assert list(machine.matrix_rates(CPU, torch.float32)) == ["matrix product", "3x3 convolution"]


def test_provenance_names_every_device_once() -> None:
    mps = torch.device("mps")
    assert provenance_of("sr-bench", [CPU, mps, CPU]).device == "cpu, mps"
    assert provenance_of("sr-bench", []).device == "cpu"


def test_which_rows() -> None:
    default = [(task.model, task.path_name) for task in map(Named, tasks_of(Wanted(devices=("cpu",))))]
    assert default == [
        ("tiny-student", "cpu, fp32, channels_last"),
        ("tiny-teacher", "cpu, fp32, channels_last"),
        ("x4", "cpu, fp32, channels_last"),
        ("x4", "cpu, bf16 autocast, channels_last"),
        ("x4-teacher", "cpu, bf16 autocast, channels_last"),
        ("sd3-student", "meta"),
        ("sd21-student", "meta"),
    ]
    every = tasks_of(Wanted(models=("x4",), devices=("cpu",), paths="all", compiled=True))
    plain = ["cpu, fp32", "cpu, fp32, channels_last", "cpu, bf16 autocast, channels_last"]
    assert [Named(task).path_name for task in every] == [*plain, *(f"{path}, compiled" for path in plain)]
    fp32 = tasks_of(Wanted(models=("x4",), devices=("cpu",), dtypes=("fp32",), paths="all"))
    assert [Named(task).path_name for task in fp32] == plain[:2]
    grid = tasks_of(
        Wanted(models=("x4", "x4"), devices=("cpu", "cpu"), dtypes=("fp32",), sizes=(32, 64), batches=(1, 2))
    )
    assert [(task.size, task.batch) for task in grid] == [(32, 1), (32, 2), (64, 1), (64, 2)]
    assert {task.compute.device for task in tasks_of(Wanted(models=("sd3-student",), devices=("cpu",), real=True))} == {
        CPU
    }
    assert {task.compute.device for task in tasks_of(Wanted(count=True))} == {META}
    with pytest.raises(ValueError, match="expected dtype fp32 or bf16 on the cpu, got fp16"):
        tasks_of(Wanted(devices=("cpu",), dtypes=("fp16",)))


@dataclass
class Named:
    task: Task

    @property
    def model(self) -> str:
        return self.task.model

    @property
    def path_name(self) -> str:
        return self.task.row().path


def test_a_row_that_fails_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def worker(task: Task) -> Measured:
        if task.size == 32:
            raise BrokenProcessPool("gone")
        if task.size == 48:
            raise RuntimeError("out of\nmemory")
        return Measured(task.row(**row().model_dump(include={"scale", "macs", "seconds"})), None)

    wanted = Wanted(models=("tiny",), devices=("cpu",), dtypes=("fp32",), sizes=(16, 32, 48))
    result = measure_complexity(wanted, out=None, command="sr-bench complexity", worker=worker)
    assert [row.problem is None for row in result.rows] == [True, False, False]
    said = capsys.readouterr().out
    assert "32 px x 1: its process was ended, most likely out of memory; give a smaller --size or --batch" in said
    assert "48 px x 1: out of memory" in said
    with pytest.raises(ValueError, match="at least one row that can be measured, got none: out of memory"):
        measure_complexity(replace(wanted, sizes=(48,)), out=None, command="sr-bench complexity", worker=worker)


def test_an_interrupted_run_keeps_its_rows(tmp_path: Path) -> None:
    def worker(task: Task) -> Measured:
        if task.size == 32:
            raise KeyboardInterrupt
        return Measured(task.row(**row().model_dump(include={"scale", "macs", "seconds"})), None)

    wanted = Wanted(models=("tiny",), devices=("cpu",), dtypes=("fp32",), sizes=(16, 32))
    out = tmp_path / "new" / "out"
    with pytest.raises(KeyboardInterrupt):
        measure_complexity(wanted, out=out, command="sr-bench complexity", worker=worker)
    kept = Complexity.model_validate_json((out / "complexity.json").read_text())
    assert [row.size for row in kept.rows] == [16]
    assert len(list(out.iterdir())) == 4


def test_a_folder_that_cannot_be_is_refused_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    measured: list[Task] = []

    def worker(task: Task) -> Measured:
        measured.append(task)
        raise ValueError("late")

    with pytest.raises(ValueError, match=r"folder to write into, got .*sub \(not a directory\); choose another --out"):
        measure_complexity(Wanted(models=("tiny",)), out=tmp_path / "file" / "sub", command="", worker=worker)
    assert measured == []


def test_ctrl_c_ends_the_process_of_a_row_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "measure", signal.getsignal)
    handler: Any = running.in_own_process(signal.SIGINT)  # type: ignore[arg-type]
    assert handler == signal.SIG_DFL


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(ValueError, match="divides by 16 for tiny-student, got 20"):
        measure(task(size=20))
    with pytest.raises(FileNotFoundError, match=r"got 'x9'.*x4-teacher, sd3-student, sd21-student"):
        build("x9", real=True, device=CPU)


def test_no_memory_for_a_real_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_bench.complexity.subjects.free_bytes", lambda device: 10**9)
    with pytest.raises(
        ValueError, match=r"expected 11\.5 GB of free memory on cpu for sd3-student, got 1\.0; free some"
    ):
        build("sd3-student", real=True, device=CPU)


def test_published_rows_are_the_papers() -> None:
    found = {(row.table, row.method): row for row in published_rows()}
    assert found["rsd-4", "RSD"].values == {"nfe": "1", "seconds": "0.059", "parameters_m": "174", "memory_mb": "539"}
    assert found["tsd-3", "OSEDiff"].values == {"nfe": "1", "seconds": "0.1650"}
    assert all("A100" in (row.hardware or "") for row in found.values())
    assert len(found) == 5 + 11


def test_text_to_image_students_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and published ones with random weights, which are made small here."""
    from sr_models.t2i import base as bases
    from sr_models.t2i.folder import save_student
    from sr_models.t2i.prompts import read_prompt
    from sr_models.t2i.student import make_student

    base = bases.load_base("tiny-flow-teacher")
    assert base.prompts is not None
    prompt = read_prompt(base.prompts, "default")
    save_student(make_student(base, prompt, scale=4, tile=16, rank=2, vae_rank=2, seed=0), tmp_path / "s", about={})
    stored = measure(task(model=str(tmp_path / "s"))).row
    assert (stored.weights, stored.color, stored.evaluations) == ("stored", "wavelet", 1)
    assert 0 < stored.adapters < sum(stored.parameters.values())
    monkeypatch.setitem(bases.PUBLISHED, "sd3", bases.read_sizes("tiny-flow-teacher"))
    filled = measure(task(model="sd3-student")).row
    assert (filled.weights, filled.rounds) == ("random", 1)
    assert all(filled.seconds[part].median > 0 for part in PARTS)
    network = build("sd3-student", real=True, device=CPU).network
    assert all(parameter.any() for name, parameter in network.named_parameters() if "lora_B" not in name)
    assert filled.macs == measure(task(model="sd3-student", compute=Compute(META))).row.macs
