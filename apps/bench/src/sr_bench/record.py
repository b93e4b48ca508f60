"""What every measurement writes down beside its figures, so that somebody else can repeat it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from distill.folder import write_text
from sr_models.compute import processor_name

PACKAGES = ("sr-bench", "sr-models", "sr-data", "resshift-core", "torch", "pyiqa", "numpy", "pillow", "scipy")


class Provenance(BaseModel):
    """Who wants to repeat a measurement needs this.

    Args:
        command: as it was typed, without the place of its output.
        date: day in UTC, ``2026-11-22``.
        git_commit: of the checkout with this code, ``+changes`` where files differ from it; None: no checkout.
        python: version.
        platform: operating system and kind of processor.
        processor: name of the CPU.
        device: torch device, with the name of a GPU.
        threads: of torch on the CPU.
        versions: of the packages that matter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    date: str
    git_commit: str | None
    python: str
    platform: str
    processor: str
    device: str
    threads: int
    versions: Mapping[str, str]


def provenance(command: str, device: torch.device | str = "cpu", packages: Sequence[str] = ()) -> Provenance:
    """Describe this process, without the name of the machine or its folders.

    Args:
        command: see :func:`command_line`.
        device: that was measured.
        packages: whose versions matter besides :data:`PACKAGES`.
    """
    where = torch.device(device)
    return Provenance(
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        git_commit=git_commit(Path(__file__).parent),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        device=f"{where} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else str(where),
        threads=torch.get_num_threads(),
        versions={name: found for name in (*PACKAGES, *packages) if (found := _version(name))},
    )


def command_line(*left_out: Path | None) -> str:
    """The command as it was typed, without options whose values are ``left_out``, such as the place of the output."""
    drop = {path for path in left_out if path is not None}
    words: list[str] = []
    for word in sys.argv[1:]:
        name, equals, value = word.partition("=")
        if Path(word) in drop and words and words[-1].startswith("-"):
            words.pop()
        elif not (equals and name.startswith("--") and Path(value) in drop):
            words.append(word)
    return shlex.join(["sr-bench", *words])


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout around a folder; None where there is no checkout, or no git."""
    # The variables of a git hook would answer for another checkout.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def ask(*words: str) -> str:
        asked = ["git", "-C", str(folder), *words]
        return subprocess.run(asked, env=clean, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not ask("ls-files", "--", "."):  # installed into a checkout of something else
            return None
        return ask("rev-parse", "HEAD") + ("+changes" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; a pydantic model as its fields."""
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
