"""Distil a teacher's deterministic chain into a one-step student by SinSR."""

from __future__ import annotations

from functools import partial

from accelerate import Accelerator

from distill.config import SinSRRun
from distill.noise import SampleNoise
from distill.objectives import sinsr
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.tasks.common import Task, decode, load_perceptual, make_player, one_step_terms, weighted_terms
from distill.tasks.students import load_networks, student_task
from sr_models import SRModel


def sinsr_task(config: SinSRRun, accelerator: Accelerator, model: SRModel | None = None) -> Task:
    """Build the run: the student is a copy of the teacher and the only player.

    Args:
        config: of the run.
        accelerator: of this process.
        model: the teacher; None: the one that the configuration names.
    """
    networks = load_networks(config, accelerator.device, model, noise_channels=0)
    perceptual = load_perceptual(config, accelerator.device)
    known = {
        "distillation": sinsr.distillation,
        "inverse": sinsr.inverse,
        "consistency": sinsr.consistency,
        **one_step_terms(perceptual),
    }
    terms: list[WeightedTerm[sinsr.SinSRPass]] = weighted_terms(config.weights, known)

    def loss(latents: Latents, noise: SampleNoise) -> ObjectiveOutput:
        draws, to_pixels = sinsr.draw(latents, noise), partial(decode, networks.autoencoder)
        step = sinsr.SinSRPass(networks.student, networks.teacher, latents, draws, to_pixels)
        return weighted_sum(step, terms)

    player = make_player("student", networks.student.network, config, loss)
    return student_task(config, accelerator, networks, [player], perceptual)
