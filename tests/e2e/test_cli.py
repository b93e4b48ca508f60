"""``sr-distill`` as a person uses it: what it makes, and what it says to bad input."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_data.images import write_image


def noise(path: Path, size: int = 64) -> Path:
    rng = np.random.default_rng(len(path.name))
    write_image(path, rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return path


def truncated(path: Path) -> Path:
    """The first half of a file, in its place."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def check_refused(outcome: Any, message: str) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == 2, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in outcome.err + outcome.out


def test_bad_training_input_is_refused_in_one_line(run: Any, trained: Any, tmp_path: Path) -> None:
    text = tmp_path / "text" / "a.png"
    text.parent.mkdir()
    text.write_text("no picture")
    small = noise(tmp_path / "small" / "a.png", 16)
    for suffix in ("png", "jpg"):  # the header of a JPEG is enough for the check up front, its pixels come later
        truncated(noise(tmp_path / suffix / f"a.{suffix}"))
    noise(tmp_path / "large" / "a.png")
    noise(tmp_path / "other" / "b.png", 16)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.yaml").write_text("- 1\n")
    cases: list[tuple[list[object], str]] = [
        (["rds"], "expected a task of autoencoder, teacher, rsd, vsd, sinsr, flow-teacher, tsd, osediff, got 'rds'"),
        (["rsd", "--preset", "small"], "expected a preset of tiny, rsd-paper, "),
        (["rsd", "--set", "stepz=3"], "did you mean 'steps'?"),
        (["rsd", "--set", "steps"], "expected key=value"),
        (["rsd", "--set", "optimizer.betas=[1"], "expected key=value"),
        (["rsd", "--steps", "0"], "steps: Input should be greater than or equal to 1"),
        (["rsd", "--seed", "-1"], "seed: Input should be greater than or equal to 0"),
        (["rsd", "--set", "device=gpu"], "device: Input should be"),
        (["rsd", "--config", tmp_path / "none.yaml"], "none.yaml"),
        (["rsd", "--config", tmp_path / "list.yaml"], "expected keys and values"),
        (["rsd", "--lr-data", tmp_path / "large"], "source 'pairs' needs data.hr_folder"),
        (["rsd", "--data", tmp_path / "none"], "no such folder"),
        (["rsd", "--data", small], "expected a folder of images, got the file"),
        (["rsd", "--data", tmp_path / "empty"], "no images in"),
        (["rsd", "--data", text.parent], "not a picture"),
        (["rsd", "--data", small.parent], "expected images of at least 32x32 pixels, got"),
        (["rsd", "--data", tmp_path / "large", "--lr-data", tmp_path / "other"], "expected the same names"),
        (["rsd", "--data", tmp_path / "png"], "expected a complete image, got"),
        (["rsd", "--data", tmp_path / "jpg"], "expected a complete image, got"),
        (["rsd", "--set", f"teacher={tmp_path}"], "expected a model folder"),
        (["rsd", "--set", f"teacher={trained.student}"], "expected a teacher to distil, got the student"),
        (["rsd", "--set", f"teacher={trained.autoencoder}"], "got kind 'autoencoder'"),
        (["autoencoder", "--set", "data.hr_size=30"], "30"),
    ]
    for number, (arguments, message) in enumerate(cases):
        task, *options = arguments
        base: list[object] = ["--config", trained.config, "--set", f"teacher={trained.teacher}"]
        if task == "autoencoder":
            base = ["--set", "data.workers=0"]
        if "--config" in options:
            base = base[2:]
        out = tmp_path / "runs" / str(number)
        check_refused(run("sr-distill", "train", task, *base, *options, "--out", out), message)
        assert not out.exists(), message


def test_a_data_process_fails_in_one_line_too(run: Any, trained: Any, tmp_path: Path) -> None:
    # Validation crops come from the sound picture; the other's pixels are read in the process that prepares batches.
    sound, broken = noise(tmp_path / "photos" / "a.jpg", 32), noise(tmp_path / "photos" / "b.jpg", 32)
    options = ["--data", sound.parent, "--set", "data.workers=1", "--set", f"teacher={trained.teacher}"]
    for first, second in ((sound, broken), (broken, sound)):  # one of them is the one validation picture
        noise(first, 32)
        truncated(noise(second, 32))
        out = tmp_path / second.stem
        outcome = run("sr-distill", "train", "rsd", "--config", trained.config, *options, "--out", out)
        check_refused(outcome, f"expected a complete image, got {second}")


def test_another_run_s_folder_is_refused(run: Any, trained: Any) -> None:
    before = sorted(path.name for path in trained.student.parent.iterdir())
    outcome = run("sr-distill", "train", "rsd", "--config", trained.config, "--out", trained.student.parent)
    check_refused(outcome, "got another teacher; repeat the same command to continue, or choose another --out")
    assert sorted(path.name for path in trained.student.parent.iterdir()) == before


def test_a_dry_run_tells_and_trains_nothing(
    run: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--config", trained.config, "--set", f"teacher={trained.teacher}", "--dry-run"]
    outcome = run("sr-distill", "train", "rsd", *options)
    assert outcome.code == 0, outcome.err
    assert "fake_updates: 5" in outcome.out  # the resolved configuration
    for line in ("fake                    10", "student                  2", "images: 24 (2 an update: 1 process(es)"):
        assert line in outcome.out
    assert re.search(r"memory forecast for one process on cpu: [\d.]+ [MG]iB, of which", outcome.out)
    assert "not here yet" not in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_presets_are_listed(run: Any) -> None:
    outcome = run("sr-distill", "train", "rsd", "--list-presets")
    assert [line.split()[0] for line in outcome.out.splitlines()][:3] == ["tiny", "rsd-paper", "rsd-24gb"]
    check_refused(run("sr-distill", "train", "rds", "--list-presets"), "expected a task of autoencoder, teacher, rsd")


def test_a_run_ends_with_its_table_and_the_next_command(run: Any, trained: Any, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    options = ["--config", trained.config, "--set", f"teacher={trained.teacher}", "--steps", 1, "--out", out]
    outcome = run("sr-distill", "train", "rsd", *options)
    assert outcome.code == 0, outcome.err
    assert "student 1 step" in outcome.out
    assert "teacher 4 steps" in outcome.out
    assert str(out / "report.html") in outcome.out
    recorded = json.loads((out / "summary.json").read_text())["command"]
    assert shlex.split(recorded) == ["sr-distill", "train", "rsd", *map(str, options[:-2])]  # all but --out
    command = shlex.split(outcome.out.strip().splitlines()[-1])
    assert command[:4] == ["uv", "run", "sr-distill", "upscale"]
    command = [str(tmp_path / word) if word in ("photo.jpg", "out.png") else word for word in command[2:]]
    assert run(*command).code == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (120, 88)
    again = run("sr-distill", "train", "rsd", *options)
    assert again.code == 0
    assert f"already finished: {out}" in again.out


def test_a_printed_configuration_can_be_given_back(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed = ["--steps", 7, "--seed", 3, "--set", "optimizer.lr=1e-6", "--data", "photos", "--lr-data", "small"]
    first = run("sr-distill", "train", "rsd", *changed, "--print-config")
    assert first.code == 0
    for line in ("steps: 7", "seed: 3", "  lr: 1.0e-06", "  source: pairs", "  hr_folder: photos"):
        assert line in first.out.splitlines()
    (tmp_path / "run.yaml").write_text(first.out)
    again = run("sr-distill", "train", "rsd", "--config", "run.yaml", "--print-config")
    assert again.out == first.out
    (tmp_path / "folder.yaml").write_text("data: {source: folder, hr_folder: a}\n")
    over = run("sr-distill", "train", "rsd", "--config", "folder.yaml", "--data", "b", "--print-config")
    assert "  hr_folder: b" in over.out.splitlines()  # an option wins over the file
    assert not (tmp_path / "runs").exists()


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['sr-distill', '--help']\n"
        "from sr_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'distill', 'pydantic', 'numpy', 'sr_models', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "train" in outcome.stdout
    assert "upscale" in outcome.stdout
