"""How far a restored image agrees with the LR image, and a control for it.

The LR grid sees of a restored image its averages over ``scale`` x ``scale`` pixels. What they leave open is the
model's to invent; what they fix can be taken from the LR image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 10
"""Of the back-projection; each leaves at most about 0.6 of what the last one left, at the finest LR detail."""


def downscale(image: Tensor, scale: int) -> Tensor:
    """Average (B, C, H, W) over blocks of ``scale`` x ``scale``."""
    return F.avg_pool2d(image, scale)


def back_project(sr: Tensor, lr: Tensor, scale: int, fidelity: float) -> Tensor:
    """Move a restored image towards those that average down to the LR image.

    The correction d is bicubic, so it has no detail of its own: sr + d averages down to lr, and sr + fidelity d is the
    way there. The difference from the LR image shrinks to (1 - fidelity) of itself, the model's fine detail stays.

    Args:
        sr: pixels [-1, 1], (B, 3, h * scale, w * scale).
        lr: pixels [-1, 1], (B, 3, h, w); with its noise, which comes along.
        scale: enlargement.
        fidelity: from 0 to 1.
    """
    if fidelity == 0:
        return sr
    wanted = lr - downscale(sr, scale)
    coarse = wanted
    for _ in range(ITERATIONS):
        coarse = coarse + wanted - downscale(_enlarge(coarse, scale), scale)
    return sr + fidelity * _enlarge(coarse, scale)


def _enlarge(image: Tensor, scale: int) -> Tensor:
    return F.interpolate(image, scale_factor=float(scale), mode="bicubic", align_corners=False)
