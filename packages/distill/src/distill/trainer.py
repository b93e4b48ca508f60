"""One training loop for all objectives. Players are data: a network, its optimizer and its loss.

A step is one turn of every player, in order; a player may update several times a turn (RSD's fake model: K times). An
update takes ``batch_size`` new samples: every process takes its share, in micro-batches whose gradients accumulate.
Sample i and its noise are pure functions of the seed and i, so neither micro-batches nor processes change what is
trained on, and a resumed run goes on at the next sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from distill.guards import MicroBatch, NonFiniteGuard
from distill.meters import StepMetrics, pack, unpack
from distill.noise import SampleNoise
from distill.objectives.output import ObjectiveOutput
from distill.ranks import make_accelerator


@dataclass
class Player:
    """A network that a run trains.

    Args:
        name: prefix of its metrics.
        network: trainable; while another player is at turn it is frozen and in eval mode.
        optimizer: of the network's parameters.
        loss: from the prepared batch and its noise to the objective's output; every parameter takes part in it.
        updates: optimizer steps in one turn.
        scheduler: learning-rate schedule, stepped after each update.
        ema: exponential moving average of the network, updated after each update.
        first_step: step of the run at which it takes its first turn; until then it is left alone.
        before_update: called before the loss is first computed for an update.
        after_update: called in all processes after an update that was taken, before the average.
    """

    name: str
    network: nn.Module
    optimizer: Optimizer
    loss: Callable[[Any, SampleNoise], ObjectiveOutput]
    updates: int = 1
    scheduler: LRScheduler | None = None
    ema: AveragedModel | None = None
    first_step: int = 0
    before_update: Callable[[], None] | None = None
    after_update: Callable[[], None] | None = None


class PlayerLoss(nn.Module):
    """A player's loss as a module: what data-parallel training wraps.

    Everything that a loss does with the network (several passes, the encoder alone, a head) then happens inside one
    ``forward``, and the gradients of all parameters are averaged over the processes when it is differentiated.
    """

    def __init__(self, player: Player) -> None:
        super().__init__()
        self.network = player.network
        self._player = [player]  # in a list: not a submodule, and its loss may be exchanged

    def forward(self, data: Any, noise: SampleNoise) -> ObjectiveOutput:
        """Return the objective's output for one micro-batch."""
        return self._player[0].loss(data, noise)


@dataclass
class Trainer:
    """Runs the players.

    Args:
        players: in the order of their turns.
        batches: from the number of a sample to endless micro-batches of this process that start there; each is a tensor
            or tuple of tensors with the batch first.
        prepare: from a raw batch and the numbers of its samples to what the players' losses read (for example latents),
            without gradients.
        seed: of the training noise.
        accelerator: device, precision and processes; None: a CPU alone.
        accumulate: micro-batches of this process in one update.
        clip_norm: gradient norms are clipped to this; None: measured only.
        guard: what to do about numbers that are not finite.
        num_times: T, to log losses by the paper's t; 0: not.
    """

    players: list[Player]
    batches: Callable[[int], Iterator[Any]]
    prepare: Callable[[Any, range], Any]
    seed: int
    accelerator: Accelerator = field(default_factory=lambda: make_accelerator("cpu"))
    accumulate: int = 1
    clip_norm: float | None = None
    guard: NonFiniteGuard = field(default_factory=NonFiniteGuard)
    num_times: int = 0
    images_seen: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self._source: Iterator[Any] | None = None
        self._waited = 0.0  # seconds for batches in this step
        self._checked: set[str] = set()  # players whose parameters have all had a gradient
        self._losses: dict[str, nn.Module] = {}
        self._optimizers: dict[str, Any] = {}
        for player in self.players:
            player.network.requires_grad_(True)  # data-parallel training registers what is trainable now
        for player in self.players:
            # The networks are where they belong: their optimizers already refer to their parameters.
            self._losses[player.name] = self.accelerator.prepare_model(PlayerLoss(player), device_placement=False)
            self._optimizers[player.name] = self.accelerator.prepare_optimizer(player.optimizer)
        self._draws_in_layers = any(
            isinstance(module, nn.Dropout) and module.p > 0 for p in self.players for module in p.network.modules()
        )

    def use_batches(self, batches: Callable[[int], Iterator[Any]]) -> None:
        """Train on other batches from the next update on."""
        self.batches, self._source = batches, None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def run_step(self) -> StepMetrics:
        """Let every player take its turn; return the metrics of the step, averaged over a player's updates."""
        metrics = StepMetrics()
        self._waited = 0.0
        for player in self.players:
            if self.step < player.first_step:
                continue
            begin, waited = time.perf_counter(), self._waited
            self._activate(player)
            for _ in range(player.updates):
                metrics.add(player.name, self._update(player))
            # An update ends by reading its numbers from the device, so the clock has seen all of its work.
            metrics.add_seconds(player.name, time.perf_counter() - begin - (self._waited - waited))
        metrics.add_seconds("data", self._waited)
        self.step += 1
        return metrics

    def _activate(self, player: Player) -> None:
        for other in self.players:
            other.network.requires_grad_(other is player).train(other is player)

    def _update(self, player: Player) -> Mapping[str, Tensor]:
        optimizer = self._optimizers[player.name]
        optimizer.zero_grad(set_to_none=True)
        if player.before_update is not None:
            player.before_update()
        parts, outputs = [], []
        for index in range(self.accumulate):
            part = self._next(index)
            output = self._backward(player, part, last=index == self.accumulate - 1)
            parts.append(part)
            outputs.append(output)
        if player.name not in self._checked:
            _check_gradients(player)
            self._checked.add(player.name)
        self.accelerator.unscale_gradients(optimizer)
        limit = self.clip_norm if self.clip_norm is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(player.network.parameters(), limit)
        # One exchange and one wait for the device per update; all processes then see the same numbers.
        values = unpack(self.accelerator.reduce(pack(outputs, norm, self.num_times), "mean"), outputs, self.num_times)
        self.images_seen += sum(len(part.indexes) for part in parts) * self.accelerator.num_processes
        if self.guard.passes(player.name, values, scaled=self._scaler_can_go_down()):
            optimizer.step()  # with a loss scaler it skips overflows itself
            self._advance(player, optimizer)
        else:
            optimizer.zero_grad(set_to_none=True)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # else it would refuse to look at the next gradients
            parameters = list(player.network.parameters())
            self.guard.handle(player.name, self.step, self.seed, parts, partial(self._recompute, player), parameters)
        return values

    def _advance(self, player: Player, optimizer: Any) -> None:
        if optimizer.step_was_skipped:
            return
        if player.scheduler is not None:
            player.scheduler.step()
        if player.after_update is not None:
            player.after_update()
        if player.ema is not None:
            player.ema.update_parameters(player.network)

    def _scaler_can_go_down(self) -> bool:
        """Whether a gradient that is not finite may come from the loss scale: not once the scale is down at 1."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _next(self, index: int) -> MicroBatch:
        if self._source is None:
            self._source = self.batches(self.images_seen)
        begin = time.perf_counter()
        raw = next(self._source)
        self._waited += time.perf_counter() - begin
        batch = _to(raw, self.device)
        size = _batch_size(batch)
        first = self.images_seen + (index * self.accelerator.num_processes + self.accelerator.process_index) * size
        return MicroBatch(batch, range(first, first + size))

    def _backward(self, player: Player, part: MicroBatch, *, last: bool) -> ObjectiveOutput:
        module = self._losses[player.name]
        with nullcontext() if last else self.accelerator.no_sync(module):
            output: ObjectiveOutput = module(self._prepared(part), self._noise(part))
            self.accelerator.backward(output.loss / self.accumulate)
        # Without the graph, which would keep what the backward pass has left.
        terms = {name: values.detach() for name, values in output.terms.items()}
        return replace(output, loss=output.loss.detach(), terms=terms)

    def _recompute(self, player: Player, part: MicroBatch) -> ObjectiveOutput:
        """The loss of a micro-batch once more, in this process alone: same data, same noise."""
        with self.accelerator.autocast():
            return player.loss(self._prepared(part), self._noise(part))

    def _prepared(self, part: MicroBatch) -> Any:
        with torch.no_grad(), self.accelerator.autocast():
            return self.prepare(part.batch, part.indexes)

    def _noise(self, part: MicroBatch) -> SampleNoise:
        noise = SampleNoise(self.seed, part.indexes, self.device)
        if self._draws_in_layers:  # dropout reads the global generator
            torch.manual_seed(noise.layer_seed)
        return noise


def _check_gradients(player: Player) -> None:
    """Refuse to train a player of which a part gets no gradient: it would stay as it is, without a word.

    An adapter that is not active when its loss is computed is such a part.
    """
    left = [name for name, parameter in player.network.named_parameters() if parameter.grad is None]
    if left:
        raise RuntimeError(
            f"expected a gradient for every parameter of {player.name}, got none for {len(left)} of them ({left[0]}, "
            "...); its loss does not depend on them: is an adapter inactive, or a result detached?"
        )


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(part.to(device, non_blocking=True) for part in batch)


def _batch_size(batch: Any) -> int:
    first = batch if isinstance(batch, torch.Tensor) else batch[0]
    return int(first.shape[0])
