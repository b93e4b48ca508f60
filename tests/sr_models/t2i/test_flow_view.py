"""A noise predictor seen as a flow: the same predictions, the same steps, in other variables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resshift_core import DiffusionSchedule, FlowMatchingSchedule, tsm_direction, velocity_to_noise
from sr_models.t2i.predictor import FlowPredictor, FlowView, NoisePredictor, as_flow
from sr_models.t2i.prompts import Prompt

SCHEDULE = DiffusionSchedule.scaled_linear()
PROMPT = Prompt(torch.zeros(2, 1, 1, dtype=torch.float64))
T = 1000


class Net(nn.Module):
    """Something nonlinear that depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, z: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        return SimpleNamespace(sample=torch.tanh(self.weight * z) + timestep.reshape(-1, 1, 1, 1) / T)


def normal(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def view() -> FlowView:
    return FlowView(NoisePredictor(Net(), SCHEDULE))


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    alphas = torch.from_numpy(SCHEDULE.alphas_cumprod.copy())[t].reshape(-1, 1, 1, 1)
    return alphas.sqrt(), (1 - alphas).sqrt()


INDEX = torch.tensor([40, 900])


def test_latents_are_those_of_the_noise_predictor_scaled(view: FlowView) -> None:
    x_0, noise, (a, s) = normal(0), normal(1), scales(T - 1 - INDEX)
    torch.testing.assert_close(view.noised(x_0, noise, INDEX) * (a + s), a * x_0 + s * noise)


def test_the_velocity_says_what_the_network_says(view: FlowView) -> None:
    """Noise and x_0 that follow from it are the network's own."""
    z, t = normal(2), T - 1 - INDEX
    a, s = scales(t)
    velocity = view(z / (a + s), INDEX, PROMPT)
    noise = view.network(z, t, None).sample
    sigma = view.schedule.sigma(INDEX, z)
    torch.testing.assert_close(velocity_to_noise(velocity, z / (a + s), sigma), noise)
    torch.testing.assert_close(view.x_0(velocity, z / (a + s), INDEX), (z - s * noise) / a)
    torch.testing.assert_close(velocity, view.target((z - s * noise) / a, noise))


def test_euler_steps_are_ddim_steps(view: FlowView) -> None:
    z, t, later = normal(2), T - 1 - INDEX, T - 1 - (INDEX + 50)
    (a, s), (a_later, s_later) = scales(t), scales(later)
    noise = view.network(z, t, None).sample
    ddim = a_later * (z - s * noise) / a + s_later * noise
    moved = view.schedule.euler_step(z / (a + s), view(z / (a + s), INDEX, PROMPT), INDEX, INDEX + 50)
    torch.testing.assert_close(moved * (a_later + s_later), ddim)


def test_tsm_is_the_difference_of_the_networks_noise(view: FlowView) -> None:
    """Eq. 4 read literally for a network that predicts noise."""
    t = T - 1 - INDEX
    a, s = scales(t)
    z_hat, z = a * normal(3) + s * normal(1), a * normal(0) + s * normal(1)
    v_hat, v = (view(latent / (a + s), INDEX, PROMPT) for latent in (z_hat, z))
    direction = tsm_direction(v_hat, v, z_hat / (a + s), z / (a + s), view.schedule.sigma(INDEX, z), "noise")
    torch.testing.assert_close(direction, view.network(z_hat, t, None).sample - view.network(z, t, None).sample)


def test_the_table_begins_at_the_noisiest_time(view: FlowView) -> None:
    a, s = scales(torch.tensor([T - 1, 0]))
    sigma = view.schedule.sigma(torch.tensor([0, T - 1]), normal(0))
    torch.testing.assert_close(sigma, s / (a + s))
    assert view.start == 0
    assert view.num_steps == T
    assert float(sigma[0]) > 0.93 > 0.07 > float(sigma[1])


def test_a_flow_is_its_own_view() -> None:
    flow = FlowPredictor(Net(), FlowMatchingSchedule.shifted())
    assert as_flow(flow) is flow
    assert isinstance(as_flow(NoisePredictor(Net(), SCHEDULE)), FlowView)
