"""Care of a codebook while it trains: who uses its codes, codes as moving averages, and new places for dead codes.

A code that no encoder output is nearest to gets no gradient and rarely comes back; much of a codebook can end so.
:class:`CodebookKeeper` counts the use of every code and moves dead ones to outputs of the encoder. It may also keep
the codes themselves as moving averages of the outputs that chose them, instead of a gradient.

An update is one unit here as well: statistics are summed over its micro-batches and processes, and count only when the
update was taken. How a batch is split changes them by rounding only; where an output lies just between two codes,
rounding can choose the other one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import CodebookConfig
from distill.noise import SampleNoise


class Seen(NamedTuple):
    """What one micro-batch, or one update, tells about the codes.

    Args:
        counts: (K,) float32, how many encoder outputs chose each code.
        sums: (K, C) float32, the sum of these outputs.
        candidates: (B, M, C) float32, M outputs of each sample, new places for dead codes; M = 0: none.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor


class CodebookKeeper(nn.Module):
    """Usage of the codes and, in mode ``ema``, their sums; part of the player's network, so that checkpoints have it.

    The averages start at 0. A code that was never used counts as dead, so the first update already spreads the codes
    over the encoder's outputs; ``last`` holds the counts of the last update, for the log.

    Args:
        num_codes: K.
        channels: C.
        config: how the codes are kept.
        batch_size: samples of one update, over all micro-batches and processes.
    """

    usage: Tensor
    last: Tensor
    sums: Tensor | None

    def __init__(self, num_codes: int, channels: int, config: CodebookConfig, batch_size: int) -> None:
        super().__init__()
        self.config = config
        self.per_sample = math.ceil(num_codes / batch_size) if config.revive_below is not None else 0
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("last", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, channels) if config.update == "ema" else None)
        self._seen: list[Seen] = []

    def begin(self) -> None:
        """Forget what was seen since the last update that was taken: an update was skipped, or computed again."""
        self._seen.clear()

    @torch.no_grad()
    def see(self, z: Tensor, codes: Tensor, noise: SampleNoise) -> None:
        """Take in a micro-batch.

        Args:
            z: encoder outputs, unscaled, (B, C, h, w), float32 at least.
            codes: that they chose, (B, h, w) int64.
            noise: of the samples; each draws which of its positions become candidates.
        """
        flat = z.detach().float().flatten(2).transpose(1, 2)  # (B, h w, C)
        counts = torch.zeros_like(self.usage).index_add_(0, codes.flatten(), torch.ones_like(flat[..., 0].flatten()))
        sums = counts.new_zeros(len(counts), flat.shape[-1]).index_add_(0, codes.flatten(), flat.flatten(0, 1))
        chosen = min(self.per_sample, flat.shape[1])
        positions = codes.new_zeros(len(flat), 0)
        if chosen:  # the largest of independent numbers: positions without repetition, all equally likely
            positions = noise.normal((flat.shape[1],)).topk(chosen).indices
        candidates = flat.take_along_dim(positions[..., None], 1)
        self._seen.append(Seen(counts, sums, candidates))

    @torch.no_grad()
    def update(self, weight: Tensor, accelerator: Accelerator) -> Tensor:
        """Count the update that was just taken, and change the codes in place; in mode ``gradient`` dead ones only.

        Args:
            weight: the codebook, (K, C).
            accelerator: all processes call this together.

        Returns:
            (K,) bool, the codes that were dead and moved: what remembers their old place has to forget it.
        """
        assert self._seen, "no micro-batch was seen"
        seen = _over_processes(self._seen, accelerator)
        self._seen.clear()
        decay = self.config.decay
        self.last.copy_(seen.counts)
        self.usage.mul_(decay).add_(seen.counts, alpha=1 - decay)
        if self.sums is not None:
            self.sums.mul_(decay).add_(seen.sums, alpha=1 - decay)
            weight.copy_(mean_codes(weight, self.usage, self.sums, self.config.smoothing))
        if self.config.revive_below is None:
            return torch.zeros_like(self.usage, dtype=torch.bool)
        return self._revive(weight, seen.candidates, self.config.revive_below)

    def _revive(self, weight: Tensor, candidates: Tensor, below: float) -> Tensor:
        """Move dead codes to candidates and give them the mean usage, so that they have time to be chosen."""
        mean = self.usage.mean()
        dead = self.usage < below * mean
        # First one candidate of every sample, then a second one of every sample: few codes, many samples.
        places = candidates.transpose(0, 1).flatten(0, 1)
        turn = dead.long().cumsum(0) - 1
        moved = dead & (turn < len(places))  # what is left over waits for the next update
        found = places[turn.clamp(0, len(places) - 1)].to(weight.dtype)
        weight.copy_(torch.where(moved[:, None], found, weight))
        self.usage.copy_(torch.where(moved, mean, self.usage))
        if self.sums is not None:
            self.sums.copy_(torch.where(moved[:, None], found.float() * mean, self.sums))
        return moved

    def metrics(self) -> dict[str, Tensor]:
        """Codes used in the last update, and their perplexity exp(entropy): K when all are used alike, at least 1.

        Of the last update, because these are the counts of its whole batch, whatever the micro-batches.
        """
        share = self.last / self.last.sum().clamp(min=1)
        return {"codes_used": (self.last > 0).sum().float(), "perplexity": torch.special.entr(share).sum().exp()}


def mean_codes(weight: Tensor, usage: Tensor, sums: Tensor, smoothing: float) -> Tensor:
    """Codes as moving averages of the encoder outputs that chose them, e_i = m_i / N_i.

    N_i has Laplace smoothing, (N_i + epsilon) / (N + K epsilon) N with N their sum, against a division by almost zero.
    A code whose usage has faded below epsilon stays where it is: smoothing would draw it to 0.

    Args:
        weight: codes, (K, C).
        usage: N_i, moving averages of the counts, (K,).
        sums: m_i, moving averages of the summed outputs, (K, C).
        smoothing: epsilon.

    Source: van den Oord et al. 2017, Appendix A.1; the smoothing is that of its authors' code
    """
    total = usage.sum()
    smoothed = (usage + smoothing) / (total + len(usage) * smoothing) * total
    used = usage > smoothing
    means = sums / torch.where(used, smoothed, 1.0)[:, None]
    return torch.where(used[:, None], means.to(weight.dtype), weight)


def take_from_optimizer_(codebook: nn.Embedding) -> None:
    """Make a codebook's weight a buffer of the same name: neither optimizer nor data-parallel training sees it."""
    weight = codebook.weight.detach()
    del codebook.weight
    codebook.register_buffer("weight", weight)


def _over_processes(parts: list[Seen], accelerator: Accelerator) -> Seen:
    """Sum counts and sums over micro-batches and processes; candidates in the order of the samples' numbers."""
    packed = torch.stack([torch.cat([part.counts[:, None], part.sums], 1) for part in parts]).sum(0)
    packed = accelerator.reduce(packed, "sum")
    candidates = torch.stack([part.candidates for part in parts])  # (micro-batches, B, M, C)
    if candidates.numel():
        gathered = accelerator.gather(candidates)  # the processes one after another
        # Samples are numbered by micro-batch first, then by process.
        candidates = gathered.unflatten(0, (-1, len(parts))).transpose(0, 1)
    return Seen(packed[:, 0], packed[:, 1:], candidates.flatten(0, -3))
