"""``sr-distill weights``: from published files to a picture, and what the commands say and return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sr_models import AutoencoderConfig, SwinUNet, SwinUNetConfig, VQAutoencoder, reference, store

Run = Any

UNET = SwinUNetConfig(
    image_size=8,
    base_channels=32,
    channel_multipliers=(1,),
    res_blocks=(1,),
    attention_levels=(0,),
    swin_embed_channels=32,
    swin_mlp_ratio=1.0,
    head_channels=32,
    window_size=4,
)
AUTOENCODER = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1, 1), res_blocks=1, num_codes=16)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A U-Net and an autoencoder under the published names."""
    torch.manual_seed(0)
    pairs = (
        ("SinSR_v2.pth", SwinUNet(UNET), reference.swin_unet_names(UNET)),
        ("autoencoder_vq_f4.pth", VQAutoencoder(AUTOENCODER), reference.autoencoder_names(AUTOENCODER)),
    )
    for name, network, names in pairs:
        own = network.state_dict()
        torch.save({theirs: own[ours] for ours, theirs in names}, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Path("SinSR_v2.pth"), Path("autoencoder_vq_f4.pth")


def test_from_published_files_to_a_picture(run: Run, files: tuple[Path, Path], photo: Path) -> None:
    outcome = run("sr-distill", "weights", "import", *files, "-o", "sinsr", "--image-size", 8)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "sinsr: written; check it with: sr-distill weights verify sinsr\n"
    assert "SinSR_v2.pth: U-Net of ResShift, SinSR or RSD" in outcome.err
    assert "taken as a student by the file's name, --kind overrides it" in outcome.err
    assert "licence: U-Net: non-commercial" in outcome.err

    outcome = run("sr-distill", "weights", "verify", "sinsr", files[0])
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "sinsr: ok (sha256 of 2 files; config.json; runs, numbers finite)",
        "SinSR_v2.pth: ok (readable, numbers finite)",
    ]
    outcome = run(
        "sr-distill", "upscale", photo, "--weights", "sinsr", "-o", "out.png", "--device", "cpu", "--dtype", "fp32"
    )
    assert outcome.code == 0, outcome.err
    with Image.open("out.png") as image:
        assert image.size == (120, 88)


def test_inspect(run: Run, files: tuple[Path, Path]) -> None:
    outcome = run("sr-distill", "weights", "inspect", files[1], "tiny-student")
    assert outcome.code == 0
    assert "autoencoder_vq_f4.pth: VQ autoencoder of latent diffusion; pickle" in outcome.out
    assert "channel_multipliers (1 1 1)" in outcome.out
    assert "model.schedule: num_steps 15, kappa 2.0" in outcome.out
    assert "licence: Apache-2.0" in outcome.out
    assert f"sha256 of autoencoder_vq_f4.pth: {store.sha256(files[1])} (not recorded)" in outcome.out
    found = json.loads(run("sr-distill", "weights", "inspect", "--json", files[0], "tiny-teacher").out)
    assert [one["kind"] for one in found] == ["unet", "teacher"]
    assert found[1]["parameters"] == 2_440_118
    assert found[1]["sha256"]["unet.safetensors"]["state"] == "ok"


def test_verify_fails_with_the_name(run: Run, files: tuple[Path, Path]) -> None:
    run("sr-distill", "weights", "import", files[1], "-o", "autoencoder")
    with Path("autoencoder/autoencoder.safetensors").open("r+b") as file:
        file.truncate(1000)
    files[0].write_bytes(files[0].read_bytes()[:-50])
    outcome = run("sr-distill", "weights", "verify", "autoencoder", "tiny-autoencoder", files[0])
    assert outcome.code == 1
    assert outcome.out.startswith("autoencoder: FAILED\n  expected ")
    assert "tiny-autoencoder: ok" in outcome.out
    assert outcome.err == "2 of 3 failed: autoencoder, SinSR_v2.pth\n"
    outcome = run("sr-distill", "weights", "verify", "--json", "autoencoder")
    assert (outcome.code, [one["ok"] for one in json.loads(outcome.out)]) == (1, [False])


def test_list(run: Run, files: tuple[Path, Path]) -> None:
    run("sr-distill", "weights", "import", files[1], "-o", "models/autoencoder", "--licence", "mine")
    outcome = run("sr-distill", "weights", "list", "models")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["name", "kind", "scale", "parameters", "on", "disk", "licence"]
    assert [line.split()[0] for line in lines[1:]] == [*store.shipped(), "models/autoencoder"]
    assert lines[-1].endswith(" mine")
    bad = Path("models/bad")
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps({"format": 1, "kind": "student", "model": [], "sha256": {}}))
    outcome = run("sr-distill", "weights", "list", "models")
    assert outcome.code == 0, outcome.err
    assert "models/bad" in outcome.out
    assert "unreadable" in outcome.out
    found = json.loads(run("sr-distill", "weights", "list", "--json").out)
    assert {one["name"]: one["scale"] for one in found}["tiny-student"] == 4


def test_errors_are_one_line(run: Run, files: tuple[Path, Path]) -> None:
    for arguments, message in (
        ((files[0], "-o", "out"), "expected the autoencoder as well, got the U-Net SinSR_v2.pth alone"),
        (("nowhere.pth", "-o", "out"), "expected a weight file at nowhere.pth, got no such file"),
        ((*files, "-o", "."), "expected a new folder, got ., which exists"),
    ):
        outcome = run("sr-distill", "weights", "import", *arguments)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith(f"error: {message}")
    assert not Path("out").exists()
    outcome = run("sr-distill", "weights", "inspect", "nowhere")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
