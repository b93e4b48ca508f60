"""The bench of inference: what it times and what it writes; how long anything takes is no matter here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_bench import inference
from sr_bench.inference import measure_inference, random_student
from sr_models.compute import paths

PARTS = ["encoder", "network", "decoder", "whole"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MATRIX_SIZE", 16)
    monkeypatch.setattr(inference, "CHANNELS", 8)
    monkeypatch.setattr(inference, "SIDE", 8)
    monkeypatch.setattr(paths, "has_fast_bf16", lambda device: True)


def measure(**options: Any) -> dict[str, Any]:
    ticks = itertools.count(0, 2)  # every timing takes two seconds
    settings = {"size": 16, "rounds": 2, "device": "cpu", "dtype": "auto", "compiled": False, "out": None, **options}
    return measure_inference("tiny", command="sr-bench inference", clock=lambda: float(next(ticks)), **settings)


def test_every_path_and_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    result = measure(out=out)
    assert json.loads(out.read_text()) == result
    assert list(result["paths"]) == ["cpu, fp32", "cpu, fp32, channels_last", "cpu, bf16 autocast, channels_last"]
    assert list(result["gflop"]) == PARTS
    assert sum(result["gflop"][part] for part in PARTS[:3]) == pytest.approx(result["gflop"]["whole"])
    for name, rows in result["paths"].items():
        ceiling = result["ceiling_gflops"]["bf16" if "bf16" in name else "fp32"]
        for part, row in rows.items():
            assert row["median"] == row["least"] == row["greatest"] == 2.0
            assert row["share_of_ceiling"] == pytest.approx(result["gflop"][part] / 2 / ceiling)
    said = capsys.readouterr().out
    assert "2.000 s (2.000 to 2.000)" in said
    assert "random weights" in said


def test_one_precision_against_fp32() -> None:
    assert list(measure(dtype="bf16", rounds=1)["paths"]) == ["cpu, fp32", "cpu, bf16 autocast, channels_last"]


def test_summary_counts_the_least_time() -> None:
    turns = [{"encoder": seconds} for seconds in (3.0, 1.0, 2.5)]
    row = inference._summary(turns, {"encoder": 10.0}, 40.0)["encoder"]
    assert (row["median"], row["least"], row["greatest"]) == (2.5, 1.0, 3.0)
    assert (row["gflops"], row["share_of_ceiling"]) == (10.0, 0.25)


def test_random_weights_are_the_same_and_not_zero() -> None:
    one, two = random_student("tiny"), random_student("tiny")
    for a, b in zip(one.unet.parameters(), two.unet.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.any()


def test_bad_input_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(ValueError, match="expected a size that divides by 16, got 20"):
        measure(size=20)
    with pytest.raises(ValueError, match="expected a preset of tiny, x4, got 'huge'"):
        measure_inference(
            "huge", size=16, rounds=1, device="cpu", dtype="auto", compiled=False, out=None, command="sr-bench"
        )


def test_command(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    options = ("--preset", "tiny", "--size", 16, "--rounds", 1, "--device", "cpu", "--dtype", "fp32")
    outcome = run("sr-bench", "inference", *options, "--out", out)
    assert outcome.code == 0
    result = json.loads(out.read_text())
    assert result["command"] == f"sr-bench inference {' '.join(str(option) for option in options)}"
    assert list(result["paths"]) == ["cpu, fp32", "cpu, fp32, channels_last"]
    wrong = run("sr-bench", "inference", "--preset", "tiny", "--size", 20)
    assert (wrong.code, wrong.out) == (2, "")
    assert "give such a one" in wrong.err
