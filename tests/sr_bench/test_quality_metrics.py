"""Metrics through pyiqa: against independent implementations, and the weight files that they ask for."""

from __future__ import annotations

import signal
from collections.abc import Generator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sr_bench import pool
from sr_bench.quality import measuring, metrics
from sr_bench.quality.metrics import METRICS
from sr_bench.quality.protocols import PROTOCOLS
from sr_data.images import read_image, write_image

Pixels = NDArray[np.uint8]


def luma(picture: Pixels) -> NDArray[np.float64]:
    """Y of BT.601 with studio swing, not rounded."""
    return np.asarray(16 + picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255)


def psnr(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / np.square(one - two).mean()))


def blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """11x11 Gaussian of sigma 1.5, where it fits into the picture."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    rows = sum(weight * image[index : image.shape[0] - 10 + index] for index, weight in enumerate(weights))
    return sum(weight * rows[:, index : image.shape[1] - 10 + index] for index, weight in enumerate(weights))


def ssim(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Wang et al., 2004, Eq. 13, K1 = 0.01, K2 = 0.03, L = 255; negative structure counts as none, as in pyiqa."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_1, mean_2 = blurred(one), blurred(two)
    variance_1, variance_2 = blurred(one**2) - mean_1**2, blurred(two**2) - mean_2**2
    covariance = blurred(one * two) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + c1) * np.maximum(2 * covariance + c2, 0)
    return float((above / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))).mean())


def test_psnr_and_ssim_on_real_photographs_are_those_of_an_independent_implementation(shared_dir: Path) -> None:
    measure = {key: measuring.gauge(key, "y", "cpu") for key in ("psnr", "ssim")}
    files = sorted((shared_dir / "data" / "realsr_crops" / "hr").iterdir())
    assert len(files) == 34
    for file in files:
        hr = read_image(file)
        lr = Image.open(file.parents[1] / "lr" / file.name).convert("RGB")
        restored = np.asarray(lr.resize((hr.shape[1], hr.shape[0]), Image.Resampling.BICUBIC))
        one, two = luma(restored), luma(hr)
        assert measuring.score(measure["psnr"], restored, hr) == pytest.approx(psnr(one, two), abs=1e-3)
        # pyiqa's SSIM rounds Y to whole levels, as MATLAB does; without that it is up to 2e-3 higher.
        wanted = ssim(one.round(), two.round())
        assert measuring.score(measure["ssim"], restored, hr) == pytest.approx(wanted, abs=1e-4)


def test_rgb_is_another_figure_and_a_border_is_cut_from_both(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(2))
    inner = slice(3, -3)
    two[inner, inner] = one[inner, inner] // 2
    for name, picture in (("one", one), ("two", two)):
        write_image(tmp_path / f"{name}.png", picture)

    def value(color: str, border: int) -> float | str:
        files = tmp_path / "one.png", tmp_path / "two.png"
        return measuring.work(measuring.Task("psnr", color, border, *files, "cpu", ("1", "2", "")))

    def wanted(*pictures: NDArray[Any]) -> float:
        return psnr(*(picture.astype(np.float64) for picture in pictures))

    assert value("rgb", 0) == pytest.approx(wanted(one, two), abs=1e-3)
    assert value("rgb", 3) == pytest.approx(wanted(one[inner, inner], two[inner, inner]), abs=1e-3)
    assert value("y", 3) == pytest.approx(wanted(luma(one)[inner, inner], luma(two)[inner, inner]), abs=1e-3)
    assert value("y", 20) == "the picture is smaller than the border of 20"


class Asked(Exception):
    """A metric has asked for the last of its files."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weight files that pyiqa, torchvision, timm and CLIP ask for; nothing is read."""
    import pyiqa.archs.arch_util as util
    import pyiqa.archs.clip_model as clip
    import pyiqa.archs.niqe_arch as niqe
    import timm.models._builder as timm
    from torchvision.models import WeightsEnum

    names: list[str] = []

    def ask(name: str) -> Any:
        names.append(name)
        return {}

    def of_pyiqa(url: str, *_: Any, **__: Any) -> str:
        ask(f"pyiqa/{url.rsplit('/', 1)[-1]}")
        return url

    def of_niqe(url: str) -> NoReturn:
        raise Asked(of_pyiqa(url))

    def of_clip(url: str, root: str) -> NoReturn:
        raise Asked(ask(f"{Path(root).relative_to(torch.hub.get_dir()).as_posix()}/{url.rsplit('/', 1)[-1]}"))

    def of_timm(hub: str, *_: Any, **__: Any) -> Any:
        return ask(f"{metrics.HUGGING_FACE}{hub}/model.safetensors")

    monkeypatch.setattr(util, "load_file_from_url", of_pyiqa)
    monkeypatch.setattr(util.torch, "load", lambda *_, **__: {})
    monkeypatch.setattr(niqe, "load_file_from_url", of_niqe)
    monkeypatch.setattr(clip, "_download", of_clip)
    monkeypatch.setattr(timm, "load_state_dict_from_hf", of_timm)
    monkeypatch.setattr(
        WeightsEnum, "get_state_dict", lambda self, *_, **__: ask(f"checkpoints/{self.url.rsplit('/', 1)[-1]}")
    )
    fits = SimpleNamespace(missing_keys=[], unexpected_keys=[])
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))  # timm and pyiqa read its values
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: fits)
    return names


@pytest.mark.parametrize("key", [key for key, metric in METRICS.items() if metric.files])
def test_weight_files_are_those_that_pyiqa_asks_for(key: str, asked: list[str]) -> None:
    with torch.device("meta"), pytest.raises((Asked, NotImplementedError)):  # meta tensors cannot be moved: the end
        measuring.create(METRICS[key], "y", "cpu")
    assert tuple(asked) == METRICS[key].files


def test_files_are_looked_for_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiqa.utils import download_util

    here = Path(download_util.DEFAULT_CACHE_DIR)
    assert here.relative_to(torch.hub.get_dir()).as_posix() == "pyiqa"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric = METRICS["lpips"]
    assert metrics.missing_files(metric) == list(metric.files)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / metric.files[0]).touch()
    assert metrics.missing_files(metric) == [metric.files[1]]
    assert metrics.missing_files(METRICS["mad"]) == []
    cached: list[tuple[str, str]] = []

    def look(repository: str, file: str) -> str:
        cached.append((repository, file))
        return file

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    assert metrics.missing_files(METRICS["maniqa-pipal"]) == [METRICS["maniqa-pipal"].files[1]]
    assert cached == [("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", "model.safetensors")]


def test_a_value_is_kept_by_the_weights_it_was_measured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, another key; the keys of metrics without weights name pyiqa's version alone."""
    protocol = PROTOCOLS["weight-free"]
    monkeypatch.setattr(measuring, "version", lambda _: "0")
    assert measuring.how(METRICS["mad"], protocol) == "pyiqa 0 mad() border 0"
    assert measuring.how(METRICS["psnr"], protocol) == "pyiqa 0 psnr(color_space=ycbcr, test_y_channel=True) border 0"
    assert measuring.how(METRICS["lr_rmse"], protocol) == "lr_rmse version 1"
    found = set()
    for folder, content in (("one", b"1"), ("two", b"2"), ("three", b"1")):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / folder))
        (tmp_path / folder / "pyiqa").mkdir(parents=True)
        (tmp_path / folder / METRICS["niqe"].files[0]).write_bytes(content)
        found.add(measuring.how(METRICS["niqe"], protocol))
    assert len(found) == 2
    assert all(key.startswith("pyiqa 0 niqe(version=original) border 0 weights ") for key in found)


@pytest.mark.parametrize("whole", [True, False])
def test_processes_end_with_the_measurement(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that end with their parent; an interrupt does not wait for what they do."""
    assert measuring.processes is pool.processes
    told: list[str] = []

    class Pool:
        _processes: ClassVar = {1: SimpleNamespace(terminate=lambda: told.append("terminate"))}

        def submit(self, function: Any, task: Any) -> Future[float]:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            future: Future[float] = Future()
            future.set_result(1.0)
            return future

        def shutdown(self, cancel_futures: bool) -> None:
            told.append(f"shutdown {cancel_futures}")

    monkeypatch.setattr(measuring, "processes", lambda jobs: Pool())
    before = signal.getsignal(signal.SIGINT)
    tasks = [measuring.Task("psnr", "y", 0, Path(name), None, "cpu", (name, "", "")) for name in "ab"]
    values = measuring.work_all(tasks, 2)
    assert isinstance(values, Generator)
    next(values)
    assert signal.getsignal(signal.SIGINT) is before
    if whole:
        assert len(list(values)) == 1
    else:
        with pytest.raises(KeyboardInterrupt):
            values.throw(KeyboardInterrupt())
    assert told == (["shutdown True"] if whole else ["terminate", "shutdown True"])


@pytest.mark.parametrize("key", ["lpips", "clipiqa", "niqe", "maniqa-pipal"])
def test_nothing_is_fetched_unasked(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the file, or with a damaged one, a metric fails before it reaches for the network."""
    import socket

    import huggingface_hub.constants
    from pyiqa.utils import download_util

    reached: list[str] = []

    def connect(*arguments: Any, **__: Any) -> NoReturn:
        reached.append(str(arguments))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "pyiqa"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "RN50.pt").write_bytes(b"damaged")
    picture = tmp_path / "a.png"
    write_image(picture, np.zeros((8, 8, 3), np.uint8))
    with torch.device("meta"):
        reason = measuring.work(measuring.Task(key, "y", 0, picture, picture, "cpu", ("a", "a", "")))
    assert isinstance(reason, str)
    assert "absent or damaged" in reason or "local cache" in reason, reason
    assert not reached


def test_fid_takes_all_pictures_of_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backbone that averages the colours, two sets that differ by a constant are its square apart."""
    import pyiqa.archs.fid_arch as fid

    class InceptionOfColours(torch.nn.Module):
        BLOCK_INDEX_BY_DIM = {2048: 3}  # noqa: RUF012

        def __init__(self, **_: Any) -> None:
            super().__init__()

        def forward(self, batch: torch.Tensor, *_: Any) -> list[torch.Tensor]:
            return [batch.mean((2, 3), keepdim=True) * 128]

    monkeypatch.setattr(fid, "InceptionV3", InceptionOfColours)
    measuring.gauge.cache_clear()
    rng = np.random.default_rng(0)
    sides: list[list[Path]] = [[], []]
    for name in ("a", "deep/a", "b", "c", "d"):
        color = rng.integers(20, 200, 3)
        for side, files in zip(("sr", "gt"), sides, strict=True):
            picture = np.broadcast_to(color + (10 if side == "gt" else 0), (16, 16, 3)).astype(np.uint8)
            write_image(tmp_path / side / f"{name}.png", picture)
            files.append(tmp_path / side / f"{name}.png")
    assert measuring.frechet_distance(*sides, "cpu") == pytest.approx(3 * 10**2, rel=1e-3)
    for file in sides[0]:  # white around what was there
        write_image(file, np.pad(read_image(file), ((3, 3), (3, 3), (0, 0)), constant_values=255))
    for file in sides[1]:
        write_image(file, np.pad(read_image(file), ((3, 3), (3, 3), (0, 0))))
    assert measuring.frechet_distance(*sides, "cpu", 3) == pytest.approx(3 * 10**2, rel=1e-3)
    with pytest.raises(ValueError, match="smaller than the border of 11"):
        measuring.frechet_distance(*sides, "cpu", 11)
    measuring.gauge.cache_clear()
    with pytest.raises(ValueError, match="at least 2 pictures"):
        measuring.frechet_distance(sides[0][:1], sides[1][:1], "cpu")


def test_the_page_on_measuring_names_every_weight_file(repository: Path) -> None:
    page = (repository / "docs" / "measuring.md").read_text()
    files = {name.rsplit("/", 1)[-1] for metric in METRICS.values() for name in metric.files}
    assert files
    assert [name for name in sorted(files) if name not in page] == []
