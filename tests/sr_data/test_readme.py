"""The Python of the README runs, in the order in which it stands."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sr_data.images import write_image
from sr_data.synthetic import generate_image

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(repository: Path) -> list[str]:
    return BLOCK.findall((repository / "packages/sr-data/README.md").read_text(encoding="utf-8"))


def test_pairs_and_degradation_afterwards(repository: Path) -> None:
    pairs, afterwards, _ = blocks(repository)
    names: dict[str, Any] = {}
    exec(pairs, names)
    assert (names["lr"].shape, names["hr"].shape) == ((8, 3, 32, 32), (8, 3, 128, 128))
    exec(afterwards, names)
    assert (names["lr"].shape, names["hr"].shape) == ((8, 3, 32, 32), (8, 3, 128, 128))


def test_streams(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra sr-data[stream]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    write_image("a.png", generate_image(0, 0, 256))
    with tarfile.open("shards/0.tar", "w") as archive:
        for number in range(4):
            archive.add("a.png", f"{number}.png")
    names: dict[str, Any] = {}
    exec(blocks(repository)[2], names)
    assert names["hr"].shape == (8, 3, 256, 256)
