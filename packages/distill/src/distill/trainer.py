"""One training loop for all objectives. Players are data: a network, its optimizer and its loss.

A step is one turn of every player, in order; a player may update several times a turn (RSD's fake model: K times). All
randomness of an update comes from a generator that belongs to (seed, images seen).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from distill.objectives.output import ObjectiveOutput
from sr_data.datasets import make_generator

NOISE_STREAM = 1 << 32
"""Added to the run's seed for training noise, so that it is unrelated to the data's."""


@dataclass
class Player:
    """A network that a run trains.

    Args:
        name: prefix of its metrics.
        network: trainable; while another player is at turn it is frozen and in eval mode.
        optimizer: of the network's parameters.
        loss: from the prepared batch and a generator to the objective's output.
        updates: optimizer steps in one turn.
        scheduler: learning-rate schedule, stepped after each update.
        ema: exponential moving average of the network, updated after each update.
    """

    name: str
    network: nn.Module
    optimizer: Optimizer
    loss: Callable[[Any, torch.Generator], ObjectiveOutput]
    updates: int = 1
    scheduler: LRScheduler | None = None
    ema: AveragedModel | None = None


@dataclass
class Trainer:
    """Runs the players.

    Args:
        players: in the order of their turns.
        batches: endless training batches, each a tensor or tuple of tensors with the batch first.
        prepare: from a raw batch to what the players' losses read (for example latents), without gradients.
        seed: of the training noise.
        device: where to compute.
        bf16: run networks under bfloat16 autocast.
        clip_norm: gradient norms are clipped to this; None: measured only.
    """

    players: list[Player]
    batches: Iterator[Any]
    prepare: Callable[[Any], Any]
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False
    clip_norm: float | None = None
    images_seen: int = 0
    step: int = 0

    def run_step(self) -> Mapping[str, float]:
        """Let every player take its turn; return the metrics of each player's last update."""
        metrics: dict[str, float] = {}
        for player in self.players:
            self._activate(player)
            for _ in range(player.updates):
                last = self._update(player)
            metrics.update({f"{player.name}/{key}": value for key, value in last.items()})
        self.step += 1
        return metrics

    def _activate(self, player: Player) -> None:
        for other in self.players:
            other.network.requires_grad_(other is player).train(other is player)

    def _update(self, player: Player) -> dict[str, float]:
        batch = _to(next(self.batches), self.device)
        generator = make_generator(self.seed + NOISE_STREAM, self.images_seen)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                data = self.prepare(batch)
            output = player.loss(data, generator)
        if not torch.isfinite(output.loss):
            raise ValueError(
                f"expected a finite loss, got {output.loss.item()} from {player.name} at step {self.step} "
                f"({self.images_seen} images seen); lower its learning rate or use fp32"
            )
        player.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()  # type: ignore[no-untyped-call]
        limit = self.clip_norm if self.clip_norm is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(player.network.parameters(), limit)
        player.optimizer.step()
        if player.scheduler is not None:
            player.scheduler.step()
        if player.ema is not None:
            player.ema.update_parameters(player.network)
        self.images_seen += _batch_size(batch)
        values = {"loss": output.loss.item(), "grad_norm": norm.item()}
        return values | {key: value.item() for key, value in output.metrics.items()}


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return tuple(part.to(device) for part in batch)


def _batch_size(batch: Any) -> int:
    first = batch if isinstance(batch, torch.Tensor) else batch[0]
    return int(first.shape[0])
