"""Train an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config import AutoencoderRun
from distill.data import open_images, validation_pairs
from distill.evaluation import Evaluation, measure
from distill.noise import SampleNoise
from distill.objectives import autoencoder as objective
from distill.objectives.output import ObjectiveOutput
from distill.tasks.common import Task, averaged, make_player, make_trainer, place, set_up
from sr_models import VQAutoencoder
from sr_models.store import save_autoencoder


def autoencoder_task(config: AutoencoderRun, accelerator: Accelerator) -> Task:
    """Build the run of a fresh continuous autoencoder."""
    device = accelerator.device
    torch.manual_seed(config.seed)
    network = set_up(place(VQAutoencoder(config.model.autoencoder), device), config)
    objective.balance_colours_(network)
    weights = objective.Weights(config.l1_weight, config.mse_weight, config.colour_weight, config.kl_weight)

    def loss(images: Tensor, noise: SampleNoise) -> ObjectiveOutput:
        z_noise = objective.noise_for(network, images, noise)
        return objective.autoencoder_loss(network, images, z_noise, sigma=config.sigma, weights=weights)

    player = make_player("autoencoder", network, config, loss)
    factor = config.model.autoencoder.factor
    for name, size in (("data.hr_size", config.data.hr_size), ("validation.hr_size", config.validation.hr_size)):
        if size % factor:
            raise ValueError(f"expected {name} to be a multiple of the autoencoder's {factor}, got {size}")
    data = open_images(config)
    _, hr = validation_pairs(config, config.model.scale)

    @torch.no_grad()
    def evaluate() -> Evaluation:
        network = averaged(player)
        decoded = network.decode(network.encode(hr.to(device))).clamp(-1, 1).cpu()
        return Evaluation({"autoencoder": measure(decoded, hr)}, {"HR": hr, "autoencoder": decoded})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        network = averaged(player)
        scale = _unit_scale(network, hr.to(device))
        scaled = VQAutoencoder(network.config.model_copy(update={"latent_scale": scale}))
        scaled.load_state_dict(network.state_dict())
        save_autoencoder(scaled, folder, dtype=getattr(torch, config.save_dtype), about=about)

    trainer = make_trainer([player], data, lambda images, _: images, config, accelerator)
    return Task(trainer, evaluate, save)


@torch.no_grad()
def _unit_scale(autoencoder: VQAutoencoder, images: Tensor) -> float:
    """Latent scale that gives unit variance: 1 / standard deviation of the unscaled latents of ``images``."""
    return round(autoencoder.config.latent_scale / autoencoder.encode(images).std().item(), 6)
