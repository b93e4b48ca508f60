"""Periodic texture fields: luma only, zero mean, unit variance; the leaves tint them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
TEXTURE_BITS = 8
TEXTURE_SIZE = 1 << TEXTURE_BITS
"""Side of a texture; a power of two, so that wrapping a coordinate is a bit mask."""


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Field, Field]:
    """Return the integer frequencies (rows, columns) of a real FFT of side `size`."""
    rows = np.fft.fftfreq(size, 1.0 / size).astype(np.float32)[:, None]
    columns = np.fft.rfftfreq(size, 1.0 / size).astype(np.float32)[None, :]
    return rows, columns


@lru_cache(maxsize=8)
def _log_radius(size: int) -> Field:
    """Return log |f| with log 1 at the constant, for power laws."""
    rows, columns = _frequencies(size)
    return np.asarray(0.5 * np.log(np.maximum(rows**2 + columns**2, 1.0)), dtype=np.float32)


def _standardise(field: NDArray[np.float32]) -> Field:
    """Return the field with mean 0 and standard deviation 1."""
    field = field - field.mean()
    return np.asarray(field / max(float(field.std()), 1e-12), dtype=np.float32)


def _from_amplitude(rng: np.random.Generator, amplitude: Field) -> Field:
    """Return the Gaussian field whose spectrum has the given amplitude (rows, columns / 2 + 1)."""
    noise = rng.standard_normal((2, *amplitude.shape), dtype=np.float32) * amplitude
    noise[:, 0, 0] = 0.0
    size = amplitude.shape[0]
    return _standardise(np.fft.irfft2(noise[0] + 1j * noise[1], s=(size, size)).astype(np.float32))


def power_law_noise(rng: np.random.Generator, size: int = TEXTURE_SIZE, exponent: float | None = None) -> Field:
    """Return 1/f^a noise: clouds for a near 2, sand for a near 0.5."""
    exponent = float(rng.uniform(0.4, 2.0)) if exponent is None else exponent
    return _from_amplitude(rng, np.exp(-exponent * _log_radius(size)))


def directional_noise(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Field:
    """Return noise stretched along one direction: fur, brushed metal, wood fibre."""
    rows, columns = _frequencies(size)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(3.0, 14.0)
    along = rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))
    across = columns * np.float32(np.sin(angle)) - rows * np.float32(np.cos(angle))
    squared = (along * np.float32(stretch)) ** 2 + across**2
    low = np.float32(rng.uniform(2.0, 20.0) ** 2)
    return _from_amplitude(rng, (1.0 + squared / low) ** np.float32(-rng.uniform(0.5, 1.2)))


def band_noise(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Field:
    """Return random-phase noise with one dominant grain size: skin, plaster, gravel, woven cloth."""
    log_centre = np.log(np.exp(rng.uniform(np.log(size / 40), np.log(size / 4))))
    width = rng.uniform(0.15, 0.6)
    distance = (_log_radius(size) - np.float32(log_centre)) / np.float32(width)
    return _from_amplitude(rng, np.exp(-0.5 * distance**2 - _log_radius(size)))


def _warped_phase(rng: np.random.Generator, size: int, warp: float) -> Field:
    """Return the phase (radians) of a plane wave with whole periods, bent by smooth noise."""
    highest = size / 6
    frequency = np.exp(rng.uniform(np.log(4), np.log(highest)))
    angle = rng.uniform(0, 2 * np.pi)
    position = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / size)
    row, column = round(float(frequency * np.sin(angle))), round(float(frequency * np.cos(angle)))
    phase = position[:, None] * row + position[None, :] * column
    if warp > 0:
        phase = phase + np.float32(warp) * power_law_noise(rng, size, exponent=2.2)
    return np.asarray(phase, dtype=np.float32)


def grating(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Field:
    """Return stripes, from a soft sine to hard bars, straight or bent like wood grain."""
    warp = float(rng.choice([0.0, 0.6, 3.0, 8.0]))
    hardness = np.float32(np.exp(rng.uniform(np.log(0.5), np.log(8.0))))
    return _standardise(np.tanh(hardness * np.sin(_warped_phase(rng, size, warp))))


def checks(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Field:
    """Return a lattice of two crossed gratings: tiles, tissue, windows."""
    warp = float(rng.choice([0.0, 0.0, 0.5]))
    hardness = np.float32(np.exp(rng.uniform(np.log(0.7), np.log(8.0))))
    first, second = (np.sin(_warped_phase(rng, size, warp)) for _ in range(2))
    return _standardise(np.tanh(hardness * (first * second + np.float32(rng.uniform(-0.5, 0.5)))))


def blotches(rng: np.random.Generator, size: int = TEXTURE_SIZE) -> Field:
    """Return thresholded noise: stains, foliage, camouflage."""
    field = power_law_noise(rng, size, exponent=float(rng.uniform(1.0, 1.9)))
    threshold = np.float32(rng.uniform(-0.8, 0.8))
    return _standardise(np.tanh(np.float32(rng.uniform(2, 8)) * (field - threshold)))


TEXTURES: tuple[tuple[Callable[[np.random.Generator], Field], float], ...] = (
    (power_law_noise, 0.36),
    (directional_noise, 0.24),
    (band_noise, 0.12),
    (grating, 0.10),
    (checks, 0.06),
    (blotches, 0.12),
)
"""Texture kinds and how often each is drawn."""


def random_texture(rng: np.random.Generator) -> Field:
    """Return one texture of a random kind, (TEXTURE_SIZE, TEXTURE_SIZE), periodic, mean 0, variance 1."""
    weights = np.array([weight for _, weight in TEXTURES])
    kind, _ = TEXTURES[int(rng.choice(len(TEXTURES), p=weights / weights.sum()))]
    return kind(rng)
