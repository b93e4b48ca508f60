"""ResShift-VSD, SinSR and the teacher's variants as runs: players, who learns what, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import DistillationRun, LPIPSConfig, SinSRRun, TeacherRun, VSDRun, resolve
from distill.noise import SampleNoise
from distill.objectives import resshift, rsd, sinsr
from distill.objectives.output import Latents, ObjectiveOutput
from distill.run import train
from distill.tasks import Task, build_task
from sr_models import Denoiser, SuperResolver
from sr_models.store import load_model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents() -> Latents:
    return Latents(normal(3, 3, 8, 8), normal(3, 3, 32, 32), normal(3, 2, 8, 8, seed=1), normal(3, 2, 8, 8, seed=2))


def noise() -> SampleNoise:
    return SampleNoise(1, range(3))


@pytest.mark.parametrize("fixture", ["vsd_run", "sinsr_run"])
def test_a_run_leaves_a_student_that_restores(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config: DistillationRun = request.getfixturevalue(fixture)
    result = train(config, out=tmp_path / "run", quiet=True)
    updates = config.fake_updates + 1 if isinstance(config, VSDRun) else 1
    assert result.summary["images_seen"] == config.steps * updates * config.batch_size
    assert list(result.after.rows) == ["bicubic", "teacher 4 steps", "student 1 step, before", "student 1 step"]
    assert result.after.rows["student 1 step"] != result.after.rows["student 1 step, before"]
    model = load_model(result.model)
    assert model.kind == "student"
    assert model.config.unet.noise_channels == 0
    assert SuperResolver(model).upscale(np.zeros((8, 8, 3), np.uint8)).shape == (32, 32, 3)
    assert (result.model / "README.md").read_text().startswith("# One-step student, distilled by ")


@pytest.mark.parametrize("fixture", ["vsd_run", "sinsr_run"])
def test_students_start_as_the_teacher_in_one_step(fixture: str, request: pytest.FixtureRequest) -> None:
    config: DistillationRun = request.getfixturevalue(fixture)
    evaluation = build_task(config).evaluate()
    teacher = load_model(config.teacher)
    lr = torch.nn.functional.interpolate(evaluation.pictures["LR"], scale_factor=0.25, mode="nearest")
    wanted = SuperResolver(teacher).upscale(lr, seed=0, steps=1)
    torch.testing.assert_close(evaluation.pictures["student 1 step, before"], wanted)


def networks_of(task: Task, config: DistillationRun) -> tuple[Denoiser, Denoiser, Denoiser]:
    """Student, teacher and, where there is one, fake model (else the teacher) as denoisers."""
    model = load_model(config.teacher)
    schedule = model.config.schedule.build()
    student: Any = task.trainer.players[-1].network
    fake: Any = task.trainer.players[0].network["unet"] if len(task.trainer.players) > 1 else model.unet  # type: ignore[index]
    return Denoiser(student, schedule), Denoiser(model.unet, schedule), Denoiser(fake, schedule)


def gradients(output: Tensor, network: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(output, list(network.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros(1) if part is None else part.flatten() for part in found])


def test_vsd_moves_the_student_along_the_difference_of_predictions(vsd_run: VSDRun, latents: Latents) -> None:
    """Algorithm 2 with real networks: 2 (f_phi - f*) / gap for the output, and nothing through z_t."""
    task = build_task(vsd_run)
    student, teacher, fake = networks_of(task, vsd_run)
    with torch.no_grad():
        for parameter in fake.network.parameters():
            parameter.add_(0.02)
    task.trainer._activate(task.trainer.players[-1])
    output: ObjectiveOutput = task.trainer.players[-1].loss(latents, noise())

    draws = rsd.draw(student.schedule, (4,), latents, noise(), noise_channels=0)
    assert draws.epsilon is None
    z_0_hat = student.one_step(latents.z_y, latents.lr, draws.noise_T)
    with torch.no_grad():
        z_t = student.schedule.marginal(z_0_hat, latents.z_y, draws.t).sample(draws.noise_t)
        f_teacher, f_fake = teacher(z_t, latents.lr, draws.t), fake(z_t, latents.lr, draws.t)
        gap = (f_teacher - z_0_hat).abs().mean((1, 2, 3), keepdim=True)
    wanted = (2 * (f_fake - f_teacher) / gap * z_0_hat).mean()
    torch.testing.assert_close(
        gradients(output.loss, student.network), gradients(wanted, student.network), rtol=1e-3, atol=1e-5
    )
    assert output.times is not None
    assert output.times.tolist() == draws.t.tolist()


def test_sinsr_is_the_chain_its_inverse_and_the_truth(sinsr_run: SinSRRun, latents: Latents) -> None:
    task = build_task(sinsr_run)
    (player,) = task.trainer.players
    student, teacher, _ = networks_of(task, sinsr_run)
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(0.02)
    output = player.loss(latents, noise())
    z_T_noise = sinsr.draw(latents, noise()).noise_T
    one, end = torch.ones(3, dtype=torch.int64), torch.full((3,), 4)
    with torch.no_grad():
        z_T = latents.z_y + 2 * student.schedule.etas[4] ** 0.5 * z_T_noise
        target = z_T
        for t in range(4, 0, -1):  # the formulas of the facts: k x_0 + m x_t + j y_0
            eta, previous = student.schedule.etas[t], student.schedule.etas[t - 1]
            m, j = (previous / eta) ** 0.5, previous - (previous * eta) ** 0.5
            z_0 = teacher(target, latents.lr, t * one)
            target = (1 - m - j) * z_0 + m * target + j * latents.z_y
        found = student(latents.z_0, latents.lr, one)
        wanted = {
            "distillation": student(z_T, latents.lr, end) - target,
            "inverse": student(target, latents.lr, one) - z_T,
            "consistency": student(found, latents.lr, end) - latents.z_0,
        }
    assert list(output.terms) == list(wanted)
    for name, error in wanted.items():
        torch.testing.assert_close(output.terms[name], error.square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert output.loss.item() == pytest.approx(sum(error.square().mean().item() for error in wanted.values()), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("term", ["distillation", "inverse", "consistency", "latent_mse"])
def test_every_term_of_sinsr_alone_trains_every_weight(sinsr_run: SinSRRun, term: str, precision: str) -> None:
    """Also under autocast, which may keep a weight that was cast without gradients."""
    config = sinsr_run.model_copy(update={"terms": {term: 1.0}, "precision": precision})
    trainer = build_task(config).trainer
    trainer.run_step()
    for name, parameter in trainer.players[0].network.named_parameters():
        assert parameter.grad is not None, name
        # A bias of attention keys cancels in the softmax.
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_terms_are_chosen_by_name(sinsr_run: SinSRRun) -> None:
    changed = resolve(sinsr_run, [{"terms": {"inverse": None, "consistency": None}}])
    assert changed.terms == {"distillation": 1.0}
    with pytest.raises(ValueError, match="gan"):
        resolve(sinsr_run, [{"terms": {"gan": 1.0}}])


def test_the_teachers_weights_scale_each_time(teacher_run: TeacherRun, latents: Latents) -> None:
    outputs = {}
    for weighting in ("uniform", "kl"):
        task = build_task(teacher_run.model_copy(update={"weighting": weighting}))
        outputs[weighting] = task.trainer.players[0].loss(latents, noise())
    t = outputs["kl"].times
    assert t is not None
    weights = teacher_run.model.schedule.build().kl_weights(clipped=True)
    relative = torch.from_numpy(weights / weights[1:].mean())[t].float()
    torch.testing.assert_close(outputs["kl"].terms["z_0"], relative * outputs["uniform"].terms["z_0"])
    assert len(set(relative.tolist())) > 1


def test_the_teacher_may_learn_from_pixels_too(teacher_run: TeacherRun, tmp_path: Path) -> None:
    config = teacher_run.model_copy(
        update={
            "terms": {"z_0": 1.0, "lpips": 0.5},
            "lpips": LPIPSConfig(net="alex", backbone="random"),
            "data": teacher_run.data.model_copy(update={"hr_size": 64}),
            "tracker": "none",
            "steps": 1,
        }
    )
    result = train(config, out=tmp_path / "run", quiet=True)
    assert "RANDOM alex backbone" in result.summary["notes"]["lpips"]
    line = (result.folder / "metrics.jsonl").read_text()
    assert '"teacher/term/lpips"' in line
    assert '"teacher/term/z_0"' in line


def test_the_teachers_pixels_are_its_prediction_decoded(latents: Latents) -> None:
    step = resshift.TeacherPass(
        network=lambda z_t, lr, t, noise=None: z_t,  # type: ignore[arg-type]
        latents=latents,
        draws=resshift.ResShiftDraws(torch.ones(3, dtype=torch.int64), torch.zeros_like(latents.z_0)),
        decode=lambda z: z + 1,
    )
    step.__dict__["one_step"] = latents.z_0
    torch.testing.assert_close(step.pixels, latents.z_0 + 1)
