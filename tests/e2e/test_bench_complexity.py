"""`sr-bench complexity` as it is called: rows in processes of their own, files, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_bench import machine
from sr_bench.complexity import run as running
from sr_bench.complexity.measure import Task, _resident, measure
from sr_bench.complexity.result import PARTS
from sr_models.compute import Compute


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are measured in this process, ceilings in no time."""
    monkeypatch.setattr(running, "in_own_process", measure)
    monkeypatch.setitem(machine.MATRIX_SIZE, "cpu", 16)
    monkeypatch.setitem(machine.CONVOLUTION, "cpu", (1, 8, 8))
    monkeypatch.setitem(machine.COPY_MB, "cpu", 1)


@pytest.mark.usefixtures("here")
def test_command(run: Any, trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [
        "--model",
        str(trained.student),
        "--model",
        str(trained.teacher),
        "--model",
        "missing",
        "--device",
        "cpu",
    ]
    options += ["--dtype", "fp32", "--size", "32", "--batch", "2", "--rounds", "2"]
    outcome = run("sr-bench", "complexity", *options, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    result = json.loads((out / "complexity.json").read_text())
    assert result["provenance"]["command"] == f"sr-bench complexity {' '.join(options)}"
    student, teacher, missing = result["rows"]
    assert (student["evaluations"], teacher["evaluations"]) == (1, 4)
    assert missing["problem"].startswith("expected a model folder")
    for row in (student, teacher):
        assert list(row["seconds"]) == [*PARTS, "total"]
        assert row["rounds"] == 2
        assert row["shares"].keys() == {"encode", "network", "decode", "networks", "color"}
    assert "PUBLISHED" in outcome.out
    assert "not measured: missing" in outcome.out


@pytest.mark.usefixtures("here")
def test_options_reach_the_rows(run: Any, tmp_path: Path) -> None:
    """Counted alone, and every path of a device."""
    options = ("--model", "tiny", "--model", "tiny-student", "--size", 16)
    assert run("sr-bench", "complexity", *options, "--count", "--out", tmp_path / "count").code == 0
    counted = json.loads((tmp_path / "count" / "complexity.json").read_text())["rows"]
    assert [(row["device"], row["weights"], row["seconds"]) for row in counted] == [
        ("meta", "none", {}),
        ("meta", "stored", {}),
    ]
    options = ("--model", "tiny", "--device", "cpu", "--dtype", "fp32", "--paths", "all", "--size", 16, "--seconds", 0)
    assert run("sr-bench", "complexity", *options, "--out", tmp_path / "paths").code == 0
    timed = json.loads((tmp_path / "paths" / "complexity.json").read_text())["rows"]
    assert [(row["path"], row["rounds"]) for row in timed] == [("cpu, fp32", 3), ("cpu, fp32, channels_last", 3)]


def test_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for options, said in (
        (("--device", "tpu"), "expected a device of"),
        (("--dtype", "int8"), "expected dtype auto, fp32"),
        (("--out", tmp_path / "file"), "expected a folder to write into, got"),
    ):
        outcome = run("sr-bench", "complexity", "--model", "tiny", *options)
        assert (outcome.code, outcome.out) == (2, "")
        assert said in outcome.err


def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = np.ones(2**27)  # 1 GiB
    task = Task("tiny-student", Compute(torch.device("cpu")), 16, 1, 0.0, 1, 1)
    memory = running.in_own_process(task).row.memory
    if memory is None:
        pytest.skip("the resident set is read from Linux")
    peak = _resident("VmHWM")
    assert peak is not None
    assert peak > ballast.nbytes / 2**20
    assert 100 < memory.loaded <= memory.peak < peak
    assert memory.peak < ballast.nbytes / 2**20
