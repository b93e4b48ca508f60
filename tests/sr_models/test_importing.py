"""Published files become model folders: the right network, the right numbers, the right licence, and no code run."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_models import (
    AutoencoderConfig,
    ModelConfig,
    SRModel,
    SuperResolver,
    SwinUNet,
    SwinUNetConfig,
    VQAutoencoder,
    reference,
    store,
)
from sr_models.presets import x4
from sr_models.published.importing import Settings, import_weights
from sr_models.published.inspecting import inspect, list_models
from sr_models.published.reference_sizes import autoencoder_sizes, swin_unet_sizes
from sr_models.published.verifying import verify

Read = Callable[[str], Any]
Files = dict[str, Path]
NETWORK: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
CHAIN: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}

SMALL = SwinUNetConfig(
    image_size=8,
    base_channels=32,
    channel_multipliers=(1, 2),
    res_blocks=(1, 1),
    attention_levels=(0,),
    swin_embed_channels=32,
    swin_mlp_ratio=2.0,
    head_channels=16,
    window_size=4,
)
SMALL_AUTOENCODER = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1, 1), res_blocks=1, num_codes=16)


def unet_state(network: SwinUNet) -> dict[str, Tensor]:
    """A U-Net under the published names, its noise channel in the first convolution."""
    own = network.state_dict()
    state = {theirs: own[ours] for ours, theirs in reference.swin_unet_names(network.config)}
    if "noise" in state:
        state[reference.STEM] = torch.cat([state[reference.STEM], state.pop("noise")], dim=1)
    return state


def autoencoder_state(network: VQAutoencoder) -> dict[str, Tensor]:
    own = network.state_dict()
    return {theirs: own[ours] for ours, theirs in reference.autoencoder_names(network.config)}


@pytest.fixture(scope="module")
def networks(random_weights: Callable[..., Any]) -> dict[str, nn.Module]:
    student = SMALL.model_copy(update={"noise_channels": 1})
    return {
        "teacher": random_weights(SwinUNet(SMALL), 1),
        "student": random_weights(SwinUNet(student), 2),
        "autoencoder": random_weights(VQAutoencoder(SMALL_AUTOENCODER), 3),
    }


@pytest.fixture(scope="module")
def files(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Small networks in files as they are published."""
    folder = tmp_path_factory.mktemp("published")
    teacher, student = unet_state(networks["teacher"]), unet_state(networks["student"])
    place = "input_blocks.1.1.blocks.1"
    teacher[f"{place}.attn_mask"] = torch.zeros(4, 16, 16)
    teacher[f"{place}.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    contents = {
        "resshift_realsrx4_s15_v1.pth": {"state_dict": teacher},
        "SinSR_v2.pth": teacher,
        "ema_model_2800.pth": {f"module.{name}": tensor for name, tensor in student.items()},
        "autoencoder_vq_f4.pth": autoencoder_state(networks["autoencoder"]),
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    return {name.split("_")[0].lower(): folder / name for name in contents}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "out"


def said(*paths: Path, to: Path, **settings: Any) -> str:
    lines: list[str] = []
    import_weights(paths, to, Settings(image_size=settings.pop("image_size", 8), **settings), lines.append)
    return "\n".join(lines)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "network", "kind", "family", "licence"),
    [
        ("resshift", "teacher", "teacher", "ResShift", "S-Lab License 1.0 (non-commercial)"),
        ("sinsr", "teacher", "student", "SinSR", "non-commercial, as published; see the source repository"),
        ("ema", "student", "student", "RSD", "non-commercial, as published; see the source repository"),
    ],
)
def test_published_pair(
    files: Files, networks: dict[str, Any], out: Path, name: str, network: str, kind: str, family: str, licence: str
) -> None:
    told = said(files["autoencoder"], files[name], to=out)
    model = store.load_model(out)
    assert (model.kind, model.config.scale, model.config.schedule.num_steps) == (kind, 4, 15)
    assert model.config.unet == networks[network].config
    assert_same(model.unet, networks[network])
    assert_same(model.autoencoder, networks["autoencoder"])
    assert model.config.student_timesteps == ((4, 8, 12, 15) if name == "ema" else None)
    assert f"{kind} for x4" in told
    assert ("--kind overrides" in told) == (name != "ema")

    about = store.read_about(out)
    source = {path.name: path for path in (files[name], files["autoencoder"])}
    assert about["licence"] == f"U-Net: {licence}; autoencoder: as published; see the source repository"
    assert about["licence"] in told
    assert about["source"]["family"].startswith(f"{family} + VQ autoencoder of latent diffusion")
    assert {one["name"]: (one["bytes"], one["sha256"]) for one in about["source"]["files"]} == {
        one: (path.stat().st_size, store.sha256(path)) for one, path in source.items()
    }
    card = (out / "README.md").read_text()
    assert licence in card
    assert all(store.sha256(path) in card for path in source.values())
    (out / "README.md").write_text("my own words")
    store.check_files(out)


def test_kind_overrides_the_name(files: Files, tmp_path: Path) -> None:
    for name, kind in (("sinsr", "teacher"), ("resshift", "student")):
        told = said(files[name], files["autoencoder"], to=tmp_path / kind, kind=kind)
        assert store.load_model(tmp_path / kind).kind == kind
        assert "--kind" not in told


def test_names_of_precisions(files: Files, tmp_path: Path) -> None:
    """The short names are those of ``upscale --dtype``."""
    for short, long in (("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
        for name in (short, long):
            import_weights([files["autoencoder"]], tmp_path / name, Settings(dtype=name))
            assert {part.dtype for part in inspect(tmp_path / name).parts} == {long}


def test_options_that_tensors_do_not_tell(files: Files, out: Path) -> None:
    said(files["resshift"], files["autoencoder"], to=out, scale=8, steps=4, kappa=1.5, licence="mine", image_size=16)
    config = store.load_model(out).config
    assert (config.scale, config.schedule.num_steps, config.schedule.kappa, config.unet.image_size) == (8, 4, 1.5, 16)
    assert store.read_about(out)["licence"] == "mine"
    said(files["ema"], files["autoencoder"], to=out.parent / "rsd", student_steps=3)
    assert store.load_model(out.parent / "rsd").steps == (1, 3)


def test_autoencoder_alone_and_from_a_folder(files: Files, networks: dict[str, Any], tmp_path: Path) -> None:
    import_weights([files["autoencoder"]], tmp_path / "autoencoder")
    assert store.read_about(tmp_path / "autoencoder")["kind"] == "autoencoder"
    assert_same(store.load_autoencoder(tmp_path / "autoencoder"), networks["autoencoder"])
    said(files["ema"], to=tmp_path / "student", autoencoder=str(tmp_path / "autoencoder"), dtype="float16")
    assert_same(store.load_model(tmp_path / "student").autoencoder, networks["autoencoder"].half().float())
    about = store.read_about(tmp_path / "student")
    assert about["licence"].endswith("autoencoder: as published; see the source repository")
    whole = sum(path.stat().st_size for path in (files["ema"], files["autoencoder"]))
    assert sum(path.stat().st_size for path in (tmp_path / "student").glob("*.safetensors")) < 0.6 * whole


def test_safetensors_and_folders_of_files(files: Files, networks: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, path in (("renamed", files["ema"]), ("other", files["autoencoder"])):
        state = torch.load(path, weights_only=True)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    said(folder, to=tmp_path / "student")
    assert_same(store.load_model(tmp_path / "student").unet, networks["student"])
    # Nothing but the noise channel tells where these are from.
    licence = store.read_about(tmp_path / "student")["licence"]
    assert licence.endswith("autoencoder: not known; see where the files came from")
    with pytest.raises(ValueError, match=r"got .*student, which is a model folder already"):
        said(tmp_path / "student", to=tmp_path / "again")


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_published_sizes(shared_dir: Path) -> None:
    shapes = json.loads((shared_dir / "golden" / "published_state_dicts.json").read_text())
    states = {
        name: {key: torch.empty(shape, device="meta") for key, shape in one.items()} for name, one in shapes.items()
    }
    unet = states["resshift_realsrx4_s15_v1"]
    assert swin_unet_sizes(unet) == x4().unet
    assert autoencoder_sizes(states["autoencoder_vq_f4"]) == x4().autoencoder
    unet[reference.STEM] = torch.empty(160, 7, 3, 3, device="meta")
    assert swin_unet_sizes(unet) == x4().unet.model_copy(update={"noise_channels": 1})
    with torch.device("meta"):
        model = SRModel("teacher", x4(), SwinUNet(x4().unet), VQAutoencoder(x4().autoencoder))
    assert model.lr_multiple == 64


def test_golden_sizes(golden: Read) -> None:
    unet, autoencoder = golden("unet_swin_small"), golden("vq_f_small")
    assert swin_unet_sizes(unet.state) == reference.swin_unet_config(unet.config)
    assert autoencoder_sizes(autoencoder.state) == reference.autoencoder_config(autoencoder.config)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_channels": 1, "latent_channels": 8, "out_channels": 8},
        {"condition_channels": 12, "channel_multipliers": (1,), "res_blocks": (3,)},
        {"condition_channels": 0},
        {"channel_multipliers": (1, 1, 3), "res_blocks": (1, 2, 3), "attention_levels": (1, 2)},
        {"attention_levels": (), "swin_depth": 3, "head_channels": 8, "swin_mlp_ratio": 1.5},
        {"window_size": 16, "image_size": 64, "swin_embed_channels": 64},
    ],
)
def test_unet_sizes_follow_from_shapes(change: dict[str, Any]) -> None:
    config = SwinUNetConfig.model_validate(SMALL.model_dump() | change)
    with torch.device("meta"):
        state = unet_state(SwinUNet(config))
    assert swin_unet_sizes(state, image_size=config.image_size) == config


@pytest.mark.parametrize(
    "change",
    [
        {"num_codes": None, "mid_attention": False},
        {"latent_channels": 4, "z_channels": 5, "image_channels": 1},
        {"channel_multipliers": (1, 2, 3, 1), "res_blocks": 3, "base_channels": 64},
    ],
)
def test_autoencoder_sizes_follow_from_shapes(change: dict[str, Any]) -> None:
    config = AutoencoderConfig.model_validate(SMALL_AUTOENCODER.model_dump() | change)
    with torch.device("meta"):
        state = autoencoder_state(VQAutoencoder(config))
    assert autoencoder_sizes(state) == config


def test_where_the_image_size_shows() -> None:
    with torch.device("meta"):
        state = unet_state(SwinUNet(SMALL))
        shrunken = unet_state(
            SwinUNet(SMALL.model_copy(update={"image_size": 4, "window_size": 4, "attention_levels": (0, 1)}))
        )
        mask, index = torch.empty(16, 16, 16), torch.empty(16, 16)
    place = "input_blocks.1.1.blocks"
    assert swin_unet_sizes(state).image_size == 64, "nothing tells: as published"
    assert swin_unet_sizes(state | {f"{place}.1.attn_mask": mask}).image_size == 16
    assert swin_unet_sizes(shrunken).image_size == 4
    # Derived tensors are stored, and none is a shift mask: no level is larger than the window.
    assert swin_unet_sizes(state | {f"{place}.0.attn.relative_position_index": index}).image_size == 4


# --- the reference pipeline ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(golden: Read, tmp_path_factory: pytest.TempPathFactory) -> SRModel:
    """The golden U-Net and autoencoder, by way of files as they are published."""
    folder = tmp_path_factory.mktemp("golden")
    unet = {"state_dict": {f"module.{name}": tensor for name, tensor in golden("unet_swin_small").state.items()}}
    torch.save(unet, folder / "a.pth")
    torch.save(golden("vq_f_small").state, folder / "b.pth")
    import_weights([folder / "b.pth", folder / "a.pth"], folder / "out", Settings(scale=2))
    return store.load_model(folder / "out")


@torch.no_grad()
def test_imported_golden_networks(imported: SRModel, golden: Read) -> None:
    io = golden("sampling_15_steps").io
    inputs = io["y"][:1], io["lq"][:1], io["noises"][:, :1]
    denoiser = imported.denoiser
    assert imported.kind == "teacher"
    torch.testing.assert_close(denoiser.one_step(io["y"], io["lq"], io["noises"][15]), io["one_step"], **NETWORK)
    torch.testing.assert_close(torch.stack(denoiser.trajectory(*inputs)), io["trajectory"][:, :1], **CHAIN)
    states = torch.stack(denoiser.trajectory(*inputs, deterministic=True))
    torch.testing.assert_close(states, io["deterministic_trajectory"][:, :1], **CHAIN)
    io = golden("vq_f_small").io
    torch.testing.assert_close(imported.autoencoder.encode(io["image"]), io["latent"], **NETWORK)
    torch.testing.assert_close(imported.autoencoder.decode(io["z"]), io["decoded"], **NETWORK)


@torch.no_grad()
def test_restoring_is_the_published_pipeline(imported: SRModel, golden: Read) -> None:
    """z_y is the code of the bicubically enlarged LR image; one evaluation at t = T; decoding quantizes."""
    unet = reference.swin_unet(golden("unet_swin_small").state, golden("unet_swin_small").config).eval()
    autoencoder = reference.vq_autoencoder(golden("vq_f_small").state, golden("vq_f_small").config).eval()
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(imported.noise_shape(1, 16, 16, 1), generator=generator)

    kappa, eta_T = 2.0, 0.99**2
    z_y = autoencoder.encode(F.interpolate(lr, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(-1, 1))
    z_T = z_y + kappa * math.sqrt(eta_T) * noise[0]
    z_0 = unet(z_T / math.sqrt(kappa**2 * eta_T + 1), torch.tensor([14]), lr)
    expected = autoencoder.decode(z_0)
    torch.testing.assert_close(imported.restore(lr, noise, 1), expected, **NETWORK)


def test_lr_images_are_padded_by_reflection(files: Files, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(files["sinsr"], files["autoencoder"], to=out)
    model = store.load_model(out)
    assert model.lr_multiple == 8
    seen: list[Tensor] = []

    def restore(self: SRModel, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        seen.append(lr)
        return F.interpolate(lr, scale_factor=4.0)

    monkeypatch.setattr(SRModel, "restore", restore)
    image = np.random.default_rng(0).integers(0, 256, (13, 11, 3), dtype=np.uint8)
    restored = SuperResolver(model).upscale(image)
    assert restored.shape == (52, 44, 3)
    padded = np.pad(image, ((0, 3), (0, 5), (0, 0)), mode="reflect")
    expected = torch.from_numpy(padded).permute(2, 0, 1)[None] / 127.5 - 1
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].float(), expected, rtol=0.0, atol=1e-6)


# --- refusals --------------------------------------------------------------------------------------------------------


class Marker:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda c, p: torch.save(c, p), r"a pickle that also holds .*pathlib\.PosixPath.*; nothing of it was run"),
        (
            lambda c, p: torch.save(c, p, _use_new_zipfile_serialization=False),
            r"a pickle that also holds \S+; nothing of it was run",
        ),
        (lambda c, p: p.write_bytes(pickle.dumps(c)), r"a pickle that something else wrote, of which nothing was run"),
    ],
)
def test_code_is_refused_and_not_run(
    files: Files, tmp_path: Path, write: Callable[[Any, Path], None], message: str
) -> None:
    mark = tmp_path / "mark"
    content = torch.load(files["resshift"], weights_only=True) | {"hook": Marker(mark)}
    write(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=message) as caught:
        said(tmp_path / "evil.pth", files["autoencoder"], to=tmp_path / "out")
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    assert not verify(tmp_path / "evil.pth").ok


def _saved(content: Any, **options: Any) -> Callable[[Files, Path], None]:
    return lambda _, path: torch.save(content, path, **options)


def _cut(count: int, name: str = "resshift") -> Callable[[Files, Path], None]:
    return lambda files, path: (path.write_bytes(files[name].read_bytes()[:-count]), None)[1]


def _changed(change: Callable[[dict[str, Tensor]], object], name: str = "resshift") -> Callable[[Files, Path], None]:
    def write(files: Files, path: Path) -> None:
        content = torch.load(files[name], weights_only=True)
        state = dict(content.get("state_dict", content))
        change(state)
        torch.save(state, path)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_cut(100), "got a truncated, damaged or other file; download it again"),
        (lambda _, path: path.write_bytes(b""), "got an empty file"),
        (lambda _, path: path.write_text("<!DOCTYPE html>"), "got a web page"),
        (lambda _, path: path.write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{}"), "expected safetensors in .* damaged"),
        (_saved([1, 2]), "expected a dictionary of tensors in .*, got list"),
        (_saved({"state_dict": {"a": 3}}), r"expected tensors alone in .*, got a \(int\)"),
        (
            _saved({"state_dict_unet": {"a": torch.zeros(1), "b": "c"}, "state_dict_vae": {}}),
            r"expected tensors alone in .*, got unet\.b \(str\)",
        ),
        (_saved({"state_dict": {}}), "expected tensors alone in .*, got none"),
        (_saved({"a": torch.zeros(1)}), "expected weights of ResShift.* with the tensors a; give a published file"),
        (_changed(lambda s: s.pop("time_embed.2.bias")), r"x\.pth: expected the .*missing: time_embed\.2\.bias$"),
        (_changed(lambda s: s.pop("out.2.weight")), r"x\.pth: expected the tensor out\.2\.weight, got a file without"),
        (_changed(lambda s: s.update(more=torch.zeros(1))), r"x\.pth: .*surplus: more$"),
        (
            _changed(lambda s: s.update({f"m{i}": torch.zeros(1) for i in range(9)})),
            "surplus: m0, m1, m2, m3, m4 and 4 more$",
        ),
        (
            _changed(lambda s: s.update({reference.STEM: torch.zeros(32, 8, 3, 3)})),
            "expected a first convolution of 3 latent channels, .* got 8",
        ),
        (_changed(lambda s: s["out.2.bias"].fill_(math.nan)), r"got inf or nan in head\.bias of unet\.safetensors"),
    ],
)
def test_damage_is_named(files: Files, tmp_path: Path, write: Callable[[Files, Path], None], message: str) -> None:
    write(files, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message) as caught:
        said(tmp_path / "x.pth", files["autoencoder"], to=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"], "nothing half written is left"


def test_what_does_not_belong_together(files: Files, tmp_path: Path, networks: dict[str, Any]) -> None:
    out, autoencoder = tmp_path / "out", files["autoencoder"]
    torch.save(
        autoencoder_state(networks["autoencoder"]) | {"encoder.down.0.attn.0.q.bias": torch.ones(1)}, tmp_path / "a"
    )
    doubled = autoencoder_state(networks["autoencoder"]) | {"quant_conv.weight": torch.zeros(6, 6, 1, 1)}
    torch.save(doubled, tmp_path / "kl")
    cases: list[tuple[tuple[Path, ...], dict[str, Any], str]] = [
        ((files["ema"],), {}, r"the autoencoder as well, got the U-Net ema_model_2800\.pth alone; .*--autoencoder"),
        ((files["ema"], files["sinsr"]), {}, r"expected one file of a kind, got two of the U-Net .*sinsr|SinSR_v2"),
        ((files["ema"], autoencoder), {"autoencoder": "tiny-autoencoder"}, "expected one autoencoder, got"),
        ((files["ema"],), {"autoencoder": "tiny-autoencoder"}, "equal to the autoencoder's 8, got 3 and 3; give the"),
        ((files["ema"], autoencoder), {"kind": "teacher"}, "expected a teacher, got .* with a noise channel"),
        ((files["sinsr"], autoencoder), {"student_steps": 2}, "expected student_steps for a student with a noise"),
        ((files["ema"], autoencoder), {"student_steps": 99}, "expected 1 <= count <= num_steps 15, got 99"),
        ((files["ema"], autoencoder), {"student_steps": 0}, "expected 1 <= count <= num_steps 15, got 0"),
        ((files["ema"], autoencoder), {"scale": 2}, "expected unet.condition_channels=12 for scale 2"),
        ((files["ema"], autoencoder), {"base": "tiny-flow-teacher"}, "expected --base with adapters"),
        ((autoencoder,), {"image_size": None, "scale": 4}, "expected a U-Net for --scale, got an autoencoder alone"),
        ((tmp_path / "a",), {"image_size": None}, "without attention in its levels"),
        ((tmp_path / "kl",), {"image_size": None}, r"got 6 \(mean and variance of a KL autoencoder\)"),
    ]
    for paths, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            said(*paths, to=out, **settings)
    with pytest.raises(FileNotFoundError, match=r"expected a weight file at .*nowhere"):
        import_weights([tmp_path / "nowhere"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected weight files .* in .*, got none"):
        import_weights([tmp_path / "empty"], out)
    out.mkdir()
    with pytest.raises(FileExistsError, match=r"expected a new folder, got .*out, which exists"):
        said(files["ema"], autoencoder, to=out)
    with pytest.raises(ValueError, match="expected kind teacher or student, got 'pupil'"):
        Settings(kind="pupil")
    with pytest.raises(ValueError, match="expected dtype fp32, bf16, fp16, float32, bfloat16, float16, got 'int8'"):
        Settings(dtype="int8")
    with pytest.raises(ValueError, match="expected a scale of 1 or more, got 0"):
        Settings(scale=0)


# --- inspect, verify, list -------------------------------------------------------------------------------------------


def test_inspection(files: Files, networks: dict[str, Any], out: Path) -> None:
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    found = inspect(files["ema"])
    assert (found.kind, found.parameters, found.licence) == ("unet", counts["student"], "not stated")
    assert "a student of RSD" in found.what
    assert found.sizes["unet"]["noise_channels"] == 1
    assert found.sha256 == {"ema_model_2800.pth": {"digest": store.sha256(files["ema"]), "state": "not recorded"}}
    found = inspect(files["resshift"])
    assert (found.parameters, found.sizes["unet"]["image_size"]) == (counts["teacher"], 8), "masks are no parameters"
    said(files["ema"], files["autoencoder"], to=out)
    found = inspect(out)
    assert (found.kind, found.parameters) == ("student", counts["student"] + counts["autoencoder"])
    assert ModelConfig.model_validate(found.sizes["model"]) == store.load_model(out).config
    assert {part.name for part in found.parts if part.file == store.AUTOENCODER} >= {"encoder", "decoder", "codebook"}
    assert {state["state"] for state in found.sha256.values()} == {"ok"}
    (out / store.UNET).write_bytes(b"no")
    (out / store.AUTOENCODER).unlink()
    states = {file: state["state"] for file, state in inspect(out).sha256.items()}
    assert states == {store.UNET: "changed", store.AUTOENCODER: "missing"}
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        inspect("nowhere")


def test_verification(files: Files, out: Path) -> None:
    said(files["ema"], files["autoencoder"], to=out)
    assert (verify(out).problems, verify(files["ema"]).problems) == ([], [])
    assert {f"sha256 of {name}" for name in (store.UNET, store.AUTOENCODER)} < set(verify(out).passed)
    config = json.loads((out / store.CONFIG).read_text())
    content = (out / store.UNET).read_bytes()
    (out / store.UNET).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [problem] = verify(out).problems
    assert "unet.safetensors with the sha256" in problem

    # Bytes that are what config.json says, and yet no network that works.
    tensors = load_file(out / store.UNET)
    tensors["head.bias"][0] = math.inf
    save_file(tensors, out / store.UNET)
    config["sha256"][store.UNET] = store.sha256(out / store.UNET)
    (out / store.CONFIG).write_text(json.dumps(config))
    [problem] = verify(out).problems
    assert "got inf or nan in head.bias" in problem
    del tensors["head.bias"]
    save_file(tensors, out / store.UNET)
    config["sha256"][store.UNET] = store.sha256(out / store.UNET)
    (out / store.CONFIG).write_text(json.dumps(config))
    [problem] = verify(out).problems
    assert "missing: head.bias" in problem
    assert verify("nowhere").problems


def test_list(files: Files, out: Path) -> None:
    said(files["ema"], files["autoencoder"], to=out, licence="mine")
    (out.parent / "other").mkdir()
    (out.parent / "other" / "config.json").write_text("{}")
    found = {one.name: one for one in list_models(out.parent)}
    assert set(found) == {*store.shipped(), str(out)}
    assert (found[str(out)].kind, found[str(out)].scale, found[str(out)].licence) == ("student", 4, "mine")
    assert found[str(out)].bytes == sum(path.stat().st_size for path in out.iterdir())
    assert set(list_models()) == {one for one in found.values() if one.name in store.shipped()}
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        list_models(out / "nowhere")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": []}, "a wrong model"),
        ({"model": [1]}, "a wrong model"),
        ({"kind": 5}, "a wrong kind"),
        ({"about": "x"}, "a wrong about"),
        ({"about": {"licence": 5}}, "a wrong about.licence"),
        ({"sha256": {"../../secret": "0"}}, r"got '\.\./\.\./secret', which is outside"),
        ({"sha256": {"/etc/hostname": "0"}}, "got '/etc/hostname', which is outside"),
    ],
)
def test_a_wrong_config_is_named_and_the_others_are_listed(
    files: Files, tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    import_weights([files["autoencoder"]], tmp_path / "good")
    content = json.loads((tmp_path / "good" / "config.json").read_text())
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps(content | entry))
    kinds = {one.name: one.kind for one in list_models(tmp_path)}
    assert (kinds[str(bad)], kinds[str(tmp_path / "good")]) == ("unreadable", "autoencoder")
    with pytest.raises(ValueError, match=message):
        inspect(bad)
    [problem] = verify(bad).problems
    assert re.search(message, problem)


def test_shipped_models_say_their_licence_and_source() -> None:
    for name in store.shipped():
        about = store.read_about(name)
        assert about["licence"] == "Apache-2.0"
        assert about["source"] == f"trained by `{about['command']}` on generated images only"
