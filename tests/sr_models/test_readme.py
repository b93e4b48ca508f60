"""The examples of the package's README run, and what it says of the published sizes is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sr_models import SRModel, reference, store

PACKAGE = Path("packages/sr-models")


@pytest.fixture
def examples(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return re.findall(r"^```python\n(.*?)^```$", (repository / PACKAGE / "README.md").read_text(), re.M | re.S)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "README.md", "exec"), names)
    return names


def test_restore(examples: list[str]) -> None:
    Image.linear_gradient("L").resize((24, 16)).save("photo.jpg")
    run(examples[0])
    assert Image.open("out.png").size == (96, 64)


def test_distil_and_store(examples: list[str]) -> None:
    run(examples[1])
    assert {path.name for path in Path("my-student").iterdir()} == {store.CONFIG, store.UNET, store.AUTOENCODER}


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_convert(examples: list[str], build_model: Callable[..., SRModel], kind: str) -> None:
    """With our smaller networks under the published names."""
    names = run(examples[2])
    assert len(examples) == 3
    sizes = {"image_size": 64, "in_channels": 6, "out_channels": 3, "model_channels": 32, "channel_mult": [1]}
    sizes |= {"num_res_blocks": [1], "attention_resolutions": [64], "swin_embed_dim": 32, "swin_depth": 2}
    sizes |= {"num_head_channels": 32, "window_size": 8, "mlp_ratio": 4}
    levels = {"in_channels": 3, "z_channels": 3, "ch": 32, "ch_mult": [1, 2, 4], "num_res_blocks": 2}
    noise_channels = int(kind == "student")
    unet_config = reference.swin_unet_config(sizes, noise_channels=noise_channels)
    unet = store.SwinUNet(unet_config)
    autoencoder = store.VQAutoencoder(reference.autoencoder_config({"ddconfig": levels, "n_embed": 8, "embed_dim": 3}))
    theirs = {theirs: unet.state_dict()[ours] for ours, theirs in reference.swin_unet_names(unet_config)}
    if noise_channels:
        stem = "input_blocks.0.0.weight"
        theirs[stem] = torch.cat([theirs[stem], theirs.pop("noise")], dim=1)
    torch.save({"state_dict": theirs}, "unet.pth")
    own = autoencoder.state_dict()
    torch.save({theirs: own[ours] for ours, theirs in reference.autoencoder_names(autoencoder.config)}, "f4.pth")
    names["convert"](Path("unet.pth"), Path("f4.pth"), Path("converted"))
    loaded = store.load_model("converted")
    assert (loaded.kind, loaded.config.unet) == (kind, unet_config)
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in loaded.unet.state_dict().items())


def test_the_page_on_restoring(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its examples belong together and run in their order."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((24, 16)).save("photo.jpg")
    page = (repository / "docs" / "restoring.md").read_text()
    run("\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)))
    assert Image.open("exact.png").size == (1920, 1080)
