"""Distil a text-to-image teacher into a one-step student: TSD-SR (Algorithm 1) and OSEDiff."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.config import OSEDiffRun, T2IRun, TSDRun
from distill.data import TrainingData, open_pairs, validation_pairs
from distill.evaluation import Evaluation, bicubic
from distill.noise import SampleNoise
from distill.objectives import flow, osediff, prompted, terms, tsd
from distill.objectives.output import ObjectiveOutput, TermValue, WeightedTerm, weighted_sum
from distill.objectives.prompted import FakePass, PromptedPairs, Switched
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
    weighted_terms,
)
from distill.trainer import Player, Trainer
from sr_models.geometry import upsample
from sr_models.t2i.base import Base, load_base
from sr_models.t2i.folder import read_adapters, save_student
from sr_models.t2i.lora import LoRA, add_lora, lora_parameters, only, osediff_fake, tsd_fake, tsd_student
from sr_models.t2i.predictor import Flow, FlowPredictor, NoisePredictor, as_flow
from sr_models.t2i.prompts import DEFAULT, NULL, Prompt, PromptStore
from sr_models.t2i.published import read_tsd
from sr_models.t2i.student import AdapterWeights, T2IStudent, make_student
from sr_models.t2i.vae import decode, encode, factor, features

POSTERIOR_STREAM = 6 << 32
"""Added to the run's seed for the samples of the HR latents."""

TEACHER, FAKE = "teacher", "reg"
"""Names of the adapters on the second copy of the base; the fake model's is TSD-SR's."""

Terms = Mapping[str, Callable[[Any], TermValue]]


@dataclass(frozen=True)
class T2INetworks:
    """Networks of a run, on their device.

    Args:
        student: with adapters on a copy of the base of its own.
        fake: the fake model: adapters on a second copy of the base.
        fake_lora: their recipe.
        teacher: the second copy without them, or with the teacher's own.
        vae: of the second copy, frozen.
        device: of all.
    """

    student: T2IStudent
    fake: FlowPredictor | NoisePredictor
    fake_lora: LoRA
    teacher: Switched
    vae: Any
    device: torch.device

    def with_device(self, device: torch.device, default: Prompt) -> T2INetworks:
        """The same networks, said to be on another device, with another prompt of the student."""
        student = replace(self.student, prompt=default.to(device))
        return replace(self, student=student, device=device)


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
    method = _method(config, networks, {name: known[name] for name in known if name in config.weights})
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


class _Method(Protocol):
    """Where TSD-SR and OSEDiff differ."""

    @property
    def time_bins(self) -> int: ...

    def student_loss(self, batch: PromptedPairs, noise: SampleNoise, step: int) -> ObjectiveOutput: ...

    def fake_loss(self, batch: PromptedPairs, noise: SampleNoise) -> ObjectiveOutput: ...


def _method(config: T2IRun, networks: T2INetworks, known: Terms) -> _Method:
    match config:
        case TSDRun():
            return TSDMethod(config, networks, known)
        case OSEDiffRun():
            return OSEDiffMethod(config, networks, known)
        case _:
            raise TypeError(f"expected the configuration of tsd or osediff, got {type(config).__name__}")


@dataclass(frozen=True)
class TSDMethod:
    """TSD-SR: what its two losses are at a step of the run.

    Args:
        config: of the run.
        networks: of the run.
        known: the terms that the configuration weighs, but the distillation.
    """

    config: TSDRun
    networks: T2INetworks
    known: Terms
    time_bins: int = flow.TIME_BINS

    @cached_property
    def flow(self) -> Flow:
        """The network that teacher and fake model share, as a flow."""
        return as_flow(self.networks.fake)

    def sampling(self, step: int) -> tsd.Sampling:
        """DASM from its first step on, plain TSD before."""
        start, dasm = self.config.schedule.dasm_from, self.config.dasm
        if start is None or step < start:
            return tsd.Sampling((1.0,), dasm.stride)
        return tsd.Sampling(dasm.weights, dasm.stride)

    def weights(self, step: int) -> dict[str, float]:
        """Weights of the terms at a step: gamma_1 on the perceptual ones, the latent MSE only while it holds."""
        schedule = self.config.schedule
        weights = dict(self.config.weights)
        for name in {"lpips", "features"} & weights.keys():
            weights[name] *= schedule.gamma_1.at(step / self.config.steps)
        if schedule.latent_mse_until is not None and step >= schedule.latent_mse_until:
            weights.pop("latent_mse", None)
        return {name: weight for name, weight in weights.items() if weight > 0}

    def student_loss(self, batch: PromptedPairs, noise: SampleNoise, step: int) -> ObjectiveOutput:
        """The student's loss (Eq. 8)."""
        config, networks = self.config, self.networks
        draws = tsd.draw(batch, noise, *config.times, config.dasm.bias)
        one = tsd.StudentPass(
            networks.student,
            batch,
            draws.posterior,
            partial(decode, networks.vae),
            self.flow,
            replace(networks.teacher, predict=self.flow),
            draws,
            self.sampling(step),
            config.guidance,
        )
        vsd_weight = config.schedule.vsd_weight.at(step / config.steps)
        known: Terms = {"distillation": tsd.Distillation(vsd_weight, config.parameterisation), **self.known}
        return weighted_sum(one, weighted_terms(self.weights(step), known))

    def fake_loss(self, batch: PromptedPairs, noise: SampleNoise) -> ObjectiveOutput:
        """The fake model's loss (Eq. 9): as published for flow matching, and the noise's error for SD2."""
        draws = prompted.draw(batch, noise, *self.config.times)
        step = FakePass(self.networks.fake, self.networks.student, batch, draws)
        if isinstance(self.networks.fake, FlowPredictor):
            return weighted_sum(step, [WeightedTerm("z_0", 1.0, tsd.fake_error)])
        return weighted_sum(step, [WeightedTerm("prediction", 1.0, prompted.fake_error)])


@dataclass(frozen=True)
class OSEDiffMethod:
    """OSEDiff: its two losses; arguments as :class:`TSDMethod`."""

    config: OSEDiffRun
    networks: T2INetworks
    known: Terms
    time_bins: int = 0

    def student_loss(self, batch: PromptedPairs, noise: SampleNoise, step: int) -> ObjectiveOutput:
        """VSD, pixel MSE and LPIPS."""
        networks = self.networks
        draws = prompted.draw(batch, noise, *self.config.times)
        one = osediff.StudentPass(
            networks.student,
            batch,
            draws.posterior,
            partial(decode, networks.vae),
            networks.fake,
            networks.teacher,
            draws,
            self.config.guidance,
        )
        known: Terms = {"distillation": osediff.distillation, **self.known}
        return weighted_sum(one, weighted_terms(self.config.weights, known))

    def fake_loss(self, batch: PromptedPairs, noise: SampleNoise) -> ObjectiveOutput:
        """The fake model's own training loss, at any time of the table."""
        draws = prompted.draw(batch, noise, 0, self.networks.fake.num_steps - 1)
        step = FakePass(self.networks.fake, self.networks.student, batch, draws)
        return weighted_sum(step, [WeightedTerm("prediction", 1.0, prompted.fake_error)])


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
