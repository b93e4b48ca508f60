"""The benches of training on minute networks: what they write, and what they do not compute twice."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_bench.ablation import jobs, tables
from sr_bench.ablation import run as ablation_run
from sr_bench.ablation.photographs import Photographs, choose_photographs, measure_photographs
from sr_bench.ablation.run import run_ablation
from sr_bench.ablation.tables import OBJECTIVES, RSD, TSD, Ablation, Table
from sr_bench.training import measure_training
from sr_data.images import write_image
from sr_models import AutoencoderConfig, ModelConfig, ScheduleConfig, SRModel, SwinUNet, SwinUNetConfig, VQAutoencoder
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


def minute_run(folder: Path, num_steps: int) -> list[str]:
    """Settings that put a run of a ``tiny`` preset on a minute teacher."""
    torch.manual_seed(0)
    config = ModelConfig(schedule=ScheduleConfig(num_steps=num_steps), unet=UNET, autoencoder=AUTOENCODER)
    unet = SwinUNet(UNET)
    with torch.no_grad():
        for parameter in unet.parameters():  # fresh networks have zero layers
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(SRModel("teacher", config, unet, VQAutoencoder(AUTOENCODER)), folder)
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


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """With a teacher of 15 steps, which N = 15 needs."""
    return minute_run(tmp_path_factory.mktemp("models") / "teacher", 15)


@pytest.fixture(scope="module")
def short_settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """With a teacher of 4 steps."""
    return minute_run(tmp_path_factory.mktemp("models") / "teacher", 4)


def rows_of(text: str) -> list[list[str]]:
    """Cells of the rows of all tables of a Markdown page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ablate(name: str, out: Path, settings: list[str], seeds: int = 1, photographs: Photographs | None = None) -> str:
    table = run_ablation(
        name,
        out,
        updates=2,
        seeds=seeds,
        settings=settings,
        photographs=photographs,
        jobs=1,
        command=f"sr-bench ablation {name}",
    )
    return table.read_text()


def test_ablation_of_rsd(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ablate("rsd", tmp_path, [*settings, "fake_updates=1"])
    rows = rows_of(text)
    variants = {variant.name: variant for table in RSD.tables for variant in table.variants}
    references = ["bicubic", "teacher 15 steps", "teacher 1 step"]
    names = [["", *references, *(variant.name for variant in table.variants)] for table in RSD.tables]
    assert [row[0] for row in rows] == [*names[0], *names[1]]
    assert "RANDOM alex backbone" in text
    found = {row[0]: row for row in rows if row[0] in variants}
    for name, variant in variants.items():
        assert tuple(found[name][-5:]) == variant.published
    steps, flops = ({name: float(row[column].replace(",", "")) for name, row in found.items()} for column in (1, 4))
    assert steps["N = 1"] == steps["N = 15"] == steps["distill only"] == 2
    assert 1 <= steps["all"] < 2  # what costs more gets fewer steps
    assert flops["all"] <= 1.5 * flops["distill only"]

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


def test_ablation_of_objectives(short_settings: list[str], tmp_path: Path) -> None:
    """Equal network evaluations: for 2 images a step and T = 4, K = 5."""
    text = ablate("objectives", tmp_path, short_settings)
    (table,) = OBJECTIVES.tables
    names = [variant.name for variant in table.variants]
    rows = rows_of(text)
    first, second = rows[: 4 + len(names)], rows[4 + len(names) :]
    assert [row[0] for row in first] == ["", "bicubic", "teacher 4 steps", "teacher 1 step", *names]
    assert [row[0] for row in second] == ["", "teacher", *names]
    found = {row[0]: row for row in first}
    further = {row[0]: row for row in second}
    assert (*found["teacher 4 steps"][-5:], *further["teacher"][1:]) == table.teacher
    for variant in table.variants:
        assert (*found[variant.name][-5:], *further[variant.name][1:]) == variant.published
    costs = json.loads((tmp_path / "result.json").read_text())["costs"]
    evaluations = {variant.name: costs[variant.key]["evaluations"] for variant in table.variants}
    assert evaluations == {
        "SinSR, distill only": 2 * (4 + 1),
        "SinSR": 2 * (4 + 1 + 3),
        "ResShift-VSD": 2 * (5 * 2 + 3),
        "RSD, distill only": 2 * (5 * 2 + 3),
        "RSD": 2 * (5 * (2 + 2) + 3 + 1 + 1),  # the discriminator, and the one-step output for LPIPS
    }
    budget = 2 * evaluations["RSD, distill only"]
    for name, one in evaluations.items():
        assert int(found[name][1]) == round(budget / one)
        assert int(found[name][3].replace(",", "")) == round(budget / one) * one
    for variant in table.variants:
        (run,) = json.loads((tmp_path / "result.json").read_text())["runs"][variant.key]
        assert [point["step"] for point in run["curve"]][-1] == run["steps"]
        assert len(run["curve"]) == min(3, run["steps"])
        assert run["config"]["task"] == variant.task
        assert run["config"]["ema_decay"] ** run["steps"] == pytest.approx(0.98**2)  # the same part of every run
    assert "![quality against training cost](figure.png)" in text
    with Image.open(tmp_path / "figure.png") as figure:
        figure.load()
        assert min(figure.size) > 300


def minute_flow_run(folder: Path) -> list[str]:
    """Settings that put ``train tsd`` on a minute text-to-image teacher."""
    from distill.prompting import random_prompts
    from sr_models.t2i.base import Base, fresh_network, make_predictor
    from sr_models.t2i.folder import save_flow_base
    from sr_models.t2i.vae import autoencoder_kl

    torch.manual_seed(0)
    sizes = {"in_channels": 2, "out_channels": 2, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1}
    sizes |= {"sample_size": 8, "patch_size": 2, "pos_embed_max_size": 4, "pooled_projection_dim": 8}
    sizes |= {"joint_attention_dim": 8, "caption_projection_dim": 8}
    scheduler = {"num_train_timesteps": 1000, "shift": 3.0}
    predictor = make_predictor(fresh_network("sd3", sizes, 0), "sd3", scheduler)
    base = Base("minute", "sd3", predictor, autoencoder_kl(VQAutoencoder(AUTOENCODER)), scheduler)
    save_flow_base(base, random_prompts(0, 3, 8, 8), folder, about={})
    small = ("rank", "vae_rank", "fake_rank")
    return [
        f"base={folder}",
        *(f"{name}=2" for name in small),
        *("device=cpu", "batch_size=2", "data.hr_size=32", "data.image_size=64", "data.workers=0"),
        *("validation.images=1", "validation.hr_size=32"),
        *("schedule.latent_mse_until=1", "schedule.dasm_from=1"),
    ]


def test_ablation_of_tsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal updates, and what each row changes arrives in its run."""
    plain, strong = TSD.tables
    rows = (plain.variants[0], plain.variants[1], plain.variants[5])
    fewer = replace(
        TSD, tables=(replace(plain, variants=rows), replace(strong, variants=(strong.variants[3], strong.variants[-1])))
    )
    monkeypatch.setitem(tables.ABLATIONS, "tsd", fewer)
    text = ablate("tsd", tmp_path / "out", minute_flow_run(tmp_path / "base"))
    names = [[row[0] for row in rows_of(part)] for part in text.split("## ")[1:]]
    references = ["", "bicubic", "autoencoder (of HR)", "student 1 step, before"]
    assert names[0][:7] == [*references, "full, noise", "without TSM, noise", "without DASM, velocity"]
    assert names[1] == [*references, "full, velocity", "no distillation"]
    widths = [{len(row) for row in rows_of(part)} for part in text.replace("The paper's other", "## ").split("## ")[1:]]
    assert all(len(width) == 1 for width in widths), "every row of a table has its columns, and no more"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    configs = {key: runs[0]["config"] for key, runs in result["runs"].items()}
    full, no_tsm, no_dasm, strong_velocity, none = (configs[row.key] for row in fewer.variants.values())
    assert {config["steps"] for config in configs.values()} == {2}
    assert (full["parameterisation"], full["schedule"]["dasm_from"], full["terms"]["distillation"]) == ("noise", 1, 1)
    assert no_tsm["schedule"]["vsd_weight"] == {"start": 1, "end": 1}
    assert (no_dasm["parameterisation"], no_dasm["schedule"]["dasm_from"]) == ("velocity", None)
    assert (strong_velocity["parameterisation"], strong_velocity["terms"]["distillation"]) == ("velocity", 20)
    assert "distillation" not in none["terms"]
    first = result["costs"][fewer.base.key]
    # The fake model's update asks student and fake model; the student's first one itself, and with guidance (twice)
    # the teacher at both latents and the fake model.
    assert first["evaluations"] == 2 * (1 + 1) + 2 * (1 + 3 * 2)
    assert (tmp_path / "out" / "figure.png").is_file()


def test_photographs_are_measured_and_not_twice(
    short_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("lr", 16), ("hr", 64)):
        for picture in ("a", "b", "c"):
            write_image(tmp_path / name / f"{picture}.png", rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    chosen = choose_photographs(tmp_path / "lr", tmp_path / "hr", 2)
    measured: list[tuple[str, int | None]] = []

    def measure(method: str, photographs: Photographs, steps: int | None = None) -> dict[str, float]:
        measured.append((method, steps))
        return plain(method, photographs, steps)

    plain = measure_photographs
    for module in (jobs, ablation_run):
        monkeypatch.setattr(module, "measure_photographs", measure)
    small = Ablation((Table("One row", (), (OBJECTIVES.base,)),), OBJECTIVES.base, "evaluations", points=2)
    monkeypatch.setitem(tables.ABLATIONS, "small", small)
    pages = [ablate("small", tmp_path / "out", short_settings, photographs=chosen) for _ in range(2)]
    assert pages[0] == pages[1]
    teacher = short_settings[0].removeprefix("teacher=")
    references = [("bicubic", None), (teacher, None), (teacher, 1)]
    assert [(method, steps) for method, steps in measured if Path(method).name != "model"] == references
    assert len(measured) == 2 + 3  # two points of one run, and the references, once
    assert "2 photographs of lr and hr" in pages[0]
    assert str(tmp_path) not in pages[0]
    assert "PIQE (photographs)" in pages[0]
    assert "different code" not in pages[0]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(result["made_by"]) == 1
    assert set(result["provenance"]) & set(result["made_by"][0]) == set()
    many, once = (result["references"][f"teacher {steps}"]["photographs"] for steps in ("4 steps", "1 step"))
    assert many != once
    (tmp_path / "lr" / "a.png").unlink()
    with pytest.raises(ValueError, match="same names"):
        choose_photographs(tmp_path / "lr", tmp_path / "hr", 2)


def test_a_setting_that_a_row_does_not_have_is_refused(settings: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"row 'SinSR, distill only' \(train sinsr\): unknown configuration key 'fake_updates'"
    ):
        ablate("objectives", tmp_path / "none", [*settings, "fake_updates=1"])
    with pytest.raises(ValueError, match=r"leave terms, .* to the rows, got 'terms.gan=1'"):
        ablate("rsd", tmp_path / "none", [*settings, "terms.gan=1"])
    with pytest.raises(ValueError, match=r"expected an ablation of rsd, objectives, tsd, dasm, .* got 'table5'"):
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
