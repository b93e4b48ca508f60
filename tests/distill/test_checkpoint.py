"""Checkpoints are whole, the newest whole one counts, and nothing that is damaged is believed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint
from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.config import CheckpointConfig, RSDRun
from distill.run import train
from distill.tasks import build_task
from distill.trainer import Trainer


@pytest.fixture
def config(rsd_run: RSDRun) -> RSDRun:
    return rsd_run.model_copy(update={"terms": {"distillation": 1.0, "gan": 0.1}, "tracker": "none"})


def trained(config: RSDRun, steps: int) -> Trainer:
    trainer = build_task(config).trainer
    for _ in range(steps):
        trainer.run_step()
    return trainer


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run goes on from, flat."""
    found: dict[str, torch.Tensor] = {"at": torch.tensor([trainer.step, trainer.images_seen])}
    for player in trainer.players:
        for name, module in (("network", player.network), ("ema", player.ema)):
            if module is not None:
                found |= {f"{player.name}/{name}/{key}": value for key, value in module.state_dict().items()}
        for index, moments in player.optimizer.state_dict()["state"].items():
            found |= {f"{player.name}/{index}/{key}": value for key, value in moments.items()}
        assert player.scheduler is not None
        found[f"{player.name}/scheduler"] = torch.tensor(player.scheduler.last_epoch)
    return found


def same(first: Trainer, second: Trainer) -> bool:
    a, b = state(first), state(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refuse(message: str) -> None:
    raise AssertionError(message)


def test_a_checkpoint_is_all_that_a_run_goes_on_from(config: RSDRun, tmp_path: Path) -> None:
    first, second = trained(config, 2), trained(config, 0)
    folder = save_checkpoint(tmp_path, first, keep=1)
    names = {"student.safetensors", "student-ema.safetensors", "fake.safetensors", "state.pt", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert any(key.startswith("head.") for key in load_file(folder / "fake.safetensors"))
    torch.load(folder / "state.pt", weights_only=True)  # no pickle that runs code
    assert not same(first, second)
    assert load_checkpoint(tmp_path, second, refuse)
    assert same(first, second)
    first.run_step()
    second.run_step()
    assert same(first, second)


def test_no_checkpoint_is_no_error(config: RSDRun, tmp_path: Path) -> None:
    assert not load_checkpoint(tmp_path, trained(config, 0), refuse)


def test_the_newest_stay(config: RSDRun, tmp_path: Path) -> None:
    trainer = trained(config, 0)
    for step in (3, 12, 7, 100):
        trainer.step = step
        save_checkpoint(tmp_path, trainer, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000012", "00000100"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["student.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(
    config: RSDRun, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    trainer = trained(config, 1)
    save_checkpoint(tmp_path, trainer, keep=2)
    wanted = {key: value.clone() for key, value in state(trainer).items()}
    trainer.run_step()
    damage(save_checkpoint(tmp_path, trainer, keep=2) / name)
    warnings: list[str] = []
    fresh = trained(config, 0)
    assert load_checkpoint(tmp_path, fresh, warnings.append)
    assert all(torch.equal(wanted[key], value) for key, value in state(fresh).items())
    assert len(warnings) == 1
    assert "cannot be read" in warnings[0]


@pytest.mark.parametrize("when", ["weights", "state", "sync", "rename"])
def test_a_full_disk_loses_nothing(config: RSDRun, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(config, 1)
    save_checkpoint(tmp_path, trainer, keep=1)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(*arguments: object, **named: object) -> None:  # what torch makes of it
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")

    target, name = {
        "weights": (checkpoint, "save_file"),
        "state": (torch, "save"),
        "sync": (checkpoint, "_sync"),
        "rename": (Path, "rename"),
    }[when]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, broken if when == "state" else full)
        trainer.step = 2
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, trainer, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    assert load_checkpoint(tmp_path, trained(config, 0), refuse)


def test_a_run_goes_on_when_a_checkpoint_cannot_be_written(
    config: RSDRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = checkpoint._sync

    def full(path: Path) -> None:
        if "00000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path)

    monkeypatch.setattr(checkpoint, "_sync", full)
    config = config.model_copy(update={"steps": 3, "checkpoint": CheckpointConfig(every=1, keep=3)})
    result = train(config, out=tmp_path / "run")
    kept = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert kept == ["00000001", "00000003"]
    said = capsys.readouterr().out
    assert "no checkpoint at step 2" in said
    assert "No space left" in said


def test_what_a_killed_process_left_is_cleared_away(config: RSDRun, tmp_path: Path) -> None:
    torn = tmp_path / "checkpoints" / ".00000001-abc.tmp"
    torn.mkdir(parents=True)
    (torn / "student.safetensors").write_bytes(b"half")
    assert not load_checkpoint(tmp_path, trained(config, 0), refuse)
    save_checkpoint(tmp_path, trained(config, 1), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_a_checkpoint_of_other_networks_is_refused(config: RSDRun, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained(config, 1), keep=1)
    without_head = trained(config.model_copy(update={"terms": {"distillation": 1.0}}), 0)
    with pytest.raises(ValueError, match=r"expected the tensors of this run's fake in .*, got others"):
        load_checkpoint(tmp_path, without_head, refuse)


def test_the_manifest_tells_what_is_inside(config: RSDRun, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, trained(config, 2), keep=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["images_seen"], manifest["processes"]) == (1, 2, 12, 1)
    assert set(manifest["sha256"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
