"""The option ``--offline`` of commands that may read from a hub."""

from __future__ import annotations

import os
from typing import Annotated

import typer

Offline = Annotated[bool, typer.Option("--offline", help="never use the network: take base models from this machine")]


def go_offline() -> None:
    """Keep Hugging Face's libraries from the network; they read this when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
