"""A run that is killed and started again by the same command ends in the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.config import CheckpointConfig, RSDRun, to_yaml
from distill.run import Stopped, train

STEPS = 30


def command(config: RSDRun, folder: Path, *more: str) -> list[str]:
    """The command line of a run, with its configuration in a file."""
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    return [sys.executable, "-m", "sr_cli", "train", "rsd", "--config", str(path), *more]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def records(run: Path) -> list[dict[str, float]]:
    """Whole lines of a metrics file that may be growing."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def numbers(record: dict[str, float]) -> dict[str, float]:
    """What does not depend on the clock."""
    return {name: value for name, value in record.items() if not name.startswith("seconds")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet.safetensors")


@pytest.fixture
def long_run(rsd_run: RSDRun) -> RSDRun:
    """All terms that need no download, an average, momentum and a learning rate that changes."""
    optimizer = rsd_run.optimizer.model_copy(update={"schedule": "cosine", "lr": 1e-3})
    return rsd_run.model_copy(
        update={
            "steps": STEPS,
            "tracker": "none",
            "optimizer": optimizer,
            "terms": {"distillation": 1.0, "gan": 0.1, "latent_mse": 0.1},
            "checkpoint": CheckpointConfig(every=3),
        }
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the processes have: sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_kill_9_at_random_moments_changes_no_bit(long_run: RSDRun, tmp_path: Path) -> None:
    train(long_run, out=tmp_path / "whole", quiet=True)
    run = tmp_path / "killed"
    line = command(long_run, tmp_path, "--out", str(run))
    chance = random.Random()
    moments = sorted(chance.sample(range(1, STEPS - 2), 2))
    print(f"killed after records {moments}")  # shown when the test fails
    for moment in moments:
        with subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(records(run)) < moment:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.02)  # anywhere in a step, or in a checkpoint
            process.kill()
        assert not (run / "summary.json").exists(), "the run was over before it was killed"
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    assert "continuing at step" in done.stdout
    first, second = weights(tmp_path / "whole"), weights(run)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    log, whole_log = records(run), records(tmp_path / "whole")
    assert [record["step"] for record in log] == list(range(1, STEPS + 1))  # none twice, none missing
    for record, wanted in zip(log, whole_log, strict=True):
        assert numbers(record) == numbers(wanted)
    again = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    assert "already finished" in again.stdout


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_steps(
    long_run: RSDRun, tmp_path: Path, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from distill.trainer import Trainer

    plain = Trainer.run_step

    def interrupted(self: Trainer) -> object:
        if self.step == 4:
            os.kill(os.getpid(), kind)
        return plain(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(Stopped, match="stopped at step 5; the same command continues"):
        train(long_run, quiet=True)
    run = tmp_path / "runs" / "rsd-minute-001"
    assert (run / "checkpoints" / "00000005").is_dir()
    monkeypatch.setattr(Trainer, "run_step", plain)
    assert train(long_run, quiet=True).folder == run.relative_to(tmp_path)  # found again without --out
    assert train(long_run.model_copy(update={"steps": 1}), quiet=True).folder.name == "rsd-minute-002"
    train(long_run, out=tmp_path / "whole", quiet=True)
    first, second = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_workers_that_die_of_the_same_signal_lose_the_step_only(
    long_run: RSDRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.trainer import Trainer

    plain = Trainer.run_step

    def interrupted(self: Trainer) -> object:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        return plain(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(Stopped, match="stopped within step 4"):
        train(long_run, out=tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000003"]


def test_an_interrupted_run_is_continued_with_the_same_configuration_only(long_run: RSDRun, tmp_path: Path) -> None:
    train(long_run.model_copy(update={"steps": 2}), out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    other = long_run.model_copy(update={"steps": 2, "fake_updates": 3, "ema_decay": 0.5})
    with pytest.raises(FileExistsError, match="got another ema_decay, fake_updates; repeat the same command"):
        train(other, out=tmp_path / "run", quiet=True)
    elsewhere = long_run.model_copy(update={"steps": 2, "log_every": 7, "micro_batch": 1, "tracker": "tensorboard"})
    assert train(elsewhere, out=tmp_path / "run", quiet=True).folder == tmp_path / "run"
