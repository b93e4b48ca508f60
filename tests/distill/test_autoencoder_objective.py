"""Autoencoders with a codebook and a patch GAN: terms by their formulas, who learns from what, the codebook's care."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.codebook import CodebookKeeper, Seen, mean_codes
from distill.config import AutoencoderRun, CodebookConfig, GuardConfig, read_yaml, resolve, to_yaml
from distill.dry_run import plan
from distill.noise import SampleNoise
from distill.objectives import autoencoder as objective
from distill.objectives import terms
from distill.objectives.output import TermValue, WeightedTerm, weighted_sum
from distill.presets import vq
from distill.ranks import make_accelerator
from distill.run import train
from distill.tasks import build_task
from distill.trainer import Player, Trainer
from sr_models import AutoencoderConfig, VQAutoencoder, presets
from sr_models.store import load_autoencoder

CODES, BATCH, SCALE = 5, 3, 1.5
CONFIG = AutoencoderConfig(
    latent_channels=2,
    z_channels=2,
    base_channels=4,
    channel_multipliers=(1, 1),
    res_blocks=1,
    mid_attention=False,
    num_codes=CODES,
    norm_groups=2,
    latent_scale=SCALE,
)


def always() -> bool:
    return True


@pytest.fixture
def step() -> objective.QuantizedPass:
    """A pass in float64, with codes that lie among the encoder's outputs."""
    torch.manual_seed(0)
    network = VQAutoencoder(CONFIG).double()
    assert network.codebook is not None
    nn.init.normal_(network.codebook.weight, std=0.5)
    images = torch.rand(BATCH, 3, 8, 8, dtype=torch.float64) * 2 - 1
    return objective.QuantizedPass(network, images)


def weight_of(network: VQAutoencoder) -> Tensor:
    assert network.codebook is not None
    return network.codebook.weight


def chosen(step: objective.QuantizedPass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encoder outputs (B, h, w, C), the codebook, and the nearest rows, by brute force."""
    z = step.z.detach().numpy().transpose(0, 2, 3, 1) / SCALE
    codes = weight_of(step.network).detach().numpy()
    return z, codes, np.square(z[..., None, :] - codes).sum(-1).argmin(-1)


def gradients(value: Tensor, step: objective.AutoencoderPass) -> dict[str, Tensor]:
    """Gradients by name of the parameters that have one other than zero."""
    named = dict(step.network.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None and grad.any()}


def test_codebook_and_commitment_are_the_squared_distance_to_the_nearest_code(step: objective.QuantizedPass) -> None:
    z, codes, rows = chosen(step)
    assert len(np.unique(rows)) > 1
    wanted = np.square(z - codes[rows]).mean((1, 2, 3))
    for term in (objective.codebook, objective.commitment):
        np.testing.assert_allclose(term(step).values.detach(), wanted, rtol=1e-9)


def test_the_codebook_term_moves_the_codes_alone(step: objective.QuantizedPass) -> None:
    z, codes, rows = chosen(step)
    found = gradients(objective.codebook(step).values.mean(), step)
    assert set(found) == {"codebook.weight"}
    wanted = np.zeros_like(codes)
    np.add.at(wanted, rows, 2 * (codes[rows] - z) / z.size)
    np.testing.assert_allclose(found["codebook.weight"], wanted, rtol=1e-9, atol=1e-15)


def test_the_commitment_term_moves_the_encoder_alone(step: objective.QuantizedPass) -> None:
    z, codes, rows = chosen(step)
    value = objective.commitment(step).values.mean()
    assert {name.partition(".")[0] for name in gradients(value, step)} == {"encoder", "quant_conv"}
    (grad,) = torch.autograd.grad(value, step.outputs, retain_graph=True)
    np.testing.assert_allclose(grad.permute(0, 2, 3, 1), 2 * (z - codes[rows]) / z.size, rtol=1e-9)


def test_reconstruction_reads_the_codes_and_its_gradient_passes_straight_through(step: objective.QuantizedPass) -> None:
    _, codes, rows = chosen(step)
    z_q = torch.from_numpy(codes[rows]).permute(0, 3, 1, 2)
    decoded = step.network.decoder(step.network.post_quant_conv(z_q))
    np.testing.assert_allclose(step.pixels.detach(), decoded.detach(), rtol=1e-9)
    value = objective.l1(step).values.mean() + objective.mse(step).values.mean()
    assert {name.partition(".")[0] for name in gradients(value, step)} == {
        "encoder",
        "quant_conv",
        "post_quant_conv",
        "decoder",
    }
    before, behind = torch.autograd.grad(value, [step.outputs, step.quantized.z], retain_graph=True)
    assert behind.any()
    assert torch.equal(before, behind)


class Patches(nn.Module):
    """Logits of 2x2 patches, linear in the image."""

    def __init__(self, seed: int = 3, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(gain * torch.randn(1, 3, 2, 2, generator=generator).double())

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight, stride=2)

    def numpy(self, images: np.ndarray) -> np.ndarray:
        patches = images.reshape(BATCH, 3, 4, 2, 4, 2)
        return np.einsum("bcyixj,cij->byx", patches, self.weight[0].detach().numpy())


def distance(first: Tensor, second: Tensor) -> Tensor:
    """A stand-in for LPIPS."""
    return (first - second).abs().pow(1.5).mean((1, 2, 3))


def reconstruction() -> list[WeightedTerm[Any]]:
    """Weighted terms of L_rec."""
    lpips: Any = terms.LPIPS(distance)
    return [WeightedTerm("l1", 0.7, objective.Once(objective.l1)), WeightedTerm("lpips", 1.3, objective.Once(lpips))]


def norm_at_last_layer(loss: Callable[[Tensor, Tensor], Tensor], step: objective.QuantizedPass) -> float:
    """Norm of a loss' gradient for the last layer, from a pass of its own."""
    network = step.network
    network.zero_grad()
    loss(network.decode(network.encode(step.hr)), step.hr).backward()
    grad = network.decoder.conv_out.weight.grad
    assert grad is not None
    return grad.norm().item()


def test_the_gan_is_weighed_by_the_gradients_at_the_last_layer(step: objective.QuantizedPass) -> None:
    patches = Patches()
    of_reconstruction = norm_at_last_layer(
        lambda x, hr: 0.7 * (x - hr).abs().mean() + 1.3 * distance(x, hr).mean(), step
    )
    of_gan = norm_at_last_layer(lambda x, _: -patches(x).mean(), step)
    wanted = of_reconstruction / (of_gan + 1e-4)
    gan = objective.GeneratorGAN(patches, reconstruction(), always)
    output = weighted_sum(step, [*reconstruction(), WeightedTerm("gan", 0.75, gan)])
    assert output.metrics["gan_lambda"].item() == pytest.approx(wanted, rel=1e-6)
    logits = patches.numpy(step.pixels.detach().numpy())
    np.testing.assert_allclose(output.terms["gan"].detach(), -wanted * logits.mean((1, 2)), rtol=1e-6)
    parts = [output.terms["l1"].mean() * 0.7, output.terms["lpips"].mean() * 1.3, output.terms["gan"].mean() * 0.75]
    assert output.loss.item() == pytest.approx(sum(part.item() for part in parts))
    # The weight is a number: the gradient is that of -D times it, and of nothing else.
    found, plain = gradients(output.terms["gan"].mean(), step), gradients(-patches(step.pixels).mean(), step)
    assert found.keys() == plain.keys()
    assert all(torch.allclose(found[name], wanted * plain[name], rtol=1e-6) for name in found)


def test_a_discriminator_without_gradient_gets_the_largest_weight_and_no_more(step: objective.QuantizedPass) -> None:
    silent = Patches(gain=0.0)
    strong = [WeightedTerm("l1", 1e3, objective.Once(objective.l1))]
    metrics = objective.GeneratorGAN(silent, strong, always)(step).metrics
    assert metrics["gan_lambda"].item() == 1e4
    weak = [WeightedTerm("l1", 1e-3, objective.Once(objective.l1))]
    of_l1 = norm_at_last_layer(lambda x, hr: 1e-3 * (x - hr).abs().mean(), step)
    metrics = objective.GeneratorGAN(silent, weak, always)(step).metrics
    assert metrics["gan_lambda"].item() == pytest.approx(of_l1 / 1e-4, rel=1e-6)


def test_the_discriminators_loss_is_the_hinge_and_trains_it_alone(step: objective.QuantizedPass) -> None:
    patches = Patches()
    output = objective.DiscriminatorGAN(patches)(step)
    real, fake = patches.numpy(step.hr.numpy()), patches.numpy(step.pixels.detach().numpy())
    wanted = (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)).mean((1, 2)) / 2
    np.testing.assert_allclose(output.values.detach(), wanted, rtol=1e-9)
    right = np.concatenate([real > 0, fake < 0]).mean()
    assert output.metrics["gan_accuracy"].item() == pytest.approx(right)
    output.values.mean().backward()
    assert all(parameter.grad is None for parameter in step.network.parameters())
    images, generated = step.hr.unfold(2, 2, 2).unfold(3, 2, 2), step.pixels.unfold(2, 2, 2).unfold(3, 2, 2)
    pull = torch.einsum("byx,bcyxij->cij", torch.from_numpy((fake > -1) / 1.0), generated)
    push = torch.einsum("byx,bcyxij->cij", torch.from_numpy((real < 1) / 1.0), images)
    assert patches.weight.grad is not None
    assert torch.allclose(patches.weight.grad[0], (pull - push) / (2 * real.size))


def test_before_it_joins_the_gan_does_nothing(step: objective.QuantizedPass) -> None:
    value = objective.GeneratorGAN(Patches(), reconstruction(), lambda: False)(step)
    assert torch.equal(value.values, torch.zeros(BATCH, dtype=torch.float64))
    assert value.metrics == {}


def test_shared_terms_are_computed_once(step: objective.QuantizedPass) -> None:
    calls = []

    def counted(found: objective.AutoencoderPass) -> TermValue:
        calls.append(found)
        return objective.l1(found)

    shared = [WeightedTerm("l1", 1.0, objective.Once(counted))]
    weighted_sum(step, [*shared, WeightedTerm("gan", 1.0, objective.GeneratorGAN(Patches(), shared, always))])
    assert calls == [step]


# The codebook's care


@dataclass
class Several:
    """An accelerator's exchange in a process that knows what the others hold."""

    others: list[list[Seen]]

    def reduce(self, values: Tensor, how: str) -> Tensor:
        assert how == "sum"
        parts = [part for others in self.others for part in others]
        return values + torch.stack([torch.cat([p.counts[:, None], p.sums], 1) for p in parts]).sum(0)

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat([values, *(torch.stack([part.candidates for part in others]) for others in self.others)])


def keeper_of(codes: int, batch: int, **config: Any) -> CodebookKeeper:
    return CodebookKeeper(codes, 2, CodebookConfig(**config), batch)


def outputs_of(seed: int, count: int) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def nearest(z: Tensor, weight: Tensor) -> Tensor:
    return (z.permute(0, 2, 3, 1)[..., None, :] - weight).square().sum(-1).argmin(-1)


def see(keeper: CodebookKeeper, z: Tensor, weight: Tensor, first: int, size: int) -> None:
    """Show samples ``first`` to ``first + size`` of a batch."""
    part = z[first : first + size]
    keeper.see(part, nearest(part, weight), SampleNoise(0, range(first, first + size)))


def test_codes_as_averages_follow_the_recursion() -> None:
    decay, smoothing, codes = 0.8, 0.05, 6
    keeper = keeper_of(codes, 4, update="ema", decay=decay, smoothing=smoothing, revive_below=None)
    weight = torch.randn(codes, 2, generator=torch.Generator().manual_seed(9)) * 2
    usage, sums = np.zeros(codes), np.zeros((codes, 2))
    for update in range(4):
        z, wanted = outputs_of(update, 4), weight.numpy().astype(float).copy()
        rows = nearest(z, weight).numpy()
        keeper.begin()
        for first in (0, 2):
            see(keeper, z, weight, first, 2)
        keeper.update(weight, make_accelerator("cpu"))
        for code in range(codes):
            members = z.permute(0, 2, 3, 1).numpy()[rows == code]
            usage[code] = decay * usage[code] + (1 - decay) * len(members)
            sums[code] = decay * sums[code] + (1 - decay) * members.sum(0)
        for code in range(codes):
            if usage[code] > smoothing:
                smoothed = (usage[code] + smoothing) / (usage.sum() + codes * smoothing) * usage.sum()
                wanted[code] = sums[code] / smoothed
        np.testing.assert_allclose(weight, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(keeper.usage, usage, rtol=1e-5)
        assert torch.equal(keeper.last, torch.from_numpy(np.bincount(rows.ravel(), minlength=codes)).float())
    assert (keeper.usage > 0).sum() > 2


def test_a_code_that_fades_stays_where_it_is() -> None:
    usage, smoothing = torch.tensor([8.0, 1e-7]), 1e-5
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    codes = mean_codes(weight, usage, weight * usage[:, None], smoothing)
    torch.testing.assert_close(codes, weight, rtol=1e-4, atol=0)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_become_outputs_of_the_batch_and_live_ones_stay(update: str) -> None:
    codes, below = 8, 0.1
    keeper = keeper_of(codes, 4, update=update, decay=0.5, revive_below=below)
    weight = torch.cat([torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.full((3, 2), 50.0)])
    keeper.usage.copy_(torch.tensor([4.0, 4, 4, 4, 4, 4, 0.1, 0.0]))  # the sixth is not chosen now, but was of late
    if keeper.sums is not None:
        keeper.sums.copy_(weight * keeper.usage[:, None])
    z, before = outputs_of(0, 4), weight.clone()
    rows = nearest(z, weight)
    assert rows.max() < 5
    see(keeper, z, weight, 0, 4)
    keeper.update(weight, make_accelerator("cpu"))
    outputs = z.permute(0, 2, 3, 1).reshape(-1, 2)
    for code in (6, 7):
        assert (outputs == weight[code]).all(1).any()
    assert not torch.equal(weight[6], weight[7])
    counts = 0.5 * torch.bincount(rows.flatten(), minlength=codes)
    averaged = counts + torch.tensor([2.0, 2, 2, 2, 2, 2, 0.05, 0.0])
    assert torch.allclose(keeper.usage[6:], averaged.mean().expand(2))
    assert torch.allclose(keeper.usage[:6], averaged[:6])
    if keeper.sums is None:
        assert torch.equal(weight[:6], before[:6])
    else:
        assert torch.allclose(weight[5], before[5], rtol=1e-4)
        assert torch.allclose(keeper.sums[6:], weight[6:] * averaged.mean())


def test_few_dead_codes_take_outputs_of_many_samples() -> None:
    keeper = keeper_of(64, 4, revive_below=0.1)
    weight = torch.zeros(64, 2)
    keeper.usage.fill_(100.0)
    keeper.usage[10:13] = 0
    weight[:] = torch.arange(64)[:, None] + 100.0
    weight[0] = 0
    z = outputs_of(0, 4)
    see(keeper, z, weight, 0, 4)
    keeper.update(weight, make_accelerator("cpu"))
    for sample, code in enumerate((10, 11, 12)):
        assert (weight[code] == z[sample].flatten(1).T).all(1).any()


def test_candidates_of_a_sample_are_different_positions_of_it() -> None:
    keeper = keeper_of(24, 4)
    z = outputs_of(0, 4)
    see(keeper, z, torch.zeros(24, 2), 0, 4)
    (seen,) = keeper._seen
    assert seen.candidates.shape == (4, 6, 2)
    for sample, found in zip(z, seen.candidates, strict=True):
        assert len(found.unique(dim=0)) == 6
        assert all((place == sample.flatten(1).T).all(1).any() for place in found)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_neither_micro_batches_nor_processes_change_the_codebook(update: str) -> None:
    codes = 40
    found = []
    for split in ("whole", "halves", "processes"):
        keeper, weight = keeper_of(codes, 8, update=update), torch.randn(codes, 2, generator=torch.manual_seed(2)) * 3
        accelerator: Any = make_accelerator("cpu")
        for index in range(3):
            z = outputs_of(index, 8)
            keeper.begin()
            if split == "whole":
                see(keeper, z, weight, 0, 8)
            elif split == "halves":
                see(keeper, z, weight, 0, 4)
                see(keeper, z, weight, 4, 4)
            else:  # two micro-batches of two in each of two processes
                other = keeper_of(codes, 8, update=update)
                for part, first in ((keeper, 0), (other, 2), (keeper, 4), (other, 6)):
                    see(part, z, weight, first, 2)
                accelerator = Several([other._seen])
            keeper.update(weight, accelerator)
        found.append((weight, keeper.usage))
    for weight, usage in found[1:]:
        assert torch.equal(usage, found[0][1])
        assert torch.allclose(weight, found[0][0], atol=1e-6)


def test_usage_rises_with_revival() -> None:
    used = {}
    for below in (None, 0.1):
        keeper = keeper_of(64, 8, update="ema", revive_below=below)
        weight = (torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 64
        for index in range(20):
            keeper.begin()
            see(keeper, outputs_of(index, 8), weight, 0, 8)
            keeper.update(weight, make_accelerator("cpu"))
        used[below] = keeper.metrics()
    assert used[0.1]["codes_used"] > 1.5 * used[None]["codes_used"]
    assert used[0.1]["perplexity"] > 2 * used[None]["perplexity"]


def test_perplexity_counts_codes_that_are_used_alike() -> None:
    keeper = keeper_of(8, 4)
    assert {name: value.item() for name, value in keeper.metrics().items()} == {"codes_used": 0, "perplexity": 1}
    keeper.last.copy_(torch.tensor([5.0, 0, 5, 5, 0, 0, 0, 0]))
    metrics = keeper.metrics()
    assert metrics["codes_used"].item() == 3
    assert metrics["perplexity"].item() == pytest.approx(3)


# Runs


def codebook_of(player: Player) -> Tensor:
    found: Any = player.network
    weight: Tensor = found["autoencoder"].codebook.weight
    return weight.detach()


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything of the networks and averages, copied."""
    found = {}
    for player in trainer.players:
        modules = {"network": player.network, **({"ema": player.ema} if player.ema is not None else {})}
        for kind, module in modules.items():
            found |= {f"{player.name}/{kind}/{key}": value.clone() for key, value in module.state_dict().items()}
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def by_gradient(run: AutoencoderRun) -> AutoencoderRun:
    return run.model_copy(update={"terms": {**run.terms, "codebook": 1.0}, "codebook": CodebookConfig(decay=0.9)})


def changed_by(trainer: Trainer, name: str) -> set[str]:
    """Which networks one update of a player changes."""
    before = state(trainer)
    player = next(player for player in trainer.players if player.name == name)
    trainer._activate(player)
    trainer._update(player)
    after = state(trainer)
    return {"/".join(key.split("/")[:2]) for key in before if not torch.equal(before[key], after[key])}


def test_each_player_learns_from_its_own_loss_alone(vq_run: AutoencoderRun) -> None:
    trainer = build_task(vq_run).trainer
    assert [player.name for player in trainer.players] == ["discriminator", "autoencoder"]
    assert changed_by(trainer, "discriminator") == {"discriminator/network"}
    assert changed_by(trainer, "autoencoder") == {"autoencoder/network", "autoencoder/ema"}


def test_the_gan_joins_after_its_start(vq_run: AutoencoderRun) -> None:
    optimizer = vq_run.optimizer.model_copy(update={"weight_decay": 0.5})  # would shrink one that waits
    late = vq_run.model_copy(update={"gan": vq_run.gan.model_copy(update={"start": 2}), "optimizer": optimizer})
    trainer = build_task(late).trainer
    fresh = state(trainer)
    for step in range(3):
        logged = trainer.run_step().means()
        assert (logged["autoencoder/term/gan"] != 0) == (step == 2)
        assert ("discriminator/loss" in logged) == (step == 2)
        assert trainer.images_seen == (step + 1 + (step == 2)) * late.batch_size
        assert ("autoencoder/gan_lambda" in logged) == (step == 2)
        now = state(trainer)
        untouched = all(torch.equal(now[key], fresh[key]) for key in now if key.startswith("discriminator"))
        assert untouched == (step < 2)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_micro_batches_do_not_change_what_the_codebook_becomes(vq_run: AutoencoderRun, kind: str) -> None:
    # Without the GAN, whose adaptive weight belongs to a micro-batch.
    run = vq_run if kind == "ema" else by_gradient(vq_run)
    terms_left = {name: weight for name, weight in run.terms.items() if name != "gan"}
    found = []
    for micro in (4, 1):
        task = build_task(run.model_copy(update={"terms": terms_left, "batch_size": 4, "micro_batch": micro}))
        for _ in range(2):
            logged = task.trainer.run_step().means()
        (player,) = task.trainer.players
        found.append((player.network.state_dict()["keeper.usage"], codebook_of(player), logged))
    (usage, weight, logged), (other_usage, other_weight, other_logged) = found
    assert torch.equal(usage, other_usage)
    assert torch.allclose(weight, other_weight, atol=1e-5)
    assert logged["autoencoder/codes_used"] == other_logged["autoencoder/codes_used"]
    assert logged["autoencoder/perplexity"] == pytest.approx(other_logged["autoencoder/perplexity"])


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_a_skipped_update_leaves_no_trace(vq_run: AutoencoderRun, kind: str) -> None:
    run = (vq_run if kind == "ema" else by_gradient(vq_run)).model_copy(
        update={"guard": GuardConfig(on_nonfinite="skip")}
    )
    trainer = build_task(run).trainer
    player = trainer.players[-1]
    trainer.run_step()
    before, loss = state(trainer), player.loss

    def bad(data: Any, noise: SampleNoise) -> Any:
        output = loss(data, noise)
        return replace(output, loss=output.loss * float("nan"))

    player.loss = bad
    assert changed_by(trainer, "autoencoder") == set()
    assert trainer.guard.skipped == 1
    assert same(state(trainer), before)
    player.loss = loss
    changed_by(trainer, "autoencoder")
    assert player.network.state_dict()["keeper.last"].sum() == run.batch_size * (32 // 4) ** 2  # this update's alone


def test_codes_as_averages_are_out_of_the_optimizers_sight(vq_run: AutoencoderRun) -> None:
    for run, learned in ((vq_run, False), (by_gradient(vq_run), True)):
        player = build_task(run).trainer.players[-1]
        names = [name for name, _ in player.network.named_parameters()]
        assert ("autoencoder.codebook.weight" in names) == learned
        assert "autoencoder.codebook.weight" in player.network.state_dict()


def test_the_averaged_network_has_the_codes_of_this_update(vq_run: AutoencoderRun) -> None:
    trainer = build_task(vq_run).trainer
    for _ in range(2):
        trainer.run_step()
        found = state(trainer)
        key = "autoencoder.codebook.weight"
        assert torch.equal(found[f"autoencoder/ema/module.{key}"], found[f"autoencoder/network/{key}"])


def test_a_code_that_moved_starts_anew_in_average_and_optimizer(vq_run: AutoencoderRun) -> None:
    trainer = build_task(by_gradient(vq_run)).trainer
    player, key = trainer.players[-1], "autoencoder.codebook.weight"
    trainer.run_step()
    networks: Any = player.network
    weight, keeper = networks["autoencoder"].codebook.weight, networks["keeper"]
    live = int(keeper.last.argmax())
    keeper.usage.fill_(1.0)
    keeper.usage[live], keeper.usage[3 - (live == 3)] = 9.0, 0.0
    dead = 3 - int(live == 3)
    with torch.no_grad():
        weight[dead] = 50.0  # chosen by nothing
        for moment in ("exp_avg", "exp_avg_sq"):
            player.optimizer.state[weight][moment][dead] = 1.0  # of a time when it was chosen
    before = weight.detach().clone()
    trainer.run_step()
    average = state(trainer)[f"autoencoder/ema/module.{key}"]
    assert not torch.equal(weight[dead], before[dead])
    assert torch.equal(average[dead], weight[dead])
    assert not torch.equal(average[live], weight[live])
    moments = player.optimizer.state[weight]
    assert not moments["exp_avg"][dead].any()
    assert not moments["exp_avg_sq"][dead].any()
    assert moments["exp_avg"][live].any()


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_a_continued_run_has_the_same_bits(vq_run: AutoencoderRun, kind: str, tmp_path: Path) -> None:
    run = (vq_run if kind == "ema" else by_gradient(vq_run)).model_copy(
        update={"gan": vq_run.gan.model_copy(update={"start": 3})}
    )
    whole, first, second = (build_task(run).trainer for _ in range(3))
    for _ in range(4):
        whole.run_step()
    for _ in range(2):
        first.run_step()
    save_checkpoint(tmp_path, first, keep=1)
    assert load_checkpoint(tmp_path, second, pytest.fail)
    for _ in range(2):
        second.run_step()
    assert same(state(whole), state(second))
    assert state(second)["autoencoder/network/keeper.usage"].any()


def test_weights_of_the_discriminator_are_its_own(vq_run: AutoencoderRun) -> None:
    with_gan, again = (state(build_task(vq_run).trainer) for _ in range(2))
    without = vq_run.model_copy(update={"terms": {"l1": 1.0}})
    alone = state(build_task(without).trainer)
    other = state(build_task(vq_run.model_copy(update={"seed": 1})).trainer)
    assert same(with_gan, again)
    assert all(torch.equal(value, with_gan[key]) for key, value in alone.items())
    key = "discriminator/network/logits.weight"
    assert not torch.equal(with_gan[key], other[key])


def test_a_run_with_a_codebook_leaves_its_folder(vq_run: AutoencoderRun, tmp_path: Path) -> None:
    config = vq_run.model_copy(update={"steps": 3, "tracker": "none"})
    result = train(config, out=tmp_path / "run", quiet=True)
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        "autoencoder/codes_used",
        "autoencoder/perplexity",
        "autoencoder/gan_lambda",
        "discriminator/gan_accuracy",
    }
    assert all(wanted <= set(record) for record in records)
    assert records[-1]["autoencoder/codes_used"] > 1
    assert 1 < records[-1]["autoencoder/perplexity"] <= records[-1]["autoencoder/codes_used"]
    autoencoder = load_autoencoder(result.model)
    assert autoencoder.config == config.model.autoencoder  # the scale stays 1
    assert set(result.after.rows) == {"autoencoder"}
    decoded = autoencoder.decode(autoencoder.encode(result.after.pictures["HR"])).clamp(-1, 1)
    assert torch.allclose(decoded, result.after.pictures["autoencoder"], atol=1e-4)


def test_crops_too_small_for_the_discriminator_are_refused(vq_run: AutoencoderRun) -> None:
    large = vq_run.gan.model_copy(update={"layers": 4})
    with pytest.raises(
        ValueError, match=r"expected data\.hr_size of at least 48 for 4 layers .*, got 32; set gan\.lay"
    ):
        build_task(vq_run.model_copy(update={"gan": large}))


def test_presets_are_what_they_say(tmp_path: Path) -> None:
    published, small = vq.vq_f4(), vq.tiny_vq()
    assert published.model == presets.x4()
    assert published.terms == {"l1": 1, "lpips": 1, "codebook": 1, "commitment": 0.25, "gan": 0.75}
    assert published.optimizer.lr == pytest.approx(4.5e-6 * published.batch_size)
    assert (published.optimizer.betas, published.optimizer.weight_decay) == ((0.5, 0.9), 0)
    assert (published.gan.start, published.gan.base_channels, published.gan.layers) == (0, 64, 3)
    assert (published.data.hr_size, published.codebook.update, published.sigma) == (256, "gradient", None)
    assert small.model.autoencoder.num_codes == 1024
    assert small.gan.start < small.steps
    for config in (published, small):
        path = tmp_path / f"{config.preset}.yaml"
        path.write_text(to_yaml(config))
        assert resolve(config, [read_yaml(path)]) == config


def test_a_dry_run_forecasts_both_players(vq_run: AutoencoderRun) -> None:
    found = plan(vq_run)
    assert found.updates == {"discriminator": 2, "autoencoder": 2}
    assert found.memory.tensor_bytes > 0
    late = plan(vq_run.model_copy(update={"gan": vq_run.gan.model_copy(update={"start": 2}), "steps": 3}))
    assert late.updates == {"discriminator": 1, "autoencoder": 3}
    assert late.images == 4 * vq_run.batch_size
    assert late.memory.tensor_bytes == found.memory.tensor_bytes  # the peak is that of the time after the start
