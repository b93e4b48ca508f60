"""Checkpoints: everything a run needs to go on exactly, written whole or not at all.

A checkpoint is a folder ``checkpoints/STEP`` with one safetensors file per network and average, ``state.pt``
(optimizers, schedulers, loss scaler, counters; loadable with ``weights_only=True``) and ``manifest.json`` with the
sha256 of each. It is written under another name, synchronised to the disk and then renamed; older ones go only after
that. Random numbers need no state of their own: they belong to (seed, sample), and the next sample's number is one of
the counters.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.trainer import Trainer
from sr_models.store import sha256

FORMAT = 1
FOLDER = "checkpoints"
STATE = "state.pt"
MANIFEST = "manifest.json"


def save_checkpoint(run: Path, trainer: Trainer, keep: int) -> Path:
    """Write the trainer's state and drop all but the newest ``keep`` checkpoints.

    Args:
        run: run folder.
        trainer: between two steps.
        keep: at least 1.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    root = run / FOLDER
    root.mkdir(exist_ok=True)
    for torn in root.glob(".*.tmp"):  # left by a process that was killed
        shutil.rmtree(torn, ignore_errors=True)
    final = root / f"{trainer.step:08d}"
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", suffix=".tmp", dir=root))
    try:
        try:
            _write(partial, trainer)
        except (SafetensorError, RuntimeError) as error:  # what safetensors and torch make of a full disk
            raise OSError(f"cannot write {partial}: {error}") from error
        if final.exists():  # of a run that was continued from an older checkpoint
            shutil.rmtree(final)
        partial.rename(final)
        _sync(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _checkpoints(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(run: Path, trainer: Trainer, warn: Callable[[str], None]) -> bool:
    """Put the newest whole checkpoint of a run into a trainer that was built from the same configuration.

    Args:
        run: run folder.
        trainer: fresh; its networks and optimizers are overwritten.
        warn: told about checkpoints that are torn and passed over.

    Returns:
        Whether there was one.

    Raises:
        ValueError: the checkpoint belongs to other networks.
    """
    for folder in _checkpoints(run):
        try:
            content = _read(folder)
        except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            warn(f"checkpoint {folder} cannot be read ({error}); going back to the one before")
            continue
        _apply(trainer, content, folder)
        return True
    return False


def has_checkpoint(run: Path) -> bool:
    """Tell whether a run folder holds a checkpoint, whole or not."""
    return bool(_checkpoints(run))


def _checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, newest first."""
    return sorted((path for path in (run / FOLDER).glob("*") if path.name.isdigit()), reverse=True)


def _write(folder: Path, trainer: Trainer) -> None:
    state: dict[str, Any] = {"step": trainer.step, "images_seen": trainer.images_seen, "players": {}}
    state["skipped"] = trainer.guard.skipped
    for player in trainer.players:
        save_file(_tensors(player.network), folder / f"{player.name}.safetensors")
        if player.ema is not None:
            save_file(_tensors(player.ema), folder / f"{player.name}-ema.safetensors")
        state["players"][player.name] = {
            "optimizer": player.optimizer.state_dict(),
            "scheduler": player.scheduler.state_dict() if player.scheduler is not None else None,
        }
    scaler = trainer.accelerator.scaler
    state["scaler"] = scaler.state_dict() if scaler is not None else None
    torch.save(state, folder / STATE)
    files = sorted(folder.iterdir())
    manifest = {
        "format": FORMAT,
        "step": trainer.step,
        "images_seen": trainer.images_seen,
        "processes": trainer.accelerator.num_processes,
        "sha256": {path.name: sha256(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in (*files, folder / MANIFEST, folder):
        _sync(path)


def _read(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {manifest['format']}")
    for name, digest in manifest["sha256"].items():
        if sha256(folder / name) != digest:
            raise ValueError(f"expected {name} with the sha256 in {MANIFEST}, got other bytes")
    content: dict[str, Any] = {
        path.stem: load_file(path) for path in folder.glob("*.safetensors") if path.name in manifest["sha256"]
    }
    content[STATE] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return content


def _apply(trainer: Trainer, content: Mapping[str, Any], folder: Path) -> None:
    state = content[STATE]
    for player in trainer.players:
        _load(player.network, content, player.name, folder)
        if player.ema is not None:
            _load(player.ema, content, f"{player.name}-ema", folder)
        own = state["players"][player.name]
        player.optimizer.load_state_dict(own["optimizer"])
        if player.scheduler is not None:
            player.scheduler.load_state_dict(own["scheduler"])
    if trainer.accelerator.scaler is not None and state["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.images_seen = state["step"], state["images_seen"]
    trainer.guard.skipped = state["skipped"]


def _load(module: torch.nn.Module, content: Mapping[str, Any], name: str, folder: Path) -> None:
    tensors, own = content.get(name), module.state_dict()
    if tensors is None or {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError(
            f"expected the tensors of this run's {name} in {folder}, got others; start a new run with --out"
        )
    module.load_state_dict(tensors)


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no way to synchronise a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
