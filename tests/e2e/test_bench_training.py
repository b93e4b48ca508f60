"""The benches of training on minute networks: what they write, and what they do not compute twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from sr_bench import ablation
from sr_bench.ablation import LOSSES, STEPS, run_ablation
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
        "fake_updates=1",
        "batch_size=2",
        "data.hr_size=32",
        "data.image_size=64",
        "data.workers=0",
        "validation.images=1",
        "validation.hr_size=32",
        "lpips.net=alex",
        "lpips.backbone=random",
    ]


def test_ablation(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seeds: int) -> str:
        table = run_ablation(
            tmp_path,
            updates=2,
            seeds=seeds,
            settings=settings,
            lr_folder=None,
            hr_folder=None,
            images=1,
            jobs=1,
            command="sr-bench ablation rsd",
        )
        return table.read_text()

    text = run(1)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    names = [row[0].removeprefix("| ").strip() for row in rows]
    variants = [*STEPS.variants, *LOSSES.variants]
    assert names == ["", *(v.name for v in STEPS.variants), "", *(v.name for v in LOSSES.variants)]
    assert "RANDOM alex backbone" in text
    for row, variant in zip([row for row in rows if row[0] != "| "], variants, strict=True):
        assert [cell.strip(" |") for cell in row[-5:]] == list(variant.published)
    flops = {name: (float(row[1]), int(row[2])) for name, row in zip(names, rows, strict=True) if name}
    assert flops["N = 1"] == flops["N = 15"] == flops["distill only"]
    assert flops["all"][0] >= flops["+ LPIPS"][0] >= flops["distill only"][0]
    assert flops["all"][1] <= flops["distill only"][1] == 2  # what costs more gets fewer steps

    made: list[tuple[str, int]] = []
    plain = ablation.train_and_measure
    monkeypatch.setattr(
        ablation, "train_and_measure", lambda job: (made.append((job.variant, job.config.seed)), plain(job))[1]
    )
    text = run(2)
    assert len(made) == 8
    assert {seed for _, seed in made} == {1}  # the first seed is there already
    assert re.search(r"\| N = 1 \|.* ± ", text)
    results = json.loads((tmp_path / "result.json").read_text())
    assert len(results) == 16
    assert results["runs/terms.gan-3e-3/seed-1.json"]["config"]["terms"] == {"distillation": 1.0, "gan": 3e-3}


def test_training_speed(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    result = measure_training("tiny", settings, data=None, steps=2, real=True, out=out, command="sr-bench training")
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
