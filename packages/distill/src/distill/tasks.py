"""From a configuration to a run that can be trained, measured and saved: one builder per task.

This is where the pieces meet: data, networks, objective and players. The trainer knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.config import AnyRun, AutoencoderRun, OptimizerConfig, RSDRun, RunConfig, TeacherRun
from distill.data import training_images, training_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic, measure
from distill.objectives import autoencoder as autoencoder_objective
from distill.objectives import resshift, rsd
from distill.objectives.output import Latents, ObjectiveOutput
from distill.trainer import Player, Trainer
from resshift_core import student_timesteps
from sr_data.datasets import training_loader
from sr_models import Denoiser, SRModel, SuperResolver, SwinUNet, VQAutoencoder, make_fake, make_student
from sr_models.restorer import upsample
from sr_models.store import load_autoencoder, load_model, save_autoencoder, save_model

Network = TypeVar("Network", bound=nn.Module)
Save = Callable[[Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """A run, ready to go.

    Args:
        trainer: the players and their data.
        evaluate: measure the current averaged networks; called before and after the training.
        save: write the result as a model folder, with provenance.
    """

    trainer: Trainer
    evaluate: Callable[[], Evaluation]
    save: Save


def build_task(config: AnyRun) -> Task:
    """Load what the run starts from and check its data; everything that can fail for bad input fails here."""
    device = choose_device(config.device)
    match config:
        case AutoencoderRun():
            return _autoencoder_task(config, device)
        case TeacherRun():
            return _teacher_task(config, device)
        case RSDRun():
            return _rsd_task(config, device)


def choose_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA, MPS or the CPU, in this order.

    Raises:
        ValueError: the device that was asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present.get(name, False):
        raise ValueError(f"expected a device of {', '.join(k for k, there in present.items() if there)}, got {name!r}")
    return torch.device(name)


def _autoencoder_task(config: AutoencoderRun, device: torch.device) -> Task:
    torch.manual_seed(config.seed)
    network = _place(VQAutoencoder(config.model.autoencoder), device)
    autoencoder_objective.balance_colours_(network)

    weights = autoencoder_objective.Weights(config.l1_weight, config.mse_weight, config.colour_weight, config.kl_weight)

    def loss(images: Tensor, generator: torch.Generator) -> ObjectiveOutput:
        noise = autoencoder_objective.noise_for(network, images, generator)
        return autoencoder_objective.autoencoder_loss(network, images, noise, sigma=config.sigma, weights=weights)

    player = _player("autoencoder", network, config, loss)
    factor = config.model.autoencoder.factor
    for name, size in (("data.hr_size", config.data.hr_size), ("validation.hr_size", config.validation.hr_size)):
        if size % factor:
            raise ValueError(f"expected {name} to be a multiple of the autoencoder's {factor}, got {size}")
    images = training_images(config)
    batches = training_loader(images, config.batch_size, workers=config.data.workers)
    _, hr = validation_pairs(config, config.model.scale)

    @torch.no_grad()
    def evaluate() -> Evaluation:
        averaged = _averaged(player)
        decoded = averaged.decode(averaged.encode(hr.to(device))).clamp(-1, 1).cpu()
        return Evaluation({"autoencoder": measure(decoded, hr)}, {"HR": hr, "autoencoder": decoded})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        averaged = _averaged(player)
        scale = _unit_scale(averaged, hr.to(device))
        scaled = VQAutoencoder(averaged.config.model_copy(update={"latent_scale": scale}))
        scaled.load_state_dict(averaged.state_dict())
        save_autoencoder(scaled, folder, dtype=getattr(torch, config.save_dtype), about=about)

    trainer = _trainer([player], batches, lambda images: images, config, device)
    return Task(trainer, evaluate, save)


def _teacher_task(config: TeacherRun, device: torch.device) -> Task:
    autoencoder = _place(load_autoencoder(config.autoencoder), device)
    wanted = config.model.autoencoder.model_copy(update={"latent_scale": autoencoder.config.latent_scale})
    if autoencoder.config != wanted:
        raise ValueError(
            f"expected the autoencoder that the configuration describes, got another in {config.autoencoder!r}"
        )
    model_config = config.model.model_copy(update={"autoencoder": autoencoder.config})
    torch.manual_seed(config.seed)
    network = _place(SwinUNet(model_config.unet), device)
    denoiser = Denoiser(network, model_config.schedule.build())

    def loss(latents: Latents, generator: torch.Generator) -> ObjectiveOutput:
        return resshift.teacher_loss(denoiser, latents, resshift.draw(denoiser.schedule, latents, generator))

    player = _player("teacher", network, config, loss)

    def current() -> SRModel:
        return SRModel("teacher", model_config, _averaged(player), autoencoder)

    lr, hr = validation_pairs(config, model_config.scale)
    pairs = training_pairs(config, model_config.scale)
    batches = training_loader(pairs, config.batch_size, workers=config.data.workers)
    steps = model_config.schedule.num_steps

    def evaluate() -> Evaluation:
        methods = {
            "bicubic": bicubic(lr, model_config.scale),
            "teacher 1 step": _restore(current(), lr, device, steps=1),
            f"teacher {steps} steps": _restore(current(), lr, device, steps=steps),
        }
        return _compare(lr, hr, methods)

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        save_model(current(), folder, dtype=getattr(torch, config.save_dtype), about=about)

    trainer = _trainer([player], batches, partial(_encode, autoencoder, model_config.scale), config, device)
    return Task(trainer, evaluate, save)


def _rsd_task(config: RSDRun, device: torch.device) -> Task:
    model = load_model(config.teacher)
    if model.kind != "teacher":
        raise ValueError(
            f"expected a teacher to distil, got the {model.kind} {config.teacher!r}; give a teacher's folder"
        )
    autoencoder, schedule = _place(model.autoencoder, device), model.config.schedule.build()
    teacher = Denoiser(_place(model.unet, device), schedule)
    student = Denoiser(_place(make_student(model.unet), device), schedule)
    fake = Denoiser(_place(make_fake(model.unet), device), schedule)
    timesteps = student_timesteps(schedule.num_steps, config.student_timesteps)

    def draw(latents: Latents, generator: torch.Generator) -> rsd.RSDDraws:
        return rsd.draw(schedule, timesteps, latents, generator, student.network.config.noise_channels)

    def fake_loss(latents: Latents, generator: torch.Generator) -> ObjectiveOutput:
        return rsd.fake_loss(fake, student, latents, draw(latents, generator))

    def student_loss(latents: Latents, generator: torch.Generator) -> ObjectiveOutput:
        draws = draw(latents, generator)
        return rsd.student_loss(student, fake, teacher, latents, draws, normalize=config.normalize)

    fake_player = _player("fake", fake.network, config, fake_loss, updates=config.fake_updates, ema=False)
    student_player = _player("student", student.network, config, student_loss)
    model_config = model.config.model_copy(update={"unet": student.network.config})

    def current() -> SRModel:
        return SRModel("student", model_config, _averaged(student_player), autoencoder)

    lr, hr = validation_pairs(config, model.config.scale)
    pairs = training_pairs(config, model.config.scale)
    batches = training_loader(pairs, config.batch_size, workers=config.data.workers)
    fixed: dict[str, Tensor] = {}  # methods that training does not change, measured once

    def evaluate() -> Evaluation:
        student_now = _restore(current(), lr, device)
        if not fixed:
            fixed["bicubic"] = bicubic(lr, model.config.scale)
            fixed[f"teacher {schedule.num_steps} steps"] = _restore(model, lr, device)
            fixed["student 1 step, before"] = student_now
            return _compare(lr, hr, fixed)
        return _compare(lr, hr, {**fixed, "student 1 step": student_now})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        save_model(current(), folder, dtype=getattr(torch, config.save_dtype), about=about)

    prepare = partial(_encode, autoencoder, model.config.scale)
    trainer = _trainer([fake_player, student_player], batches, prepare, config, device)
    return Task(trainer, evaluate, save)


def _place(network: Network, device: torch.device) -> Network:
    """Move to the device; channels last is the faster memory layout for convolutions on CPUs and tensor cores."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _trainer(
    players: list[Player],
    batches: Any,
    prepare: Callable[[Any], Any],
    config: RunConfig,
    device: torch.device,
) -> Trainer:
    bf16 = config.precision == "bf16"
    return Trainer(players, batches, prepare, config.seed, device=device, bf16=bf16, clip_norm=config.clip_norm)


def _player(
    name: str,
    network: nn.Module,
    config: RunConfig,
    loss: Callable[[Any, torch.Generator], ObjectiveOutput],
    *,
    updates: int = 1,
    ema: bool = True,
) -> Player:
    chosen = config.optimizer
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay
    )
    averaged = None
    if ema:
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(network, multi_avg_fn=average)
    scheduler = _scheduler(optimizer, chosen, config.steps * updates)
    return Player(name, network, optimizer, loss, updates=updates, scheduler=scheduler, ema=averaged)


def _scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(step / steps, 1.0)))))

    return LambdaLR(optimizer, factor)


def _averaged(player: Player) -> Any:
    """The exponential moving average of a player's network, ready for inference."""
    assert player.ema is not None
    return player.ema.module.eval()


@torch.no_grad()
def _encode(autoencoder: VQAutoencoder, scale: int, batch: tuple[Tensor, Tensor]) -> Latents:
    lr, hr = batch
    z_y = autoencoder.encode(upsample(lr, scale)).float()
    return Latents(lr, z_y, autoencoder.encode(hr).float())


@torch.no_grad()
def _unit_scale(autoencoder: VQAutoencoder, images: Tensor) -> float:
    """Latent scale that gives unit variance: 1 / standard deviation of the unscaled latents of ``images``."""
    return round(autoencoder.config.latent_scale / autoencoder.encode(images).std().item(), 6)


def _restore(model: SRModel, lr: Tensor, device: torch.device, steps: int | None = None) -> Tensor:
    return SuperResolver(model, device).restore(lr, torch.Generator().manual_seed(0), steps=steps)


def _compare(lr: Tensor, hr: Tensor, methods: Mapping[str, Tensor]) -> Evaluation:
    nearest = nn.functional.interpolate(lr, size=hr.shape[-2:], mode="nearest")
    rows = {name: measure(images, hr) for name, images in methods.items()}
    return Evaluation(rows, {"LR": nearest, **methods, "HR": hr})
