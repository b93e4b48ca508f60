"""The training loop on linear layers: who trains when, on which numbers, and what the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.config import OptimizerConfig, RSDRun
from distill.noise import SampleNoise
from distill.objectives.output import ObjectiveOutput, combine
from distill.tasks import build_task
from distill.tasks.common import make_scheduler
from distill.trainer import Player, Trainer

SIZE = 3


def batches(start: int) -> Iterator[Tensor]:
    for number in count(start // SIZE):
        yield torch.full((SIZE, 2), float(number))


def mean_output(values: Tensor) -> ObjectiveOutput:
    return combine({"error": values}, {"error": 1.0})


def squared_error(network: nn.Module, data: Tensor, noise: SampleNoise) -> ObjectiveOutput:
    return mean_output((network(data + noise.normal(data.shape[1:])) - 1).square().mean(1))


def player(name: str, updates: int = 1, lr: float = 0.01) -> Player:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    return Player(name, network, optimizer, lambda data, g: squared_error(network, data, g), updates=updates)


def same(data: Tensor, indexes: range) -> Tensor:
    return data


def weights(network: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_players_take_turns_and_the_others_are_frozen() -> None:
    fake, student = player("fake", updates=3), player("student")
    seen: list[tuple[str, float]] = []

    def watched(me: Player, other: Player) -> None:
        plain = me.loss

        def loss(data: Tensor, noise: SampleNoise) -> ObjectiveOutput:
            assert me.network.training
            assert all(parameter.requires_grad for parameter in me.network.parameters())
            assert not other.network.training
            assert not any(parameter.requires_grad for parameter in other.network.parameters())
            seen.append((me.name, data[0, 0].item()))
            return plain(data, noise)

        me.loss = loss

    watched(fake, student)
    watched(student, fake)
    trainer = Trainer([fake, student], batches, same, seed=0)
    metrics = trainer.run_step()
    trainer.run_step()
    turn = ["fake", "fake", "fake", "student"]
    assert seen == [(name, float(number)) for number, name in enumerate(turn * 2)]  # every update has its own batch
    assert set(metrics.means()) == {
        f"{name}/{key}" for name in ("fake", "student") for key in ("loss", "term/error", "grad_norm")
    } | {"seconds/fake", "seconds/student", "seconds/data"}
    assert trainer.step == 2
    assert trainer.images_seen == 2 * 4 * 3


def test_a_turn_changes_its_own_network_only() -> None:
    fake, student = player("fake"), player("student", lr=0.0)
    before = weights(student.network)
    Trainer([fake, student], batches, same, seed=0).run_step()
    assert torch.equal(weights(student.network), before)
    assert not torch.equal(weights(fake.network), before)


def test_prepare_runs_without_gradients_and_feeds_the_loss() -> None:
    one = player("one")
    seen: list[Tensor] = []

    def prepare(batch: tuple[Tensor, Tensor], indexes: range) -> Tensor:
        assert indexes == range(3)
        assert not torch.is_grad_enabled()
        return batch[0] + batch[1]

    def loss(data: Tensor, noise: SampleNoise) -> ObjectiveOutput:
        assert torch.is_grad_enabled()
        seen.append(data)
        return squared_error(one.network, data, noise)

    one.loss = loss
    pairs = ((torch.ones(3, 2), torch.full((3, 2), 4.0)) for _ in count())
    trainer = Trainer([one], lambda start: pairs, prepare, seed=0)
    trainer.run_step()
    assert torch.equal(seen[0], torch.full((3, 2), 5.0))
    assert trainer.images_seen == 3


def test_every_update_draws_its_own_noise_from_seed_and_images_seen() -> None:
    def noise(seed: int, steps: int) -> list[Tensor]:
        one = player("one", updates=2)
        drawn: list[Tensor] = []

        def loss(data: Tensor, noise: SampleNoise) -> ObjectiveOutput:
            drawn.append(noise.normal((4,))[0])
            return squared_error(one.network, data, noise)

        one.loss = loss
        trainer = Trainer([one], batches, same, seed=seed)
        for _ in range(steps):
            torch.manual_seed(len(drawn))  # the global generator must not matter
            trainer.run_step()
        return drawn

    first, again, other = noise(1, 2), noise(1, 2), noise(2, 2)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = [*first, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


def weights_after(run: RSDRun, steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(torch.initial_seed() + 1)  # the global generator must not matter
    trainer = build_task(run).trainer
    for _ in range(steps):
        trainer.run_step()
    fake, student = (weights(p.network) for p in trainer.players)
    return fake, student


def test_same_seed_same_weights(rsd_run: RSDRun) -> None:
    first, again = weights_after(rsd_run, 3), weights_after(rsd_run, 3)
    other = weights_after(rsd_run.model_copy(update={"seed": 1}), 3)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_harms(bad: float) -> None:
    fake, student = player("fake"), player("student")
    plain = student.loss
    trainer = Trainer([fake, student], batches, same, seed=0)
    trainer.run_step()
    student.loss = lambda data, noise: mean_output(plain(data, noise).loss.expand(3) * bad)
    before = weights(student.network)
    with pytest.raises(
        ValueError,
        match=r"got (nan|inf) in term 'error' of samples 9, 10, 11 from student at step 1",
    ):
        trainer.run_step()
    assert torch.equal(weights(student.network), before)


def test_ema_is_the_recursion_that_starts_at_the_first_update() -> None:
    one = player("one", lr=0.1)
    one.ema = AveragedModel(one.network, multi_avg_fn=get_ema_multi_avg_fn(0.75))  # type: ignore[no-untyped-call]
    trainer = Trainer([one], batches, same, seed=0)
    history = []
    for _ in range(4):
        trainer.run_step()
        history.append(weights(one.network))
    wanted = 0.75**3 * history[0] + 0.25 * (0.75**2 * history[1] + 0.75 * history[2] + history[3])
    assert torch.allclose(weights(one.ema.module), wanted, atol=1e-7)


def test_the_student_is_averaged_with_the_configured_decay(rsd_run: RSDRun) -> None:
    fake, student = build_task(rsd_run.model_copy(update={"ema_decay": 0.5})).trainer.players
    assert fake.ema is None
    assert student.ema is not None
    values = iter([1.0, 3.0])
    for _ in range(2):
        with torch.no_grad():
            value = next(values)
            for parameter in student.network.parameters():
                parameter.fill_(value)
        student.ema.update_parameters(student.network)
    assert all(torch.allclose(p, torch.full_like(p, 2.0)) for p in student.ema.module.parameters())


@pytest.mark.parametrize(("clip_norm", "length"), [(0.5, 0.5), (None, None), (1e9, None)])
def test_gradients_are_clipped_to_the_norm(clip_norm: float | None, length: float | None) -> None:
    one = player("one", lr=1.0)
    before = weights(one.network)
    metrics = Trainer([one], batches, same, seed=0, clip_norm=clip_norm).run_step()
    moved = weights(one.network) - before
    norm = metrics.means()["one/grad_norm"]  # as measured, before clipping
    assert norm > 0.5
    assert moved.norm().item() == pytest.approx(length or norm, rel=1e-4)


def test_gradients_do_not_add_up_over_updates() -> None:
    several, last = player("one", updates=3, lr=0.0), player("one", lr=0.0)
    Trainer([several], batches, same, seed=0).run_step()
    Trainer([last], batches, same, seed=0, images_seen=6).run_step()  # the third of these updates alone
    gradients = [one.network.weight.grad for one in (several, last)]
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("kind", "warmup", "wanted"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 3, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("cosine", 0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]),
        ("cosine", 1, [0.5, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    ],
)
def test_learning_rate_schedule(kind: str, warmup: int, wanted: list[float]) -> None:
    config = OptimizerConfig.model_validate({"lr": 2.0, "schedule": kind, "warmup_steps": warmup})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, steps=4)
    rates = []
    for _ in wanted:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2 * factor for factor in wanted], abs=1e-6)


def test_each_player_ends_its_own_schedule_with_the_run(rsd_run: RSDRun) -> None:
    cosine = OptimizerConfig(lr=1.0, betas=(0.5, 0.6), weight_decay=0.1, schedule="cosine")
    trainer = build_task(rsd_run.model_copy(update={"optimizer": cosine})).trainer
    assert [(p.name, p.updates) for p in trainer.players] == [("fake", 2), ("student", 1)]
    for p in trainer.players:
        group = p.optimizer.param_groups[0]
        assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.1)
        p.loss = lambda data, noise, net=p.network: mean_output(
            sum(w.square().sum() for w in net.parameters()).expand(2)  # type: ignore[union-attr]
        )
    trainer.run_step()
    assert [p.optimizer.param_groups[0]["lr"] for p in trainer.players] == pytest.approx([0.5, 0.5], abs=1e-6)
    trainer.run_step()
    assert [p.optimizer.param_groups[0]["lr"] for p in trainer.players] == pytest.approx([0, 0], abs=1e-6)
