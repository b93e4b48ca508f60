"""Prompts as the networks take them: text that was encoded once, so that no text encoder runs in training or use."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DEFAULT = "default"
"""Name of the prompt that the student always gets."""
NULL = "null"
"""Name of the prompt of the empty text, for classifier-free guidance."""
DEFAULT_TEXT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
"""The fixed prompt of TSD-SR, letter by letter."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_SUFFIX = ".safetensors"
_EMBEDS = "prompt_embeds"
_POOLED = "pooled_prompt_embeds"
_REMEDY = "make it with: sr-distill data prompts"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Encoded text of B images.

    Args:
        embeds: (B, L, D), one vector per token.
        pooled: (B, P), one vector per text (SD3), or None (SD2).

    Raises:
        ValueError: other shapes.
    """

    embeds: Tensor
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        fits = self.embeds.ndim == 3 and (
            self.pooled is None or (self.pooled.ndim == 2 and len(self.pooled) == len(self.embeds))
        )
        if not fits:
            pooled = None if self.pooled is None else tuple(self.pooled.shape)
            raise ValueError(
                f"expected embeds (B, L, D) and pooled (B, P) or None, got {tuple(self.embeds.shape)} and {pooled}; "
                "add the batch dimension"
            )

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """(L, D) and (P,) or None: what all prompts of one network share."""
        return tuple(self.embeds.shape[1:]), None if self.pooled is None else tuple(self.pooled.shape[1:])

    def repeat(self, batch: int) -> Prompt:
        """Return this prompt for every image of a batch; the memory is shared, so do not write into it.

        Raises:
            ValueError: this is already a batch of several.
        """
        if len(self) != 1:
            raise ValueError(f"expected one prompt to repeat, got {len(self)}; take one, or use the batch as it is")
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Prompt(self.embeds.expand(batch, -1, -1), pooled)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Prompt:
        """Return the prompt on a device and in a dtype; None keeps what it has."""
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return Prompt(self.embeds.to(device=device, dtype=dtype), pooled)

    @staticmethod
    def cat(prompts: Sequence[Prompt]) -> Prompt:
        """Concatenate along the batch.

        Raises:
            ValueError: no prompt at all, or prompts of different shapes (some with pooled, some without).
        """
        if not prompts:
            raise ValueError("expected at least one prompt, got none; give the names of the batch")
        if len(shapes := {prompt.shape for prompt in prompts}) > 1:
            raise ValueError(
                f"expected prompts of one shape, got {' and '.join(map(str, sorted(shapes, key=str)))}; "
                "encode all of them with the same text encoders"
            )
        pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
        return Prompt(torch.cat([prompt.embeds for prompt in prompts]), torch.cat(pooled) if pooled else None)


class PromptStore:
    """A folder of encoded prompts: ``default``, ``null``, and one per image under its relative name without suffix.

    Args:
        folder: holds ``NAME.safetensors`` with `prompt_embeds` (L, D) and, for SD3, `pooled_prompt_embeds` (P,).
        cached: number of prompts kept in memory, those used last.

    Raises:
        FileNotFoundError: no such folder, or no default or null prompt in it.
        ValueError: a file that is not a prompt, or default and null differ in shape.
    """

    def __init__(self, folder: str | os.PathLike[str], cached: int = 8) -> None:
        self.folder = Path(folder)
        missing = [name for name in (DEFAULT, NULL) if not prompt_path(self.folder, name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"expected a folder of prompts with {DEFAULT} and {NULL}, got {self.folder} without "
                f"{' and '.join(missing)}; make it with: sr-distill data prompts --out {self.folder}"
            )
        self._cached = cached
        self._cache: dict[str, Prompt] = {}
        self._shape = read_prompt(self.folder, DEFAULT).shape
        self[NULL]  # its shape is checked on reading

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and is_prompt_name(name) and prompt_path(self.folder, name).is_file()

    def __getitem__(self, name: str) -> Prompt:
        prompt = self._cache.pop(name) if name in self._cache else self._read(name)
        self._cache[name] = prompt  # at the end: the first is the one used longest ago
        while len(self._cache) > self._cached:
            del self._cache[next(iter(self._cache))]
        return prompt

    def names(self) -> list[str]:
        """Names of all prompts, sorted."""
        return sorted(_names(self.folder))

    def batch(self, names: Sequence[str]) -> Prompt:
        """Return the prompts of these names as one batch, in this order."""
        return Prompt.cat([self[name] for name in names])

    def _read(self, name: str) -> Prompt:
        prompt = read_prompt(self.folder, name)
        if prompt.shape != self._shape:
            raise ValueError(
                f"expected prompts of one shape in {self.folder}, got {name!r} with {prompt.shape} and {DEFAULT!r} "
                f"with {self._shape}; remove {prompt_path(self.folder, name)} and {_REMEDY}"
            )
        return prompt


def save_prompt(
    folder: str | os.PathLike[str],
    name: str,
    prompt: Prompt,
    dtype: torch.dtype | None = None,
    *,
    text: str | None = None,
) -> None:
    """Write one prompt; readers see the old file or the whole new one.

    Args:
        folder: of the store; missing folders are created.
        name: may hold "/" for subfolders.
        prompt: batch of 1.
        dtype: of the stored tensors; None keeps the dtype.
        text: what was encoded, kept beside the tensors.

    Raises:
        ValueError: a batch of several, a name outside the folder, a value that is not finite in this dtype, or
            another shape than the default prompt of the folder.
    """
    if len(prompt) != 1:
        raise ValueError(f"expected one prompt to save as {name!r}, got {len(prompt)}; save them one by one")
    prompt = prompt.to("cpu", dtype)
    tensors = {_EMBEDS: prompt.embeds[0].detach().contiguous()}
    if prompt.pooled is not None:
        tensors[_POOLED] = prompt.pooled[0].detach().contiguous()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError(f"expected finite values in prompt {name!r}, got inf or nan; use --dtype bfloat16 or float32")
    path = prompt_path(folder, name)
    if name != DEFAULT and prompt_path(folder, DEFAULT).is_file():
        shape = read_prompt(folder, DEFAULT).shape
        if prompt.shape != shape:
            raise ValueError(
                f"expected a prompt of the same shape as {DEFAULT!r} in {folder}, {shape}, got {name!r} with "
                f"{prompt.shape}; use the same text encoders or another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a file cannot be moved atomically to another disk; its suffix hides it from names().
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, temporary, metadata=None if text is None else {"text": text})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_prompt(folder: str | os.PathLike[str], name: str) -> Prompt:
    """Read one prompt of a folder as a batch of 1.

    Raises:
        ValueError: no such prompt, or a file that is not a prompt.
    """
    path = prompt_path(folder, name)
    if not path.is_file():
        raise ValueError(f"expected a prompt named {name!r} in {folder}, got none; {_REMEDY} --out {folder}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got {error}; remove the file and {_REMEDY}") from error
    shapes = {key: tensor.ndim for key, tensor in tensors.items()}
    if shapes not in ({_EMBEDS: 2}, {_EMBEDS: 2, _POOLED: 1}):
        found = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in sorted(tensors.items()))
        raise ValueError(
            f"expected {_EMBEDS} (L, D) and perhaps {_POOLED} (P,) in {path}, got {found or 'nothing'}; "
            f"remove the file and {_REMEDY}"
        )
    pooled = tensors.get(_POOLED)
    return Prompt(tensors[_EMBEDS][None], None if pooled is None else pooled[None])


def prompt_text(folder: str | os.PathLike[str], name: str) -> str | None:
    """Return the text that a stored prompt was encoded from; None where it was not kept."""
    path = prompt_path(folder, name)
    try:
        with safe_open(path, framework="pt") as file:
            text: str | None = (file.metadata() or {}).get("text")
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got {error}; remove the file and {_REMEDY}") from error
    return text


def read_published_prompt(folder: str | os.PathLike[str]) -> Prompt:
    """Read the prompt that TSD-SR publishes: ``prompt_embeds.pt`` and ``pool_embeds.pt``, a bare tensor in each.

    Args:
        folder: with tensors (1, L, D) or (L, D), and (1, P) or (P,).

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file holds something else.
    """
    folder = Path(folder)
    embeds, pooled = _bare_tensor(folder / "prompt_embeds.pt", 2), _bare_tensor(folder / "pool_embeds.pt", 1)
    return Prompt(embeds, pooled)


def is_prompt_name(name: str) -> bool:
    """Whether a name stays inside its folder and is not hidden."""
    return all(part and not part.startswith(".") for part in name.split("/")) and "\0" not in name


def prompt_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the file of a prompt.

    Raises:
        ValueError: the name leaves the folder or is hidden.
    """
    if not is_prompt_name(name):
        raise ValueError(
            f"expected a relative name without hidden parts (no leading '.' or '/'), got {name!r}; rename it"
        )
    return Path(folder) / f"{name}{_SUFFIX}"


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob(f"*{_SUFFIX}"):
        name = path.relative_to(folder).as_posix().removesuffix(_SUFFIX)
        if is_prompt_name(name):
            yield name


def _bare_tensor(path: Path, dimensions: int) -> Tensor:
    """Read a tensor written by ``torch.save``; a batch dimension of 1 is added where it is absent."""
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}, got no such file; give the folder with prompt_embeds.pt and pool_embeds.pt of TSD-SR"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"expected one tensor in {path}, got a file that cannot be read as that; download it again"
        ) from error
    if isinstance(content, Tensor) and content.ndim == dimensions:
        content = content[None]
    if not (isinstance(content, Tensor) and content.ndim == dimensions + 1 and len(content) == 1):
        found = f"shape {tuple(content.shape)}" if isinstance(content, Tensor) else type(content).__name__
        raise ValueError(f"expected one tensor of {dimensions} dimensions or a batch of 1 in {path}, got {found}")
    return content.detach()
