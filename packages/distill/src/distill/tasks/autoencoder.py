"""Train an autoencoder, continuous or with a codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.codebook import CodebookKeeper, take_from_optimizer_
from distill.config import AutoencoderRun
from distill.data import open_images, validation_pairs
from distill.evaluation import Evaluation, measure
from distill.noise import SampleNoise
from distill.objectives import autoencoder as objective
from distill.objectives import terms
from distill.objectives.output import ObjectiveOutput, WeightedTerm, weighted_sum
from distill.perceptual import Perceptual
from distill.tasks.common import (
    Task,
    averaged,
    load_perceptual,
    make_player,
    make_trainer,
    notes_on,
    place,
    set_up,
    weighted_terms,
)
from distill.trainer import Player, Trainer
from sr_data.datasets import make_generator
from sr_models import VQAutoencoder
from sr_models.discriminator import PatchDiscriminator, make_patch_discriminator
from sr_models.store import save_autoencoder

DISCRIMINATOR_STREAM = 5 << 32
"""Added to the run's seed for the weights of the discriminator."""

Terms = list[WeightedTerm[Any]]


def autoencoder_task(config: AutoencoderRun, accelerator: Accelerator) -> Task:
    """Build the run of a fresh autoencoder, and of its discriminator if the loss has a GAN term."""
    device = accelerator.device
    _check_sizes(config)
    torch.manual_seed(config.seed)
    network = set_up(place(VQAutoencoder(config.model.autoencoder), device), config)
    if config.balance_colours:
        objective.balance_colours_(network)
    network.decoder.checkpointing = config.checkpointing
    keeper = _keeper(network, config)
    perceptual = load_perceptual(config, device)
    discriminator = _discriminator(config, device) if "gan" in config.terms else None

    def joined() -> bool:
        return trainer.step >= config.gan.start

    player = _autoencoder_player(network, keeper, _terms(config, perceptual, discriminator, joined), config)
    players = [player]
    if keeper is not None:
        player.before_update = keeper.begin
        player.after_update = partial(_update_codes, player, keeper, accelerator)
    if discriminator is not None:
        players = [_discriminator_player(discriminator, network, config), player]
    data = open_images(config)
    _, hr = validation_pairs(config, config.model.scale)

    @torch.no_grad()
    def evaluate() -> Evaluation:
        current = _current(player)
        decoded = current.decode(current.encode(hr.to(device))).clamp(-1, 1).cpu()
        return Evaluation({"autoencoder": measure(decoded, hr)}, {"HR": hr, "autoencoder": decoded})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        scaled = _with_unit_scale(_current(player), hr.to(device))
        save_autoencoder(scaled, folder, dtype=getattr(torch, config.save_dtype), about=about)

    trainer: Trainer = make_trainer(players, data, lambda images, _: images, config, accelerator)
    return Task(trainer, evaluate, save, notes_on(perceptual))


def _check_sizes(config: AutoencoderRun) -> None:
    factor = config.model.autoencoder.factor
    for name, size in (("data.hr_size", config.data.hr_size), ("validation.hr_size", config.validation.hr_size)):
        if size % factor:
            raise ValueError(f"expected {name} to be a multiple of the autoencoder's {factor}, got {size}")


def _keeper(network: VQAutoencoder, config: AutoencoderRun) -> CodebookKeeper | None:
    if network.codebook is None:
        return None
    weight = network.codebook.weight
    if config.codebook.update == "ema":
        take_from_optimizer_(network.codebook)
    return CodebookKeeper(weight.shape[0], weight.shape[1], config.codebook, config.batch_size).to(weight.device)


def _update_codes(player: Player, keeper: CodebookKeeper, accelerator: Accelerator) -> None:
    """Let the keeper change the codes; a code that moved starts anew in the average and in the optimizer too."""
    weight = _codes(player.network)
    moved = keeper.update(weight, accelerator)
    assert player.ema is not None
    average = _codes(player.ema.module)
    average.copy_(torch.where(moved[:, None], weight.detach(), average))
    for moment in player.optimizer.state.get(weight, {}).values():
        if moment.shape == weight.shape:
            moment.mul_(~moved[:, None])


def _codes(networks: Any) -> Tensor:
    codes: Tensor = networks["autoencoder"].codebook.weight
    return codes


def _discriminator(config: AutoencoderRun, device: torch.device) -> PatchDiscriminator:
    chosen, generator = config.gan, make_generator(config.seed + DISCRIMINATOR_STREAM, 0)
    made = make_patch_discriminator(generator, chosen.base_channels, chosen.layers, chosen.norm_groups)
    if config.data.hr_size < made.smallest:
        raise ValueError(
            f"expected data.hr_size of at least {made.smallest} for {chosen.layers} layers of the discriminator, "
            f"got {config.data.hr_size}; set gan.layers to fewer"
        )
    return set_up(place(made, device), config)


def _terms(
    config: AutoencoderRun,
    perceptual: Perceptual | None,
    discriminator: PatchDiscriminator | None,
    joined: Callable[[], bool],
) -> Terms:
    """The terms that the configuration weighs; the GAN term reads those on pixels as well."""
    pixels: dict[str, Any] = {"l1": objective.l1, "mse": objective.mse, "colour": objective.colour}
    if perceptual is not None:
        pixels["lpips"] = terms.LPIPS(perceptual.network)
    shared = {name: objective.Once(term) for name, term in pixels.items()}
    reconstruction: Terms = weighted_terms(config.weights, shared)
    known: dict[str, Any] = {
        "kl": objective.kl,
        "codebook": objective.codebook,
        "commitment": objective.commitment,
    }
    if discriminator is not None:
        known["gan"] = objective.GeneratorGAN(discriminator, reconstruction, joined)
    return reconstruction + weighted_terms(config.weights, known)


def _autoencoder_player(
    network: VQAutoencoder, keeper: CodebookKeeper | None, weighted: Terms, config: AutoencoderRun
) -> Player:
    networks = nn.ModuleDict({"autoencoder": network})
    if keeper is not None:
        networks["keeper"] = keeper

    def loss(images: Tensor, noise: SampleNoise) -> ObjectiveOutput:
        step = _pass(network, images, noise, config)
        output = weighted_sum(step, weighted)
        if keeper is None:
            return output
        assert isinstance(step, objective.QuantizedPass)
        keeper.see(step.outputs, step.quantized.codes, noise)
        return replace(output, metrics={**output.metrics, **keeper.metrics()})

    return make_player("autoencoder", networks, config, loss)


def _discriminator_player(discriminator: PatchDiscriminator, network: VQAutoencoder, config: AutoencoderRun) -> Player:
    weighted: Terms = [WeightedTerm("hinge", 1.0, objective.DiscriminatorGAN(discriminator))]

    def loss(images: Tensor, noise: SampleNoise) -> ObjectiveOutput:
        return weighted_sum(_pass(network, images, noise, config), weighted)

    player = make_player("discriminator", discriminator, config, loss, ema=False)
    player.first_step = config.gan.start
    return player


def _pass(
    network: VQAutoencoder, images: Tensor, noise: SampleNoise, config: AutoencoderRun
) -> objective.AutoencoderPass:
    if config.sigma is None:
        return objective.QuantizedPass(network, images)
    return objective.ContinuousPass(network, images, objective.noise_for(network, images, noise), config.sigma)


def _current(player: Player) -> VQAutoencoder:
    """The averaged autoencoder, ready for inference."""
    found: VQAutoencoder = averaged(player)["autoencoder"]
    return found


@torch.no_grad()
def _with_unit_scale(autoencoder: VQAutoencoder, images: Tensor) -> VQAutoencoder:
    """The autoencoder with a latent scale that gives unit variance on ``images``, for saving.

    With a codebook the scale stays as configured (published: 1): the codes live in unscaled units anyway.
    """
    config = autoencoder.config
    if autoencoder.codebook is None:
        scale = round(config.latent_scale / autoencoder.encode(images).std().item(), 6)
        config = config.model_copy(update={"latent_scale": scale})
    scaled = VQAutoencoder(config)
    scaled.load_state_dict(autoencoder.state_dict())
    return scaled
