"""Whether a weight file or a model folder is whole: sha256, readable, and finite numbers when it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_models import store
from sr_models.published.inspecting import inspect, read_folder
from sr_models.published.weight_files import read_weights, some


@dataclass(frozen=True)
class Check:
    """Outcome of verifying one thing.

    Args:
        path: what was verified.
        problems: empty where all is well.
        passed: what was found to be right.
    """

    path: str
    problems: list[str]
    passed: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(name: str | os.PathLike[str], base: str | None = None, *, offline: bool = False) -> Check:
    """Compare sha256, load the networks and run them once on noise; nothing is raised for what is wrong with files.

    Args:
        name: model folder, shipped name, or weight file (which has no sha256 to compare, and is not run).
        base: of a text-to-image student; None: where its folder says.
        offline: never ask a hub.
    """
    check = Check(str(name), [], [])

    def step(what: str, do: Callable[[], object]) -> bool:
        try:
            do()
        except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
            check.problems.append(" ".join(str(error).split()))
            return False
        check.passed.append(what)
        return True

    path = Path(name)
    if path.is_file():
        step("readable, numbers finite", lambda: _check_file(path))
    elif step("config.json", lambda: read_folder(store.find(name))):
        folder, content = store.find(name), store.read_config(name)
        for file in content["sha256"]:
            step(f"sha256 of {file}", partial(store.check_file, folder, file, content))
        if check.ok:
            step("runs, numbers finite", lambda: _run(folder, content["kind"], base, offline=offline))
    return check


def _check_file(path: Path) -> None:
    """Raise where a weight file is damaged, unknown, or has numbers that are not finite."""
    inspect(path)
    if path.suffix == ".onnx":
        return
    file = read_weights(path)
    if file.family == "unknown":
        raise ValueError(f"expected a known kind of weights in {path}, got the tensors {some(file.tensors)}")
    _refuse_infinite(path, file.tensors.items())


def _refuse_infinite(place: object, tensors: Iterable[tuple[str, Tensor]]) -> None:
    if bad := [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]:
        raise ValueError(f"expected finite numbers in {place}, got inf or nan in {some(bad)}; restore the file")


@torch.no_grad()
def _run(folder: Path, kind: str, base: str | None, *, offline: bool) -> None:
    """Load the networks of a folder and run each once on a small input."""
    networks, outputs = _outputs(folder, kind, base, offline=offline)
    for network in networks:
        _refuse_infinite(folder, network.named_parameters())
    for name, output in outputs.items():
        _refuse_infinite(f"the output of {folder}", [(name, output)])


def _outputs(folder: Path, kind: str, base: str | None, *, offline: bool) -> tuple[list[nn.Module], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    if kind in ("t2i-teacher", "t2i-student"):
        return _t2i_outputs(folder, kind, base, generator, offline=offline)
    autoencoder = store.load_autoencoder(folder)
    edge = 2 * autoencoder.config.factor
    pixels = torch.rand(1, autoencoder.config.image_channels, edge, edge, generator=generator) * 2 - 1
    latent = autoencoder.encode(pixels)
    outputs = {"encoder": latent, "decoder": autoencoder.decode(latent)}
    if kind == "autoencoder":
        return [autoencoder], outputs
    model = store.load_model(folder)
    lr = torch.rand(1, 3, model.lr_multiple, model.lr_multiple, generator=generator) * 2 - 1
    noise = torch.randn(model.noise_shape(1, model.lr_multiple, model.lr_multiple, 1), generator=generator)[0]
    channels = model.config.unet.latent_channels
    z_y, epsilon = noise[:, :channels] / 2, noise[:, channels:] if noise.shape[1] > channels else None
    outputs["unet"] = model.denoiser.one_step(z_y, lr, noise[:, :channels], epsilon)
    return [autoencoder, model.unet], outputs


def _t2i_outputs(
    folder: Path, kind: str, base: str | None, generator: torch.Generator, *, offline: bool
) -> tuple[list[nn.Module], dict[str, Tensor]]:
    if kind == "t2i-teacher":
        from sr_models.t2i.base import load_base
        from sr_models.t2i.vae import decode

        loaded = load_base(folder, local_files_only=offline)
        latent = torch.randn(1, loaded.vae.config.latent_channels, 8, 8, generator=generator)
        return [loaded.predictor.network, loaded.vae], {"decoder": decode(loaded.vae, latent)}
    from sr_models.t2i.folder import load_student

    student = load_student(folder, base, local_files_only=offline)
    edge = student.lr_multiple
    lr = torch.rand(1, 3, edge, edge, generator=generator) * 2 - 1
    noise = torch.randn(student.noise_shape(1, edge, edge, 1), generator=generator)
    return [student.base.predictor.network, student.base.vae], {"student": student.restore(lr, noise, 1)}
