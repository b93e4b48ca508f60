"""Layers that the U-Net and the autoencoder share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32 at least, whatever the dtype of its input and of its parameters.

    float16 and bfloat16 lose the mean of large feature maps; the published networks normalise in float32 too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` (B, C, H, W) and return it in its own dtype."""
        wide = torch.promote_types(input.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(input.to(wide), self.num_groups, weight, bias, self.eps).to(input.dtype)


def run_block(module: nn.Module, *inputs: Any, checkpointing: bool) -> Tensor:
    """Call ``module``; with ``checkpointing`` keep its inputs only and compute it again in the backward pass.

    Memory then grows with the number of blocks instead of the number of layers, for one more forward pass.
    """
    if checkpointing and torch.is_grad_enabled():
        again: Tensor = checkpoint(module, *inputs, use_reentrant=False)
        return again
    out: Tensor = module(*inputs)
    return out


def zero_(module: nn.Module) -> None:
    """Set every parameter of ``module`` to zero, in place, so that its branch starts silent."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters (buffers not counted)."""
    return sum(parameter.numel() for parameter in module.parameters())
