"""Protocols, folders, records and checkpoints of ``sr-bench quality``, without measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_bench.quality import checkpoints, folders, methods
from sr_bench.quality.kept import Records
from sr_bench.quality.metrics import METRICS, WEIGHT_FREE
from sr_bench.quality.protocols import PROTOCOLS, read_protocol
from sr_bench.quality.request import Pred, Request, choose_metrics, data_folders, read_pred
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


def test_records_forget_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "values.jsonl"
    records = Records(path)
    records.append({"value": 1.5})
    records.append({"value": 2.5})
    whole = path.read_text()
    path.write_text(whole + '{"value": 3.')
    again = Records(path)
    assert [record["value"] for record in again] == [1.5, 2.5]
    again.append({"value": 4.5})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1.5, 2.5, 4.5]


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
