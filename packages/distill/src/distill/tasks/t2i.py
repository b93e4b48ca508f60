"""Distil a text-to-image teacher into a one-step student: TSD-SR (Algorithm 1) and OSEDiff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config import OSEDiffRun, T2IRun
from distill.data import TrainingData, open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.noise import POSTERIOR_STREAM, SampleNoise
from distill.objectives import terms
from distill.objectives.output import ObjectiveOutput
from distill.objectives.prompted import PromptedPairs, Switched
from distill.prompting import DETAIL, detail_names
from distill.tasks.common import (
    Task,
    averaged,
    compare,
    load_perceptual,
    make_player,
    make_trainer,
    notes_on,
    one_step_terms,
    place,
    restore,
    set_up,
)
from distill.tasks.t2i_methods import T2INetworks, Terms, method_of
from distill.trainer import Player, Trainer
from sr_models.geometry import upsample
from sr_models.t2i.base import Base, load_base
from sr_models.t2i.folder import read_adapters, save_student
from sr_models.t2i.lora import LoRA, add_lora, lora_parameters, only, osediff_fake, tsd_fake, tsd_student
from sr_models.t2i.predictor import FlowPredictor
from sr_models.t2i.prompts import DEFAULT, NULL, Prompt, PromptStore
from sr_models.t2i.published import read_tsd
from sr_models.t2i.student import AdapterWeights, T2IStudent, make_student
from sr_models.t2i.vae import decode, encode, factor, features

TEACHER, FAKE = "teacher", "reg"
"""Names of the adapters on the second copy of the base; the fake model's is TSD-SR's."""


def t2i_task(config: T2IRun, accelerator: Accelerator) -> Task:
    """Build the run from the base that its configuration names."""
    data = open_named_pairs(config)
    own, shared = load(config), load(config)
    store = open_prompts(config, own)
    check_prompts(config, store, data)
    networks = make_networks(config, accelerator.device, own, shared, store[DEFAULT])
    return task_of(config, accelerator, networks, store, data)


def open_named_pairs(config: T2IRun) -> TrainingData:
    """Pairs that the run trains on; with names where its prompts go by them."""
    data = open_pairs(config, config.scale)
    if config.prompts.own == "name" and data.name is None:
        raise ValueError(
            f"expected data.source folder or pairs with prompts.own=name, got {config.data.source}, whose images have "
            "no names; set prompts.own=default, or prompts.own=detail with the small teacher"
        )
    return data


def check_prompts(config: T2IRun, store: PromptStore, data: TrainingData) -> None:
    """Refuse a run whose images have prompts that are not there, before it begins.

    Raises:
        ValueError: names the first of them.
    """
    wanted: Sequence[str] = ()
    if config.prompts.own == "name" and data.names is not None:
        wanted, remedy = data.names(), "encode its caption with: sr-distill data prompts --captions"
    elif config.prompts.own == "detail":
        wanted, remedy = DETAIL, "set prompts.own=name or prompts.own=default"
    missing = [name for name in wanted if name not in store]
    if missing:
        raise ValueError(
            f"expected a prompt for every image in {store.folder}, got none for {len(missing)} of {len(wanted)} "
            f"({missing[0]!r}, ...); {remedy}"
        )


def task_of(
    config: T2IRun, accelerator: Accelerator, networks: T2INetworks, store: Prompts, data: TrainingData
) -> Task:
    """Build the run of networks that are there.

    Args:
        config: of the run.
        accelerator: of this process.
        networks: of the run, on its device.
        store: the prompts.
        data: pairs to train on.
    """
    perceptual = load_perceptual(config, accelerator.device)
    known: Terms = {**one_step_terms(perceptual), "features": terms.Features(partial(features, networks.vae))}
    method = method_of(config, networks, {name: known[name] for name in known if name in config.weights})
    run = _Run()
    weights = AdapterWeights(networks.student.parameters())
    fake_optimizer = config.optimizer.model_copy(update={"lr": config.fake_lr})

    def student_loss(batch: PromptedPairs, noise: SampleNoise) -> ObjectiveOutput:
        return method.student_loss(batch, noise, run.trainer.step)

    players = [
        make_player("student", weights, config, student_loss),
        make_player(
            "fake",
            AdapterWeights(lora_parameters(networks.fake.network, networks.fake_lora)),
            config,
            method.fake_loss,
            updates=config.fake_updates,
            ema=False,
            optimizer_config=fake_optimizer,
        ),
    ]
    prepare = partial(_prepare, config, networks, store, data)
    run.trainer = make_trainer(players, data, prepare, config, accelerator, method.time_bins)
    notes = {**notes_on(perceptual), "base": f"{config.base}, whose licence applies to what is derived from it"}
    return _task(config, networks, players[0], run.trainer, notes)


class Prompts(Protocol):
    """Encoded prompts by name, as :class:`sr_models.t2i.prompts.PromptStore`."""

    def __getitem__(self, name: str) -> Prompt:
        """One prompt."""
        ...

    def batch(self, names: Sequence[str]) -> Prompt:
        """Prompts of several images."""
        ...


class _Run:
    """Tells a loss where its trainer is, which is made after the losses."""

    trainer: Trainer


def load(config: T2IRun) -> Base:
    """Load the base that the configuration names."""
    return load_base(config.base, dtype=getattr(torch, config.base_dtype) if config.base_dtype else None)


def open_prompts(config: T2IRun, base: Base) -> PromptStore:
    """Open the prompts that the configuration names, or those of the base."""
    folder = config.prompts.folder or base.prompts
    if folder is None:
        raise ValueError(
            f"expected prompt embeddings for {config.base!r}, got none; make them with: sr-distill data prompts "
            f"--base {config.base} --out FOLDER, and give --set prompts.folder=FOLDER"
        )
    return PromptStore(folder)


def make_networks(config: T2IRun, device: torch.device, own: Base, shared: Base, default: Prompt) -> T2INetworks:
    """Add the adapters of student, fake model and teacher to two copies of a base."""
    if config.teacher_lora is not None and own.family != "sd3":
        raise ValueError(f"expected teacher_lora=null for {config.base!r}: only SD3 teachers have published adapters")
    if config.base_dtype is not None and own.family == "sd2":
        raise ValueError(
            f"expected base_dtype=null for {config.base!r}, got {config.base_dtype}: conv_in is trained whole, and "
            "small updates are lost in half precision; use precision instead"
        )
    if wrong := own.mismatch(default):
        raise ValueError(f"expected prompts for {config.base!r}: {wrong}; make them with: sr-distill data prompts")
    if config.times[1] >= own.predictor.num_steps:
        raise ValueError(
            f"expected times below {own.predictor.num_steps}, the length of the table, got {list(config.times)}; set "
            "the second one lower"
        )
    tile, prompt = config.data.hr_size // factor(own.vae), default.to(device)
    if isinstance(own.predictor, FlowPredictor):
        own.predictor.check_size(tile, tile)
    if config.start is None:
        student = make_student(
            own, prompt, scale=config.scale, tile=tile, rank=config.rank, vae_rank=config.vae_rank, seed=config.seed
        )
    else:
        student = T2IStudent(own, *read_adapters(own, config.start), prompt, config.scale, tile)
        ranks = student.network_lora.rank, student.vae_lora.rank
        if ranks != (config.rank, config.vae_rank):
            raise ValueError(
                f"expected rank={ranks[0]} and vae_rank={ranks[1]}, those of the student in {config.start}, got "
                f"{config.rank} and {config.vae_rank}; set them so"
            )
    network = shared.predictor.network
    if config.data.hr_size % student.pixel_multiple:
        raise ValueError(
            f"expected data.hr_size as a multiple of {student.pixel_multiple} for {config.base!r}, got "
            f"{config.data.hr_size}; change it"
        )
    if config.teacher_lora is not None:
        read_tsd(config.teacher_lora, network, TEACHER, tsd_student)
    recipe = fake_recipe(config, shared)
    add_lora(network, recipe, config.seed + 2)
    for module in (own.predictor.network, own.vae, network, shared.vae):
        place(set_up(module, config), device)
    adapters = (TEACHER,) if config.teacher_lora is not None else ()
    teacher = Switched(shared.predictor, partial(only, network, adapters))
    return T2INetworks(student, shared.predictor, recipe, teacher, shared.vae, device)


def fake_recipe(config: T2IRun, base: Base) -> LoRA:
    """Adapters of the fake model: those of the family's published method."""
    if base.family == "sd3":
        return tsd_fake(base.predictor.network, config.fake_rank, adapter=FAKE)
    return osediff_fake(base.predictor.network, config.fake_rank)


def _prepare(
    config: T2IRun, networks: T2INetworks, store: Prompts, data: TrainingData, raw: Any, indexes: range
) -> PromptedPairs:
    """Pixels, the HR latent and prompts of a batch."""
    lr, hr = data.pairs(raw, indexes)
    match config.prompts.own:
        case "name":
            assert data.name is not None
            names = [data.name(index) for index in indexes]
        case "detail":
            names = detail_names(hr)
        case _:
            names = [DEFAULT] * len(hr)
    own, null, default = (
        prompt.to(networks.device)
        for prompt in (store.batch(names), store[NULL].repeat(len(hr)), store[DEFAULT].repeat(len(hr)))
    )
    side = [edge // factor(networks.vae) for edge in hr.shape[-2:]]
    noise = SampleNoise(config.seed + POSTERIOR_STREAM, indexes, networks.device)
    z_0 = encode(networks.vae, hr, noise.normal((networks.student.latent_channels, *side)))
    student = own if isinstance(config, OSEDiffRun) and config.student_prompt == "own" else default
    return PromptedPairs(lr, hr, upsample(lr, config.scale), z_0, own, null, student)


def _task(config: T2IRun, networks: T2INetworks, player: Player, trainer: Trainer, notes: Mapping[str, str]) -> Task:
    """What is measured and what is saved."""
    student, device = networks.student, networks.device
    weights = player.network
    assert isinstance(weights, AdapterWeights)
    lr, hr = validation_pairs(config, config.scale)
    fixed: dict[str, Tensor] = {}  # what training does not change, measured once

    def evaluate() -> Evaluation:
        with weights.showing(averaged(player)):
            now = restore(student, lr, device)
        if not fixed:
            fixed["bicubic"] = bicubic(lr, config.scale)
            fixed["autoencoder (of HR)"] = _round_trip(networks, hr)
            fixed["student 1 step, before"] = now
            return compare(lr, hr, fixed)
        return compare(lr, hr, {**fixed, "student 1 step": now})

    def save(folder: Path, about: Mapping[str, Any]) -> None:
        with weights.showing(averaged(player)):
            save_student(student, folder, dtype=getattr(torch, config.save_dtype), about=about)

    return Task(trainer, evaluate, save, notes)


@torch.no_grad()
def _round_trip(networks: T2INetworks, hr: Tensor) -> Tensor:
    """HR images through the frozen autoencoder: what a perfect student could reach."""
    side = [edge // factor(networks.vae) for edge in hr.shape[-2:]]
    zero = torch.zeros(len(hr), networks.student.latent_channels, *side, device=networks.device)
    return decode(networks.vae, encode(networks.vae, hr.to(networks.device), zero)).clamp(-1, 1).cpu()
