"""From a teacher to the networks that a distillation trains."""

from __future__ import annotations

import copy

from sr_models.swin_unet import SwinUNet

NOISE_CHANNELS = 1
"""RSD's student takes one channel of N(0, 1) at latent size (RSD Sec. 3.2 and Appendix C)."""


def make_student(teacher: SwinUNet, noise_channels: int = NOISE_CHANNELS) -> SwinUNet:
    """Copy the teacher and add a zero-initialised noise input; it starts out equal to the teacher, bit for bit.

    Args:
        teacher: a network without noise channels.
        noise_channels: 0 gives a plain trainable copy.

    Source: RSD Appendix C, "Noise Condition"
    """
    if teacher.config.noise_channels:
        raise ValueError("expected a teacher without noise channels, got a student; pass the teacher it came from")
    like = next(teacher.parameters())
    student = SwinUNet(teacher.config.model_copy(update={"noise_channels": noise_channels}))
    student.to(device=like.device, dtype=like.dtype)
    state = student.state_dict()
    state.update(copy.deepcopy(teacher.state_dict()))  # leaves noise_stem, which is zero
    student.load_state_dict(state)
    return student


def make_fake(teacher: SwinUNet) -> SwinUNet:
    """Copy the teacher as the trainable fake model f_phi.

    Source: RSD Algorithm 1
    """
    return copy.deepcopy(teacher).requires_grad_(True)
