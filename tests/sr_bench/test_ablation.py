"""Which ablations there are, what their rows change, how many run at a time, and how they are continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from distill.config import TSDRun
from distill.presets import preset
from sr_bench.ablation import jobs, machine
from sr_bench.ablation.command import ablation as command
from sr_bench.ablation.jobs import Job, work
from sr_bench.ablation.listing import list_ablations
from sr_bench.ablation.run import _config, _for
from sr_bench.ablation.tables import ABLATIONS, DASM, OBJECTIVES, RSD, TSD, find_ablation
from sr_bench.paper.tables import paper_tables


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


@pytest.fixture
def todo(tmp_path: Path) -> list[tuple[Path, Job]]:
    config = _config(RSD.base, ())
    return [
        (tmp_path / f"{seed}.json", Job(_for(config, seed, 4, 4), "row", None, points=2, threads=1))
        for seed in range(3)
    ]


def result_of(job: Job) -> dict[str, Any]:
    curve = [{"step": step} for step in job.measured_at]
    return {"config": job.config.model_dump(mode="json"), "measured_on": job.measured_on, "curve": curve}


def test_what_was_interrupted_is_continued(todo: list[tuple[Path, Job]], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    interrupted_at = 1

    def train(job: Job) -> dict[str, Any]:
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
    assert json.loads(todo[0][0].read_text()) == result_of(todo[0][1])

    interrupted_at = 100
    work(todo, 1, console)
    assert trained == [0, 1, 2]
    work(todo, 1, console)
    assert trained == [0, 1, 2]
    other = [(path, replace(job, points=4)) for path, job in todo]
    work(other, 1, console)  # measured more often: another result
    assert trained == [0, 1, 2, 0, 1, 2]


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
