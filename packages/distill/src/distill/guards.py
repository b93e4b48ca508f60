"""Numbers that are not finite: stop before they harm, name the term and the samples, keep the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill.objectives.output import ObjectiveOutput

MAX_KEPT = 10
"""Batches that a process keeps of skipped updates."""


class NonFiniteError(ValueError):
    """A loss or a gradient is not finite."""


@dataclass(frozen=True)
class MicroBatch:
    """A raw batch on its device and the numbers of its samples."""

    batch: Any
    indexes: range


@dataclass
class NonFiniteGuard:
    """Refuses updates whose loss or gradient is not finite.

    Args:
        on_nonfinite: ``abort`` ends the run, ``skip`` drops the update and goes on.
        max_skips: this many dropped updates of a player in a row end the run all the same.
        folder: where offending batches are kept; None: nowhere.
        rank: of this process, for the file name.
        say: told about skipped updates.
    """

    on_nonfinite: Literal["abort", "skip"] = "abort"
    max_skips: int = 10
    folder: Path | None = None
    rank: int = 0
    say: Callable[[str], None] = lambda text: None
    skipped: int = 0
    in_a_row: dict[str, int] = field(default_factory=dict)

    def passes(self, player: str, values: Mapping[str, Tensor], *, scaled: bool) -> bool:
        """Tell whether an update may be taken.

        Args:
            player: whose update it is.
            values: of the update, with ``loss`` and ``grad_norm``, the same in all processes.
            scaled: a loss scaler is at work: gradients that overflow are its business, and it skips them.
        """
        loss, norm = values["loss"].item(), values["grad_norm"].item()
        good = math.isfinite(loss) and (scaled or math.isfinite(norm))
        if good:
            self.in_a_row[player] = 0
        return good

    def handle(
        self,
        player: str,
        step: int,
        seed: int,
        parts: Sequence[MicroBatch],
        recompute: Callable[[MicroBatch], ObjectiveOutput],
        parameters: Sequence[Tensor],
    ) -> None:
        """Find the culprit, keep its batch, and raise unless updates may be skipped.

        Raises:
            NonFiniteError: names the player, the step, the term, the samples and where the batch is.
        """
        self.skipped += 1
        in_a_row = self.in_a_row[player] = self.in_a_row.get(player, 0) + 1
        found, part = _culprit(parts, recompute, parameters)
        where = self._save(player, step, seed, part, found)
        message = (
            f"expected a finite loss and gradient, got {found} from {player} at step {step} "
            f"(images {part.indexes.start}..{part.indexes.stop - 1}){where}"
        )
        if self.on_nonfinite == "skip" and in_a_row < self.max_skips:
            self.say(f"skipped an update: {message}")
            return
        if self.on_nonfinite == "skip":
            message += f"; {in_a_row} updates in a row were skipped"
        raise NonFiniteError(f"{message}; lower the learning rate or use fp32, or set guard.on_nonfinite=skip")

    def _save(self, player: str, step: int, seed: int, part: MicroBatch, found: str) -> str:
        if self.folder is None or self.skipped > MAX_KEPT:
            return ""
        path = self.folder / f"step-{step:06d}-{player}-rank{self.rank}.safetensors"
        tensors = (part.batch,) if isinstance(part.batch, Tensor) else part.batch
        named = {f"batch_{index}": tensor.detach().cpu().contiguous() for index, tensor in enumerate(tensors)}
        named["indexes"] = torch.tensor(list(part.indexes))
        partial = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(named, partial, metadata={"player": player, "step": str(step), "seed": str(seed), "found": found})
            partial.replace(path)
        except (OSError, SafetensorError) as error:  # must not hide what happened
            return f"; the batch could not be kept ({error})"
        return f"; the batch is kept in {path}"


def _culprit(
    parts: Sequence[MicroBatch], recompute: Callable[[MicroBatch], ObjectiveOutput], parameters: Sequence[Tensor]
) -> tuple[str, MicroBatch]:
    """Name the first term whose value or gradient is not finite, computed again, and its micro-batch."""
    for part in parts:
        output = recompute(part)
        for name, values in output.terms.items():
            if not torch.isfinite(values).all():
                bad = [i for i, good in zip(part.indexes, torch.isfinite(values).tolist(), strict=True) if not good]
                return f"{_kind(values)} in term {name!r} of samples {', '.join(map(str, bad[:8]))}", part
        for name, values in output.terms.items():
            if not _gradient_is_finite(output.weights[name] * values.mean(), parameters):
                return f"a gradient that is not finite of term {name!r}", part
    return "a value that is not finite in another process", parts[0]


def _gradient_is_finite(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _kind(values: Tensor) -> str:
    return "nan" if torch.isnan(values).any() else "inf"
