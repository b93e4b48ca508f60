"""The examples on points of the plane: both run, the picture is whole, and the page's equations are the packages'."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resshift_core import ResShiftSchedule, distillation_normalizer, rsd_objective

FIGURE = re.compile(
    r"^(teacher, 15 steps|teacher, 1 step|student, 1 step)\b.*?energy distance\s+(-?[\d.]+)", re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "docs" / "examples"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(scope="module")
def page(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_page_rsd", folder / "one_page_rsd.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(script: Path, *options: object) -> str:
    command = [sys.executable, str(script), *(str(option) for option in options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    assert (width, height) == (945, 648)
    for row in range(2):
        for column in range(3):
            panel = pixels[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
            # Something is drawn in colour in each panel: points by y_0, or lines.
            assert (panel.max(-1).astype(int) - panel.min(-1) > 60).sum() > 50, (row, column)


@pytest.mark.parametrize("name", ["one_page_rsd.py", "rsd_2d_with_packages.py"])
def test_an_example_runs_and_its_seed_decides_all_it_prints(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", 2, "--times", 4, 8, 12, 15, "--out")
    first = run_script(folder / name, *options, tmp_path / "picture.png")
    torch.rand(1)  # the global generator must not matter; nor does the process: the second run is in this one
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", [name, *(str(option) for option in options), str(tmp_path / "again.png")])
    runpy.run_path(str(folder / name), run_name="__main__")
    assert first == capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    found = [(method, float(value)) for method, value in FIGURE.findall(first)]
    assert [method for method, _ in found] == ["teacher, 15 steps", "teacher, 1 step", *["student, 1 step"] * 2]
    assert np.isfinite([value for _, value in found]).all()
    check_picture(tmp_path / "picture.png")


def test_the_page_is_one_page_and_needs_none_of_the_packages(folder: Path) -> None:
    text = (folder / "one_page_rsd.py").read_text()
    assert len(text.splitlines()) < 200
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"torch", "numpy", "matplotlib"}


def test_the_student_of_a_short_run_is_closer_to_the_data_than_the_teacher_in_one_step(page: ModuleType) -> None:
    rng, eval_rng = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    teacher = page.train_teacher(400, rng)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    *_, student = page.distil(teacher, 100, [page.T], rng)
    _, y_0 = page.sample_pairs(2000, eval_rng)
    true = torch.cat(page.sample_pairs(2000, eval_rng), 1)

    def distance(network: Any, calls: int) -> float:
        value: float = page.energy_distance(torch.cat((page.sample(network, y_0, calls, eval_rng), y_0), 1), true)
        return value

    once, many = distance(teacher, 1), distance(teacher, page.T)
    assert many < 0.5 * once
    assert distance(student, 1) < 0.7 * once
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student.layers[0].weight[:, -1].abs().max() > 0  # it has begun to use its own noise


@pytest.fixture(scope="module")
def schedule(page: ModuleType) -> ResShiftSchedule:
    return ResShiftSchedule.exponential(num_steps=page.T, kappa=page.KAPPA)


def test_the_schedule_of_the_page_is_the_packages(page: ModuleType, schedule: ResShiftSchedule) -> None:
    np.testing.assert_allclose(page.ETA.numpy(), schedule.etas, rtol=1e-6)


def test_marginal_and_posterior_of_the_page_are_the_packages(page: ModuleType, schedule: ResShiftSchedule) -> None:
    rng = torch.Generator().manual_seed(0)
    x, other, noise = torch.randn(3, page.T, 2, generator=rng)
    t = torch.arange(1, page.T + 1)
    torch.testing.assert_close(page.marginal(x, other, t, noise), schedule.marginal(x, other, t).sample(noise))
    torch.testing.assert_close(page.posterior(x, other, t, noise), schedule.posterior(x, other, t).sample(noise))


def test_eq_7_of_the_page_is_the_packages_in_value_and_gradients(page: ModuleType) -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 64, 2, generator=rng, dtype=torch.float64).unbind()
    results = []
    for loss in (page.rsd_loss, rsd_objective):
        arguments = [values.clone().requires_grad_(True) for values in inputs]
        values = loss(*arguments)
        results.append((values, *torch.autograd.grad(values.sum(), arguments)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_update_of_the_student_is_that_of_the_packages_loss(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient that reaches the student: through teacher and fake model, each sample's loss normalised."""
    seen: dict[str, Any] = {}
    steps = []

    def watch(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        steps.append((optimizer, loss))

    sample_everything = page.sample_everything

    def keep(student: Any, times: Any, rng: torch.Generator) -> Any:
        seen["student"], seen["made"] = student, sample_everything(student, times, rng)
        return seen["made"]

    monkeypatch.setattr(page, "descend", watch)
    monkeypatch.setattr(page, "sample_everything", keep)
    rng = torch.Generator().manual_seed(0)
    teacher = page.Network(rng).requires_grad_(False)
    next(iter(page.distil(teacher, 1, [4, 15], rng)))
    assert len(steps) == page.FAKE_UPDATES + 1
    assert len({id(optimizer) for optimizer, _ in steps[:-1]}) == 1

    x_0_hat, y_0, t, x_t = seen["made"]
    fake = page.Network(rng)
    fake.load_state_dict(teacher.state_dict())  # no update was made, so f_phi is still the teacher
    f_teacher, f_fake = teacher(x_t, y_0, t), fake(x_t, y_0, t)
    scale = distillation_normalizer(f_teacher.detach(), x_0_hat.detach())
    expected = (rsd_objective(f_teacher, f_fake, x_0_hat) / scale).mean()
    weights = list(seen["student"].parameters())
    ours = torch.autograd.grad(steps[-1][1], weights, retain_graph=True)
    theirs = torch.autograd.grad(expected, weights)
    torch.testing.assert_close(steps[-1][1], expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
