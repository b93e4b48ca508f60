"""The benches of training on minute networks: what they write, and what they do not compute twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from sr_bench.ablation import jobs, run_ablation
from sr_bench.ablation.tables import OBJECTIVES, RSD
from sr_bench.training import measure_training
from sr_models import AutoencoderConfig, ModelConfig, SRModel, SwinUNet, SwinUNetConfig, VQAutoencoder
from sr_models.store import save_model

UNET = SwinUNetConfig(
    image_size=8,
    latent_channels=2,
    out_channels=2,
    base_channels=8,
    channel_multipliers=(1,),
    res_blocks=(1,),
    attention_levels=(0,),
    swin_embed_channels=8,
    head_channels=4,
    window_size=4,
    shift_mask="swin",
    norm_groups=2,
)
AUTOENCODER = AutoencoderConfig(
    latent_channels=2,
    z_channels=2,
    base_channels=4,
    channel_multipliers=(1, 1, 1),
    res_blocks=1,
    mid_attention=False,
    num_codes=None,
    norm_groups=2,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of the ``tiny`` preset on a minute teacher of 15 steps."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    torch.manual_seed(0)
    config = ModelConfig(unet=UNET, autoencoder=AUTOENCODER)
    save_model(SRModel("teacher", config, SwinUNet(UNET), VQAutoencoder(AUTOENCODER)), folder)
    return [
        f"teacher={folder}",
        "device=cpu",
        "batch_size=2",
        "data.hr_size=32",
        "data.image_size=64",
        "data.workers=0",
        "validation.images=1",
        "validation.hr_size=32",
        "lpips.net=alex",
        "lpips.backbone=random",
    ]


def rows_of(text: str) -> list[list[str]]:
    """Cells of the rows of all tables of a Markdown page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ablate(name: str, out: Path, settings: list[str], seeds: int = 1) -> str:
    table = run_ablation(
        name,
        out,
        updates=4,
        seeds=seeds,
        settings=settings,
        photographs=None,
        jobs=1,
        command=f"sr-bench ablation {name}",
    )
    return table.read_text()


def test_ablation_of_rsd(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ablate("rsd", tmp_path, [*settings, "fake_updates=1"])
    rows = rows_of(text)
    variants = {variant.name: variant for table in RSD.tables for variant in table.variants}
    references = ["bicubic", "teacher 15 steps"]
    names = [["", *references, *(variant.name for variant in table.variants)] for table in RSD.tables]
    assert [row[0] for row in rows] == [*names[0], *names[1]]
    assert "RANDOM alex backbone" in text
    found = {row[0]: row for row in rows if row[0] in variants}
    for name, variant in variants.items():
        assert tuple(found[name][-5:]) == variant.published
    steps, flops = ({name: float(row[column].replace(",", "")) for name, row in found.items()} for column in (1, 3))
    assert steps["N = 1"] == steps["N = 15"] == steps["distill only"] == 4
    assert 1 <= steps["all"] < 4  # what costs more gets fewer steps
    assert flops["all"] <= 1.3 * flops["distill only"]

    made: list[tuple[str, int]] = []
    plain = jobs.train_and_measure
    monkeypatch.setattr(
        jobs, "train_and_measure", lambda job: (made.append((job.name, job.config.seed)), plain(job))[1]
    )
    text = ablate("rsd", tmp_path, [*settings, "fake_updates=1"], seeds=2)
    assert len(made) == 8
    assert {seed for _, seed in made} == {1}  # the first seed is there already
    assert re.search(r"\| N = 1 \|.* ± ", text)
    results = json.loads((tmp_path / "result.json").read_text())
    assert {key: len(runs) for key, runs in results["runs"].items()} == dict.fromkeys(RSD.variants, 2)
    assert results["runs"]["rsd_terms.gan-3e-3"][1]["config"]["terms"] == {"distillation": 1.0, "gan": 3e-3}
    assert not (tmp_path / "figure.png").exists()


def test_ablation_of_objectives(settings: list[str], tmp_path: Path) -> None:
    """Equal network evaluations: for 2 images a step and T = 15, K = 5."""
    text = ablate("objectives", tmp_path, settings)
    (table,) = OBJECTIVES.tables
    found = {row[0]: row for row in rows_of(text)}
    assert list(found) == ["", "bicubic", "teacher 15 steps", *(variant.name for variant in table.variants)]
    assert tuple(found["teacher 15 steps"][-len(table.columns) :]) == table.teacher
    costs = json.loads((tmp_path / "result.json").read_text())["costs"]
    evaluations = {variant.name: costs[variant.key]["evaluations"] for variant in table.variants}
    assert evaluations == {
        "SinSR, distill only": 2 * (15 + 1),
        "SinSR": 2 * (15 + 1 + 3),
        "ResShift-VSD": 2 * (5 * 2 + 3),
        "RSD, distill only": 2 * (5 * 2 + 3),
        "RSD": 2 * (5 * (2 + 2) + 3 + 1 + 1),  # the discriminator, and the one-step output for LPIPS
    }
    budget = 4 * evaluations["RSD, distill only"]
    for name, one in evaluations.items():
        assert int(found[name][1]) == round(budget / one)
        assert int(found[name][2].replace(",", "")) == round(budget / one) * one
    for variant in table.variants:
        (run,) = json.loads((tmp_path / "result.json").read_text())["runs"][variant.key]
        assert [point["step"] for point in run["curve"]][-1] == run["steps"]
        assert len(run["curve"]) == min(4, run["steps"])
        assert run["config"]["task"] == variant.task
    assert "![quality against training cost](figure.png)" in text
    with Image.open(tmp_path / "figure.png") as figure:
        figure.load()
        assert min(figure.size) > 300


def test_a_setting_that_a_row_does_not_have_is_refused(settings: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown configuration key 'fake_updates'"):
        ablate("objectives", tmp_path / "none", [*settings, "fake_updates=1"])
    with pytest.raises(ValueError, match="expected an ablation of rsd, objectives, got 'table5'"):
        ablate("table5", tmp_path / "none", settings)
    assert not (tmp_path / "none").exists()


def test_training_speed(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    result = measure_training(
        "tiny", [*settings, "fake_updates=1"], data=None, steps=2, real=True, out=out, command="sr-bench training"
    )
    assert json.loads(out.read_text()) == result
    assert out.with_suffix(".yaml").read_text().startswith("task: rsd")
    for kind in ("real data", "cached data"):
        row = result[kind]
        parts = row["data"] + row["fake"] + row["student"]
        assert 0 < parts <= row["step"]
        assert row["gflops"] == pytest.approx(result["flops_per_step"] / row["step"] / 1e9)
    assert result["images_per_step"] == 2 * 2
    assert result["flops_per_step"] > 0
    said = capsys.readouterr().out
    assert "images/s" in said
    assert "peak memory" in said
