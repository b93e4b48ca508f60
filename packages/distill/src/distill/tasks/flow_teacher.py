"""Train a small flow-matching teacher, in the classes and the layout of SD3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config import FlowTeacherRun
from distill.data import open_images, validation_pairs
from distill.evaluation import Evaluation
from distill.noise import POSTERIOR_STREAM, SampleNoise
from distill.objectives import flow
from distill.objectives.output import ObjectiveOutput, WeightedTerm, weighted_sum
from distill.prompting import DETAIL, detail_names, random_prompts
from distill.tasks.common import Task, averaged, compare, make_player, make_trainer, place, set_up
from sr_models.store import load_autoencoder
from sr_models.t2i.base import Base, fresh_network, make_predictor
from sr_models.t2i.folder import save_flow_base
from sr_models.t2i.predictor import FlowPredictor
from sr_models.t2i.prompts import DEFAULT, NULL, Prompt
from sr_models.t2i.tiling import tiled
from sr_models.t2i.vae import autoencoder_kl, decode, encode, factor

SHOWN_SIGMAS = (0.3, 0.6)


def flow_teacher_task(config: FlowTeacherRun, accelerator: Accelerator) -> Task:
    """Build the run of a fresh teacher in the latent space of a shipped or own autoencoder."""
    device, size = accelerator.device, config.model
    vae = place(autoencoder_kl(load_autoencoder(config.autoencoder)), device)
    prompts = random_prompts(config.seed, size.prompt_tokens, size.prompt_channels, size.prompt_channels)
    prompts = {name: prompt.to(device) for name, prompt in prompts.items()}
    tile = config.data.hr_size // factor(vae)
    scheduler = {"num_train_timesteps": size.num_steps, "shift": size.shift}
    network = set_up(place(_fresh(config, tile, vae.config.latent_channels), device), config)
    predictor = make_predictor(network, "sd3", scheduler)
    assert isinstance(predictor, FlowPredictor)

    def batch_of(hr: Tensor, indexes: range) -> flow.PromptedImages:
        noise = SampleNoise(config.seed + POSTERIOR_STREAM, indexes, device)
        channels, side = vae.config.latent_channels, [edge // factor(vae) for edge in hr.shape[-2:]]
        own = Prompt.cat([prompts[name] for name in detail_names(hr)])
        null, default = (prompts[name].repeat(len(hr)) for name in (NULL, DEFAULT))
        return flow.PromptedImages(encode(vae, hr, noise.normal((channels, *side))), own, null, default)

    def loss(batch: flow.PromptedImages, noise: SampleNoise) -> ObjectiveOutput:
        draws = flow.draw(predictor, batch, noise)
        step = flow.FlowPass(predictor, batch, draws, config.null_percent, config.default_percent)
        return weighted_sum(step, [WeightedTerm("velocity", 1.0, flow.velocity_error)])

    player = make_player("teacher", network, config, loss)

    def current() -> FlowPredictor:
        return FlowPredictor(averaged(player), predictor.schedule)

    lr, hr = validation_pairs(config, 4)

    @torch.no_grad()
    def evaluate() -> Evaluation:
        """One-step denoising of held-out images by own, null and another prompt: do prompts mean anything?"""
        batch = batch_of(hr.to(device), range(len(hr)))
        noise = SampleNoise(config.validation.seed, range(len(hr)), device).normal(batch.z_0.shape[1:])
        names = detail_names(hr)
        other = Prompt.cat([prompts[DETAIL[(DETAIL.index(name) + 2) % len(DETAIL)]] for name in names])
        methods = {"autoencoder": decode(vae, batch.z_0).clamp(-1, 1).cpu()}
        for sigma in SHOWN_SIGMAS:
            for title, prompt in {"own prompt": batch.own, "null": batch.null, "another": other}.items():
                z_0 = denoise(current(), batch.z_0, noise, sigma, prompt, tile)
                methods[f"from sigma {sigma}, {title}"] = decode(vae, z_0).clamp(-1, 1).cpu()
        return compare(lr, hr, methods)

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        base = Base(folder.name, "sd3", current(), vae, scheduler)
        save_flow_base(base, prompts, folder, dtype=getattr(torch, config.save_dtype), about=about)

    data = open_images(config)
    trainer = make_trainer([player], data, batch_of, config, accelerator, flow.TIME_BINS)
    return Task(trainer, evaluate, save)


def denoise(predictor: FlowPredictor, z_0: Tensor, noise: Tensor, sigma: float, prompt: Prompt, tile: int) -> Tensor:
    """The teacher's prediction of z_0, in one step from z_0 noised to ``sigma``."""
    index = torch.full((len(z_0),), predictor.schedule.nearest_index(sigma), device=z_0.device)
    z_t = predictor.noised(z_0, noise, index)
    velocity = tiled(lambda part: predictor(part, index, prompt), z_t, tile, tile // 4)
    return predictor.x_0(velocity, z_t, index)


def _fresh(config: FlowTeacherRun, tile: int, latent_channels: int) -> Any:
    size = config.model
    sizes = {
        "sample_size": tile,
        "patch_size": size.patch,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "num_layers": size.layers,
        "attention_head_dim": size.head_channels,
        "num_attention_heads": size.heads,
        "joint_attention_dim": size.prompt_channels,
        "caption_projection_dim": size.heads * size.head_channels,
        "pooled_projection_dim": size.prompt_channels,
        "pos_embed_max_size": tile // size.patch,
    }
    return fresh_network("sd3", sizes, config.seed)
