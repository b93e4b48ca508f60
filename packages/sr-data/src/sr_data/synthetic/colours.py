"""Colours of one picture: wide in luma, narrow in chroma, around a few hues."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colours = NDArray[np.float64]
# Orthonormal directions of equal luma: warm-cold (the main axis of daylight) and green-magenta.
WARM = np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0)
GREEN = np.array([-1.0, 2.0, -1.0]) / np.sqrt(6.0)


@dataclass(frozen=True)
class Palette:
    """Luma range and hue families of one picture.

    Args:
        mean: mean luma in [0,1].
        spread: standard deviation of the luma.
        hues: (hues, 2) chroma directions (warm, green) scaled by their saturation.
    """

    mean: float
    spread: float
    hues: Colours

    def sample(self, rng: np.random.Generator, count: int, trend: Colours | None = None) -> Colours:
        """Return `count` colours (count, 3), pixels [0,1].

        Args:
            rng: source of randomness.
            count: number of colours.
            trend: (count,) in [-1,1], moves luma and hue of colours that belong together the same way.
        """
        trend = np.zeros(count) if trend is None else trend
        luma = self.mean + self.spread * (rng.normal(0.0, 0.85, count) + 0.75 * trend)
        # A soft limit: clipping would make flat black and white leaves.
        luma = 0.5 + 0.5 * np.tanh(2.1 * (luma - 0.5))
        luma = np.clip(luma, 0.01, 0.99)
        place = 0.5 + 0.35 * trend + rng.normal(0.0, 0.25, count)
        hue = self.hues[np.clip(place * len(self.hues), 0, len(self.hues) - 1).astype(np.int64)]
        saturation = rng.gamma(2.0, 0.5, (count, 1)) * np.sqrt(luma * (1.0 - luma))[:, None] * 2.0
        chroma = saturation * (hue + rng.normal(0, 0.03, (count, 2)))
        colour = luma[:, None] + chroma[:, :1] * WARM + chroma[:, 1:] * GREEN
        return np.asarray(np.clip(colour, 0.0, 1.0))


def random_palette(rng: np.random.Generator) -> Palette:
    """Return the palette of a new picture: one main hue family, sometimes others."""
    main = np.array([rng.normal(0.05, 0.12), rng.normal(0.01, 0.04)])
    hues = [main, main * rng.uniform(0.2, 0.7)]
    if rng.random() < 0.6:
        hues.append(-main * rng.uniform(0.3, 1.2))
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        hues.append(rng.exponential(0.2) * np.array([np.cos(angle), 0.7 * np.sin(angle)]))
    if rng.random() < 0.04:  # black and white
        hues = [np.zeros(2)]
    rng.shuffle(hues)
    return Palette(float(rng.beta(9.0, 9.5)), float(rng.uniform(0.16, 0.32)), np.array(hues))
