"""What choices among several say: shares of votes, Luce's choice model, intervals over people.

Luce: from a set S, method i is chosen with probability exp(θ_i) / Σ_{j in S} exp(θ_j). With two methods this is the
model of Bradley and Terry. When all methods are in every set, the most likely θ_i is log(votes of i) up to a constant.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import scipy.sparse.csgraph
import scipy.special
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
LEVEL = 0.95
PRIOR = 0.5


class Estimate(BaseModel):
    """A value with its 95 % interval; None: cannot be said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    low: float | None
    high: float | None


class Share(Estimate):
    """How often something happened (``won``) of how often it could have (``of``)."""

    won: int
    of: int


def resamples(people: int, draws: int = 1000, seed: int = 0) -> Counts:
    """Draw people with replacement: (draws, people), how often each person is in each draw."""
    return np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=draws)


def wilson(value: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share ``value`` of ``count`` independent trials.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    z = float(scipy.special.ndtri((1 + LEVEL) / 2))
    scale = 1 + z * z / count
    middle = (value + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(won: Counts, of: Counts, draws: Counts) -> Share:
    """The share of all people together.

    Answers of one person depend on each other, so the interval is that of the bootstrap over people (percentiles).
    With one person it is Wilson's over the answers. Where all people have the same share the bootstrap would say that
    nothing is uncertain: there it is Wilson's with each person as one trial.

    Args:
        won: (people,) how often it happened.
        of: (people,) how often it could have.
        draws: see :func:`resamples`.
    """
    total = int(of.sum())
    if total == 0:
        return Share(value=None, low=None, high=None, won=0, of=0)
    value, people = float(won.sum() / total), int((of > 0).sum())
    if people == 1:
        low, high = wilson(value, total)
    else:
        possible = draws @ of
        ratios = (draws @ won)[possible > 0] / possible[possible > 0]
        low, high = (float(edge) for edge in np.quantile(ratios, _EDGES))
        if high - low < 1e-12:
            low, high = wilson(value, people)
    return Share(value=value, low=low, high=high, won=int(won.sum()), of=total)


def luce_strengths(votes: Counts, sets: NDArray[np.bool_], prior: float = PRIOR) -> Floats:
    """The most likely strengths θ, with Σ θ = 0.

    Where a method never (or always) wins, the likelihood has no maximum. ``prior`` adds so many votes for every method,
    from a set of all methods: the mode of Jeffreys' Dirichlet(1/2) prior in θ, which is finite for all data.

    Args:
        votes: (sets, methods) how often each method was chosen from each set.
        sets: (sets, methods) which methods were in the set.
        prior: votes added for each method; 0: plain maximum likelihood.

    Raises:
        ValueError: without a prior, and the maximum is not finite (Ford's condition).
    """
    count = sets.shape[1]
    if prior > 0:
        votes = np.vstack([votes, np.full(count, prior)])
        sets = np.vstack([sets, np.ones(count, bool)])
    elif not _is_finite(votes, sets):
        raise ValueError("expected every method to win and lose against the others, got some without; set a prior")
    chosen, asked = votes.sum(axis=0), votes.sum(axis=1)

    def loss(theta: Floats) -> tuple[float, Floats]:
        logits = np.where(sets, theta, -np.inf)
        norm = scipy.special.logsumexp(logits, axis=1)
        expected = asked @ np.exp(logits - norm[:, None])
        return float(asked @ norm - chosen @ theta) / asked.sum(), (expected - chosen) / asked.sum()

    start = np.log(chosen)  # exact where all sets are complete
    found = scipy.optimize.minimize(loss, start - start.mean(), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert np.abs(found.jac).max() < 1e-6, "the loss is convex: the minimiser ends at its minimum"
    theta: Floats = found.x - found.x.mean()
    return theta


def strengths(votes: Counts, sets: NDArray[np.bool_], draws: Counts) -> list[Estimate]:
    """Strength of every method, with the interval of the bootstrap over people.

    There is no interval with one person; where an edge would lie among resamples in which the method never (or always)
    wins, as the prior alone makes those finite; and where all resamples agree.

    Args:
        votes: (people, sets, methods) see :func:`luce_strengths`.
        sets: (sets, methods).
        draws: see :func:`resamples`.
    """
    people, *shape = votes.shape
    theta = luce_strengths(votes.sum(axis=0), sets)
    if people < 2:
        return [Estimate(value=float(value), low=None, high=None) for value in theta]
    resampled = (draws @ votes.reshape(people, -1)).reshape(-1, *shape)
    low, high = np.quantile([luce_strengths(one, sets) for one in resampled], _EDGES, axis=0)
    won, of = resampled.sum(axis=1), resampled.sum(axis=2) @ sets
    known = (((won == 0) | (won == of)).mean(axis=0) < _EDGES[0]) & (high - low > 1e-6)
    return [
        Estimate(value=float(v), low=float(a) if sure else None, high=float(b) if sure else None)
        for v, a, b, sure in zip(theta, low, high, known, strict=True)
    ]


def _is_finite(votes: Counts, sets: NDArray[np.bool_]) -> bool:
    """Ford (1957): from every method to every other leads a chain of methods, each chosen over the next."""
    beats = np.einsum("si,sj->ij", votes > 0, sets) > 0
    parts, _ = scipy.sparse.csgraph.connected_components(beats, directed=True, connection="strong")
    return bool(parts == 1)


_EDGES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
