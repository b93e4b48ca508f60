"""Diagonal Gaussians and the divergence between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from resshift_core._arrays import Array, namespace_of, per_sample


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A diagonal Gaussian N(mean, variance) over arrays (B, ...).

    Args:
        mean: (B, ...), floating.
        variance: broadcastable to mean's shape, non-negative, same library, dtype and device. Zero is a point
            mass: sampling it returns the mean, densities and divergences are undefined.

    Raises:
        ValueError: when variance does not broadcast to mean's shape.
    """

    mean: Array
    variance: Array

    def __post_init__(self) -> None:
        mean, variance = tuple(self.mean.shape), tuple(self.variance.shape)
        try:
            fits = np.broadcast_shapes(mean, variance) == mean
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"expected variance to broadcast to mean {mean}, got {variance}; give it as (B, 1, ..., 1)"
            )

    def sample(self, noise: Array) -> Array:
        """Return mean + sqrt(variance) * noise.

        Args:
            noise: standard normal of mean's shape, from the caller's generator.

        Returns:
            Sample (B, ...), differentiable in the mean.

        Raises:
            ValueError: when noise has another shape than mean.
        """
        xp = namespace_of(mean=self.mean, noise=noise)
        return self.mean + xp.sqrt(self.variance) * noise

    def log_prob(self, x: Array) -> Array:
        """Return the log density of every sample: -1/2 sum((x - mean)^2 / variance + log(2 pi variance)).

        Args:
            x: (B, ...) of mean's shape.

        Returns:
            (B,), summed over all dimensions but the batch.

        Raises:
            ValueError: when x has another shape than mean.
        """
        xp = namespace_of(mean=self.mean, x=x)
        terms = (x - self.mean) ** 2 / self.variance + xp.log(2 * math.pi * self.variance)
        return -0.5 * per_sample(xp, terms, "sum")


def kl_divergence(p: Gaussian, q: Gaussian) -> Array:
    """Return D_KL(p || q) of every sample, 1/2 sum(r - 1 - log r + (m_p - m_q)^2 / v_q) with r = v_p / v_q.

    Args:
        p: Gaussian over (B, ...), variance > 0.
        q: Gaussian over the same shape, variance > 0.

    Returns:
        (B,), summed over all dimensions but the batch.

    Raises:
        ValueError: when the shapes differ.
    """
    xp = namespace_of(p_mean=p.mean, q_mean=q.mean)
    ratio = p.variance / q.variance
    terms = ratio - 1 - xp.log(ratio) + (p.mean - q.mean) ** 2 / q.variance
    return 0.5 * per_sample(xp, terms, "sum")
