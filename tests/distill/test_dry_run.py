"""A dry run tells what a run would do, and does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.config import RSDRun, TeacherRun
from distill.dry_run import plan
from distill.perceptual import BACKBONES
from distill.presets import preset
from distill.tasks import build_task
from sr_models.layers import count_parameters


def test_the_plan_of_a_run(rsd_run: RSDRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = rsd_run.model_copy(
        update={"terms": {"distillation": 1.0, "gan": 0.1}, "steps": 7, "batch_size": 6, "micro_batch": 2}
    )
    found = plan(config)
    players = build_task(config).trainer.players
    assert found.parameters == {player.name: count_parameters(player.network) for player in players}
    assert found.updates == {"fake": 14, "student": 7}
    assert (found.images, found.accumulate, found.processes) == (21 * 6, 3, 1)
    assert found.missing == ()
    assert found.device == torch.device("cpu")
    assert 0 < found.memory.tensor_bytes < found.memory.total_bytes
    assert list(tmp_path.iterdir()) == []


def test_other_tasks_have_plans_too(teacher_run: TeacherRun) -> None:
    found = plan(teacher_run)
    assert found.updates == {"teacher": 2}
    assert found.images == 4


def test_the_published_run_is_planned_where_nothing_of_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = preset("rsd", "rsd-paper")
    data = published.data.model_copy(update={"workers": 0})
    # One small micro-batch: the size of the networks is what counts here.
    small = {"device": "cpu", "batch_size": 1, "micro_batch": 1, "data": data, "autoencoder_dtype": None}
    validation = published.validation.model_copy(update={"images": 1, "hr_size": 64})
    found = plan(published.model_copy(update={**small, "validation": validation}))
    assert found.updates == {"fake": 15000, "student": 3000}  # RSD Appendix C
    assert found.parameters["student"] == 118_593_583 + 9 * 160  # facts of the published network + the noise stem
    assert found.parameters["fake"] > 118_593_583
    lpips, teacher = found.missing
    assert "no 'teacher' here: networks of the published size" in teacher
    assert BACKBONES["vgg"].file in lpips
    assert "lpips.backbone=FILE" in lpips
    assert found.memory.tensor_bytes > 16 * 118_593_583  # weights and moments of one player alone
    assert list(tmp_path.iterdir()) == []
