"""A run leaves its promised folder, or nothing at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.config import (
    AutoencoderRun,
    DataConfig,
    LPIPSConfig,
    RSDRun,
    RunConfig,
    TeacherRun,
    ValidationConfig,
    read_yaml,
    resolve,
    to_yaml,
)
from distill.data import open_pairs, validation_pairs
from distill.folder import open_run
from distill.run import RunResult, train
from distill.tasks import build_task
from sr_data.images import write_image
from sr_models import SuperResolver
from sr_models.store import load_autoencoder, load_model, read_about

FILES = {"config.yaml", "metrics.jsonl", "tensorboard", "grid.png", "summary.json", "report.html", "model"}
KEPT = {"checkpoints", ".lock"}


def check_folder(result: RunResult, config: RunConfig, columns: int) -> None:
    """Every file is there and says what it should."""
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == FILES | KEPT
    assert resolve(config, [read_yaml(folder / "config.yaml")]) == config
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = sorted({*range(config.log_every, config.steps + 1, config.log_every), config.steps})
    assert [record["step"] for record in records] == steps
    curves = {name for record in records for name in record} - {"step", "images", "seconds"}
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {name for name in board.Tags()["scalars"] if not name.startswith("validation/")} == curves
    for name in curves:
        logged = [(event.step, event.value) for event in board.Scalars(name)]
        assert logged == [(record["step"], pytest.approx(record[name])) for record in records if name in record]
    check_validation(board, result, config)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images_seen"] == records[-1]["images"]
    assert summary["command"] == "sr-distill <train>"
    assert summary["after"] == {name: dict(values) for name, values in result.after.rows.items()}
    with Image.open(folder / "grid.png") as grid:
        grid.load()
        assert grid.width == columns * (config.validation.hr_size + 4) - 4
    check_report((folder / "report.html").read_text(), result)
    about = read_about(result.model)
    assert (about["command"], about["seed"], about["steps"]) == ("sr-distill <train>", config.seed, config.steps)


def check_validation(board: EventAccumulator, result: RunResult, config: RunConfig) -> None:
    """The tracker has what was measured at the end, and the pictures."""
    for method, values in result.after.rows.items():
        for metric, value in values.items():
            event = board.Scalars(f"validation/{method}/{metric}")[-1]
            assert (event.step, event.value) == (config.steps, pytest.approx(value))
    pictures = {name for name in board.Tags()["images"] if "/HR/" in name or name.endswith("/HR")}
    assert pictures


def check_report(page: str, result: RunResult) -> None:
    """Nothing to fetch; the table and both pictures are inside."""
    assert page.count("<img ") == 2
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r"src\s*=\s*'([^']*)'", page))
    assert not re.search(r"href|https?:|<script|<link|@import|url\(", page)
    assert "sr-distill &lt;train&gt;" in page  # escaped
    for name, values in result.after.rows.items():
        assert f"<td>{name}</td><td>{values['PSNR-Y']:.4g}</td>" in page


def test_rsd_run(rsd_run: RSDRun, tmp_path: Path) -> None:
    config = rsd_run.model_copy(update={"steps": 3, "log_every": 2})
    result = train(config, out=tmp_path / "deep" / "run", command="sr-distill <train>", quiet=True)
    assert result.folder == tmp_path / "deep" / "run"
    check_folder(result, config, columns=6)
    assert result.summary["images_seen"] == 3 * (2 + 1) * 2  # K = 2 fake updates and one of the student, batches of 2
    assert list(result.before.rows) == ["bicubic", "teacher 4 steps", "student 1 step, before"]
    assert list(result.after.rows) == [*result.before.rows, "student 1 step"]
    assert result.after.rows["student 1 step"] != result.after.rows["student 1 step, before"]
    assert SuperResolver.from_pretrained(result.model).upscale(np.zeros((5, 7, 3), np.uint8)).shape == (20, 28, 3)
    model, teacher = load_model(result.model), load_model(config.teacher)
    assert model.kind == "student"
    assert all(
        torch.equal(a, b) for a, b in zip(model.autoencoder.parameters(), teacher.autoencoder.parameters(), strict=True)
    )


def test_a_random_perceptual_backbone_is_said_everywhere(rsd_run: RSDRun, tmp_path: Path) -> None:
    lpips = LPIPSConfig(net="alex", backbone="random")
    data = rsd_run.data.model_copy(update={"hr_size": 64})  # AlexNet needs some pixels
    terms = {"distillation": 1.0, "lpips": 2.0}
    result = train(
        rsd_run.model_copy(update={"terms": terms, "lpips": lpips, "data": data, "tracker": "none"}),
        out=tmp_path / "run",
        quiet=True,
    )
    places = [result.folder / "summary.json", result.folder / "report.html", result.model / "README.md"]
    assert all("RANDOM alex backbone" in place.read_text() for place in places)
    assert "RANDOM alex backbone" in read_about(result.model)["notes"]["lpips"]


def test_teacher_run_in_bf16(teacher_run: TeacherRun, tmp_path: Path) -> None:
    config = teacher_run.model_copy(update={"precision": "bf16"})
    result = train(config, out=tmp_path / "run", command="sr-distill <train>", quiet=True)
    check_folder(result, config, columns=5)
    assert list(result.after.rows) == ["bicubic", "teacher 1 step", "teacher 4 steps"]
    model = load_model(result.model)
    assert model.kind == "teacher"
    assert model.config.autoencoder.latent_scale == 1.5  # of the autoencoder that was given
    assert SuperResolver(model).upscale(np.zeros((8, 8, 3), np.uint8)).shape == (32, 32, 3)


def test_autoencoder_run(autoencoder_run: AutoencoderRun, tmp_path: Path) -> None:
    result = train(autoencoder_run, out=tmp_path / "run", command="sr-distill <train>", quiet=True)
    check_folder(result, autoencoder_run, columns=2)
    autoencoder = load_autoencoder(result.model)
    # Saved with the scale that gives latents of the validation images unit variance.
    latents = autoencoder.encode(result.after.pictures["HR"])
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
    decoded = autoencoder.decode(latents).clamp(-1, 1)
    assert torch.allclose(decoded, result.after.pictures["autoencoder"], atol=1e-4)


def test_the_average_is_what_is_measured_and_saved(rsd_run: RSDRun, tmp_path: Path) -> None:
    task = build_task(rsd_run.model_copy(update={"ema_decay": 0.5}))
    for _ in range(2):
        task.trainer.run_step()
    student = task.trainer.players[-1]
    assert student.ema is not None
    task.save(tmp_path / "model", {})
    saved = load_model(tmp_path / "model")
    pairs = list(zip(saved.unet.parameters(), student.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(saved.unet.parameters(), student.ema.module.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    lr, _ = validation_pairs(rsd_run, 4)
    restored = SuperResolver(saved).upscale(lr, seed=0)
    measured = task.evaluate().pictures["student 1 step, before"]  # so it is called the first time
    assert torch.allclose(measured, restored, atol=1e-5)


def test_an_existing_folder_is_refused_and_left_alone(rsd_run: RSDRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected a new folder or a run to continue, got .*another --out"):
        train(rsd_run, out=out, quiet=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert (out / "notes.txt").read_text() == "mine"


def test_folders_are_numbered(rsd_run: RSDRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [rsd_run.model_copy(update={"preset": name}) for name in ("tiny", "tiny", "tiny", "other")]
    made = [open_run(run, None).path for run in runs]
    assert [path.as_posix() for path in made] == [
        "runs/rsd-tiny-001",
        "runs/rsd-tiny-002",
        "runs/rsd-tiny-003",
        "runs/rsd-other-001",
    ]
    assert all(path.is_dir() for path in made)


def photos(folder: Path, size: int, names: tuple[str, ...] = ("a", "b")) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        write_image(folder / f"{name}.png", rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return folder


def test_bad_input_leaves_no_folder(
    rsd_run: RSDRun, teacher_run: TeacherRun, autoencoder_run: AutoencoderRun, models: Path, tmp_path: Path
) -> None:
    def data(**fields: object) -> dict[str, object]:
        return {"data": DataConfig(hr_size=32, workers=0, **fields)}  # type: ignore[arg-type]

    small, large = photos(tmp_path / "small", 24), photos(tmp_path / "large", 64)
    other = photos(tmp_path / "other", 16, ("a", "c"))
    folder = {"source": "folder", "hr_folder": small}
    cases: list[tuple[RunConfig, dict[str, object], str]] = [
        (rsd_run, {"teacher": str(tmp_path / "none")}, "expected a model folder"),
        (rsd_run, {"teacher": str(models / "student")}, "expected a teacher to distil, got the student"),
        (rsd_run, {"teacher": str(models / "autoencoder")}, "expected a teacher or student"),
        (rsd_run, {"student_timesteps": 5}, "expected 1 <= count <= num_steps 4, got 5"),
        (rsd_run, data(**folder), "expected images of at least 32x32 pixels, got .*24x24"),
        (rsd_run, data(source="folder", hr_folder=tmp_path / "none"), "no such folder"),
        (rsd_run, data(source="pairs", hr_folder=large, lr_folder=other), "expected the same names"),
        (rsd_run, data(source="pairs", hr_folder=large, lr_folder=small), "exactly 4 times"),
        (rsd_run, {"data": DataConfig(hr_size=34, workers=0)}, "got 34"),
        (teacher_run, {"autoencoder": str(tmp_path / "none")}, "expected a model folder"),
        (autoencoder_run, data(**folder), "expected images of at least 32x32 pixels"),
        (autoencoder_run, data(source="pairs", hr_folder=large, lr_folder=photos(tmp_path / "lr", 16)), "HR images"),
        (autoencoder_run, {"data": DataConfig(hr_size=34, workers=0)}, "multiple of the autoencoder's 4, got 34"),
        (autoencoder_run, {"validation": ValidationConfig(hr_size=34)}, r"validation\.hr_size .*got 34"),
    ]
    out = tmp_path / "run"
    for run, update, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(run.model_copy(update=update), out=out, quiet=True)  # type: ignore[arg-type]
        assert not out.exists(), message


def test_a_teacher_wants_the_autoencoder_that_its_configuration_describes(teacher_run: TeacherRun) -> None:
    smaller = teacher_run.model.autoencoder.model_copy(update={"base_channels": 2})
    model = teacher_run.model.model_copy(update={"autoencoder": smaller})
    with pytest.raises(ValueError, match="expected the autoencoder that the configuration describes"):
        build_task(teacher_run.model_copy(update={"model": model}))


def test_pairs_of_folders_are_what_a_run_trains_and_measures_on(rsd_run: RSDRun, tmp_path: Path) -> None:
    for name, level in (("a", 51), ("b", 204)):  # LR is HR with a level added, as no degradation would make it
        write_image(tmp_path / "hr" / f"{name}.png", np.full((32, 32, 3), level, np.uint8))
        write_image(tmp_path / "lr" / f"{name}.png", np.full((8, 8, 3), level + 10, np.uint8))
    data = DataConfig(
        source="pairs", hr_folder=tmp_path / "hr", lr_folder=tmp_path / "lr", hr_size=32, image_size=64, workers=0
    )
    task = build_task(rsd_run.model_copy(update={"data": data}))
    lr, hr = next(task.trainer.batches(0))
    assert (lr.shape, hr.shape) == ((2, 3, 8, 8), (2, 3, 32, 32))
    assert torch.allclose(lr.mean((1, 2, 3)), hr.mean((1, 2, 3)) + 10 / 127.5, atol=1e-5)
    assert to_yaml(rsd_run)  # paths are written as text


def test_before_training_the_student_is_the_teacher_in_one_step(rsd_run: RSDRun) -> None:
    before = build_task(rsd_run).evaluate()
    teacher = load_model(rsd_run.teacher)
    hr = before.pictures["HR"]
    assert hr.shape == (2, 3, 32, 32)
    lr, again = validation_pairs(rsd_run, 4)
    assert torch.equal(hr, again)
    # The first picture only: after it the student has drawn its own noise too, and the generators differ.
    restored = SuperResolver(teacher).upscale(lr[:1], seed=0, steps=1)
    assert torch.allclose(before.pictures["student 1 step, before"][:1], restored, atol=1e-5)
    assert torch.equal(before.pictures["LR"][..., ::4, ::4], lr)


def test_validation_pictures_are_not_trained_on(rsd_run: RSDRun) -> None:
    _, hr = validation_pairs(rsd_run, 4)
    trained = next(open_pairs(rsd_run, 4).batches(16, 0))[1]
    assert not any(torch.equal(a, b) for a in hr for b in trained)
    other = validation_pairs(rsd_run.model_copy(update={"seed": 5}), 4)[1]
    assert torch.equal(hr, other)  # runs of different seeds are measured on the same pictures
