"""What the builders of tasks share: players, batches, latents, measurements."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.config import LatentRun, OptimizerConfig, RunConfig, TermsRun
from distill.data import TrainingData
from distill.evaluation import Evaluation, measure
from distill.guards import NonFiniteGuard
from distill.noise import SampleNoise
from distill.objectives import terms
from distill.objectives.output import Latents, ObjectiveOutput, TermValue, WeightedTerm
from distill.perceptual import Perceptual, load_lpips
from distill.trainer import Player, Trainer
from sr_data.datasets import make_generator
from sr_models import SuperResolver, SwinUNet, VQAutoencoder
from sr_models.geometry import upsample
from sr_models.restorable import Restorable

Network = TypeVar("Network", bound=nn.Module)
Pass = TypeVar("Pass")
Save = Callable[[Path, Mapping[str, Any]], None]


BACKBONE_STREAM = 4 << 32
"""Added to the run's seed for the weights of a random LPIPS backbone."""


@dataclass(frozen=True)
class Task:
    """A run, ready to go.

    Args:
        trainer: the players and their data.
        evaluate: measure the current averaged networks; called before, after, and on the way.
        save: write the result as a model folder, with provenance.
        notes: facts for the record that the configuration does not tell, by name.
    """

    trainer: Trainer
    evaluate: Callable[[], Evaluation]
    save: Save
    notes: Mapping[str, str] = field(default_factory=dict)


def place(network: Network, device: torch.device) -> Network:
    """Move to the device; channels last is the faster memory layout for convolutions on CPUs and tensor cores."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def set_up(network: Network, config: RunConfig) -> Network:
    """Apply what the configuration says of memory and speed to a network that gradients flow through."""
    if isinstance(network, SwinUNet):
        network.checkpointing = config.checkpointing
    elif config.checkpointing and hasattr(network, "enable_gradient_checkpointing"):
        cast(Any, network).enable_gradient_checkpointing()  # diffusers' networks
    if config.compile is not None:
        # An autoencoder is called by its two halves, never as a whole.
        halves = isinstance(network, VQAutoencoder) or hasattr(network, "quant_conv")
        parts: tuple[Any, ...] = (network.encoder, network.decoder) if halves else (network,)
        try:
            for part in parts:
                part.compile(backend=config.compile)
        except RuntimeError as error:
            raise ValueError(f"expected a torch.compile backend such as inductor, got {config.compile!r}") from error
    return network


def make_trainer(
    players: list[Player],
    data: TrainingData,
    prepare: Callable[[Any, range], Any],
    config: RunConfig,
    accelerator: Accelerator,
    num_times: int = 0,
) -> Trainer:
    """Put players and data together for this process.

    Raises:
        ValueError: the batch does not divide into the processes and micro-batches.
    """
    world = accelerator.num_processes
    micro = config.micro_batch or config.batch_size // world
    if micro < 1 or config.batch_size % (world * micro):
        raise ValueError(
            f"expected batch_size={config.batch_size} as a multiple of {world} processes times micro_batch={micro}; "
            "change one of them"
        )
    return Trainer(
        players,
        lambda start: data.batches(micro, start, rank=accelerator.process_index, world=world),
        prepare,
        config.seed,
        accelerator,
        accumulate=config.batch_size // (world * micro),
        clip_norm=config.clip_norm,
        guard=NonFiniteGuard(config.guard.on_nonfinite, config.guard.max_skips, rank=accelerator.process_index),
        num_times=num_times,
    )


def make_player(
    name: str,
    network: nn.Module,
    config: RunConfig,
    loss: Callable[[Any, SampleNoise], ObjectiveOutput],
    *,
    updates: int = 1,
    ema: bool = True,
    optimizer_config: OptimizerConfig | None = None,
) -> Player:
    """Give a network its optimizer, learning-rate schedule and average.

    Args:
        name: of the player.
        network: trained.
        config: of the run.
        loss: of the player.
        updates: optimizer steps in one turn.
        ema: whether it has an average.
        optimizer_config: None: the run's.
    """
    chosen = optimizer_config or config.optimizer
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay
    )
    averaged = None
    if ema:
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        averaged = AveragedModel(network, multi_avg_fn=average).requires_grad_(False)
    scheduler = make_scheduler(optimizer, chosen, config.steps * updates)
    return Player(name, network, optimizer, loss, updates=updates, scheduler=scheduler, ema=averaged)


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    """Return the learning-rate schedule over ``steps`` updates."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if config.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(step / steps, 1.0)))))

    return LambdaLR(optimizer, factor)


def averaged(player: Player) -> Any:
    """The exponential moving average of a player's network, ready for inference."""
    assert player.ema is not None
    return player.ema.module.eval()


def in_dtype_of(autoencoder: VQAutoencoder) -> AbstractContextManager[Any]:
    """Let an autoencoder in half precision compute in its own dtype; one in float32 follows the run's precision."""
    weight = next(autoencoder.parameters())
    if weight.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(weight.device.type, enabled=False)


def load_perceptual(config: TermsRun, device: torch.device) -> Perceptual | None:
    """The LPIPS network, if the run has that term."""
    if "lpips" not in config.weights:
        return None
    generator = make_generator(config.seed + BACKBONE_STREAM, 0)
    perceptual = load_lpips(config.lpips.net, config.lpips.backbone, generator)
    place(perceptual.network, device)
    return perceptual


def notes_on(perceptual: Perceptual | None) -> dict[str, str]:
    """What the record says of the LPIPS network."""
    return {"lpips": perceptual.description} if perceptual else {}


def weighted_terms(
    weights: Mapping[str, float], known: Mapping[str, Callable[[Pass], TermValue]]
) -> list[WeightedTerm[Pass]]:
    """The terms that the configuration weighs, in the order of ``known``."""
    return [WeightedTerm(name, weights[name], term) for name, term in known.items() if name in weights]


def one_step_terms(perceptual: Perceptual | None) -> dict[str, Callable[[terms.OneStepPass], TermValue]]:
    """Terms on the one-step output that any objective may add, by name."""
    known: dict[str, Callable[[terms.OneStepPass], TermValue]] = {}
    if perceptual is not None:
        known["lpips"] = terms.LPIPS(perceptual.network)
    return {**known, "latent_mse": terms.latent_mse, "pixel_mse": terms.pixel_mse}


def working_copy(autoencoder: VQAutoencoder, config: LatentRun) -> VQAutoencoder:
    """The autoencoder that training computes with: in the dtype that was asked for, memory-saving decoder."""
    working = autoencoder
    if config.autoencoder_dtype is not None:
        working = copy.deepcopy(autoencoder).to(getattr(torch, config.autoencoder_dtype))
    # Its parameters are frozen, so what a block keeps serves the gradient of its input alone; the inputs of the blocks
    # are enough to get it again.
    working.decoder.checkpointing = True
    return working


def decode(autoencoder: VQAutoencoder, z: Tensor) -> Tensor:
    """Scaled latent to pixels in the autoencoder's dtype, differentiable in ``z``."""
    with in_dtype_of(autoencoder):
        return autoencoder.decode(z.to(next(autoencoder.parameters()).dtype))


def latents_of(autoencoder: VQAutoencoder, lr: Tensor, hr: Tensor, scale: int) -> Latents:
    """Encode a batch of pairs, pixels [-1, 1], without gradients; the latents are float32."""
    dtype = next(autoencoder.parameters()).dtype
    with torch.no_grad(), in_dtype_of(autoencoder):
        z_y = autoencoder.encode(upsample(lr, scale).to(dtype)).float()
        return Latents(lr, hr, z_y, autoencoder.encode(hr.to(dtype)).float())


def restore(model: Restorable, lr: Tensor, device: torch.device, steps: int | None = None) -> Tensor:
    """Restore validation images, pixels [-1, 1]; the noise is the same every time, and for every image."""
    return SuperResolver(model, device).upscale(lr, seed=0, steps=steps)


def compare(lr: Tensor, hr: Tensor, methods: Mapping[str, Tensor]) -> Evaluation:
    """Measure restored images by method."""
    nearest = nn.functional.interpolate(lr, size=hr.shape[-2:], mode="nearest")
    rows = {name: measure(images, hr) for name, images in methods.items()}
    return Evaluation(rows, {"LR": nearest, **methods, "HR": hr})
