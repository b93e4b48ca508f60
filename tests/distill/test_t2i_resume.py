"""A text-to-image run that is continued from a checkpoint ends like one that never stopped."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.config import TSDRun, resolve
from distill.presets import preset
from distill.tasks import build_task

SMALL = {
    "steps": 3,
    "batch_size": 2,
    "data": {"workers": 0, "image_size": 64},
    "validation": {"images": 1, "hr_size": 64},
    "schedule": {"latent_mse_until": 1, "dasm_from": 2},
    "rank": 2,
    "vae_rank": 2,
    "fake_rank": 2,
}


def small() -> TSDRun:
    run = resolve(preset("tsd", "tiny"), [SMALL])
    assert isinstance(run, TSDRun)
    return run


def state(task: object) -> dict[str, torch.Tensor]:
    players = {player.name: player for player in task.trainer.players}  # type: ignore[attr-defined]
    assert players["student"].ema is not None
    averaged = {f"ema {name}": value for name, value in players["student"].ema.state_dict().items()}
    own = {f"{key} {name}": value for key in players for name, value in players[key].network.state_dict().items()}
    return {name: value.clone() for name, value in {**own, **averaged}.items()}


def test_continued_runs_are_the_same_to_the_bit(tmp_path: Path) -> None:
    """The phases, which depend on the step, go on too: the checkpoint lies between them."""
    whole, other = build_task(small()), build_task(small())
    for _ in range(2):
        whole.trainer.run_step()
    folder = save_checkpoint(tmp_path, whole.trainer, keep=1)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size < 3e6, "a checkpoint holds adapters, not the base"
    assert load_checkpoint(tmp_path, other.trainer, print)
    assert other.trainer.step == 2
    for task in (whole, other):
        metrics = task.trainer.run_step().means()
        assert "student/term/latent_mse" not in metrics
    first, second = state(whole), state(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any("lora_B" in name and bool(value.any()) for name, value in first.items())
