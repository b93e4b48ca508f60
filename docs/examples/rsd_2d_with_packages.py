"""The method of one_page_rsd.py through the packages: how RSD is put to work on a problem of one's own.

What the library needs to know is a schedule, batches, and networks that fit the Protocol `Predictor`. Points of the
plane become latents (B, 2, 1, 1), as any data can that have channels and two more dimensions. Data, network, figures
and picture are those of one_page_rsd.py; schedule, losses and loop are the library's, without GAN and LPIPS terms.

    python rsd_2d_with_packages.py --out rsd-2d-with-packages.png
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import one_page_rsd as page
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.noise import SampleNoise
from distill.objectives import resshift, rsd
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.trainer import Player, Trainer
from resshift_core import ResShiftSchedule
from sr_data.datasets import make_generator

SCHEDULE = ResShiftSchedule.exponential(num_steps=page.T, kappa=page.KAPPA)
# The trainer has a generator for each sample, which costs more than this network: 512 would be 4 times slower.
BATCH = 128
DATA_STREAM = 5 << 32  # added to the seed, so that data and training noise are unrelated
TEACHER_TERMS = [WeightedTerm("x_0", 1.0, resshift.Denoising())]  # Eq. 5
STUDENT_TERMS = [WeightedTerm("distillation", 1.0, rsd.Distillation(normalize=True))]  # Eq. 7; more terms: Eq. 9
FAKE_TERMS = [WeightedTerm("x_0", 1.0, rsd.fake_mse)]  # Eq. 5


@dataclass(frozen=True)
class PointPredictor:
    """A network on points as the objectives call it: latents (B, 2, 1, 1), eps (B, 1, 1, 1).

    Teacher, fake model and student are all this, with different networks.
    """

    network: nn.Module
    schedule: ResShiftSchedule = SCHEDULE

    def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Predict z_0 from z_t, y_0 and the paper's t, (B,)."""
        eps = None if noise is None else noise.flatten(1)
        prediction: Tensor = self.network(z_t.flatten(1), lr.flatten(1), t, eps)
        return prediction.view_as(z_t)


def batches(seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of pairs from sample number ``start`` on: a pure function of the two, so runs can be resumed."""
    while True:
        yield page.sample_pairs(BATCH, make_generator(seed + DATA_STREAM, start))
        start += BATCH


def as_latents(pairs: tuple[Tensor, Tensor], indexes: range) -> Latents:
    """Return the pairs as the objectives read them; the network sees y_0 itself in the place of an LR image."""
    x_0, y_0 = (points[:, :, None, None] for points in pairs)
    return Latents(lr=y_0, hr=x_0, z_y=y_0, z_0=x_0)


def make_player(
    name: str, network: nn.Module, loss: Callable[[Any, SampleNoise], ObjectiveOutput], updates: int = 1
) -> Player:
    """Give a network its optimizer and its moving average."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(page.EMA)).requires_grad_(False)
    return Player(name, network, page.AdamW(network.parameters()), loss, updates=updates, ema=average)


def train_teacher(steps: int, seed: int) -> page.Network:
    """Train f* on the data: a trainer with one player (Eq. 5)."""
    network = page.Network(make_generator(seed, 0))
    predictor = PointPredictor(network)

    def loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws = resshift.draw(SCHEDULE, latents, noise)
        return weighted_sum(resshift.TeacherPass(predictor, latents, draws, decode=lambda z: z), TEACHER_TERMS)

    player = make_player("teacher", network, loss)
    player.optimizer = page.AdamW(network.parameters(), lr=2 * page.LR)
    player.scheduler = CosineAnnealingLR(player.optimizer, steps)
    trainer = Trainer([player], partial(batches, seed), as_latents, seed)
    for step in range(1, steps + 1):
        metrics = trainer.run_step().means()
        if step % max(1, steps // 5) == 0:
            print(f"teacher, step {step}: loss {metrics['teacher/loss']:.4f}", flush=True)
    return network.requires_grad_(False)


def make_distillation(teacher: page.Network, times: tuple[int, ...], seed: int) -> tuple[Trainer, AveragedModel]:
    """Put Algorithm 1 together: two players, copies of the teacher; also return the student's moving average."""
    student, fake = copy.deepcopy(teacher), copy.deepcopy(teacher)  # the network has its input for eps already
    f_star, f_phi, g = PointPredictor(teacher), PointPredictor(fake), PointPredictor(student)

    def fake_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws = rsd.draw(SCHEDULE, times, latents, noise)
        return weighted_sum(rsd.FakePass(f_phi, g, latents, draws), FAKE_TERMS)

    def student_loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws = rsd.draw(SCHEDULE, times, latents, noise)
        return weighted_sum(rsd.StudentPass(g, f_phi, f_star, latents, draws, decode=lambda z: z), STUDENT_TERMS)

    players = [
        make_player("fake", fake, fake_loss, updates=page.FAKE_UPDATES),
        make_player("student", student, student_loss),
    ]
    trainer = Trainer(players, partial(batches, seed), as_latents, seed)
    assert players[1].ema is not None
    return trainer, players[1].ema


@torch.no_grad()
def sample(network: nn.Module, y_0: Tensor, calls: int, rng: torch.Generator) -> Tensor:
    """Walk from the prior towards x_0 by the posterior; after the given network calls take its x_0 (Eq. 2 - 4)."""
    predictor, z_y = PointPredictor(network), y_0[:, :, None, None]
    z_t = SCHEDULE.prior(z_y).sample(torch.randn(z_y.shape, generator=rng))
    for step in range(SCHEDULE.num_steps, SCHEDULE.num_steps - calls, -1):
        t, eps = torch.full((len(y_0),), step), torch.randn(len(y_0), 1, 1, 1, generator=rng)
        z_0 = predictor(z_t, z_y, t, eps)
        z_t = SCHEDULE.posterior(z_t, z_0, t).sample(torch.randn(z_y.shape, generator=rng))
    return z_0.flatten(1)


def main() -> None:
    """Train the teacher, distil it, measure both, draw."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=600, help="student updates; four times as many of the teacher")
    options.add_argument("--times", type=int, nargs="+", default=[page.T], help="the student's t_1 .. t_N = T")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", default="rsd-2d-with-packages.png")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rng = make_generator(chosen.seed, 1)  # of the measurements
    (x_0, y_0), true = page.sample_pairs(4000, rng), torch.cat(page.sample_pairs(4000, rng), 1)
    panels = {"x_0": x_0, "y_0, and its way to x_0": y_0}

    def measure(name: str, x: Tensor) -> float:
        panels[name] = x
        return page.energy_distance(torch.cat((x, y_0), 1), true)

    teacher = train_teacher(4 * chosen.steps, chosen.seed)
    levels = {
        "teacher, 15 steps": measure("teacher, 15 steps", sample(teacher, y_0, page.T, rng)),
        "teacher, 1 step": measure("teacher, 1 step", sample(teacher, y_0, 1, rng)),
    }
    for name, distance in levels.items():
        print(f"{name}: energy distance {distance:.4f}", flush=True)
    trainer, student = make_distillation(teacher, tuple(chosen.times), chosen.seed)
    curve = []
    for step in range(1, chosen.steps + 1):
        metrics = trainer.run_step().means()
        if step % max(1, chosen.steps // 20) == 0:
            curve.append((step, measure("student, 1 step", sample(student.module, y_0, 1, rng))))
            numbers = f"fake_lag {metrics['student/fake_lag']:.3f}, Eq. 7 {metrics['student/loss']:+.4f}"
            print(f"student, 1 step, update {step}: energy distance {curve[-1][1]:.4f}; {numbers}", flush=True)
    page.draw(chosen.out, panels, y_0, curve, **levels)


if __name__ == "__main__":
    main()
