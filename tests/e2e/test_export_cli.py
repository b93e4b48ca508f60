"""``sr-distill export onnx`` as a person uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_export_writes_the_file_and_says_how_well_it_agrees(run: Any, trained: Any, tmp_path: Path) -> None:
    from sr_models.export import load_onnx

    file = tmp_path / "teacher.onnx"
    outcome = run("sr-distill", "export", "onnx", trained.teacher, "-o", file, "--steps", 1)
    assert outcome.code == 0, outcome
    assert "max difference" in outcome.out
    assert "agrees with PyTorch" in outcome.out
    assert (load_onnx(file).kind, load_onnx(file).steps) == ("teacher", (1,))
    again = run("sr-distill", "export", "onnx", trained.teacher, "-o", file)
    assert again.code == 2
    assert "which exists" in again.err


def test_a_graph_that_disagrees_ends_in_one_line(
    run: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_models.export import parity

    monkeypatch.setattr(parity, "BOUND", -1.0)
    outcome = run("sr-distill", "export", "onnx", trained.student, "-o", tmp_path / "student.onnx")
    assert outcome.code == 1
    assert outcome.err.startswith("error: expected the graph to agree with PyTorch")
    assert list(tmp_path.iterdir()) == []


def test_text_to_image_models_are_refused(run: Any, tmp_path: Path) -> None:
    outcome = run("sr-distill", "export", "onnx", "tiny-flow-teacher", "-o", tmp_path / "a.onnx")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "ONNX files of text-to-image models are not supported" in outcome.err
    assert list(tmp_path.iterdir()) == []
