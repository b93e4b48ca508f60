"""TSD-SR and OSEDiff as methods of a run: the student's and the fake model's loss at each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from distill.config import OSEDiffRun, T2IRun, TSDRun
from distill.noise import SampleNoise
from distill.objectives import flow, osediff, prompted, tsd
from distill.objectives.output import ObjectiveOutput, TermValue, WeightedTerm, weighted_sum
from distill.objectives.prompted import FakePass, PromptedPairs, Switched
from distill.tasks.common import weighted_terms
from sr_models.t2i.lora import LoRA
from sr_models.t2i.predictor import Flow, FlowPredictor, NoisePredictor, as_flow
from sr_models.t2i.prompts import Prompt
from sr_models.t2i.student import T2IStudent
from sr_models.t2i.vae import decode

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


class Method(Protocol):
    """Where TSD-SR and OSEDiff differ."""

    @property
    def time_bins(self) -> int:
        """Number of bins in which losses are logged by time; 0: none."""
        ...

    def student_loss(self, batch: PromptedPairs, noise: SampleNoise, step: int) -> ObjectiveOutput:
        """The student's loss at a step of the run."""
        ...

    def fake_loss(self, batch: PromptedPairs, noise: SampleNoise) -> ObjectiveOutput:
        """The fake model's loss."""
        ...


def method_of(config: T2IRun, networks: T2INetworks, known: Terms) -> Method:
    """The method that the configuration is of."""
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
