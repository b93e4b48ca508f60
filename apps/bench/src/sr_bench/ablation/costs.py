"""What one training step costs, counted by doing it once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict
from unittest.mock import patch

from torch import Tensor

from distill.config import DistillationRun, T2IRun
from distill.folder import write_text

StudentRun = DistillationRun | T2IRun
"""What an ablation can train."""


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


def cost_of(out: Path, config: StudentRun) -> Cost:
    """Cost of one step, counted once for each configuration of a result folder."""
    path = out / "costs.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    key = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    if key not in known:
        known[key] = count(config)
        write_text(path, json.dumps(known, indent=1) + "\n")
    found: Cost = known[key]
    return found


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
