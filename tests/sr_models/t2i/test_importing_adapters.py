"""Adapters in the layouts of TSD-SR and OSEDiff become student folders that restore as the published adapters do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_models import store
from sr_models.published.importing import Settings, import_weights
from sr_models.published.inspecting import inspect
from sr_models.published.verifying import verify
from sr_models.t2i.base import load_base
from sr_models.t2i.folder import load_student
from sr_models.t2i.prompts import Prompt, read_prompt
from sr_models.t2i.published import write_osediff, write_tsd
from sr_models.t2i.student import T2IStudent, make_student

diffusers = pytest.importorskip("diffusers")

BASE = "tiny-flow-teacher"
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def randomised(student: T2IStudent) -> T2IStudent:
    """B matrices start at zero, which would hide them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in student.parameters().values():
            value.normal_(std=0.05, generator=generator)
    return student


def write_prompt(folder: Path, prompt: Prompt) -> None:
    assert prompt.pooled is not None
    torch.save(prompt.embeds, folder / "prompt_embeds.pt")
    torch.save(prompt.pooled, folder / "pool_embeds.pt")


@pytest.fixture(scope="module")
def tsd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, T2IStudent]:
    """A folder as TSD-SR publishes it, with the prompt beside, and the student it was made from."""
    base = load_base(BASE, local_files_only=True)
    assert base.prompts is not None
    prompt = read_prompt(base.prompts, "soft")  # not the one that comes with the base as its default
    student = randomised(make_student(base, prompt, scale=4, tile=16, rank=2, vae_rank=3, seed=0))
    folder = tmp_path_factory.mktemp("published") / "tsdsr"
    write_tsd(folder / "transformer.safetensors", base.predictor.network)
    write_tsd(folder / "vae.safetensors", base.vae)
    write_prompt(folder, prompt)
    return folder, student


def same_picture(ours: T2IStudent, theirs: T2IStudent) -> bool:
    generator = torch.Generator().manual_seed(0)
    edge = 2 * ours.lr_multiple
    lr: Tensor = torch.rand(1, 3, edge, edge, generator=generator) * 2 - 1
    noise = torch.randn(ours.noise_shape(1, edge, edge, 1), generator=generator)
    with torch.no_grad():
        return torch.equal(ours.restore(lr, noise, 1), theirs.restore(lr, noise, 1))


def test_tsd_folder(tsd: tuple[Path, T2IStudent], tmp_path: Path) -> None:
    folder, student = tsd
    out, lines = tmp_path / "out", list[str]()
    import_weights([folder], out, Settings(base=BASE), lines.append)
    loaded = load_student(out, local_files_only=True)
    assert (loaded.scale, loaded.tile) == (4, 16)
    assert same_picture(loaded, student)
    about = store.read_about(out)
    assert about["licence"] == "Apache-2.0 (TSD-SR's repository); the base has a licence of its own"
    assert {one["name"] for one in about["source"]["files"]} == {"transformer.safetensors", "vae.safetensors"}
    assert (about["source"]["family"], about["source"]["base"]) == ("TSD-SR", BASE)
    assert "prompt from tsdsr" in lines
    assert inspect(folder / "transformer.safetensors").sizes["rank"] == 2
    assert inspect(out).parameters == sum(about["parameters"].values())
    assert verify(out, offline=True).problems == []

    # The same files one by one, with another prompt.
    write_prompt(tmp_path, read_prompt(load_base(BASE).prompts or tmp_path, "fine"))
    import_weights(
        [folder / "vae.safetensors", folder / "transformer.safetensors"],
        tmp_path / "second",
        Settings(base=BASE, prompt=tmp_path, scale=2, licence="mine"),
    )
    second = load_student(tmp_path / "second", local_files_only=True)
    assert second.scale == 2
    assert not second.prompt.embeds.equal(student.prompt.embeds)
    assert store.read_about(tmp_path / "second")["licence"] == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"expected --base, the model that the adapters in .*transformer\.safetensors.* belong to .* SD3"),
        ({"base": BASE, "kind": "teacher"}, "expected no --kind teacher"),
        ({"base": BASE, "autoencoder": "tiny-autoencoder"}, "expected no --autoencoder"),
        ({"base": BASE, "prompt": Path("nowhere")}, r"expected prompt_embeds\.pt and pool_embeds\.pt or .* in nowhere"),
    ],
)
def test_tsd_refusals(tsd: tuple[Path, T2IStudent], tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_weights([tsd[0]], tmp_path / "out", Settings(**settings))
    assert not (tmp_path / "out").exists()


def test_half_of_a_pair_and_prompt_of_another_base(tsd: tuple[Path, T2IStudent], tmp_path: Path) -> None:
    folder, _ = tsd
    with pytest.raises(ValueError, match="got no adapters of an SD3 autoencoder, in TSD-SR's layout; give both"):
        import_weights([folder / "transformer.safetensors"], tmp_path / "out", Settings(base=BASE))
    write_prompt(tmp_path, Prompt(torch.zeros(1, 6, 5), torch.zeros(1, 7)))
    with pytest.raises(ValueError, match=r"expected a prompt of tokens of .*, got 5 and \(7,\) in .*; give the prompt"):
        import_weights([folder], tmp_path / "out", Settings(base=BASE, prompt=tmp_path))


@pytest.fixture
def sd2(tmp_path: Path) -> Path:
    """A small base of SD2's kind."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        attention_head_dim=2,
        cross_attention_dim=12,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
    )
    folder = tmp_path / "sd2"
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    diffusers.DDPMScheduler(**BETAS).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def test_osediff_file(sd2: Path, tmp_path: Path) -> None:
    from sr_models.t2i.prompts import save_prompt

    base = load_base(sd2, local_files_only=True)
    prompt = Prompt(torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(2)))
    save_prompt(tmp_path / "prompts", "default", prompt)
    student = randomised(make_student(base, prompt, scale=4, tile=64, rank=4, vae_rank=4, seed=0))
    path = tmp_path / "renamed.bin"
    write_osediff(path, base.predictor.network, base.vae, (student.network_lora, student.vae_lora))
    settings = Settings(base=str(sd2), prompt=tmp_path / "prompts")
    import_weights([path], tmp_path / "out", settings)
    loaded = load_student(tmp_path / "out", local_files_only=True)
    assert loaded.tile == 64
    assert same_picture(loaded, student)
    assert store.read_about(tmp_path / "out")["source"]["family"] == "OSEDiff"
    with pytest.raises(FileNotFoundError, match="expected --prompt, a folder with the student's prompt"):
        import_weights([path], tmp_path / "second", Settings(base=str(sd2)))
    with pytest.raises(ValueError, match="expected a base of the family sd2 for OSEDiff, got sd3"):
        import_weights([path], tmp_path / "second", Settings(base=BASE))
