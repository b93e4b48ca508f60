"""Protocols, folders, records and checkpoints of ``sr-bench quality``, without measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from sr_bench.quality import checkpoints, folders, methods, restoring
from sr_bench.quality.kept import Records
from sr_bench.quality.metrics import METRICS, WEIGHT_FREE
from sr_bench.quality.protocols import PROTOCOLS, read_protocol
from sr_bench.quality.request import Pred, Request, check_labels, choose_metrics, data_folders, read_pred, settings_of
from sr_bench.quality.settings import open_folder
from sr_bench.quality.values import Value
from sr_data.images import write_image

TEN = ("psnr", "ssim", "ms_ssim", "fsim", "gmsd", "nlpd", "vif", "vsi", "mad", "piqe")


def flat(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for name, (width, height) in sizes.items():
        write_image(folder / name, np.zeros((height, width, 3), np.uint8))
    return folder


def asked(**fields: Any) -> Request:
    fields.setdefault("protocol", PROTOCOLS["weight-free"])
    return Request(preds=[Pred("a", Path("a"))], models=[], **fields)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_weight_free_metrics_are_part_of_every_protocol(name: str) -> None:
    protocol = PROTOCOLS[name]
    chosen = choose_metrics(asked(protocol=protocol, lr=Path("lr"), gt=Path("gt")))
    assert chosen[: len(protocol.metrics)] == protocol.metrics
    assert set(chosen) == {*protocol.metrics, *TEN, "lr_rmse"}
    assert set(WEIGHT_FREE) == {*TEN, "lr_rmse"}


def test_metrics_fit_the_folders_that_are_given() -> None:
    crops = PROTOCOLS["osediff-crops512"]
    assert choose_metrics(asked(protocol=crops)) == ("niqe", "musiq", "maniqa-pipal", "clipiqa", "piqe")
    assert "lr_rmse" not in choose_metrics(asked(gt=Path("gt")))
    assert choose_metrics(asked(metrics=("piqe",), gt=Path("gt"))) == ("piqe",)
    assert choose_metrics(asked(gt=Path("gt"), skipped=TEN[1:])) == ("psnr",)
    for request, message in (
        (asked(metrics=("psnr",)), "expected --gt DIR for psnr"),
        (asked(metrics=("lr_rmse",)), "expected --lr DIR for lr_rmse"),
        (asked(metrics=("pnsr",)), "got pnsr; correct the name"),
        (asked(skipped=("maniqa",)), "got maniqa; correct the name"),
        (asked(skipped=("piqe",)), "expected at least one metric"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_metrics(request)


def test_protocol_files_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    content = "name: mine\nversion: 1\nsource: me\nabout: x2\nmetrics: [psnr]\ncolor: rgb\nscale: 2\n"
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert (read_protocol(str(path)).scale, read_protocol(str(path)).color) == (2, "rgb")
    for addition, message in (
        ("crop_boarder: 4\n", "crop_boarder: Extra inputs"),
        ("color: lab\n", "color: "),
        ("metrics: [psnr, pnsr]\n", "metrics: expected metrics of .* got pnsr"),
        ("name: imagenet-test\n", "'imagenet-test', which is built in"),
        ("[", "expected YAML in"),
    ):
        path.write_text(content + addition)
        with pytest.raises(ValueError, match=message):
            read_protocol(str(path))
    with pytest.raises(ValueError, match="expected a protocol of weight-free, sinsr-fullsize"):
        read_protocol("sinsr")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_protocol(str(tmp_path / "none.yaml"))


def test_folders_that_do_not_fit_are_refused_with_the_files(tmp_path: Path) -> None:
    gt = flat(tmp_path / "gt", {"a.png": (64, 32), "deep/b.jpg": (64, 64)})
    lr = flat(tmp_path / "lr", {"a.jpg": (16, 8), "deep/b.png": (16, 16)})
    few = flat(tmp_path / "few", {"a.png": (64, 32), "c.png": (64, 64)})
    pictures = folders.pair(lr, gt, [])
    assert pictures.names == ("a", "deep/b")
    folders.check_sources(pictures, PROTOCOLS["weight-free"])
    with pytest.raises(ValueError, match=r"only in .*gt: deep/b; only in .*few: c; add or remove"):
        folders.pair(None, gt, [few])
    with pytest.raises(ValueError, match=r"a\.png of 64x32 instead of 512x512; .*b\.jpg of 64x64 instead of 512x512"):
        folders.check_sources(pictures, PROTOCOLS["osediff-crops512"])
    small = flat(tmp_path / "small", {"a.png": (16, 8), "deep/b.png": (8, 16)})
    with pytest.raises(ValueError, match=r"got .*b\.jpg of 64x64 for .*b\.png of 8x16; remove"):
        folders.check_sources(folders.pair(small, gt, []), PROTOCOLS["weight-free"])
    turned = flat(tmp_path / "turned", {"a.png": (32, 64), "deep/b.png": (60, 64)})
    for given in (pictures, folders.pair(lr, None, [turned])):
        with pytest.raises(ValueError, match=r"a\.png of 32x64 instead of 64x32, .*b\.png of 60x64 instead of 64x64"):
            folders.check_restored(folders.by_name(turned), given, PROTOCOLS["weight-free"])
    large = PROTOCOLS["osediff-crops512"]
    with pytest.raises(ValueError, match=r"got .*a\.jpg of 16x8 for a ground truth of 512x512; .*b\.png of 16x16 for"):
        folders.check_sources(folders.pair(lr, None, []), large)
    with pytest.raises(ValueError, match=r"a\.png of 64x32 instead of 512x512, which fits protocol osediff-crops512"):
        folders.check_restored(folders.by_name(gt), folders.pair(None, None, [gt]), large)
    many = flat(tmp_path / "many", {f"{number}.png": (1, 1) for number in range(30)})
    with pytest.raises(ValueError, match="and 10 more"):
        folders.pair(None, many, [flat(tmp_path / "one", {"x.png": (1, 1)})])


def test_data_folder_and_labels(tmp_path: Path) -> None:
    for name in ("lr", "hr"):
        (tmp_path / name).mkdir()
    assert data_folders(tmp_path) == (tmp_path / "lr", tmp_path / "hr")
    (tmp_path / "gt").mkdir()
    with pytest.raises(ValueError, match="expected hr or gt"):
        data_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a folder lr"):
        data_folders(tmp_path / "lr")
    assert read_pred("other/supir") == Pred("supir", Path("other/supir"))
    assert read_pred("SUPIR=other/out") == Pred("SUPIR", Path("other/out"))
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert read_pred(str(odd)) == Pred("a=b", odd)
    for text, label, name in (
        ("bicubic", "bicubic", "bicubic"),
        ("tiny-student,fidelity=0.5", "tiny-student,fidelity=0.5", "tiny-student"),
        ("runs/rsd-001/model,seed=2", "rsd-001,seed=2", "runs/rsd-001/model"),
        ("mine=runs/rsd-001/model,seed=2", "mine", "runs/rsd-001/model"),
        ("weights/RealESRGAN_x4plus.pth", "RealESRGAN_x4plus", "weights/RealESRGAN_x4plus.pth"),
    ):
        found = methods.parse(text)
        assert (found.label, found.name) == (label, name)


def test_names_with_commas_and_labels_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "My ESRGAN,x4.pth"
    file.touch()
    assert methods.parse(str(file)) == methods.Asked("My ESRGAN,x4", str(file))
    assert methods.parse(f"mine={file},tile=8") == methods.Asked("mine", str(file), {"tile": 8})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").touch()
    assert methods.parse("tiny-student,seed=1").options == {"seed": 1}  # not the file called 1
    for text in ("=other", "label="):
        with pytest.raises(ValueError, match="give a label and a folder"):
            read_pred(text)
    with pytest.raises(ValueError, match="give the name of a model, and a label"):
        methods.parse("=bicubic")
    long = Request(PROTOCOLS["weight-free"], [read_pred("l" * 300 + "=a")], [methods.parse("x" * 300 + "=bicubic")])
    with pytest.raises(ValueError, match=r"at most 100 letters, got l{20}\.\.\. of 300; give a shorter"):
        check_labels(long)


def test_a_folder_of_other_settings_is_let_go_of(tmp_path: Path) -> None:
    request = asked(gt=Path("gt"))
    same, other = (settings_of(request, metrics, tmp_path) for metrics in (("psnr",), ("ssim",)))
    open_folder(tmp_path, same).release()
    with pytest.raises(FileExistsError, match="got other metrics") as kept:
        open_folder(tmp_path, other)
    lock = open_folder(tmp_path, same)
    with pytest.raises(FileExistsError, match="no other process measures in"):
        open_folder(tmp_path, same)
    lock.release()
    assert kept.tb  # with it lives what the refusal left behind


def record(value: float) -> Value:
    return Value(picture="a", reference="b", how="c", value=value)


def test_records_forget_what_is_none(tmp_path: Path) -> None:
    """A torn last line, values that are not finite, and what other programs wrote."""
    path = tmp_path / "deeper" / "values.jsonl"
    records = Records(path, Value)
    records.append(record(1.5))
    whole = path.read_text()
    assert whole == '{"picture": "a", "reference": "b", "how": "c", "value": 1.5}\n'
    foreign = [whole.replace("1.5", value) for value in ("NaN", "Infinity", '"1.5"', '2.5, "more": 1')]
    path.write_text(whole + "".join(foreign) + '{"a": 1}\n[]\n' + whole.replace("1.5", "2.5") + '{"picture": "a", "re')
    again = Records(path, Value)
    assert [found.value for found in again] == [1.5, 2.5]
    again.append(record(4.5))
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1.5, 2.5, 4.5]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Restores two pictures of one colour, in the same folder every time; the number of those that were made."""
    lr = folders.by_name(flat(tmp_path / "lr", {"a.png": (4, 4), "b.png": (4, 4)}))
    calls: list[int] = []
    monkeypatch.setattr(restoring, "git_commit", lambda _: "one")

    def restore(picture: Any, _: Any) -> Any:
        calls.append(1)
        return picture

    def again(limit: int = 2) -> tuple[int, restoring.Restored]:
        del calls[:]
        pictures = folders.Pictures(tuple(lr)[:limit], lr, None)
        method = methods.Method("nothing", {}, restore, ("pillow",))
        records = Records(tmp_path / "restored.jsonl", restoring.Made)
        found = restoring.restore_all(methods.Asked("x", "x"), method, pictures, tmp_path, records, Console(quiet=True))
        return len(calls), found

    return again


def test_pictures_of_other_versions_are_made_again(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [made()[0], made()[0]] == [2, 0]
    monkeypatch.setattr(restoring, "version", lambda package: f"{package} 0")
    assert [made()[0], made()[0]] == [2, 0]
    assert made()[1].note == ""
    file = tmp_path / "restored.jsonl"
    file.write_text(file.read_text().replace('"seconds"', '"hours"'))
    assert made()[0] == 2


def test_pictures_of_several_commits_are_told(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    assert made(limit=1)[1].note == ""
    monkeypatch.setattr(restoring, "git_commit", lambda _: "two")
    count, found = made()
    assert count == 1
    assert found.note == f"commit one, threads {threads}: 1 pictures; commit two, threads {threads}: 1 pictures"


def test_tiles_of_a_local_filter_are_the_whole() -> None:
    """A filter that sees less than the overlap gives the same picture, in tiles of any size."""
    weight = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))

    def enlarge(image: torch.Tensor) -> torch.Tensor:
        blurred = torch.nn.functional.conv2d(image, weight, padding=4)
        return torch.nn.functional.interpolate(blurred, scale_factor=2, mode="nearest")

    image = torch.rand(1, 3, 70, 101, generator=torch.Generator().manual_seed(1))
    whole = enlarge(image)
    for side in (0, 33, 64, 101):
        torch.testing.assert_close(checkpoints.in_tiles(enlarge, image, side, 2), whole, atol=1e-4, rtol=0)


def test_keys_of_metrics_are_pyiqas() -> None:
    configs = pytest.importorskip("pyiqa.default_model_configs").DEFAULT_CONFIGS
    for metric in METRICS.values():
        if metric.reads == "lr":
            continue
        options = configs[metric.key]
        assert bool(options.get("lower_better")) is not metric.higher_is_better, metric.key
        mode = "FR" if metric.reads == "gt" else "NR"
        assert options["metric_mode"] == mode, metric.key
        for name, value in metric.arguments.items():  # pinned to what the name means in pyiqa, or to its default
            assert options["metric_opts"].get(name, value) == value
