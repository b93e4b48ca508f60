"""The commands in-process, and models made with them: autoencoder, teacher, student, each in two updates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from sr_data.images import write_image

MINUTE = """
data: {hr_size: 32, image_size: 64, workers: 0}
validation: {images: 1, hr_size: 32}
batch_size: 2
steps: 2
device: cpu
"""
MINUTE_MODEL = """
precision: fp32
model:
  schedule: {num_steps: 4}
  unet:
    image_size: 8
    latent_channels: 2
    out_channels: 2
    base_channels: 8
    channel_multipliers: [1]
    res_blocks: [1]
    attention_levels: [0]
    swin_embed_channels: 8
    head_channels: 4
    window_size: 4
    norm_groups: 2
  autoencoder: {latent_channels: 2, z_channels: 2, base_channels: 4, channel_multipliers: [1, 1, 1], norm_groups: 2}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


class Command(Protocol):
    """Runs a command line in this process."""

    def __call__(self, *arguments: object) -> Outcome: ...


@contextmanager
def arguments_of(*arguments: object) -> Iterator[None]:
    kept, sys.argv = sys.argv, [str(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = kept


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """The commands by name, as their console scripts call them; processes would import torch every time."""
    from sr_bench.main import main as sr_bench
    from sr_cli.main import main as sr_distill

    commands = {"sr-distill": sr_distill, "sr-bench": sr_bench}

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        with arguments_of(*arguments):
            try:
                commands[str(arguments[0])]()
                code: object = 0
            except SystemExit as stop:
                code = stop.code or 0
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return call


@dataclass(frozen=True)
class Trained:
    """Configuration file of the minute runs, and the model folders they made."""

    config: Path
    autoencoder: Path
    teacher: Path
    student: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The whole way from nothing to a student by the three training commands."""
    from sr_cli.main import app

    folder = tmp_path_factory.mktemp("trained")
    (folder / "minute.yaml").write_text(MINUTE)
    (folder / "model.yaml").write_text(MINUTE + MINUTE_MODEL)
    steps = {
        "autoencoder": ["--config", folder / "model.yaml"],
        "teacher": ["--config", folder / "model.yaml", "--set", f"autoencoder={folder / 'autoencoder' / 'model'}"],
        "rsd": ["--config", folder / "minute.yaml", "--set", f"teacher={folder / 'teacher' / 'model'}"],
    }
    for task, options in steps.items():
        arguments = ["train", task, *(str(option) for option in options), "--out", str(folder / task)]
        with arguments_of("sr-distill", *arguments):
            app(arguments, standalone_mode=False)
    return Trained(folder / "minute.yaml", *(folder / task / "model" for task in steps))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of 30x22 pixels."""
    rows, columns = np.mgrid[:22, :30]
    pixels = np.stack((rows * 8, columns * 8, (rows + columns) * 4), axis=-1).astype(np.uint8)
    write_image(tmp_path / "photo.jpg", pixels)
    return tmp_path / "photo.jpg"
