"""Which ablations there are, what their rows change, how many run at a time, and how they are continued."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from distill.config import TSDRun
from distill.presets import preset
from sr_bench.ablation import costs, jobs, machine, run
from sr_bench.ablation.command import ablation as command
from sr_bench.ablation.jobs import Job, is_done, work
from sr_bench.ablation.kept import Origin, Point, RunRecord, differences, digest_of, distinct, lock_folder, weights_of
from sr_bench.ablation.listing import list_ablations
from sr_bench.ablation.page import Results, _mean_and_spread, write_page
from sr_bench.ablation.photographs import Photographs, choose_photographs
from sr_bench.ablation.run import _config, _for
from sr_bench.ablation.tables import ABLATIONS, DASM, OBJECTIVES, RSD, TSD, Ablation, find_ablation
from sr_bench.paper.tables import paper_tables
from sr_data.images import write_image


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    list_ablations(updates=1000, seeds=2)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[-4:] for line in lines[1:5]}
    assert list(rows) == list(ABLATIONS)
    assert rows["rsd"] == ["rsd-5,", "rsd-6", "16", "8.0"]  # 16 trainings of 1000 updates of 1.8 s
    assert "--updates 1000 and --seeds 2" in " ".join(lines)


def test_names_and_those_of_the_papers() -> None:
    assert find_ablation("rsd") is find_ablation("rsd-5") is find_ablation("rsd-6") is RSD
    assert find_ablation("rsd-2") is OBJECTIVES
    assert (find_ablation("tsd-4"), find_ablation("tsd-6")) == (TSD, DASM)
    named = [table for ablation in ABLATIONS.values() for table in ablation.papers]
    assert len(set(named)) == len(named)
    assert set(named) <= set(paper_tables())
    with pytest.raises(ValueError, match=r"expected an ablation of rsd, objectives, tsd, dasm, .*tsd-6, got 'rsd-3'"):
        find_ablation("rsd-3")
    with pytest.raises(ValueError, match="name one with --out"):
        command("rsd")


def test_published_figures() -> None:
    """By eye, from the papers."""
    numbers, losses = ({row.name: row.published for row in table.variants} for table in RSD.tables)
    assert numbers["N = 8"] == ("25.63", "0.7268", "0.3199", "0.7286", "66.445")
    assert losses["+ GAN"] == ("24.98", "0.7241", "0.3064", "0.6970", "67.615")
    assert losses["distill only"] == numbers["N = 4"]
    (main,) = OBJECTIVES.tables
    assert main.columns[4:8] == ("RealSR MUSIQ", "RealSet65 CLIPIQA", "RealSet65 MUSIQ", "ImageNet-Test PSNR")
    assert main.teacher[4:8] == ("59.873", "0.6537", "61.330", "25.01")
    parts = {row.name: row.published for row in TSD.tables[0].variants}
    assert parts["without TSM, velocity"][:6] == ("0.2934", "0.2397", "117.15", "68.56", "0.6987", "0.6338")
    assert TSD.tables[0].columns[6] == "DRealSR LPIPS"
    (sampling,) = DASM.tables
    found = dict(zip(sampling.columns, sampling.variants[3].published, strict=True))
    assert (sampling.variants[3].name, found["FID"], found["MANIQA"]) == ("N = 4, s = 25", "130.74", "0.5828")
    for ablation in ABLATIONS.values():
        for table in filter(lambda table: table.columns, ablation.tables):
            assert {len(row.published) for row in table.variants} == {len(table.columns)}


def test_rows_of_dasm() -> None:
    """N weights and steps of s indexes, from the first update on, and nothing else."""
    base = preset("tsd", "tiny").model_dump()
    for row in DASM.variants.values():
        config = _config(row, ())
        assert isinstance(config, TSDRun)
        assert row.name == f"N = {len(config.dasm.weights)}, s = {config.dasm.stride}"
        assert (config.dasm.weights[0], set(config.dasm.weights[1:])) == (1, {0.3})
        assert config.schedule.dasm_from == 0
        changed = {key for key, value in config.model_dump().items() if value != base[key]}
        assert changed <= {"dasm", "schedule", "tracker", "device"}
    assert len(DASM.variants) == 5


def test_phases_of_a_short_run() -> None:
    """What would begin after the end begins at the same part; what was asked for within the run stays."""
    config = _config(TSD.base, ())
    assert isinstance(config, TSDRun)
    assert (config.steps, config.schedule.dasm_from, config.schedule.latent_mse_until) == (600, 450, 450)
    short = _for(config, seed=1, steps=60, base_steps=60)
    assert (short.schedule.dasm_from, short.schedule.latent_mse_until) == (45, 45)
    assert (short.seed, short.steps, short.ema_decay) == (1, 60, config.ema_decay)
    assert short.schedule.vsd_weight == config.schedule.vsd_weight
    kept = _for(_config(TSD.base, ("schedule.dasm_from=1", "schedule.latent_mse_until=null")), 0, 2, 2).schedule
    assert (kept.dasm_from, kept.latent_mse_until) == (1, None)


@pytest.mark.parametrize(
    ("cores", "trainings", "gib_free", "expected"),
    [(4, 9, 100, 4), (4, 3, 100, 3), (4, 9, 5, 2), (4, 9, 4.9, 1), (4, 9, 1, 1), (1, 9, 100, 1), (4, 0, 100, 1)],
)
def test_jobs_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, trainings: int, gib_free: float, expected: int
) -> None:
    """Trainings of 2 GiB in 0.8 of the free memory."""
    monkeypatch.setattr(machine, "core_count", lambda: cores)
    monkeypatch.setattr(machine, "plan", lambda config: SimpleNamespace(memory=SimpleNamespace(total_bytes=2 << 30)))
    free = SimpleNamespace(available=int(gib_free * 2**30))
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    config = _config(RSD.base, ())
    assert machine.fitting_jobs(config, trainings) == expected
    assert machine.fitting_jobs(config.model_copy(update={"device": "cuda"}), trainings) == 1


CODE = Origin(git_commit="1" * 40, processor="one", versions={"torch": "2.6.0", "numpy": "2"})


@pytest.fixture
def todo(tmp_path: Path) -> list[tuple[Path, Job]]:
    config = _config(RSD.base, ())
    return [
        (tmp_path / f"{seed}.json", Job(_for(config, seed, 4, 4), {"teacher": "1"}, CODE, "row", None, 2, threads=1))
        for seed in range(3)
    ]


def result_of(job: Job) -> RunRecord:
    return RunRecord(
        config=job.config.model_dump(mode="json"),
        weights=dict(job.weights),
        measured_on=job.measured_on,
        steps=job.config.steps,
        images_seen=8,
        notes={},
        last_step={"loss": math.nan},
        references={"bicubic": {"PSNR-Y": 20.0}},
        curve=tuple(Point(step=step, generated={"PSNR-Y": 21.0}, photographs={}) for step in job.measured_at),
        made_by=job.made_by,
    )


def test_what_was_interrupted_is_continued(todo: list[tuple[Path, Job]], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    interrupted_at = 1

    def train(job: Job) -> RunRecord:
        if len(trained) == interrupted_at:
            raise KeyboardInterrupt
        trained.append(job.config.seed)
        return result_of(job)

    monkeypatch.setattr(jobs, "train_and_measure", train)
    console = Console(quiet=True)
    with pytest.raises(KeyboardInterrupt):
        work(todo, 1, console)
    folder = todo[0][0].parent
    assert [path.name for path in folder.iterdir()] == ["0.json"]  # no half files
    assert is_done(*todo[0])

    interrupted_at = 100
    work(todo, 1, console)
    assert trained == [0, 1, 2]
    work(todo, 1, console)
    assert trained == [0, 1, 2]
    other = [(path, replace(job, points=4)) for path, job in todo]
    work(other, 1, console)  # measured more often: another result
    assert trained == [0, 1, 2, 0, 1, 2]


def test_what_a_kept_result_must_share(todo: list[tuple[Path, Job]], tmp_path: Path) -> None:
    path, job = todo[0]
    path.write_text(result_of(job).model_dump_json())
    assert is_done(path, job)
    assert is_done(path, replace(job, made_by=CODE.model_copy(update={"git_commit": "2" * 40}))), "other code is listed"
    assert not is_done(path, replace(job, weights={"teacher": "2"}))
    assert not is_done(path, replace(job, photographs=Photographs((), "1 photographs of lr and hr (sha256 0)")))
    assert not is_done(path, replace(job, config=job.config.model_copy(update={"batch_size": 3})))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-9],
        lambda text: '{"a": 1}',
        lambda text: "[]",
        lambda text: text.replace("21.0", "NaN", 1),
        lambda text: text.replace('"bicubic":{"PSNR-Y":20.0}', '"bicubic":{"PSNR-Y":Infinity}'),
        lambda text: text.replace('"weights"', '"wights"'),
    ],
)
def test_a_damaged_result_is_made_again(todo: list[tuple[Path, Job]], change: Callable[[str], str]) -> None:
    path, job = todo[0]
    text = result_of(job).model_dump_json()
    path.write_text(text)
    assert is_done(path, job)
    assert change(text) != text
    path.write_text(change(text))
    assert not is_done(path, job)


def test_photographs_are_told_apart_by_what_they_show(tmp_path: Path) -> None:
    """Folders of the same names; the number is that of the pictures taken."""

    def folders(place: str, shade: int) -> tuple[Path, Path]:
        for name, size in (("lr", 2), ("hr", 8)):
            for index in range(3):
                pixels = np.full((size, size, 3), shade + index, np.uint8)
                write_image(tmp_path / place / name / f"{index}.png", pixels)
        return tmp_path / place / "lr", tmp_path / place / "hr"

    one, copy, other = folders("a", 10), folders("b", 10), folders("c", 20)
    chosen = choose_photographs(*one, 12)
    assert chosen.about.startswith("3 photographs of lr and hr (sha256 ")
    assert len(chosen.pairs) == 3
    assert choose_photographs(*copy, 12).about == chosen.about
    assert choose_photographs(*other, 12).about != chosen.about
    assert len({choose_photographs(*one, count).about for count in (1, 2, 3)}) == 3
    write_image(one[1] / "1.png", np.zeros((8, 8, 3), np.uint8))
    assert choose_photographs(*one, 12).about != chosen.about


def test_weights_are_told_apart_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "unet.safetensors").write_bytes(b"one")
    config = _config(RSD.base, (f"teacher={tmp_path / 'teacher'}",))
    before = weights_of([config, config])
    assert before[0] == before[1]
    assert set(before[0]) == {"teacher"}
    (tmp_path / "teacher" / "unet.safetensors").write_bytes(b"two")
    assert weights_of([config])[0] != before[0]
    (tmp_path / "student").write_bytes(b"one")
    started = weights_of([_config(TSD.base, (f"start={tmp_path / 'student'}",)), _config(TSD.base, ())])
    assert [set(found) for found in started] == [{"base", "start"}, {"base"}]  # the shipped base has a digest, too
    assert digest_of("a/hub-id") is None


def test_costs_are_counted_for_weights_and_their_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def count(config: object) -> costs.Cost:
        counted.append("")
        return costs.Cost(flops=7, evaluations=2, updates=1)

    monkeypatch.setattr(costs, "count", count)
    config, newer = _config(RSD.base, ()), CODE.model_copy(update={"git_commit": "2" * 40})
    for made_by, weights in ((CODE, "1"), (newer, "1"), (newer, "2")):
        found = costs.counted_cost(tmp_path, config, {"teacher": weights}, made_by)
        assert found.made_by == (CODE if weights == "1" else newer)
        assert found.cost == {"flops": 7, "evaluations": 2, "updates": 1}
    assert len(counted) == 2
    (tmp_path / "costs.json").write_text('{"a": 1}')
    assert costs.counted_cost(tmp_path, config, {"teacher": "1"}, newer).made_by == newer


def test_references_are_measured_for_weights_and_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(method: str, photographs: Photographs, steps: int | None) -> dict[str, float]:
        measured.append(1)
        return {"PSNR": 20.0}

    monkeypatch.setattr(run, "measure_photographs", measure)
    teacher = tmp_path / "teacher"
    path = tmp_path / "kept.json"

    def ask(about: str) -> int:
        before = len(measured)
        run.measured_reference(path, str(teacher), 1, Photographs((), about), CODE)
        return len(measured) - before

    teacher.write_bytes(b"one")
    assert (ask("a"), ask("a"), ask("b"), ask("b")) == (1, 0, 1, 0)
    teacher.write_bytes(b"two")
    assert (ask("b"), ask("b")) == (1, 0)
    path.write_text(path.read_text().replace("20.0", "NaN"))
    assert (ask("b"), ask("b")) == (1, 0)


def test_different_origins_are_listed() -> None:
    newer = CODE.model_copy(update={"git_commit": None, "versions": {"torch": "2.7.0", "numpy": "2"}})
    assert distinct([CODE, newer, CODE]) == [CODE, newer]
    assert differences([CODE]) == []
    assert differences([CODE, newer]) == [f"commit {'1' * 40}, torch 2.6.0", "commit unknown, torch 2.7.0"]
    page = write_page(Ablation((), RSD.base, "flops"), Results({"a": [PLAIN]}, {}, {}, "made", ["one", "two"]))
    assert "different code or versions:\n\n- one\n- two\n" in page
    assert "different code" not in write_page(
        Ablation((), RSD.base, "flops"), Results({"a": [PLAIN]}, {}, {}, "made", [])
    )


PLAIN = {"measured_on": "images", "notes": {}}


def test_two_commands_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        run.run_ablation(
            "rsd", tmp_path, updates=1, seeds=1, settings=(), photographs=None, jobs=1, command="sr-bench ablation"
        )

    def stop(*arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(run, "counted_cost", stop)
    with lock_folder(tmp_path), pytest.raises(FileExistsError, match=r"no other command works in, .*; wait for it"):
        start()
    for _ in range(2):  # it is released, also by what was interrupted
        with pytest.raises(RuntimeError):
            start()


def test_rows_get_as_many_updates_as_cost_the_same() -> None:
    rows = {
        "base": costs.Cost(flops=100, evaluations=10, updates=1),
        "dear": costs.Cost(flops=300, evaluations=10, updates=1),
        "cheap": costs.Cost(flops=40, evaluations=2, updates=1),
        "vast": costs.Cost(flops=10**6, evaluations=10, updates=1),
    }
    assert costs.equal_steps(10, rows, "base", "flops") == {"base": 10, "dear": 3, "cheap": 25, "vast": 1}
    assert costs.equal_steps(10, rows, "base", "evaluations") == {"base": 10, "dear": 10, "cheap": 50, "vast": 10}
    assert set(costs.equal_steps(10, rows, "base", "updates").values()) == {10}


def test_averages_reach_back_over_the_same_part() -> None:
    config = _config(RSD.base, ())
    short, long = (_for(config, 0, steps, 100).ema_decay for steps in (50, 200))
    assert short == pytest.approx(config.ema_decay**2)
    assert long == pytest.approx(config.ema_decay**0.5)


def test_mean_and_sample_deviation() -> None:
    assert _mean_and_spread([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000"
    assert _mean_and_spread([25.0, 27.0]) == "26.00 ± 1.41"
    assert _mean_and_spread([25.0]) == "25.00"


CHILDREN = """
import os, time
from sr_bench.pool import processes

if __name__ == "__main__":
    pool = processes(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_trainings_end_with_the_command_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{child}/stat")
        if stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # nobody collects it here, but it has ended
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("a training goes on without the command that started it")
