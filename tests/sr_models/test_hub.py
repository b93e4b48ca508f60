"""Models of the Hugging Face hub: by owner/name, through its cache, never a pickle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sr_models import SuperResolver, hub, store


def test_names_and_folders_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    assert hub.fetch("tiny-student") == store.shipped()["tiny-student"]
    shutil.copytree(store.shipped()["tiny-autoencoder"], tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("a/b") == Path("a/b")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for name in ("nothing", "a/b/c", tmp_path / "x" / "y", "../a", "a/typo"):
        with pytest.raises(FileNotFoundError, match="expected a model folder"):
            hub.fetch(name)


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the hub's cache, as it lies after a download."""
    pytest.importorskip("huggingface_hub")
    cached = tmp_path / "models--someone--model"
    shutil.copytree(store.shipped()["tiny-autoencoder"], cached / "snapshots" / "0")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    calls: list[dict[str, Any]] = []
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def download(name: str, **options: Any) -> str:
        calls.append(options)
        return str(real(name, cache_dir=tmp_path, **options))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = hub.fetch("someone/model", local_files_only=True)
    assert store.load_autoencoder(folder).config.latent_channels == 8
    assert not any("bin" in pattern or "pt" in pattern for pattern in calls[0]["allow_patterns"])
    with pytest.raises(FileNotFoundError, match=r"got 'someone/else'; nor could it be had from the hub"):
        hub.fetch("someone/else", local_files_only=True)


def test_from_pretrained_takes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_models.restorer.fetch", lambda name: store.shipped()["tiny-student"])
    assert SuperResolver.from_pretrained("someone/model", "cpu", "fp32").model.kind == "student"
