"""ONNX files compute what the models compute, at sizes and batches that were not traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_models import AutoencoderConfig, SRModel, SuperResolver, VQAutoencoder, store
from sr_models.compute import Choice, Compute
from sr_models.export import OnnxModel, ParityError, export_onnx, is_onnx, load_onnx
from sr_models.export.onnx import to_onnx
from sr_models.export.parity import check_parity
from sr_models.published.inspecting import inspect

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def student(build_model: Callable[..., SRModel]) -> SRModel:
    """A student: noise channel, windows shifted with Swin's mask."""
    model = build_model("student")
    model.to(torch.device("cpu"))
    return model


@pytest.fixture(scope="module")
def quantized_teacher(build_model: Callable[..., SRModel], random_weights: Callable[..., Any]) -> SRModel:
    """A teacher with the published mask, a codebook and attention in the middle of the autoencoder."""
    model = build_model("teacher")
    config = AutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 2, 2), res_blocks=1, num_codes=32, norm_groups=4
    )
    unet_config = model.config.unet.model_copy(update={"shift_mask": "published"})
    unet = random_weights(type(model.unet)(unet_config))
    autoencoder = random_weights(VQAutoencoder(config))
    made = SRModel(
        "teacher", model.config.model_copy(update={"autoencoder": config, "unet": unet_config}), unet, autoencoder
    )
    made.to(torch.device("cpu"))
    return made


@pytest.fixture(scope="module")
def written(student: SRModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student as a model folder, and as the file beside it."""
    folder = tmp_path_factory.mktemp("onnx") / "student"
    store.save_model(student, folder, about={"licence": "CC0-1.0"})
    export_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def chain(quantized_teacher: SRModel) -> bytes:
    return to_onnx(quantized_teacher, quantized_teacher.steps[0])


def inputs(model: Any, batch: int, height: int, width: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    lr = torch.rand((batch, 3, height, width), generator=generator) * 2 - 1
    return lr, torch.randn(model.noise_shape(batch, height, width, steps), generator=generator)


def changed(proto: bytes, name: str) -> bytes:
    """The graph with one weight tensor scaled by 1.01."""
    graph = onnx.load_model_from_string(proto)
    (tensor,) = [one for one in graph.graph.initializer if one.name.endswith(name)]
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.01, tensor.name))
    return bytes(graph.SerializeToString())


@pytest.mark.parametrize(("batch", "rows", "columns"), [(1, 1, 1), (3, 2, 5), (1, 6, 3)])
def test_a_student_from_its_file_alone(student: SRModel, written: Path, batch: int, rows: int, columns: int) -> None:
    loaded = load_onnx(written)
    edge = student.lr_multiple
    lr, noise = inputs(student, batch, rows * edge, columns * edge, 1)
    assert loaded.noise_shape(batch, *lr.shape[-2:], 1) == tuple(noise.shape)
    loaded.to(torch.device("cpu"))
    with torch.inference_mode():
        expected = student.restore(lr, noise, 1)
    torch.testing.assert_close(loaded.restore(lr, noise, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(student: SRModel, written: Path) -> None:
    loaded = load_onnx(written / "model.onnx")
    assert (loaded.kind, loaded.scale, loaded.lr_multiple, loaded.steps) == ("student", 4, student.lr_multiple, (1,))
    assert loaded.about["licence"] == "CC0-1.0"
    assert loaded.about["provenance"]["sha256"] == store.read_about(written)["sha256"]
    content = (written / "model.onnx").read_bytes()
    assert b"/sr_models/" not in content, "the file holds paths of the machine that exported"
    graph = onnx.load_model_from_string(content).graph
    assert [value.name for value in graph.input] == ["lr", "noise"]
    assert [value.name for value in graph.output] == ["sr"]
    assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    assert (written / "model.onnx.json").is_file()


def test_a_chain_with_codebook_and_attention(quantized_teacher: SRModel, chain: bytes) -> None:
    cases = check_parity(quantized_teacher, chain, 3)
    assert [(case.batch, case.passed) for case in cases] == [(1, True), (3, True), (2, True)]
    # The network stands in the file once, not once for each step.
    parameters = sum(
        p.numel() for net in (quantized_teacher.unet, quantized_teacher.autoencoder) for p in net.parameters()
    )
    assert len(chain) < 8 * parameters


def test_a_student_with_all_its_steps(student: SRModel, written: Path, tmp_path: Path) -> None:
    config = student.config.model_copy(update={"student_timesteps": (1, student.config.schedule.num_steps)})
    model = SRModel("student", config, student.unet, student.autoencoder)
    proto = to_onnx(model, 2)
    assert all(case.passed for case in check_parity(model, proto, 2))
    parameters = sum(tensor.numel() for tensor in student.unet.parameters())
    assert len(proto) - (written / "model.onnx").stat().st_size < 4 * parameters, "the weights stand there twice"
    (tmp_path / "a.onnx").write_bytes(proto)
    loaded = load_onnx(tmp_path / "a.onnx")
    assert (loaded.kind, loaded.steps) == ("student", (2,))
    edge = model.lr_multiple
    assert loaded.noise_shape(2, edge, edge, 2) == model.noise_shape(2, edge, edge, 2)


def test_a_teacher_in_one_step(quantized_teacher: SRModel) -> None:
    assert all(case.passed for case in check_parity(quantized_teacher, to_onnx(quantized_teacher, 1), 1))


def test_a_changed_weight_fails(student: SRModel, written: Path, quantized_teacher: SRModel, chain: bytes) -> None:
    content = (written / "model.onnx").read_bytes()
    assert all(case.passed for case in check_parity(student, content, 1))
    assert not any(case.passed for case in check_parity(student, changed(content, "unet.head.weight"), 1))
    assert not any(case.passed for case in check_parity(student, changed(content, "noise_stem.weight"), 1))
    for name in ("unet.stem.weight", "decoder.conv_out.weight"):
        assert not all(case.passed for case in check_parity(quantized_teacher, changed(chain, name), 3))


def test_nothing_is_written_without_parity(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sr_models.export.onnx.to_onnx",
        lambda *_, **__: changed((written / "model.onnx").read_bytes(), "unet.head.weight"),
    )
    with pytest.raises(ParityError, match="agree with PyTorch within"):
        export_onnx(written, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_or_read(written: Path, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: export_onnx(written, tmp_path / "model.pt"), ValueError, r"ends in \.onnx"),
        (lambda: export_onnx(written, written / "model.onnx"), FileExistsError, "which exists"),
        (lambda: export_onnx(written, tmp_path / "a.onnx", steps=15), ValueError, "expected steps=1 for this student"),
        (lambda: export_onnx(written, tmp_path / "a.onnx", opset=9), ValueError, "opset of 17 to 20"),
        (lambda: load_onnx(tmp_path / "a.onnx"), FileNotFoundError, "does not exist"),
        (
            lambda: load_onnx("tiny-student"),
            FileNotFoundError,
            "export onnx tiny-student -o tiny-student.onnx, then --weights tiny-student.onnx",
        ),
        (lambda: load_onnx(tmp_path), FileNotFoundError, rf"export onnx {tmp_path} -o {tmp_path}/model\.onnx$"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((written / "model.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged file"):
        load_onnx(broken)
    foreign = onnx.load(written / "model.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="another ONNX file"):
        load_onnx(tmp_path / "foreign.onnx")


def test_it_is_computed_in_fp32_without_a_measurement(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SR_DISTILL_CACHE", str(cache))
    plain = Compute(torch.device("cpu"))
    file = written / "model.onnx"
    for dtype in ("auto", "fp32"):
        resolver = SuperResolver.from_pretrained(file, "cpu", dtype)
        assert (resolver.compute, resolver.choice) == (plain, Choice(plain))
    for dtype in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"expected dtype auto or fp32 for an ONNX file, .* got {dtype}"):
            SuperResolver.from_pretrained(file, "cpu", dtype)
    choice = SuperResolver.from_pretrained(file, "cpu", compile=True).choice
    assert choice == Choice(plain, notes=("not compiled: torch does not compute this model",))
    assert not cache.exists()
    # A device of torch's that onnxruntime does not have.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert SuperResolver.from_pretrained(file).compute == plain
    with pytest.raises(ValueError, match="use device cpu"):
        SuperResolver.from_pretrained(file, "mps")


def test_inspection_tells_what_the_exporter_wrote(written: Path, tmp_path: Path) -> None:
    found = inspect(written / "model.onnx")
    assert (found.licence, found.source) == ("CC0-1.0", {"weights": "student"})
    assert (found.sizes["steps"], found.sizes["noise"]["fields"], found.sizes["opset"]) == (1, 1, 17)
    assert "sr_models" not in found.sizes
    foreign = onnx.load(written / "model.onnx")
    for text in ("[]", "{", '{"provenance": 1}'):
        foreign.metadata_props[0].value = text
        onnx.save(foreign, tmp_path / "foreign.onnx")
        assert inspect(tmp_path / "foreign.onnx").licence == "not stated"


def test_the_backend_refuses_what_it_lacks(student: SRModel, written: Path) -> None:
    loaded = load_onnx(written)
    with pytest.raises(ValueError, match="use device cpu"):
        loaded.to(torch.device("mps"))
    lr, noise = inputs(student, 1, student.lr_multiple, student.lr_multiple, 1)
    with pytest.raises(ValueError, match="expected steps=1"):
        loaded.restore(lr, noise, 15)

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    with pytest.raises(torch.OutOfMemoryError, match="onnxruntime"):
        OnnxModel(Full(), loaded.about).restore(lr, noise, 1)


def test_names() -> None:
    assert is_onnx("a/model.onnx")
    assert is_onnx(Path("MODEL.ONNX"))
    assert not is_onnx("tiny-student")
