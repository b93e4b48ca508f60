"""Two processes (gloo) train what one process with twice the batch trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.config import AnyRun, AutoencoderRun, CheckpointConfig, OptimizerConfig, RSDRun, to_yaml
from distill.ranks import make_accelerator
from distill.run import train

RUNS = ("one", "two")


def launch(config: AnyRun, out: Path, processes: int, tmp_path: Path, environment: dict[str, str]) -> str:
    """Train in several processes on this machine and return what the first one prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / f"{out.name}.yaml"
    path.write_text(to_yaml(config))
    line = [sys.executable, "-m", "sr_cli", "train", config.task, "--config", str(path), "--out", str(out)]
    running = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        running.append(
            subprocess.Popen(
                line, env={**environment, **ranks, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [process.communicate(timeout=240) for process in running]
    assert all(process.returncode == 0 for process in running), outputs
    assert not outputs[-1][0], "only the first process speaks"
    return outputs[0][0]


@pytest.fixture
def config(rsd_run: RSDRun) -> RSDRun:
    return rsd_run.model_copy(
        update={
            "steps": 3,
            "batch_size": 4,
            "micro_batch": 1,  # accumulates: 4 micro-batches in one process, 2 in each of two
            "terms": {"distillation": 1.0, "gan": 0.1, "pixel_mse": 0.1},
            "clip_norm": 0.05,  # the norm of the averaged gradient, not of a share
            "optimizer": OptimizerConfig(lr=1e-3),
            "checkpoint": CheckpointConfig(every=1),
        }
    )


def assert_same_weights(folder: Path, names: tuple[str, ...], atol: float = 2e-6) -> None:
    """Compare the last checkpoints of the runs ``one`` and ``two``."""
    for name in names:
        first, second = (load_file(folder / run / "checkpoints" / "00000003" / f"{name}.safetensors") for run in RUNS)
        assert first.keys() == second.keys()
        for key in first:
            if key.endswith("qkv.bias"):  # a bias of the keys has no effect: its gradient is rounding alone, and
                continue  # AdamW makes a full step of it
            torch.testing.assert_close(first[key].float(), second[key].float(), rtol=1e-4, atol=atol)


def test_two_processes_are_one_with_twice_the_batch(config: RSDRun, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = launch(config, tmp_path / "two", 2, tmp_path, environment)
    assert "student 1 step" in said
    one = train(config, out=tmp_path / "one", quiet=True)
    assert one.summary["images_seen"] == 3 * 3 * 4
    assert_same_weights(tmp_path, ("student", "student-ema", "fake"))
    # Another number of processes continues a run, though not to the same bits.
    (tmp_path / "two" / "summary.json").unlink()
    longer = config.model_copy(update={"micro_batch": 2})
    assert train(longer, out=tmp_path / "two", quiet=True).summary["images_seen"] == 3 * 3 * 4


def test_a_codebook_and_its_discriminator_in_two_processes(vq_run: AutoencoderRun, tmp_path: Path) -> None:
    """Micro-batches of one sample, as the weight of the GAN belongs to a micro-batch; the codes are sums over all."""
    config = vq_run.model_copy(
        update={"steps": 3, "batch_size": 4, "micro_batch": 1, "checkpoint": CheckpointConfig(every=1)}
    )
    launch(config, tmp_path / "two", 2, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})
    train(config, out=tmp_path / "one", quiet=True)
    assert_same_weights(tmp_path, ("autoencoder", "autoencoder-ema", "discriminator"), atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(config: RSDRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected batch_size=4 as a multiple of 1 processes times micro_batch=3"):
        train(config.model_copy(update={"micro_batch": 3}), out=tmp_path / "run", quiet=True)


def test_precision_and_tracker_are_checked() -> None:
    with pytest.raises(ValueError, match="expected precision fp32 or bf16 on cpu"):
        make_accelerator("cpu", "fp16")
    with pytest.raises(ValueError, match=r"expected tracker none or one of .*tensorboard.*, got 'tensorbord'"):
        make_accelerator("cpu", "fp32", "tensorbord")
    assert make_accelerator("cpu", "bf16").mixed_precision == "bf16"
    assert make_accelerator("cpu", "fp32").mixed_precision == "no"  # one after another in one process
