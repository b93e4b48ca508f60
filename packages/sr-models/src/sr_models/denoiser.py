"""Network + schedule -> x_0 prediction: the one place where time index, input scale and LR conditioning meet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resshift_core import ResShiftSchedule
from sr_models.swin_unet import SwinUNet


@dataclass(frozen=True)
class Denoiser:
    """Predicts the clean latent from a noisy one with the paper's t in 1..T.

    ``f*(z_t, y_0, t)`` of the teacher, ``f_phi`` of the fake model and ``G(z_t, y_0, t, epsilon)`` of the student are
    all this, with different networks.
    """

    network: SwinUNet
    schedule: ResShiftSchedule

    def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Predict z_0.

        Args:
            z_t: noisy scaled latent, (B, C, H, W).
            lr: LR image, pixels [-1, 1], (B, 3, h, w).
            t: the paper's t in 1..T, (B,) int64.
            noise: N(0, 1), (B, noise_channels, H, W); for students only.

        Returns:
            Prediction of the clean scaled latent, (B, C, H, W).
        """
        prediction: Tensor = self.network(self.schedule.scale_input(z_t, t), self.schedule.time_index(t), lr, noise)
        return prediction

    def bottleneck(self, z_t: Tensor, lr: Tensor, t: Tensor) -> Tensor:
        """Return the network's features after encoder and middle at time t, where a GAN head reads them.

        Args:
            z_t: scaled latent, (B, C, H, W).
            lr: LR image, pixels [-1, 1], (B, 3, h, w).
            t: the paper's t in 1..T, (B,) int64.

        Returns:
            (B, bottleneck channels, H', W').

        Source: RSD Fig. 3
        """
        return self.network.bottleneck(self.schedule.scale_input(z_t, t), self.schedule.time_index(t), lr)

    def one_step(self, z_y: Tensor, lr: Tensor, noise: Tensor, epsilon: Tensor | None = None) -> Tensor:
        """Restore in one network evaluation: z_T from the prior around ``z_y``, then the prediction at t = T.

        Args:
            z_y: scaled latent of the upsampled LR image, (B, C, H, W).
            lr: LR image, pixels [-1, 1].
            noise: N(0, 1) of the shape of ``z_y``.
            epsilon: the student's second noise, (B, noise_channels, H, W); None for a teacher.
        """
        z_t = self.schedule.prior(z_y).sample(noise)
        return self(z_t, lr, self.at(self.schedule.num_steps, z_y), epsilon)

    def few_steps(
        self,
        z_y: Tensor,
        lr: Tensor,
        timesteps: Sequence[int],
        noises: Sequence[Tensor],
        epsilons: Sequence[Tensor | None],
    ) -> Tensor:
        """Restore with a student of several timesteps: predict z_0, bring it back to the next lower time, and again.

        Between two evaluations z_t is drawn from the marginal q(z_t | z_0, z_y) of the prediction, which is how the
        student's inputs at t < T are made in training.

        Args:
            z_y: scaled latent of the upsampled LR image, (B, C, H, W).
            lr: LR image, pixels [-1, 1].
            timesteps: t_1 < ... < t_N = T.
            noises: N(0, 1) of the shape of ``z_y``, in the order of use, N of them.
            epsilons: the student's second noises, in the order of use, N of them.

        Source: RSD Section 3.3 (the student's timesteps), Eq. 20 (the marginal)
        """
        z_0 = self.one_step(z_y, lr, noises[0], epsilons[0])
        for t, noise, epsilon in zip(reversed(timesteps[:-1]), noises[1:], epsilons[1:], strict=True):
            at = self.at(t, z_y)
            z_0 = self(self.schedule.marginal(z_0, z_y, at).sample(noise), lr, at, epsilon)
        return z_0

    def sample(self, z_y: Tensor, lr: Tensor, noises: Tensor, *, deterministic: bool = False) -> Tensor:
        """Run the whole reverse chain t = T..1 and return z_0.

        Args:
            z_y: scaled latent of the upsampled LR image, (B, C, H, W).
            lr: LR image, pixels [-1, 1].
            noises: N(0, 1), (T + 1, B, C, H, W): ``noises[T]`` starts the chain, ``noises[t - 1]`` is added
                after step t (never at t = 1). The deterministic chain reads only ``noises[T]``.
            deterministic: SinSR's deterministic step instead of a draw from the posterior.

        Returns:
            z_0, (B, C, H, W).
        """
        return self.trajectory(z_y, lr, noises, deterministic=deterministic)[-1]

    def trajectory(self, z_y: Tensor, lr: Tensor, noises: Tensor, *, deterministic: bool = False) -> tuple[Tensor, ...]:
        """Like :meth:`sample`, but return all states z_T, z_{T-1}, ..., z_0."""
        steps = self.schedule.num_steps
        if noises.shape[0] != steps + 1:
            raise ValueError(
                f"expected T + 1 = {steps + 1} noise fields, got {noises.shape[0]}; draw one for each state"
            )
        z_T = self.schedule.prior(z_y).sample(noises[steps])
        return tuple(self._states(z_T, z_y, lr, None if deterministic else noises))

    def deterministic_sample(self, z_T: Tensor, z_y: Tensor, lr: Tensor) -> Tensor:
        """Run the deterministic chain t = T..1 from ``z_T`` and return z_0, (B, C, H, W).

        Args:
            z_T: start, (B, C, H, W).
            z_y: scaled latent of the upsampled LR image, (B, C, H, W).
            lr: LR image, pixels [-1, 1].
        """
        return deque(self._states(z_T, z_y, lr, None), maxlen=1).pop()

    def _states(self, z_T: Tensor, z_y: Tensor, lr: Tensor, noises: Tensor | None) -> Iterator[Tensor]:
        """Yield z_T, z_{T-1}, ..., z_0; without noises by deterministic steps."""
        z_t = z_T
        yield z_t
        for step in range(self.schedule.num_steps, 0, -1):
            t = self.at(step, z_y)
            z_0 = self(z_t, lr, t)
            if noises is None:
                z_t = self.schedule.deterministic_step(z_t, z_0, z_y, t)
            else:
                # At t = 1 the posterior is the point z_0: its variance is 0 and the noise is not used.
                z_t = self.schedule.posterior(z_t, z_0, t).sample(noises[step - 1])
            yield z_t

    @staticmethod
    def at(t: int, like: Tensor) -> Tensor:
        """Return the time ``t`` for every sample of ``like``: (B,) int64."""
        return torch.full((like.shape[0],), t, dtype=torch.int64, device=like.device)
