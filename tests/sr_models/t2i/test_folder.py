"""Students on disk: the adapters come back bit for bit, on the base they were trained on and on no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_models import SuperResolver, store
from sr_models.t2i.base import Base, load_base, make_predictor
from sr_models.t2i.folder import load_student, read_adapters, save_flow_base, save_student
from sr_models.t2i.lora import tsd_student, tsd_vae
from sr_models.t2i.prompts import Prompt, read_prompt
from sr_models.t2i.published import read_tsd, write_osediff
from sr_models.t2i.student import T2IStudent, make_student

diffusers = pytest.importorskip("diffusers")

KINDS = ("sd3", "sd2")
SD2 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NETWORKS = {"sd3": "transformer", "sd2": "unet"}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sd3(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    inputs = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    prompt = {"joint_attention_dim": 12, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
    return diffusers.SD3Transformer2DModel(**heads, **inputs, **prompt).eval()


def sd2() -> Any:
    torch.manual_seed(0)
    inputs = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
    }
    attention = {"attention_head_dim": 2, "cross_attention_dim": 12, "use_linear_projection": True}
    return diffusers.UNet2DConditionModel(**inputs, **blocks, **attention).eval()


def autoencoder(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.7}
    return diffusers.AutoencoderKL(**blocks, **sizes).eval()


def write_base(folder: Path, seed: int = 0) -> Path:
    """One of ours: with the sha256 of its files."""
    scheduler = {"shift": 3.0}
    base = Base("tiny", "sd3", make_predictor(sd3(seed), "sd3", scheduler), autoencoder(), scheduler)
    save_flow_base(base, {}, folder, about={})
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``sd3`` is one of ours; ``sd2`` and ``foreign`` (of SD3 kind) are diffusers folders of others."""
    root = tmp_path_factory.mktemp("bases")
    write_base(root / "sd3")
    shutil.copytree(root / "sd3", root / "foreign")
    (root / "foreign" / store.CONFIG).unlink()
    sd2().save_pretrained(root / "sd2" / "unet")
    autoencoder().save_pretrained(root / "sd2" / "vae")
    diffusers.DDPMScheduler(**SD2).save_pretrained(root / "sd2" / "scheduler")
    (root / "sd2" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return {name: root / name for name in ("sd3", "sd2", "foreign")}


def trained(base: Path) -> T2IStudent:
    """A student with values in all of its tensors, as after training."""
    loaded = load_base(base)
    prompt = Prompt(noise(1, 5, 12), noise(1, 12) if loaded.family == "sd3" else None)
    student = make_student(loaded, prompt, scale=4, tile=8, rank=2, vae_rank=3, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter.normal_(std=0.3, generator=generator)
    return student


@pytest.fixture(scope="module")
def students(bases: dict[str, Path]) -> dict[str, T2IStudent]:
    return {name: trained(folder) for name, folder in bases.items()}


@pytest.fixture(scope="module")
def folders(students: dict[str, T2IStudent], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students") / "deep"
    for name, student in students.items():
        save_student(student, root / name, about={"seed": 3})
    return {name: root / name for name in students}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of the students' folders, to be damaged."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}


@torch.no_grad()
def output(student: T2IStudent) -> Tensor:
    lr = noise(1, 3, 5, 7).clamp(-1, 1)
    multiple = student.lr_multiple
    lr = torch.nn.functional.pad(lr, (0, -7 % multiple, 0, -5 % multiple))
    return student.restore(lr, noise(*student.noise_shape(1, *lr.shape[-2:], 1), seed=2), 1)


def refusal(*parts: str) -> str:
    """One line that has all these parts."""
    return r"\A" + "".join(f"(?=.*{part})" for part in parts) + r"[^\n]*\Z"


@pytest.mark.parametrize("kind", KINDS)
def test_student_round_trip(students: dict[str, T2IStudent], folders: dict[str, Path], kind: str) -> None:
    student, loaded = students[kind], load_student(folders[kind], local_files_only=True)
    assert torch.equal(output(loaded), output(student))
    ours, theirs = student.parameters(), loaded.parameters()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert (loaded.network_lora, loaded.vae_lora) == (student.network_lora, student.vae_lora)
    assert (loaded.scale, loaded.tile) == (student.scale, student.tile) == (4, 8)
    assert (loaded.base.name, loaded.base.family) == (student.base.name, kind)
    assert torch.equal(loaded.prompt.embeds, student.prompt.embeds)
    assert (loaded.prompt.pooled is None) == (kind == "sd2")
    for network in (loaded.base.predictor.network, loaded.base.vae):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapters_of_both_networks_matter(folders: dict[str, Path], kind: str) -> None:
    """Otherwise the round trip would show nothing."""
    expected = output(load_student(folders[kind]))
    for network in ("network", "vae"):
        student = load_student(folders[kind])
        with torch.no_grad():
            for name, parameter in student.parameters().items():
                if name.startswith(f"{network}.") and "lora_B" in name:
                    parameter.zero_()
        assert not torch.allclose(output(student), expected, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_restorer_takes_the_folder(students: dict[str, T2IStudent], folders: dict[str, Path], kind: str) -> None:
    lr = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    found = SuperResolver.from_pretrained(folders[kind]).upscale(lr)
    assert found.shape == (52, 36, 3)
    assert np.array_equal(found, SuperResolver(students[kind]).upscale(lr))


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_folder(bases: dict[str, Path], folders: dict[str, Path], kind: str) -> None:
    folder, network = folders[kind], f"{NETWORKS[kind]}.safetensors"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {store.CONFIG, network, "vae.safetensors", "prompts/default.safetensors"}, "the base is not copied"
    about = store.read_about(folder)
    assert (about["kind"], about["seed"], set(about["sha256"])) == ("t2i-student", 3, files - {store.CONFIG})
    fields = json.loads((folder / store.CONFIG).read_text())["t2i"]
    hashes = fields.pop("base_sha256")
    expected = {"base": str(bases[kind]), "family": kind, "scale": 4, "tile": 8}
    assert fields == expected
    if kind == "sd2":
        assert hashes is None
        assert "conv_in.base_layer.weight" in load_file(folder / network)
    else:
        known = store.read_about(bases[kind])["sha256"]
        assert hashes == {name: known[name] for name in known if name.endswith(".safetensors")}
        assert len(hashes) == 2
    assert torch.equal(read_prompt(folder / "prompts", "default").embeds, noise(1, 5, 12))


def test_flow_students_are_files_of_the_published_kind(
    bases: dict[str, Path], students: dict[str, T2IStudent], folders: dict[str, Path]
) -> None:
    base, folder = load_base(bases["sd3"]), folders["sd3"]
    for name in ("transformer", "vae"):
        assert all(key.startswith("transformer.") for key in load_file(folder / f"{name}.safetensors"))
    recipes = (
        read_tsd(folder / "transformer.safetensors", base.predictor.network, targets=tsd_student),
        read_tsd(folder / "vae.safetensors", base.vae, targets=tsd_vae),
    )
    student = students["sd3"]
    assert recipes == (student.network_lora, student.vae_lora)
    assert torch.equal(output(T2IStudent(base, *recipes, student.prompt, 4, 8)), output(student))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_files(students: dict[str, T2IStudent], tmp_path: Path, kind: str) -> None:
    save_student(students[kind], tmp_path / "half", dtype=torch.float16, about={})
    for name in (NETWORKS[kind], "vae"):
        stored = load_file(tmp_path / "half" / f"{name}.safetensors").values()
        assert {value.dtype for value in stored} == {torch.float16}
    loaded, ours = load_student(tmp_path / "half").parameters(), students[kind].parameters()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in ours.items())


def test_base_may_be_elsewhere(
    students: dict[str, T2IStudent], bases: dict[str, Path], copied: dict[str, Path]
) -> None:
    moved = Path(shutil.copytree(bases["sd3"], copied["sd3"].parent / "moved"))
    loaded = load_student(copied["sd3"], base=str(moved))
    assert loaded.base.name == str(moved)
    assert torch.equal(output(loaded), output(students["sd3"]))


def test_another_base_of_ours_is_refused(folders: dict[str, Path], bases: dict[str, Path], tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=1)
    message = refusal("expected the base that .*sd3 was trained on, got another .*{}'", "give that version")
    for place in (other, bases["foreign"], bases["sd2"]):
        with pytest.raises(ValueError, match=message.replace("{}", place.name)):
            load_student(folders["sd3"], base=str(place))


def test_base_of_another_family_is_refused(folders: dict[str, Path], bases: dict[str, Path]) -> None:
    for student, family, base in (("foreign", "sd3", "sd2"), ("sd2", "sd2", "sd3")):
        with pytest.raises(ValueError, match=refusal(f"expected a base of the family {family}, got .*{base}'")):
            load_student(folders[student], base=str(bases[base]))


def test_changed_base_is_refused(copied: dict[str, Path], bases: dict[str, Path], tmp_path: Path) -> None:
    """In its weights, which its own sha256 show."""
    changed = Path(shutil.copytree(bases["sd3"], tmp_path / "changed"))
    path = changed / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=refusal("expected .*vae/.* with the sha256", "got other bytes")):
        load_student(copied["sd3"], base=str(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_absent_base_is_named(copied: dict[str, Path], kind: str) -> None:
    content = json.loads((copied[kind] / store.CONFIG).read_text())
    content["t2i"] |= {"base": "no-such/base", "base_sha256": None}
    (copied[kind] / store.CONFIG).write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=refusal("expected a base model at 'no-such/base'")):
        load_student(copied[kind], local_files_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["network", "vae", "prompts/default"])
def test_changed_file_is_refused(copied: dict[str, Path], kind: str, name: str) -> None:
    path = copied[kind] / f"{name.replace('network', NETWORKS[kind])}.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=refusal(f"expected .*{path.name} with the sha256", "restore the file")):
        SuperResolver.from_pretrained(copied[kind])


def _trust(folder: Path) -> None:
    """Write the sha256 of the files that are there, as one who replaces files on purpose would."""
    content = json.loads((folder / store.CONFIG).read_text())
    content["sha256"] = {name: store.sha256(folder / name) for name in content["sha256"]}
    (folder / store.CONFIG).write_text(json.dumps(content))


@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen", "network"])
def test_other_adapters_are_refused(copied: dict[str, Path], damage: str) -> None:
    folder = copied["sd2"]
    tensors = load_file(folder / "unet.safetensors")
    first = "conv_in.lora_A.default_encoder.weight"
    if damage == "missing":
        del tensors[first]
    elif damage == "surplus":
        tensors["more"] = torch.zeros(1)
    elif damage == "misshapen":
        tensors[first] = tensors[first][:1].contiguous()
    else:
        tensors = load_file(folder / "vae.safetensors")
    save_file(tensors, folder / "unet.safetensors")
    _trust(folder)
    with pytest.raises(ValueError, match=refusal("expected the adapters of this base in .*unet.safetensors, got othe")):
        load_student(folder)


def test_other_flow_adapters_are_refused(copied: dict[str, Path]) -> None:
    folder = copied["sd3"]
    shutil.copy(folder / "vae.safetensors", folder / "transformer.safetensors")
    _trust(folder)
    with pytest.raises(ValueError, match=refusal("expected the tensors of tsd_student in .*transformer.safetensors")):
        load_student(folder)


@pytest.mark.parametrize("kind", [*KINDS, "pickle"])
def test_published_adapters_are_read_without_our_config(
    bases: dict[str, Path], students: dict[str, T2IStudent], copied: dict[str, Path], kind: str
) -> None:
    family = "sd2" if kind == "pickle" else kind
    base, student, place = load_base(bases[family]), students[family], copied[family]
    (place / store.CONFIG).unlink()
    if kind == "pickle":
        networks = student.base.predictor.network, student.base.vae
        place = place / "osediff.pkl"
        write_osediff(place, *networks, (student.network_lora, student.vae_lora))
    recipes = read_adapters(base, place)
    assert recipes == (student.network_lora, student.vae_lora)
    assert torch.equal(output(T2IStudent(base, *recipes, student.prompt, 4, 8)), output(student))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["network", "vae"])
def test_absent_adapters_are_named(bases: dict[str, Path], copied: dict[str, Path], kind: str, part: str) -> None:
    path = copied[kind] / f"{part.replace('network', NETWORKS[kind])}.safetensors"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=refusal(f"expected .* at .*{path.name}, got no such file")):
        read_adapters(load_base(bases[kind]), copied[kind])


def test_osediff_adapters_on_a_flow_base_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=refusal("expected a base of the family sd2 for .*osediff.pkl, got sd3 at")):
        read_adapters(load_base(bases["sd3"]), tmp_path / "osediff.pkl")


@pytest.mark.parametrize("kind", ["sd3", "sd2"])
def test_a_damaged_file_of_adapters_is_refused(bases: dict[str, Path], copied: dict[str, Path], kind: str) -> None:
    (copied[kind] / f"{NETWORKS[kind]}.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=refusal(f"{NETWORKS[kind]}.safetensors")):
        read_adapters(load_base(bases[kind]), copied[kind])


def test_a_base_is_no_student(bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=refusal("expected a student of .*, got kind 't2i-teacher'")):
        load_student(bases["sd3"])
    with pytest.raises(ValueError, match=refusal("expected a student of .*, got kind 'student'")):
        load_student("tiny-student")
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        load_student(bases["sd2"])


@pytest.mark.parametrize("kind", KINDS)
def test_existing_folder_is_refused_and_nothing_half_written_left(
    students: dict[str, T2IStudent], folders: dict[str, Path], tmp_path: Path, monkeypatch: Any, kind: str
) -> None:
    with pytest.raises(FileExistsError, match="expected a new folder"):
        save_student(students[kind], folders[kind], about={})
    monkeypatch.setattr("sr_models.t2i.folder.save_prompt", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_student(students[kind], tmp_path / "new", about={})
    assert list(tmp_path.iterdir()) == []
