"""Numbers of training on their way to the log: gathered over processes, averaged over updates and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.objectives.output import ObjectiveOutput

BY_TIME = "by_t"
"""Key of the two rows (sums, counts) of a loss over t = 0..T."""


def pack(outputs: Sequence[ObjectiveOutput], norm: Tensor, num_times: int) -> Tensor:
    """Put the numbers of one update into one vector whose mean over the processes is meaningful: see :func:`unpack`."""
    rows = []
    for output in outputs:
        terms = [values.detach().mean() for values in output.terms.values()]
        rows.append(torch.stack([output.loss.detach(), *terms, *output.metrics.values()]).float())
    parts = [torch.stack(rows).mean(0), norm.detach().float()[None]]
    if num_times:
        parts.append(_by_time(outputs, num_times, norm.device).flatten())
    return torch.cat(parts)


def unpack(vector: Tensor, outputs: Sequence[ObjectiveOutput], num_times: int) -> dict[str, Tensor]:
    """Name the numbers of :func:`pack`: loss, each term's mean, metrics, the gradient norm, sums and counts by t."""
    values = vector.cpu()
    first = outputs[0]
    names = ["loss", *(f"term/{name}" for name in first.terms), *first.metrics, "grad_norm"]
    named = {name: values[index] for index, name in enumerate(names)}
    if num_times:
        named[BY_TIME] = values[len(names) :].view(2, num_times + 1)
    return named


def _by_time(outputs: Sequence[ObjectiveOutput], num_times: int, device: torch.device) -> Tensor:
    """Sums and counts over t of the first term, which is the one that depends on t: (2, T + 1)."""
    table = torch.zeros(2, num_times + 1, device=device)
    for output in outputs:
        if output.times is None:
            continue
        values = next(iter(output.terms.values())).detach().float()
        table[0].index_add_(0, output.times, values)
        table[1].index_add_(0, output.times, torch.ones_like(values))
    return table


class StepMetrics:
    """Means of named numbers over the updates that were added, and means by t over all their samples."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._by_time: dict[str, Tensor] = {}

    def add(self, player: str, values: Mapping[str, Tensor]) -> None:
        """Add the numbers of one update of a player."""
        for name, value in values.items():
            key = f"{player}/{name}"
            if name == BY_TIME:
                self._by_time[player] = self._by_time[player] + value if player in self._by_time else value
            else:
                self._sums[key] = self._sums.get(key, 0.0) + value.item()
                self._counts[key] = self._counts.get(key, 0) + 1

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add the time of one step that went into ``name``: a player's turn, or waiting for data."""
        self._sums[f"seconds/{name}"] = self._sums.get(f"seconds/{name}", 0.0) + seconds
        self._counts[f"seconds/{name}"] = self._counts.get(f"seconds/{name}", 0) + 1

    def merge(self, other: StepMetrics) -> None:
        """Add all updates of another step."""
        for key, value in other._sums.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + other._counts[key]
        for player, table in other._by_time.items():
            self._by_time[player] = self._by_time[player] + table if player in self._by_time else table

    def means(self) -> dict[str, float]:
        """Mean by name, such as ``student/loss``."""
        return {key: value / self._counts[key] for key, value in self._sums.items()}

    def by_time(self) -> dict[str, float]:
        """Mean of a player's main term by the paper's t, such as ``student/loss_t/04``; times not met are absent."""
        means = {}
        for player, (sums, counts) in self._by_time.items():
            for t in range(1, len(counts)):
                if counts[t] > 0:
                    means[f"{player}/loss_t/{t:02d}"] = (sums[t] / counts[t]).item()
        return means
