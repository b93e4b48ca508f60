"""``sr-bench quality`` on pictures made here."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from sr_bench.quality import checkpoints, measuring, methods, restoring, tables
from sr_bench.quality.result import QualityResult, read_result
from sr_bench.statistics import bootstrap
from sr_data.images import write_image

Pixels = np.ndarray
QUICK = ("--metric", "psnr", "--metric", "lr_rmse", "--jobs", 1)


def pictures(folder: Path, names: tuple[str, ...], size: tuple[int, int], seed: int) -> dict[str, Pixels]:
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        found[name] = np.clip(smooth.astype(int) + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
        write_image(folder / f"{name}.png", found[name])
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pairs, LR 16x24 and HR 64x96, in ``data/lr`` and ``data/hr``."""
    names = ("a", "deeper/a", "deeper/b")
    pictures(tmp_path / "data" / "hr", names, (96, 64), 0)
    pictures(tmp_path / "data" / "lr", names, (24, 16), 1)
    return tmp_path / "data"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(metric, picture) of everything that is measured."""
    calls: list[tuple[str, str]] = []
    work = measuring.work

    def counted(task: measuring.Task) -> float | str:
        value = work(task)
        calls.append((task.metric, f"{task.picture.parent.name}/{task.picture.stem}"))
        return value

    monkeypatch.setattr(measuring, "work", counted)
    return calls


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pictures that are made."""
    calls: list[str] = []
    restore = restoring._restore

    def counted(method: Any, pictures: Any, name: str, file: Path) -> Any:
        calls.append(name)
        return restore(method, pictures, name, file)

    monkeypatch.setattr(restoring, "_restore", counted)
    return calls


def psnr_y(restored: Pixels, hr: Pixels) -> float:
    """PSNR of the 8-bit studio-swing luma of BT.601, not rounded."""
    luma = [16 + picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 for picture in (restored, hr)]
    return float(10 * np.log10(255**2 / np.square(luma[0] - luma[1]).mean()))


def means(result: QualityResult) -> dict[str, dict[str, tuple[float, ...]]]:
    return {label: dict(method.values) for label, method in result.methods.items()}


def test_bicubic_is_measured_as_it_is_written(run: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result"
    outcome = run("sr-bench", "quality", "--model", "bicubic", "--data", data, "--out", out, "--limit", 2, "--jobs", 1)
    assert outcome.code == 0, outcome.err
    result = read_result(out)
    assert result.images == ("a", "deeper/a")
    method = result.methods["bicubic"]
    ten = {"psnr", "ssim", "ms_ssim", "fsim", "gmsd", "nlpd", "vif", "vsi", "mad", "piqe", "lr_rmse"}
    assert set(method.values) | set(method.missing) == ten
    assert set(method.missing) == {"ms_ssim"}  # five levels do not fit into 64 pixels
    assert method.missing["ms_ssim"].startswith("not available: ")
    assert (result.lr, result.gt, method.pictures) == ("../data/lr", "../data/hr", "pictures/bicubic")
    written = sorted(path.relative_to(out / "pictures").as_posix() for path in (out / "pictures").rglob("*.png"))
    assert written == ["bicubic/a.png", "bicubic/deeper/a.png"]
    for index, name in enumerate(result.images):
        lr, hr, made = (
            np.asarray(Image.open(folder / f"{name}.png"))
            for folder in (data / "lr", data / "hr", out / "pictures" / "bicubic")
        )
        assert np.array_equal(made, np.asarray(Image.fromarray(lr).resize((64, 96), Image.Resampling.BICUBIC)))
        assert method.values["psnr"][index] == pytest.approx(psnr_y(made, hr), abs=1e-3)
        averaged = made.reshape(24, 4, 16, 4, 3).mean((1, 3))
        assert method.values["lr_rmse"][index] == pytest.approx(np.sqrt(np.square(averaged - lr).mean()))
    assert method.seconds_per_image is not None
    spread = bootstrap(method.values["psnr"])
    assert f"| PSNR-Y ↑ | {spread.mean:.4g} [{spread.low:.4g}, {spread.high:.4g}] |" in (out / "table.md").read_text()
    with (out / "values.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["image"]) for row in rows] == [("bicubic", "a"), ("bicubic", "deeper/a")]
    assert [float(row["psnr"]) for row in rows] == list(method.values["psnr"])
    assert str(tmp_path) not in (out / "result.json").read_text().replace(result.provenance.command, "")
    assert "PSNR-Y" in outcome.out


def test_folders_of_other_tools_are_compared_with_the_first(run: Any, data: Path, tmp_path: Path) -> None:
    """The ground truth itself wins on every picture; without ground truth only the picture alone is looked at."""
    pictures(tmp_path / "noise", ("a", "deeper/a", "deeper/b"), (96, 64), 5)
    out = tmp_path / "result"
    preds = ["--pred", tmp_path / "noise", "--pred", f"perfect={data / 'hr'}"]
    both = run("sr-bench", "quality", *preds, "--gt", data / "hr", "--metric", "psnr", "--jobs", 1, "--out", out)
    assert both.code == 0, both.err
    result = read_result(out)
    assert list(result.methods) == ["noise", "perfect"]
    assert result.methods["perfect"].values["psnr"] == pytest.approx([80.0] * 3)
    assert (result.methods["perfect"].pictures, result.methods["perfect"].source) == ("../data/hr", "folder")
    row = next(line for line in (out / "table.md").read_text().splitlines() if "| perfect | +" in line)
    assert row.split(" | ")[3:] == ["3/3", "0.25 |"]  # 2 of 2^3 signs
    alone = run("sr-bench", "quality", *preds, "--jobs", 1)
    assert alone.code == 0, alone.err
    assert "PIQE" in alone.out
    assert "PSNR" not in alone.out


def test_an_interrupted_measurement_continues(
    run: Any, data: Path, tmp_path: Path, measured: Any, restored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command measures and restores what is missing, once; other settings are refused."""
    out = tmp_path / "result"
    command = ["sr-bench", "quality", "--model", "bicubic", "--model", "lanczos", "--data", data, *QUICK]
    counted = measuring.work

    def killed(task: measuring.Task) -> float | str:
        if len(measured) == 5:
            raise KeyboardInterrupt
        return counted(task)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "work", killed)
        stopped = run(*command, "--out", out)
    assert (stopped.code, stopped.err) == (130, "stopped; repeat the command to continue\n")
    assert len(measured) == 5
    assert not (out / "result.json").exists()
    torn = (out / "values.jsonl").read_text().rstrip("\n")[:-3]  # the last record is not whole
    (out / "values.jsonl").write_text(torn)
    assert run(*command, "--out", out).code == 0
    assert len(restored) == 2 * 3
    assert len(measured) == 5 + 1 + (2 * 2 * 3 - 5)
    assert run(*command, "--out", out).code == 0
    assert (len(restored), len(measured)) == (6, 13)
    assert run(*command, "--out", tmp_path / "again").code == 0
    assert means(read_result(out)) == means(read_result(tmp_path / "again"))
    for changes, name in (
        (["--limit", 2], "limit"),
        (["--seed", 2], "seed"),
        (["--skip-metric", "psnr"], "metrics"),
        (["--protocol", "sinsr-fullsize"], "protocol"),
        (["--model", "third=lanczos"], "methods"),
    ):
        other = run(*command, *changes, "--out", out)
        assert other.code == 2
        assert f"was started with, got other {name}; repeat the same command" in other.err


def test_what_changed_is_done_again(run: Any, data: Path, tmp_path: Path, measured: Any, restored: Any) -> None:
    out = tmp_path / "result"
    command = ["sr-bench", "quality", "--model", "bicubic", "--data", data, *QUICK, "--out", out]
    assert run(*command).code == 0
    before = read_result(out).methods["bicubic"].values
    del measured[:], restored[:]
    pictures(data / "lr", ("deeper/a",), (24, 16), 7)
    (out / "pictures" / "bicubic" / "deeper" / "b.png").write_bytes(b"damaged")
    assert run(*command).code == 0
    assert sorted(restored) == ["deeper/a", "deeper/b"]
    assert measured == [("psnr", "deeper/a"), ("lr_rmse", "deeper/a")]  # b came out as it was
    after = read_result(out).methods["bicubic"].values
    assert [one == two for one, two in zip(before["psnr"], after["psnr"], strict=True)] == [True, False, True]
    pictures(data / "hr", ("a",), (96, 64), 8)
    assert run(*command).code == 0
    assert measured[2:] == [("psnr", "bicubic/a")]


def test_absent_weights_are_named_and_the_rest_is_measured(
    run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    out = tmp_path / "result"
    options = ["--metric", "fid", "--metric", "lpips", "--metric", "psnr", "--jobs", 1, "--out", out]
    outcome = run("sr-bench", "quality", "--model", "bicubic", "--data", data, *options)
    assert outcome.code == 0, outcome.err
    method = read_result(out).methods["bicubic"]
    assert set(method.values) == {"psnr"}
    lpips = "not available: needs checkpoints/alexnet-owt-7be5be79.pth, pyiqa/LPIPS_v0.1_alex-df73285e.pth"
    assert dict(method.missing) == {
        "fid": "not available: needs pyiqa/pt_inception-2015-12-05-6726825d.pth",
        "lpips": lpips,
    }
    assert f"- LPIPS: {lpips}" in (out / "table.md").read_text()
    assert f"LPIPS: {lpips}" in outcome.out


def test_a_model_with_options(run: Any, trained: Any, tmp_path: Path) -> None:
    """Options after the name: another picture, nearer to the LR image; its settings are recorded."""
    pictures(tmp_path / "data" / "gt", ("a",), (64, 64), 0)
    pictures(tmp_path / "data" / "lr", ("a",), (16, 16), 0)
    near = f"near={trained.student},fidelity=1,seed=2"
    options = ["--model", trained.student, "--model", near, "--model", "autoencoder", "--data", tmp_path / "data"]
    outcome = run("sr-bench", "quality", *options, *QUICK, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = read_result(tmp_path / "out").methods
    assert list(found) == ["rsd", "near", "autoencoder"]  # a folder called model has the name of the one above
    assert [method.sees_gt for method in found.values()] == [False, False, True]
    assert found["near"].values["lr_rmse"][0] < 0.6 * found["rsd"].values["lr_rmse"][0]
    settings = dict(found["near"].settings)
    config = json.loads((trained.student / "config.json").read_text())
    assert settings["sha256 unet.safetensors"] == config["sha256"]["unet.safetensors"]
    assert (settings["seed"], settings["fidelity"], settings["steps"], settings["dtype"]) == (2, 1.0, 1, "fp32")
    assert found["near"].source == "model rsd, seed 2"


def esrgan(path: Path, scale: int = 4, channels: int = 3) -> Path:
    """A checkpoint of ESRGAN's smallest size, as Real-ESRGAN names its tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, inward: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(out, inward, 3, 3, generator=generator) / (9 * inward) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    conv("conv_first", 4, channels)
    for block in range(1, 4):
        for index in range(1, 6):
            conv(f"body.0.rdb{block}.conv{index}", 4 if index == 5 else 32, 4 + 32 * (index - 1))
    conv("conv_body", 4, 4)
    for index in range(1, {2: 1, 4: 2}[scale] + 1):
        conv(f"conv_up{index}", 4, 4)
    conv("conv_hr", 4, 4)
    conv("conv_last", channels, 4)
    torch.save({"params_ema": tensors}, path)
    return path


def test_a_checkpoint_of_another_network(run: Any, data: Path, tmp_path: Path) -> None:
    weights = esrgan(tmp_path / "tiny-esrgan.pth")
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch has some about files that end in .pt
        checkpoints.load(esrgan(tmp_path / "tiny-esrgan.pt"), "cpu")
    options = ["--data", data, *QUICK]
    both = ["--model", weights, "--model", f"tiles={weights},tile=8"]
    outcome = run("sr-bench", "quality", *both, *options, "--out", out, "--limit", 1)
    assert outcome.code == 0, outcome.err
    method = read_result(out).methods["tiny-esrgan"]
    assert (method.settings["architecture"], method.settings["scale"], method.settings["tile"]) == ("ESRGAN", 4, 512)
    assert len(str(method.settings["sha256"])) == 64
    from spandrel import ModelLoader

    lr = np.asarray(Image.open(data / "lr" / "a.png"))
    image = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None] / 255
    wanted = (ModelLoader().load_from_file(weights)(image)[0] * 255).permute(1, 2, 0).numpy()
    for label in ("tiny-esrgan", "tiles"):
        made = np.asarray(Image.open(out / "pictures" / label / "a.png")).astype(float)
        assert made.shape == (96, 64, 3)
        assert np.abs(made - wanted).max() < 0.51 + (label == "tiles")
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "unknown.pth")
    for file, message in (
        (esrgan(tmp_path / "x2.pth", scale=2), "expected a model of scale 4, got"),
        (esrgan(tmp_path / "grey.pth", channels=1), "expected a network from RGB to RGB"),
        (tmp_path / "text.pth", "expected a checkpoint of a network that spandrel knows"),
        (tmp_path / "unknown.pth", "measure them by --pred DIR"),
        (tmp_path / "none.pth", "no such file"),
        (f"{weights},seed=1", "expected only tile for"),
    ):
        refused = run("sr-bench", "quality", "--model", file, *options)
        assert refused.code == 2, outcome
        assert refused.err.startswith("error: "), refused.err
        assert message in refused.err
        assert len(refused.err.splitlines()) == 1


def test_values_do_not_depend_on_the_number_of_processes(
    run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sr-bench", "quality", "--model", "bicubic", "--data", data, "--metric", "lr_rmse"]
    for jobs in (1, 2):
        outcome = run(*command, "--jobs", jobs, "--out", tmp_path / f"{jobs}")
        assert outcome.code == 0, outcome.err
    one, two = (means(read_result(tmp_path / f"{jobs}")) for jobs in (1, 2))
    assert one == two
    threads = []
    monkeypatch.setattr(measuring, "_value", lambda task: threads.append(torch.get_num_threads()) or 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measuring.work(measuring.Task("psnr", "y", 0, Path(), None, "cpu", ("", "", "")))
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_labels_are_no_markup(run: Any, data: Path, tmp_path: Path) -> None:
    """Neither in the terminal nor in Markdown; the reference is the one that is asked for."""
    out = tmp_path / "[/b] result"
    odd = f"[/x] [bold]a|b :smile:={data / 'hr'}"
    command = ["sr-bench", "quality", "--data", data, "--model", "bicubic", "--pred", odd, *QUICK, "--out", out]
    outcome = run(*command, "--reference", "bicubic")
    assert outcome.code == 0, outcome.err
    shown = " ".join(outcome.out.split())
    assert "Against bicubic (--reference), on" in shown
    assert "metric [/x] [bold]a|b :smile: bicubic PSNR-Y" in shown
    assert f"written to {out}" in outcome.out.replace("\n", " ")
    table = (out / "table.md").read_text()
    assert "| metric | [/x] [bold]a\\|b :smile: | bicubic |" in table
    assert "| PSNR-Y ↑ | [/x] [bold]a\\|b :smile: | +" in table
    assert read_result(out).reference == "bicubic"
    assert "Against [/x] [bold]a|b :smile: (--reference)" in run(*command).out  # other tables, the same values


def test_a_result_is_written_before_it_is_shown(
    run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(tables, "show", closed)
    run("sr-bench", "quality", "--data", data, "--model", "bicubic", *QUICK, "--out", tmp_path / "out")
    assert read_result(tmp_path / "out").methods["bicubic"].values
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table.md", "values.csv"}


def test_broken_pictures_are_named(run: Any, data: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "made", ("a", "deeper/a", "deeper/b"), (96, 64), 5)
    for file in (tmp_path / "made" / "deeper" / "a.png", data / "hr" / "a.png"):
        file.write_bytes(file.read_bytes()[:-2000])
    outcome = run("sr-bench", "quality", "--pred", tmp_path / "made", "--gt", data / "hr", "--metric", "psnr")
    assert outcome.code == 2
    files = f"{data / 'hr' / 'a.png'}, {tmp_path / 'made' / 'deeper' / 'a.png'}"
    assert outcome.err == (
        f"error: expected whole pictures, got {files}, which cannot be read; replace or remove these files\n"
    )


def test_one_command_at_a_time_works_in_a_folder(run: Any, data: Path, tmp_path: Path) -> None:
    command = ["sr-bench", "quality", "--data", data, "--model", "bicubic", *QUICK, "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        outcome = run(*command)
    assert outcome.code == 2
    assert "expected a folder that no other process measures in" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert run(*command).code == 0
    assert run(*command, "--seed", 1).code == 2
    assert run(*command).code == 0  # what was refused has let go of it


def test_bad_input_is_refused_in_one_line(run: Any, data: Path, trained: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "other", ("a", "d"), (96, 64), 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    bicubic = ["--model", "bicubic", "--data", data]
    pred = ["--pred", data / "hr"]
    cases: list[tuple[list[object], str]] = [
        ([], "expected something to measure"),
        (["--pred", tmp_path / "other", "--gt", data / "hr"], "expected the same names in"),
        (["--pred", tmp_path / "other", "--gt", data / "hr"], "deeper/a, deeper/b"),
        (["--pred", data / "lr", "--gt", data / "hr"], "a.png of 16x24 instead of 64x96"),
        (["--pred", tmp_path / "none"], "no such folder"),
        (["--pred", tmp_path / "empty"], "no images in"),
        ([*pred, *pred], "expected a label for each method, got hr twice"),
        (["--model", "bicubic"], "expected LR pictures for --model"),
        (["--model", "autoencoder", "--lr", data / "lr"], "expected a ground truth for autoencoder"),
        ([*bicubic, "--lr", data / "lr"], "expected --data, or --lr and --gt, got both"),
        ([*bicubic, "--out", tmp_path / "full"], "which exists; choose another --out"),
        ([*bicubic, "--device", "nowhere"], "expected a torch device"),
        ([*bicubic, "--device", "meta"], "expected a torch device"),
        ([*bicubic, "--out", tmp_path / "full" / "notes.txt" / "out"], "Not a directory; choose another --out"),
        ([*bicubic, "--reference", "lanczos"], "expected --reference of bicubic, got lanczos; give one"),
        ([*bicubic, "--metric", "ms_ssim", "--jobs", 1], "expected values of at least one metric, got none: MS-SSIM"),
        (["--model", f"{trained.student},steps=3", "--lr", data / "lr"], "; change steps of --model rsd,steps=3"),
        ([*bicubic, "--protocol", "osediff-crops512"], "a.png of 64x96 instead of 512x512"),
        ([*bicubic, "--metric", "pnsr"], "got pnsr; correct the name"),
        ([*bicubic, "--model", tmp_path / "none"], "; check --model"),
        ([*bicubic, "--model", trained.autoencoder], "got kind 'autoencoder'"),
        (["--model", f"{trained.student},fidelity=2"], "expected fidelity from 0 to 1, got 2"),
        (["--model", f"{trained.student},fidelity=x"], "expected a number for fidelity, got 'x'"),
        (["--model", f"{trained.student},magic=1"], "of seed, steps, tile, color, fidelity, got"),
        (["--model", "bicubic,seed=1"], "expected no options for bicubic"),
    ]
    for arguments, message in cases:
        outcome = run("sr-bench", "quality", *arguments)
        lines = outcome.err.splitlines()
        assert outcome.code == 2, (arguments, outcome)
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("error: ")
        assert message in lines[0]
    assert run("sr-bench", "quality", *bicubic, "--limit", 0).code == 2
    assert methods.folder_name("tiny-student,fidelity=0.5") == "tiny-student_fidelity_0.5"
