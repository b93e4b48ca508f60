"""Speed and accuracy of the paths for one model on one machine, measured once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_models.compute.paths import DTYPES, NAMES, Compute
from sr_models.restorable import Restorable

CLEARLY_FASTER = 1.15
"""A path other than plain fp32 is taken from this speed-up on; less can be noise, which the choice must not follow."""
LEAST_PSNR = 30.0
"""dB against fp32 that a path has to reach: less would change more than another seed of the noise does (23 to 29 dB for
tiny-student, whose bf16 picture is 59 to 63 dB from fp32's); see docs/inference-speed.md."""
TRIAL_SIDE = 64
"""LR pixels along a side of the picture that paths are measured on: small, and yet not all overhead."""
ROUNDS = 3
ENOUGH_SECONDS = 5.0
"""Two rounds have to do where they take this long."""
FORMAT = 1
"""Version of the files; one with another version is measured again."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """What was measured of one path.

    Args:
        compute: the path.
        seconds: for a megapixel of LR; None: it failed.
        psnr: dB against plain fp32; None: it is that, or equal to it, or it failed.
        problem: why it cannot be chosen; empty: it can.
    """

    compute: Compute
    seconds: float | None
    psnr: float | None = None
    problem: str = ""


Table = tuple[Timing, ...]


def fastest(table: Table) -> Compute:
    """The fastest path without a problem; the first one, plain fp32, unless another is clearly faster."""
    first, best = table[0], table[0]
    for row in table[1:]:
        if not row.problem and _seconds(row) < _seconds(best):
            best = row
    return best.compute if _seconds(first) >= CLEARLY_FASTER * _seconds(best) else first.compute


def measure(model: Restorable, paths: Sequence[Compute], clock: Clock = time.perf_counter) -> Table:
    """Restore a small picture on every path; compare speed and picture with the first's.

    Paths take turns, so that what else the machine does slows all of them down, and the best turn of each counts: the
    first one is the warm-up. The model is left on the last path.
    """
    pictures: list[Tensor | None] = []
    problems = [""] * len(paths)
    best = [float("inf")] * len(paths)
    begin = clock()
    for turn in range(ROUNDS):
        for index, path in enumerate(paths):
            if problems[index]:
                continue
            model.to(path.device, path.memory_format)
            try:
                seconds, picture = _restore(model, path, clock)
            except (RuntimeError, NotImplementedError) as error:  # out of memory is a RuntimeError, too
                if index == 0:
                    raise
                problems[index] = f"failed: {(str(error).splitlines() or ['?'])[0]}"
                seconds, picture = float("inf"), None
            best[index] = min(best[index], seconds)
            if turn == 0:
                pictures.append(picture)
        if turn and clock() - begin >= ENOUGH_SECONDS:
            break
    reference = pictures[0]
    assert reference is not None
    rows = []
    for path, picture, seconds, problem in zip(paths, pictures, best, problems, strict=True):
        if problem or picture is None:
            rows.append(Timing(path, None, problem=problem))
        else:
            psnr = _psnr(picture, reference)
            rows.append(Timing(path, seconds, psnr, _problem(picture, psnr)))
    return tuple(rows)


def trial(model: Restorable, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """LR picture, noise and steps to try a model with: always the same, smooth with some grain."""
    side = -(-TRIAL_SIDE // model.lr_multiple) * model.lr_multiple
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    lr = (0.4 * smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)
    steps = min(model.steps)
    noise = torch.randn(model.noise_shape(1, side, side, steps), generator=generator)
    return lr.to(device), noise.to(device), steps


@torch.inference_mode()
def _restore(model: Restorable, path: Compute, clock: Clock) -> tuple[float, Tensor]:
    """Seconds for a megapixel of LR, and the SR picture."""
    lr, noise, steps = trial(model, path.device)
    begin = clock()
    with path.autocast():
        picture = model.restore(lr, noise, steps).float().cpu()  # once it is on the CPU, the device is done
    return (clock() - begin) / (lr.shape[-2] * lr.shape[-1] / 1e6), picture


def _psnr(picture: Tensor, reference: Tensor) -> float | None:
    """PSNR in dB of pictures in [-1, 1]; None: equal."""
    error = (picture.clamp(-1, 1) - reference.clamp(-1, 1)).double().square().mean()
    return (10 * torch.log10(4 / error)).item() if 0 < error < torch.inf else None


def _problem(picture: Tensor, psnr: float | None) -> str:
    if not picture.isfinite().all():
        return "not finite"
    return f"below {LEAST_PSNR:.0f} dB" if psnr is not None and psnr < LEAST_PSNR else ""


def _seconds(row: Timing) -> float:
    return float("inf") if row.seconds is None else row.seconds


# The file


def cache_folder() -> Path:
    """Where measurements and compiled networks are kept.

    ``SR_DISTILL_CACHE``, or ``sr-distill`` in ``XDG_CACHE_HOME`` or in ``~/.cache``.
    """
    if own := os.environ.get("SR_DISTILL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sr-distill"


def read_table(model: Restorable, paths: Sequence[Compute]) -> Table | None:
    """The table of an earlier measurement of this model on this machine; None: there is none that can be used."""
    key = _key(model, paths)
    try:
        content = json.loads(_file(key).read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        return tuple(_timing(row) for row in content["table"])
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: it is measured again and written again
        return None


def write_table(model: Restorable, paths: Sequence[Compute], table: Table) -> tuple[str, ...]:
    """Keep a table; where that fails the model is measured again next time, and the note says so."""
    key = _key(model, paths)
    text = json.dumps({"key": key, "table": [_plain(row) for row in table]}, indent=1)
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as part:
            part.write(text + "\n")
        Path(part.name).replace(file)  # another process reads the old file or the new one, never half of one
    except OSError as error:
        return (f"measurement not kept ({error}); set SR_DISTILL_CACHE to a folder that can be written",)
    return ()


def _key(model: Restorable, paths: Sequence[Compute]) -> dict[str, Any]:
    """Everything that speed and accuracy depend on."""
    device = paths[0].device
    cuda = device.type == "cuda"
    return {
        "format": FORMAT,
        "model": _fingerprint(model),
        "scale": model.scale,
        "paths": [path.describe() for path in paths],
        "device": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _fingerprint(model: Restorable) -> str:
    """Digest of the networks: names, shapes, and the first values of every tensor.

    Accuracy depends on the weights, not on the sizes alone; to read all of them would take longer than it is worth.
    """
    digest = hashlib.sha256()
    for network in model.tiled_networks:
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def processor_name() -> str:
    """Name of the CPU; the architecture where the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # One vendor gives very different processors the same name in virtual machines: the capability tells them apart.
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _file(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "compute" / f"{digest[:32]}.json"


def _plain(row: Timing) -> dict[str, Any]:
    path = row.compute
    return {
        "device": str(path.device),
        "dtype": NAMES[path.dtype],
        "channels_last": path.channels_last,
        "seconds": row.seconds,
        "psnr": row.psnr,
        "problem": row.problem,
    }


def _timing(row: dict[str, Any]) -> Timing:
    path = Compute(torch.device(row["device"]), DTYPES[row["dtype"]], bool(row["channels_last"]))
    return Timing(path, row["seconds"], row["psnr"], row["problem"])
