"""What one training step costs, counted by doing it once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict
from unittest.mock import patch

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distill.config import DistillationRun, T2IRun
from sr_bench.ablation.kept import Origin, read_record
from sr_bench.record import write_json

StudentRun = DistillationRun | T2IRun
"""What an ablation can train."""
Equal = Literal["flops", "evaluations", "updates"]
"""Which cost all rows of an ablation share."""


class Cost(TypedDict):
    """Cost of one step, all players' turns.

    ``flops``: floating-point operations of convolutions and matrix products, forward and backward, everything included.
    ``evaluations``: network evaluations, images through a U-Net, of whichever player; the discriminator, which reads a
    U-Net's encoder, counts as one too.
    ``updates``: 1.
    """

    flops: int
    evaluations: int
    updates: int


class Counted(BaseModel):
    """A cost as it is kept, and which code counted it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops: int = Field(ge=1)
    evaluations: int = Field(ge=1)
    updates: int = Field(ge=1)
    made_by: Origin

    @property
    def cost(self) -> Cost:
        """The cost alone."""
        return Cost(flops=self.flops, evaluations=self.evaluations, updates=self.updates)


class Counts(BaseModel):
    """Content of ``costs.json``: configuration and weights -> cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counted: dict[str, Counted]


def counted_cost(out: Path, config: StudentRun, weights: Mapping[str, str], made_by: Origin) -> Counted:
    """Cost of one step, counted once for each configuration and its weights in a result folder."""
    path = out / "costs.json"
    found = read_record(path, Counts)
    known = {} if found is None else found.counted
    key = json.dumps([config.model_dump(mode="json"), dict(weights)], sort_keys=True)
    if key not in known:
        known = {**known, key: Counted(**count(config), made_by=made_by)}
        write_json(path, Counts(counted=known))
    return known[key]


def equal_steps(updates: int, costs: Mapping[str, Cost], base: str, equal: Equal) -> dict[str, int]:
    """Updates of each row that cost as much as so many of the base row, at least one.

    Args:
        updates: of the base row.
        costs: of one update, by row.
        base: the row whose updates are given.
        equal: which cost is equal.
    """
    budget = updates * costs[base][equal]
    return {key: max(1, round(budget / cost[equal])) for key, cost in costs.items()}


def count(config: StudentRun) -> Cost:
    """Train one step and count."""
    from torch.utils.flop_counter import FlopCounterMode

    from distill.tasks import build_task

    trainer = build_task(config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})).trainer
    with FlopCounterMode(display=False) as counter, _counted_evaluations() as evaluated:
        trainer.run_step()
    return Cost(flops=counter.get_total_flops(), evaluations=sum(evaluated), updates=1)


@contextmanager
def _counted_evaluations() -> Iterator[list[int]]:
    """Note the batch of every evaluation: all of them go through a Denoiser or a FlowPredictor."""
    from sr_models import Denoiser
    from sr_models.t2i.predictor import FlowPredictor

    evaluated: list[int] = []

    def counted(method: Any) -> Any:
        def call(self: Any, z_t: Tensor, *arguments: Any, **options: Any) -> Tensor:
            evaluated.append(z_t.shape[0])
            result: Tensor = method(self, z_t, *arguments, **options)
            return result

        return call

    with (
        patch.object(Denoiser, "__call__", counted(Denoiser.__call__)),
        patch.object(Denoiser, "bottleneck", counted(Denoiser.bottleneck)),
        patch.object(FlowPredictor, "__call__", counted(FlowPredictor.__call__)),
    ):
        yield evaluated
