"""Base models on disk and on the meta device: what comes back is what went in, and other kinds are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resshift_core import FlowMatchingSchedule
from sr_models import store
from sr_models.t2i import base as module
from sr_models.t2i.base import (
    Base,
    empty_base,
    find_base,
    fresh_network,
    load_base,
    make_predictor,
    prompts_of,
    read_sizes,
)
from sr_models.t2i.folder import save_flow_base
from sr_models.t2i.predictor import FlowPredictor, NoisePredictor
from sr_models.t2i.prompts import Prompt, read_prompt

diffusers = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
SD2 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sd3() -> Any:
    torch.manual_seed(0)
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


def autoencoder() -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.7}
    return diffusers.AutoencoderKL(**blocks, **sizes).eval()


PROMPTS = {name: Prompt(noise(1, 5, 12, seed=seed), noise(1, 12, seed=seed)) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def flow() -> Base:
    """Of the family sd3, in memory; its shift is not the default of any class."""
    scheduler = {"shift": 2.5}
    return Base("tiny", "sd3", make_predictor(sd3(), "sd3", scheduler), autoencoder(), scheduler)


@pytest.fixture(scope="module")
def saved(flow: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "deep" / "flow"
    save_flow_base(flow, PROMPTS, folder, about={"seed": 3})
    return folder


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the family sd2, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("bases") / "noise"
    sd2().save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae")
    diffusers.DDPMScheduler(**SD2).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved base, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def foreign(copied: Path) -> Path:
    """The same without our ``config.json``: as anyone's diffusers folder."""
    (copied / store.CONFIG).unlink()
    return copied


def tensors(base: Base) -> dict[str, Tensor]:
    parts = {"network": base.predictor.network, "vae": base.vae}
    return {f"{part}.{key}": value for part, network in parts.items() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("half", [False, True])
def test_flow_base_round_trip(flow: Base, saved: Path, tmp_path: Path, half: bool) -> None:
    folder = saved
    if half:
        folder = tmp_path / "half"
        save_flow_base(flow, PROMPTS, folder, dtype=torch.float16, about={})
        sizes = [(path / "transformer" / WEIGHTS).stat().st_size for path in (saved, folder)]
        assert sizes[1] < 0.7 * sizes[0]
    loaded = load_base(folder)
    expected, found = tensors(flow), tensors(loaded)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.half().float() if half else value), name
    assert (loaded.name, loaded.family) == (str(folder), "sd3")
    assert isinstance(loaded.predictor, FlowPredictor)
    assert loaded.predictor.schedule == FlowMatchingSchedule.shifted(1000, 2.5)
    assert loaded.vae.config.scaling_factor == 0.7
    for network in (loaded.predictor.network, loaded.vae):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert flow.predictor.network.dtype == torch.float32, "the base that was saved keeps its dtype"


def test_prompts_and_provenance_come_back(saved: Path) -> None:
    assert load_base(saved).prompts == saved / "prompts"
    for name, prompt in PROMPTS.items():
        found = read_prompt(saved / "prompts", name)
        assert torch.equal(found.embeds, prompt.embeds)
        assert torch.equal(found.pooled, prompt.pooled)  # type: ignore[arg-type]
    about = store.read_about(saved)
    assert (about["kind"], about["seed"]) == ("t2i-teacher", 3)
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert set(about["sha256"]) == files - {store.CONFIG}
    assert {f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}", "scheduler/scheduler_config.json", "model_index.json"} < files


def test_a_loaded_base_is_saved_as_it_was(saved: Path, tmp_path: Path) -> None:
    """Its configurations carry diffusers' own fields by then."""
    save_flow_base(load_base(saved), PROMPTS, tmp_path / "again", about={})
    ours, theirs = store.read_about(saved)["sha256"], store.read_about(tmp_path / "again")["sha256"]
    same = [name for name in ours if name.endswith(".safetensors")]
    assert len(same) == 4
    assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    assert theirs.keys() == ours.keys()
    assert load_base(tmp_path / "again").predictor.schedule == load_base(saved).predictor.schedule


def test_existing_folder_is_refused(flow: Base, saved: Path) -> None:
    with pytest.raises(FileExistsError, match=r"expected a new folder, got .*flow, which exists"):
        save_flow_base(flow, PROMPTS, saved, about={})


def test_diffusers_reads_our_folder(flow: Base, saved: Path) -> None:
    network = diffusers.SD3Transformer2DModel.from_pretrained(saved, subfolder="transformer")
    assert torch.equal(network.state_dict()["proj_out.weight"], flow.predictor.network.proj_out.weight)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(saved, subfolder="scheduler")
    found = load_base(saved).predictor.schedule
    assert isinstance(found, FlowMatchingSchedule)
    torch.testing.assert_close(torch.from_numpy(found.sigmas.copy()).float(), scheduler.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_of_the_loaded_weights(saved: Path, unet_folder: Path, dtype: torch.dtype) -> None:
    for folder in (saved, unet_folder):
        loaded = load_base(folder, dtype=dtype)
        assert {value.dtype for value in loaded.predictor.network.parameters()} == {dtype}
        assert {value.dtype for value in loaded.vae.parameters()} == {dtype}


def test_noise_base_is_loaded(unet_folder: Path) -> None:
    loaded = load_base(unet_folder)
    assert (loaded.family, loaded.prompts) == ("sd2", None)
    assert isinstance(loaded.predictor, NoisePredictor)
    assert loaded.predictor.prediction == "epsilon"
    assert torch.equal(loaded.predictor.network.conv_in.weight, sd2().conv_in.weight)
    theirs = diffusers.DDPMScheduler(**SD2).alphas_cumprod
    ours = torch.from_numpy(loaded.predictor.schedule.alphas_cumprod.copy()).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert (loaded.predictor.start, loaded.predictor.num_steps) == (999, 1000)


def test_shipped_bases_go_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = store.shipped() | {"our-teacher": saved}
    monkeypatch.setattr(store, "shipped", lambda: known)
    assert (find_base("our-teacher"), find_base("some/hub-id")) == (str(saved), "some/hub-id")
    loaded = load_base("our-teacher")
    assert (loaded.name, loaded.prompts) == ("our-teacher", saved / "prompts")
    assert read_sizes("our-teacher").family == "sd3"
    names = {name for name, folder in known.items() if (folder / "model_index.json").is_file()}
    assert set(module.shipped_bases()) == names
    assert "our-teacher" in names
    assert "tiny-student" not in names


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_sizes_are_read_without_weights(saved: Path, unet_folder: Path, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(saved if family == "sd3" else unet_folder, tmp_path / "copy"))
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    found, loaded = read_sizes(folder), load_base(saved if family == "sd3" else unet_folder)
    assert found.family == family
    assert found.vae["scaling_factor"] == 0.7
    if family == "sd3":
        assert (found.network["caption_projection_dim"], found.scheduler["shift"]) == (16, 2.5)
    else:
        assert (found.network["cross_attention_dim"], found.scheduler["beta_end"]) == (12, 0.012)

    empty = empty_base("some", found, dtype=torch.bfloat16)
    assert (empty.name, empty.family, empty.prompts) == ("some", family, None)
    expected, shapes = tensors(loaded), tensors(empty)
    assert {name: value.shape for name, value in shapes.items()} == {k: v.shape for k, v in expected.items()}
    for network in (empty.predictor.network, empty.vae):
        assert not network.training
        for parameter in network.parameters():
            assert parameter.is_meta
            assert not parameter.requires_grad
            assert parameter.dtype == torch.bfloat16
    assert empty.predictor.schedule == loaded.predictor.schedule
    assert empty_base("some", found).vae.dtype == torch.float32


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_fresh_networks_depend_on_the_seed_alone(family: Any) -> None:
    config = dict((sd3() if family == "sd3" else sd2()).config)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fresh_network(family, config, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (fresh_network(family, config, seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(same[name], value) for name, value in first.items())
    name = "proj_out.weight" if family == "sd3" else "conv_in.weight"
    assert not torch.equal(other[name], first[name])


@pytest.mark.parametrize(
    ("scheduler", "shift", "steps"),
    [({"shift": 3.0}, 3.0, 1000), ({}, 1.0, 1000), ({"shift": 2.5, "num_train_timesteps": 50}, 2.5, 50)],
)
def test_the_shift_is_the_schedulers(scheduler: dict[str, Any], shift: float, steps: int) -> None:
    predictor = make_predictor(None, "sd3", scheduler | {"use_dynamic_shifting": False})
    assert isinstance(predictor, FlowPredictor)
    assert predictor.schedule == FlowMatchingSchedule.shifted(steps, shift)
    assert (predictor.start, predictor.num_steps) == (0, steps)


@pytest.mark.parametrize(
    ("family", "scheduler", "message"),
    [
        ("sd3", {"shift": 3.0, "use_dynamic_shifting": True}, "a fixed shift, got use_dynamic_shifting"),
        ("sd2", SD2 | {"beta_schedule": "linear"}, "beta_schedule=scaled_linear, got 'linear'"),
        ("sd2", SD2 | {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule=scaled_linear, got 'squared"),
        ("sd2", {"shift": 3.0}, "beta_schedule=scaled_linear, got None"),
        ("sd2", SD2 | {"prediction_type": "sample"}, "epsilon or v_prediction, got 'sample'"),
    ],
)
def test_other_schedules_are_refused(family: Any, scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"\Aexpected .*{message}.*; give an SD[^\n]*\Z"):
        make_predictor(None, family, scheduler)


@pytest.mark.parametrize("change", [{"rescale_betas_zero_snr": True}, {"trained_betas": [0.1, 0.2]}])
def test_schedules_with_other_betas_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr|trained_betas"):
        make_predictor(None, "sd2", SD2 | change)


def test_v_predictions_become_noise(unet_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unet_folder, tmp_path / "copy"))
    diffusers.DDPMScheduler(**SD2, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    predictor = load_base(folder).predictor
    assert isinstance(predictor, NoisePredictor)
    index, z = torch.tensor([999, 300]), noise(2, 4, 8, 8)
    prompt = Prompt(noise(2, 5, 12))
    with torch.no_grad():
        v = predictor.network(z, timestep=index, encoder_hidden_states=prompt.embeds).sample
        prediction = predictor(z, index, prompt)
        plain = load_base(unet_folder).predictor(z, index, prompt)
    alpha = diffusers.DDPMScheduler(**SD2).alphas_cumprod[index].reshape(2, 1, 1, 1)
    assert torch.equal(plain, v), "without the conversion it is the network's output"
    torch.testing.assert_close(prediction, alpha.sqrt() * v + (1 - alpha).sqrt() * z, rtol=1e-4, atol=1e-5)
    x_0 = alpha.sqrt() * z - (1 - alpha).sqrt() * v
    torch.testing.assert_close(predictor.x_0(prediction, z, index), x_0, rtol=1e-3, atol=1e-4)


def refusal(*parts: str) -> str:
    """One line that has all these parts."""
    return r"\A" + "".join(f"(?=.*{part})" for part in parts) + r"[^\n]*\Z"


@pytest.mark.parametrize("load", [load_base, read_sizes])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_absent_base_names_the_remedy(monkeypatch: pytest.MonkeyPatch, load: Any, way: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", way == "environment")  # it was read from there at import
    options = {"local_files_only": True} if way == "argument" else {}
    remedies = ("a diffusers folder with model_index.json", "a hub id", "without --offline", "or one of ", "got: .")
    with pytest.raises(FileNotFoundError, match=refusal(r"expected a base model at 'no-such/base': ", *remedies)):
        load("no-such/base", **options)


def test_absent_base_names_the_shipped_ones(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = store.shipped() | {"our-teacher": saved}
    monkeypatch.setattr(store, "shipped", lambda: known)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=refusal("expected a base model at .*empty'", "one of .*our-teacher")):
        load_base(tmp_path / "empty", local_files_only=True)


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}"])
def test_absent_part_is_an_absent_base(foreign: Path, part: str) -> None:
    path = foreign / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=refusal("expected a base model at .*copy'", "got: .")):
        load_base(foreign, local_files_only=True)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_in_a_pickle_are_refused(foreign: Path, part: str) -> None:
    path = foreign / part / WEIGHTS
    torch.save(store.load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=refusal("copy")):
        load_base(foreign, local_files_only=True)


@pytest.mark.parametrize("kind", ["FluxPipeline", "StableDiffusionXLPipeline"])
def test_other_pipelines_are_refused(foreign: Path, kind: str) -> None:
    (foreign / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ValueError, match=refusal(f"StableDiffusion3Pipeline or .*, got {kind}", "give SD3 or SD2.1")):
        load_base(foreign)


@pytest.mark.parametrize("name", [f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}", "transformer/config.json"])
def test_changed_file_of_ours_is_refused(copied: Path, name: str) -> None:
    load_base(copied)
    content = bytearray((copied / name).read_bytes())
    content[-2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=refusal(f"expected .*{name} with the sha256", "restore the file")):
        load_base(copied)


def test_missing_file_of_ours_is_named(copied: Path) -> None:
    (copied / "vae" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=refusal(f"expected weights at .*vae/{WEIGHTS}, got no such file")):
        load_base(copied)


def test_a_foreign_folder_is_believed(foreign: Path, flow: Base) -> None:
    assert torch.equal(load_base(foreign).vae.state_dict()["decoder.conv_in.bias"], flow.vae.decoder.conv_in.bias)


def test_a_student_is_no_base() -> None:
    with pytest.raises(FileNotFoundError, match=refusal("expected a base model at 'tiny-student'")):
        load_base("tiny-student", local_files_only=True)


def test_prompts_of_a_base(saved: Path, unet_folder: Path) -> None:
    assert prompts_of(str(saved)) == saved / "prompts"
    assert prompts_of(str(unet_folder)) is None


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_published_sizes_have_the_published_schedules(family: Any) -> None:
    found = module.PUBLISHED[family]
    predictor = make_predictor(None, family, found.scheduler)
    assert found.family == family
    assert predictor == make_predictor(None, family, {"shift": 3.0} if family == "sd3" else SD2)
    assert found.vae["scaling_factor"] == {"sd3": 1.5305, "sd2": 0.18215}[family]
