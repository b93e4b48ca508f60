"""Which prompt each training image gets.

Text-to-image teachers see a prompt for every image. Photographs have captions or tags, encoded beforehand
(``sr-distill data prompts``). The small teacher that ships has four prompts instead, for how much detail there is; they
can be told from the pixels, which makes a prompt that means something for any image, without a tagger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.evaluation import gradient, luma
from sr_data.datasets import make_generator
from sr_models.t2i.prompts import DEFAULT, NULL, Prompt

PROMPT_STREAM = 5 << 32
"""Added to the run's seed for the small teacher's prompt embeddings."""

DETAIL = ("smooth", "soft", "detailed", "fine")
"""Names of the small teacher's prompts, from the least detail to the most."""
DETAIL_LIMITS = (0.024, 0.038, 0.058)
"""Mean gradient magnitudes of luma that part them: quartiles of 1500 generated crops of 64x64 pixels."""


def detail_names(hr: Tensor) -> list[str]:
    """Name the prompt of each HR image, pixels [-1, 1], (B, 3, H, W)."""
    found = torch.stack([gradient(luma(image[None])) for image in hr])
    return [DETAIL[position] for position in torch.bucketize(found.cpu(), torch.tensor(DETAIL_LIMITS)).tolist()]


def random_prompts(seed: int, tokens: int, channels: int, pooled_channels: int) -> dict[str, Prompt]:
    """Embeddings N(0, 1) for the small teacher: default, null and the four of :data:`DETAIL`.

    Args:
        seed: of the run.
        tokens: length of a prompt.
        channels: of a token.
        pooled_channels: of the pooled vector.
    """
    prompts = {}
    for number, name in enumerate((DEFAULT, NULL, *DETAIL)):
        generator = make_generator(seed + PROMPT_STREAM, number)
        embeds = torch.randn(1, tokens, channels, generator=generator)
        prompts[name] = Prompt(embeds, torch.randn(1, pooled_channels, generator=generator))
    return prompts
