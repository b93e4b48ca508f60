"""A text-to-image run with networks that have shapes and no values: a dry run of SD3 takes neither memory nor files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distill.config import OSEDiffRun, T2IRun
from distill.memory import fake_weights
from distill.tasks.common import Task
from distill.tasks.t2i import Prompts, make_networks, open_named_pairs, task_of
from sr_models.t2i.base import PROMPT_TOKENS, PUBLISHED, Sizes, empty_base, find_base, prompts_of, read_sizes
from sr_models.t2i.prompts import DEFAULT, Prompt, PromptStore


@dataclass(frozen=True)
class EmptyTask:
    """A task of fake networks.

    Args:
        task: to forecast; nothing in it has values.
        frozen: its bases, adapters included.
        mode: the FakeTensorMode that they belong to.
    """

    task: Task
    frozen: list[nn.Module]
    mode: Any


@dataclass(frozen=True)
class _OnePrompt:
    """The same prompt under every name."""

    prompt: Prompt

    def __getitem__(self, name: str) -> Prompt:
        return self.prompt

    def batch(self, names: Sequence[str]) -> Prompt:
        return self.prompt.repeat(len(names))


def empty_task(config: T2IRun, accelerator: Accelerator, missing: list[str]) -> EmptyTask:
    """Build a run without loading its base; what is not here yet is added to ``missing``."""
    for name in ("teacher_lora", "start"):
        place = getattr(config, name)
        if place is not None and not place.exists():
            missing.append(f"{name}: nothing at {place}")
    found = _sizes(config, missing)
    store = _prompts(config, found, missing)
    dtype = getattr(torch, config.base_dtype) if config.base_dtype else None
    own, shared = (empty_base(config.base, found, dtype=dtype) for _ in range(2))
    # Neither what adapters hold nor the teacher's own, a 23rd of its base, makes a difference.
    plain = config.model_copy(update={"teacher_lora": None, "start": None})
    networks = make_networks(plain, torch.device("meta"), own, shared, store[DEFAULT])
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # of averages' deep copies
    frozen = [own.predictor.network, own.vae, shared.predictor.network, shared.vae]
    mode = fake_weights(frozen, accelerator.device)
    on_device = networks.with_device(accelerator.device, store[DEFAULT])
    # No image has a name here; which prompt it gets changes nothing about memory.
    unnamed = config.model_copy(update={"prompts": config.prompts.model_copy(update={"own": "default"})})
    task = task_of(unnamed, accelerator, on_device, store, open_named_pairs(unnamed))
    return EmptyTask(task, frozen, mode)


def _sizes(config: T2IRun, missing: list[str]) -> Sizes:
    try:
        return read_sizes(config.base, local_files_only=True)
    except FileNotFoundError:
        usual = "stable-diffusion-2" if isinstance(config, OSEDiffRun) else "stable-diffusion-3"
        known = [name for name in ("stable-diffusion-3", "stable-diffusion-2") if name in config.base] or [usual]
        family = "sd3" if known[0].endswith("3") else "sd2"
        name = {"sd3": "SD3-medium", "sd2": "SD2.1-base"}[family]
        missing.append(f"base: no {config.base!r} here: networks of the size of {name} without weights")
        return PUBLISHED["sd3" if family == "sd3" else "sd2"]


def _prompts(config: T2IRun, found: Sizes, missing: list[str]) -> Prompts:
    folder = config.prompts.folder or prompts_of(find_base(config.base))
    try:
        if folder is None:
            raise FileNotFoundError(f"no prompts at {config.base!r}; make them with: sr-distill data prompts")
        return PromptStore(folder)
    except FileNotFoundError as error:
        missing.append(f"prompts: {error}")
    sizes = found.network
    if found.family == "sd3":
        embeds = torch.zeros(1, PROMPT_TOKENS["sd3"], sizes["joint_attention_dim"])
        return _OnePrompt(Prompt(embeds, torch.zeros(1, sizes["pooled_projection_dim"])))
    return _OnePrompt(Prompt(torch.zeros(1, PROMPT_TOKENS["sd2"], sizes["cross_attention_dim"])))
