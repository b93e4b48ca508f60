"""A teacher's network with its schedule: one contract for SD3 (predicts the velocity) and SD2.1 (predicts the noise).

Times are integer indexes of the schedule's table, one for each sample. ``start`` is the noisiest of them, at which a
one-step student is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resshift_core import DiffusionSchedule, FlowMatchingSchedule
from sr_models.t2i.prompts import Prompt
from sr_models.t2i.vae import base_dtype

Predict = Callable[[Tensor, Tensor, Prompt], Tensor]
"""From z_t (B, C, H, W), index (B,) and prompts to the network's prediction."""


class Predictor(Protocol):
    """What objectives and students see of a network."""

    @property
    def num_steps(self) -> int:
        """Length of the table of times."""
        ...

    @property
    def start(self) -> int:
        """Index of the noisiest time."""
        ...

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Predict from z_t (B, C, H, W) at index (B,): the velocity, or the noise."""
        ...

    def noised(self, x_0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """z_t of clean latents and noise."""
        ...

    def x_0(self, prediction: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        """Clean latents that a prediction means."""
        ...

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """What the prediction is trained to be."""
        ...


class Flow:
    """Flow matching on a table of sigmas; subclasses say how the velocity is predicted."""

    schedule: FlowMatchingSchedule
    """The table; index 0 is the noisiest."""

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Velocity at z_t (B, C, H, W) at index (B,)."""
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        """Length of the table."""
        return self.schedule.num_steps

    @property
    def start(self) -> int:
        """Index of the noisiest time."""
        return 0

    def noised(self, x_0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """(1 - sigma) x_0 + sigma noise."""
        z_t: Tensor = self.schedule.interpolate(x_0, noise, index)
        return z_t

    def x_0(self, prediction: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        """z_t - sigma velocity; at sigma = 1 the student's output, z_L - velocity."""
        x_0: Tensor = z_t - self.schedule.sigma(index, z_t) * prediction
        return x_0

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """The velocity noise - x_0."""
        return noise - x_0


@dataclass(frozen=True)
class FlowPredictor(Flow):
    """A flow-matching transformer (SD3): predicts the velocity, noise - x_0.

    Args:
        network: an SD3Transformer2DModel.
        schedule: its table of sigmas; index 0 is pure noise.
    """

    network: Any
    schedule: FlowMatchingSchedule

    def check_size(self, height: int, width: int) -> None:
        """Refuse latents that the network would cut off silently, or that it has no positions for.

        Raises:
            ValueError: a side does not divide by the network's patch, or is larger than it was made for.
        """
        config = self.network.config
        patch, largest = config.patch_size, config.patch_size * config.pos_embed_max_size
        if height % patch or width % patch or max(height, width) > largest:
            raise ValueError(
                f"expected latents of at most {largest}x{largest} with sides that divide by {patch}, got "
                f"{height}x{width}; choose a fitting data.hr_size, or pad or tile the image"
            )

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Velocity at z_t (B, C, H, W) at index (B,).

        Raises:
            ValueError: as :meth:`check_size`.
        """
        self.check_size(*z_t.shape[-2:])
        dtype = base_dtype(self.network)
        prompt = prompt.to(z_t.device, dtype)
        velocity: Tensor = self.network(
            hidden_states=z_t.to(dtype),
            timestep=self.schedule.t(index, z_t),
            encoder_hidden_states=prompt.embeds,
            pooled_projections=prompt.pooled,
        ).sample
        return velocity.to(z_t.dtype)


@dataclass(frozen=True)
class NoisePredictor:
    """A denoising U-Net (SD2.1): predicts the noise, or v for the 768-pixel models, which is converted to noise.

    Args:
        network: a UNet2DConditionModel.
        schedule: its table of alphas; the last index is the noisiest.
        prediction: what the network was trained to predict.
    """

    network: Any
    schedule: DiffusionSchedule
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"

    @property
    def num_steps(self) -> int:
        """Length of the table."""
        return self.schedule.num_steps

    @property
    def start(self) -> int:
        """Index of the noisiest time, T - 1."""
        return self.schedule.num_steps - 1

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Noise in z_t (B, C, H, W) at index (B,)."""
        dtype = base_dtype(self.network)
        embeds = prompt.embeds.to(z_t.device, dtype)
        out: Tensor = self.network(z_t.to(dtype), timestep=index, encoder_hidden_states=embeds).sample.to(z_t.dtype)
        if self.prediction == "v_prediction":
            out = self.schedule.v_to_noise(out, z_t, index)
        return out

    def noised(self, x_0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
        z_t: Tensor = self.schedule.add_noise(x_0, noise, index)
        return z_t

    def x_0(self, prediction: Tensor, z_t: Tensor, index: Tensor) -> Tensor:
        """(z_t - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar)."""
        x_0: Tensor = self.schedule.noise_to_x_0(prediction, z_t, index)
        return x_0

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """The noise."""
        return noise


@dataclass(frozen=True)
class FlowView(Flow):
    """A noise predictor seen as a flow-matching one: the same network in other variables.

    With z = a x_0 + s noise, z / (a + s) = (1 - sigma) x_0 + sigma noise for sigma = s / (a + s); its velocity is
    noise - x_0. Euler steps are then deterministic DDIM steps. Index i here is T - 1 - i of the noise predictor.

    Args:
        predictor: the noise predictor.
    """

    predictor: NoisePredictor

    @property
    def network(self) -> Any:
        """The network of the noise predictor."""
        return self.predictor.network

    @cached_property
    def schedule(self) -> FlowMatchingSchedule:  # type: ignore[override]
        """Table of sigma, noisiest first."""
        signal, spread = self._scales
        return FlowMatchingSchedule((spread / (signal + spread))[::-1])

    def __call__(self, z_t: Tensor, index: Tensor, prompt: Prompt) -> Tensor:
        """Velocity noise - x_0 at z_t (B, C, H, W), a latent of this view, at index (B,)."""
        signal, spread = self._scales
        t = self.num_steps - 1 - index
        width = torch.as_tensor(signal + spread, dtype=z_t.dtype, device=z_t.device)[t].reshape(-1, 1, 1, 1)
        z = z_t * width
        noise = self.predictor(z, t, prompt)
        return noise - self.predictor.x_0(noise, z, t)

    @property
    def _scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """a and s at every t of the noise predictor."""
        alphas = self.predictor.schedule.alphas_cumprod
        return np.sqrt(alphas), np.sqrt(1 - alphas)


def as_flow(predictor: FlowPredictor | NoisePredictor) -> Flow:
    """A predictor of velocities: itself, or the view of a noise predictor as one."""
    return FlowView(predictor) if isinstance(predictor, NoisePredictor) else predictor


def guided(predict: Predict, z_t: Tensor, index: Tensor, prompt: Prompt, null: Prompt, scale: float) -> Tensor:
    """Classifier-free guidance: null + scale (prompt - null), in one batch of twice the size.

    Args:
        predict: asks the network.
        z_t: (B, C, H, W).
        index: (B,).
        prompt: of the samples, B of them.
        null: the empty prompt, B of them.
        scale: 1 asks for the prompt alone.
    """
    if scale == 1:
        return predict(z_t, index, prompt)
    both = predict(torch.cat([z_t, z_t]), torch.cat([index, index]), Prompt.cat([null, prompt]))
    without, with_prompt = both.chunk(2)
    return without + scale * (with_prompt - without)
