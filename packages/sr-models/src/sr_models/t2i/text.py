"""Text to prompts, by the text encoders of an SD3 or SD2 base and diffusers' own code for them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sr_models.t2i.prompts import Prompt

SD3 = "StableDiffusion3Pipeline"
SD2 = "StableDiffusionPipeline"
T5_LENGTH = 256
"""Tokens that the T5 of SD3 sees; with 77 of CLIP a prompt has 333."""


class TextEncoders:
    """The text encoders of a base; build it with :meth:`from_pretrained`."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device

    @classmethod
    def from_pretrained(
        cls,
        base: str | os.PathLike[str],
        *,
        local_files_only: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> TextEncoders:
        """Load the text encoders, and neither the denoiser nor the autoencoder.

        Args:
            base: diffusers folder or hub id of the SD3 or SD2 kind. One without T5 works as it does in diffusers:
                zeros stand for the T5 part.
            local_files_only: use what is there or in the local cache, never the network.
            dtype: of the encoders; None is float32.
            device: where they run.

        Raises:
            FileNotFoundError: no such base, or one that cannot be had from here.
            ValueError: a base of another kind or with broken files, or diffusers and transformers are not installed.
        """
        try:
            from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
        except ImportError as error:
            raise ValueError(
                f"expected diffusers and transformers to encode text, got none ({_first_line(error)}); "
                "install the extra sr-models[t2i]"
            ) from error

        base = os.fspath(base)
        index = _index(base, local_files_only)
        options: dict[str, Any] = {"dtype": dtype, "local_files_only": local_files_only, "vae": None, "scheduler": None}
        try:
            if index["_class_name"] == SD3:
                # diffusers wants to be told of parts that the index leaves out.
                absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if not any(index.get(name) or ())}
                pipeline = StableDiffusion3Pipeline.from_pretrained(base, transformer=None, **options, **absent)
                if pipeline.text_encoder_3 is None:
                    pipeline.transformer = _width_of_transformer(base, local_files_only)
            else:
                options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
                pipeline = StableDiffusionPipeline.from_pretrained(base, unet=None, **options)
        except ImportError as error:
            raise ValueError(
                f"expected the packages that the tokenizers of {base} need, got {_first_line(error)}"
            ) from error
        except (SafetensorError, ValueError, TypeError) as error:
            raise ValueError(
                f"expected the text encoders of a diffusers base in {base}, got {_first_line(error)}; "
                "restore the files or give another base"
            ) from error
        except Exception as error:
            # The hub's client and what lies under it raise many kinds, from version to version others.
            raise FileNotFoundError(_unreachable(base, error, local_files_only)) from error
        device = torch.device(device)
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if (encoder := getattr(pipeline, name, None)) is not None:
                encoder.to(device).eval()
        return cls(pipeline, device)

    @torch.no_grad()
    def encode(self, text: str) -> Prompt:
        """Encode one text.

        Args:
            text: longer than the encoders read (77 tokens of CLIP, 256 of T5) it is cut off.

        Returns:
            A batch of 1. SD3: embeds (1, 77 + 256, 4096), pooled (1, 2048). SD2: embeds (1, 77, 1024).
        """
        with _without_warnings():  # one for each text that is cut off
            if hasattr(self._pipeline, "text_encoder_2"):
                embeds, _, pooled, _ = self._pipeline.encode_prompt(
                    text,
                    prompt_2=None,
                    prompt_3=None,
                    device=self._device,
                    do_classifier_free_guidance=False,
                    max_sequence_length=T5_LENGTH,
                )
                return Prompt(embeds, pooled)
            embeds, _ = self._pipeline.encode_prompt(
                text, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            return Prompt(embeds)


@contextmanager
def _without_warnings() -> Iterator[None]:
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _index(base: str, local_files_only: bool) -> dict[str, Any]:
    """Return ``model_index.json``: the kind of pipeline and its parts."""
    from diffusers import DiffusionPipeline

    index = Path(base) / "model_index.json"
    if Path(base).exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base):
        if not index.is_file():
            raise FileNotFoundError(
                f"expected a diffusers folder with model_index.json or a hub id OWNER/NAME, got {base!r}; "
                "check the path, or give the id"
            )
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"expected JSON in {index}, got {error}; restore the file") from error
    else:
        try:
            content = DiffusionPipeline.load_config(base, local_files_only=local_files_only)
        except Exception as error:  # see from_pretrained
            raise FileNotFoundError(_unreachable(base, error, local_files_only)) from error
    if not isinstance(content, dict) or content.get("_class_name") not in (SD3, SD2):
        kind = content.get("_class_name") if isinstance(content, dict) else None
        raise ValueError(f"expected a base of kind {SD3} or {SD2}, got {kind} in {base}; give another base")
    return content


def _width_of_transformer(base: str, local_files_only: bool) -> Any:
    """A transformer without memory: diffusers asks its configuration for the width of the zeros that replace T5."""
    from diffusers import SD3Transformer2DModel

    config = SD3Transformer2DModel.load_config(base, subfolder="transformer", local_files_only=local_files_only)
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config({**config, "num_layers": 1})


def _unreachable(base: str, error: Exception, local_files_only: bool) -> str:
    if Path(base).exists():
        return (
            f"expected text encoders and tokenizers in {base}, got {_first_line(error)}; "
            "restore the folder or download it again"
        )
    if local_files_only or os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return (
            f"expected {base} in the local cache, as the network is switched off, got nothing complete there; run once "
            "online (without --offline and HF_HUB_OFFLINE) or give a diffusers folder"
        )
    # diffusers calls every failure a missing file; what happened stands at the bottom.
    root: BaseException = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    return (
        f"expected {base} to be on the hub or in the local cache, got {_first_line(root)}; check the name and the "
        "network, accept the licence on its page and log in (hf auth login), or give a diffusers folder"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
