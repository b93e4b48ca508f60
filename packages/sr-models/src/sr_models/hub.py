"""Model folders on the Hugging Face hub, by ``owner/name``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sr_models import store

NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def fetch(name: str | os.PathLike[str], *, local_files_only: bool = False) -> Path:
    """Folder of a model: shipped, on this machine, or a copy of one on the hub (what is there already is not fetched).

    The tensors are compared with the sha256 in the folder's ``config.json`` when they are read, wherever they are from.

    Args:
        name: of a shipped model, path of a folder, or ``owner/name``.
        local_files_only: never use the network.

    Raises:
        FileNotFoundError: no such model.
        ModuleNotFoundError: a name of the hub, without huggingface-hub.
    """
    try:
        return store.find(name)
    except FileNotFoundError as missing:
        if not isinstance(name, str) or not NAME.fullmatch(name) or Path(name).exists() or Path(name).parent.is_dir():
            raise
        not_here = missing  # a path in a folder that is here is a slip of the pen, not a name on the hub
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected huggingface-hub to fetch {name!r}, which is not a folder here; install sr-models[hub]"
        ) from error
    try:
        patterns = ["*.json", "*.safetensors", "*.md"]  # never a pickle
        folder = snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{not_here}; nor could it be had from the hub ({reason})") from error
    return store.find(folder)
