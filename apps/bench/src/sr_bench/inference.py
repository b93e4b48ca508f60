"""Speed of inference by part: encoder, network and decoder on every compute path, against what the machine can do."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.folder import write_text
from distill.run import machine
from sr_models import SRModel, SwinUNet, VQAutoencoder, make_student
from sr_models.compute import Compute, apply, candidates, choose_device, parse_dtype
from sr_models.geometry import upsample
from sr_models.presets import PRESETS

MATRIX_SIZE = 2048
CHANNELS, SIDE = 256, 128
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
Clock = Callable[[], float]
Work = Mapping[str, Callable[[], Tensor]]


def measure_inference(
    preset: str,
    *,
    size: int,
    rounds: int,
    device: str,
    dtype: str,
    compiled: bool,
    out: Path | None,
    command: str,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Time encoder, network, decoder and the whole of a student of a preset's sizes, and print a table.

    The weights are random: they change nothing about the speed, and the result says so. Paths take turns, so that
    what else the machine does falls on all of them.

    Args:
        preset: sizes.
        size: LR pixels along one side.
        rounds: turns of every path, after one that is not counted.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: compare plain fp32 with this precision only; auto: with all that the device is fast in.
        compiled: compare with the last path compiled, too.
        out: JSON file to write.
        command: for the record.
        clock: seconds; for tests.
    """
    model = random_student(preset)
    if size < 1 or size % model.lr_multiple:
        raise ValueError(f"expected a size that divides by {model.lr_multiple}, got {size}; give such a one")
    where = choose_device(device)
    paths = [Compute(where)]
    paths += [path for path in candidates(where, parse_dtype(dtype)) if path not in paths]
    if compiled:
        paths.append(replace(paths[-1], compiled=True))
    work = _work(model, size, where)
    turns: dict[str, list[dict[str, float]]] = {path.describe(): [] for path in paths}
    ceilings: dict[str, float] = {}
    console = Console()
    for turn in track(range(rounds + 1), description="rounds", console=console):
        for path in paths:
            apply(model, path)
            seconds = _time(work, path, clock)
            if turn:
                turns[path.describe()].append(seconds)
            name = NAMES[path.dtype]
            ceilings[name] = max(ceilings.get(name, 0.0), _ceiling(path, clock))
    apply(model, paths[0])
    gflop = {part: _gflop(run, paths[0]) for part, run in work.items()}
    result = {
        "command": command,
        "preset": preset,
        "weights": "random",
        "lr_size": size,
        "batch": 1,
        "machine": machine(where),
        "gflop": gflop,
        "ceiling_gflops": ceilings,
        "paths": {
            path.describe(): _summary(turns[path.describe()], gflop, ceilings[NAMES[path.dtype]]) for path in paths
        },
    }
    console.print(page(result), highlight=False, soft_wrap=True)
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")
    return result


def random_student(preset: str) -> SRModel:
    """A student of the preset's sizes with random weights, of which none are zero.

    Raises:
        ValueError: no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}; use one of them")
    config = PRESETS[preset]()
    unet = make_student(SwinUNet(config.unet))
    model = SRModel("student", config.model_copy(update={"unet": unet.config}), unet, VQAutoencoder(config.autoencoder))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (model.unet, model.autoencoder):
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
                else:  # biases, and weights of norms
                    parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    return model


def _work(model: SRModel, size: int, device: torch.device) -> Work:
    """The parts and the whole, each on inputs of its own."""
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(1, 3, size, size, generator=generator).mul(2).sub(1).to(device)
    noise = torch.randn(model.noise_shape(1, size, size, 1), generator=generator).to(device)
    large = upsample(lr, model.scale)
    channels = model.config.unet.latent_channels
    latent, epsilon = noise[0, :, :channels], noise[0, :, channels:]
    return {
        "encoder": lambda: model.autoencoder.encode(large),
        "network": lambda: model.denoiser.one_step(latent, lr, latent, epsilon),
        "decoder": lambda: model.autoencoder.decode(latent),
        "whole": lambda: model.restore(lr, noise, 1),
    }


@torch.inference_mode()
def _time(work: Work, path: Compute, clock: Clock) -> dict[str, float]:
    seconds = {}
    for part, run in work.items():
        begin = clock()
        with path.autocast():
            run().flatten()[0].item()  # waits for the device
        seconds[part] = clock() - begin
    return seconds


@torch.inference_mode()
def _gflop(run: Callable[[], Tensor], path: Compute) -> float:
    with FlopCounterMode(display=False) as counter, path.autocast():
        run()
    return float(counter.get_total_flops()) / 1e9


@torch.inference_mode()
def _ceiling(path: Compute, clock: Clock) -> float:
    """GFLOP/s of a large matrix product or a large 3x3 convolution, whichever is faster, now."""
    matrix = torch.ones(MATRIX_SIZE, MATRIX_SIZE, device=path.device, dtype=path.dtype)
    image = torch.ones(1, CHANNELS, SIDE, SIDE, device=path.device, dtype=path.dtype)
    image = image.to(memory_format=torch.channels_last)
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, device=path.device, dtype=path.dtype)
    layer.to(memory_format=torch.channels_last)
    work: tuple[tuple[Callable[[], Tensor], int], ...] = (
        (lambda: matrix @ matrix, 2 * MATRIX_SIZE**3),
        (lambda: layer(image), 2 * 9 * (CHANNELS * SIDE) ** 2),
    )
    best = 0.0
    for run, flops in work:
        for _ in range(3):
            begin = clock()
            run().flatten()[0].item()
            best = max(best, flops / max(clock() - begin, 1e-9) / 1e9)
    return best


def _summary(turns: list[dict[str, float]], gflop: Mapping[str, float], ceiling: float) -> dict[str, Any]:
    """Median, least and greatest seconds of each part, and the share of the ceiling that the least one reaches."""
    summary: dict[str, Any] = {}
    for part, work in gflop.items():
        seconds = [turn[part] for turn in turns]
        least = min(seconds)
        summary[part] = {
            "median": statistics.median(seconds),
            "least": least,
            "greatest": max(seconds),
            "gflops": work / max(least, 1e-9),
            "share_of_ceiling": work / max(least, 1e-9) / ceiling,
        }
    return summary


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    ceilings = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in result["ceiling_gflops"].items())
    scaled = f"{result['lr_size']}x{result['lr_size']} of LR"
    lines = [
        f"{result['machine']}; preset {result['preset']} with "
        f"{result['weights']} weights, {scaled}, batch 1; ceiling: {ceilings}",
        "",
        "| path | " + " | ".join(f"{part} ({work:.0f} GFLOP)" for part, work in result["gflop"].items()) + " |",
        "| --- |" + " ---: |" * len(result["gflop"]),
    ]
    for name, parts in result["paths"].items():
        cells = [
            f"{row['median']:.3f} s ({row['least']:.3f} to {row['greatest']:.3f}), {row['share_of_ceiling']:.0%}"
            for row in parts.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", "Median (least to greatest), and the share of the ceiling that the least one reaches."]
    )
