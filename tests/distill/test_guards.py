"""A number that is not finite names its term and samples, leaves the weights alone and keeps the batch."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from distill.config import GuardConfig, RSDRun
from distill.guards import NonFiniteError
from distill.noise import SampleNoise
from distill.objectives.output import ObjectiveOutput, combine
from distill.run import train
from distill.tasks import build_task
from distill.trainer import Player, Trainer


def weights(player: Player) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in player.network.parameters()])


class Bad:
    """A term whose value or gradient is not finite while ``on`` is set."""

    def __init__(self, player: Player, value: float, *, gradient: bool) -> None:
        self.on = False
        self._plain, self._value, self._gradient = player.loss, value, gradient
        self._parameter = next(player.network.parameters())
        player.loss = self

    def __call__(self, data: object, noise: SampleNoise) -> ObjectiveOutput:
        output = self._plain(data, noise)
        values = torch.zeros(len(noise)) * self._parameter.sum()
        if self.on and self._gradient:
            values = values + (self._parameter.sum() * 0.0).square().sqrt()  # sqrt at 0: a fine value, no derivative
        elif self.on:
            values = values + torch.tensor([0.0] * (len(noise) - 1) + [self._value])
        return combine({**output.terms, "bad": values}, {**output.weights, "bad": 1.0}, output.metrics, output.times)


def spoiled(config: RSDRun, value: float = math.nan, *, gradient: bool = False) -> tuple[Trainer, Bad]:
    trainer = build_task(config).trainer
    return trainer, Bad(trainer.players[1], value, gradient=gradient)


@pytest.mark.parametrize(
    ("value", "gradient", "message"),
    [
        (math.nan, False, r"got nan in term 'bad' of samples 11 from student at step 1 \(images 10..11\)"),
        (math.inf, False, r"got inf in term 'bad' of samples 11 from student at step 1 \(images 10..11\)"),
        (0.0, True, r"got a gradient that is not finite of term 'bad' from student at step 1 \(images 10..11\)"),
    ],
)
def test_the_step_is_not_taken_and_the_culprit_is_named(
    rsd_run: RSDRun, tmp_path: Path, value: float, gradient: bool, message: str
) -> None:
    trainer, bad = spoiled(rsd_run, value, gradient=gradient)
    trainer.guard.folder = tmp_path / "nonfinite"
    trainer.run_step()
    student = trainer.players[1]
    assert student.ema is not None
    before, averaged = weights(student), torch.cat([p.flatten() for p in student.ema.module.parameters()])
    bad.on = True
    with pytest.raises(NonFiniteError, match=message) as caught:
        trainer.run_step()
    assert "guard.on_nonfinite=skip" in str(caught.value)
    assert torch.equal(weights(student), before)
    assert torch.equal(torch.cat([p.flatten() for p in student.ema.module.parameters()]), averaged)
    kept = tmp_path / "nonfinite" / "step-000001-student-rank0.safetensors"
    assert str(kept) in str(caught.value)
    tensors = load_file(kept)
    lr, hr = next(build_task(rsd_run).trainer.batches(10))
    assert torch.equal(tensors["batch_0"], lr)
    assert torch.equal(tensors["batch_1"], hr)
    assert tensors["indexes"].tolist() == [10, 11]
    with safe_open(kept, "pt") as file:
        assert {**file.metadata(), "found": ""} == {"player": "student", "step": "1", "seed": "0", "found": ""}


def test_the_right_micro_batch_is_named(rsd_run: RSDRun) -> None:
    trainer, bad = spoiled(rsd_run.model_copy(update={"micro_batch": 1}))
    plain = bad.__call__

    def second_only(data: object, noise: SampleNoise) -> ObjectiveOutput:
        bad.on = noise.layer_seed == SampleNoise(0, [5]).layer_seed
        return plain(data, noise)

    trainer.players[1].loss = second_only
    with pytest.raises(NonFiniteError, match=r"of samples 5 from student at step 0 \(images 5..5\)"):
        trainer.run_step()


def test_skipping_drops_the_update_and_goes_on(rsd_run: RSDRun) -> None:
    guard = GuardConfig(on_nonfinite="skip", max_skips=3)
    trainer, bad = spoiled(rsd_run.model_copy(update={"guard": guard}))
    student = trainer.players[1]
    before = weights(student)
    said: list[str] = []
    trainer.guard.say = said.append
    bad.on = True
    trainer.run_step()
    trainer.run_step()
    assert [line.startswith("skipped an update: expected a finite loss") for line in said] == [True, True]
    assert torch.equal(weights(student), before)
    assert (trainer.guard.skipped, trainer.guard.in_a_row["student"], trainer.images_seen) == (2, 2, 12)
    assert student.scheduler is not None
    assert student.scheduler.last_epoch == 0
    bad.on = False
    trainer.run_step()
    assert not torch.equal(weights(student), before)
    assert torch.isfinite(weights(student)).all()
    assert (trainer.guard.skipped, trainer.guard.in_a_row["student"]) == (2, 0)


def test_too_many_skips_in_a_row_end_the_run(rsd_run: RSDRun) -> None:
    guard = GuardConfig(on_nonfinite="skip", max_skips=2)
    trainer, bad = spoiled(rsd_run.model_copy(update={"guard": guard, "fake_updates": 1}))
    bad.on = True
    trainer.run_step()
    with pytest.raises(NonFiniteError, match="2 updates in a row were skipped"):
        trainer.run_step()


def test_a_run_says_where_the_batch_is(rsd_run: RSDRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.objectives import rsd

    plain = rsd.Distillation.__call__
    monkeypatch.setattr(
        rsd.Distillation, "__call__", lambda self, step: plain(self, step)._replace(values=plain(self, step).values / 0)
    )
    with pytest.raises(NonFiniteError, match=re.escape(str(tmp_path / "run" / "nonfinite"))):
        train(rsd_run, out=tmp_path / "run", quiet=True)
    assert len(list((tmp_path / "run" / "nonfinite").iterdir())) == 1
