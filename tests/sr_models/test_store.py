"""Model folders: what comes back is what went in, and nothing else is believed."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sr_models
from sr_models import SRModel, SuperResolver, store
from sr_models.store import AUTOENCODER, CONFIG, UNET, load_autoencoder, load_model, save_autoencoder, save_model

Build = Callable[..., SRModel]
Change = Callable[[Path], None]


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def student(build_model: Build) -> SRModel:
    return build_model("student")


@pytest.fixture
def folder(student: SRModel, tmp_path: Path) -> Path:
    """A saved student."""
    save_model(student, tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_model_round_trip(build_model: Build, tmp_path: Path, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build_model(kind)
    save_model(model, tmp_path / "deep" / "model", dtype=dtype)
    loaded = load_model(tmp_path / "deep" / "model")
    assert (loaded.kind, loaded.config) == (model.kind, model.config)
    for network, original in ((loaded.unet, model.unet), (loaded.autoencoder, model.autoencoder)):
        assert_same(original, network, tolerance)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in model.unet.parameters())
    assert_same(model.autoencoder, load_autoencoder(tmp_path / "deep" / "model"), tolerance)


def test_half_precision_takes_half_the_bytes(student: SRModel, folder: Path) -> None:
    save_model(student, folder.parent / "half", dtype=torch.float16)
    whole, half = ((path / UNET).stat().st_size for path in (folder, folder.parent / "half"))
    assert half < 0.7 * whole


def test_autoencoder_round_trip(student: SRModel, tmp_path: Path) -> None:
    save_autoencoder(student.autoencoder, tmp_path / "autoencoder", about={"seed": 3})
    loaded = load_autoencoder(str(tmp_path / "autoencoder"))
    assert loaded.config == student.autoencoder.config
    assert_same(student.autoencoder, loaded)
    about = store.read_about(tmp_path / "autoencoder")
    assert about == {
        "kind": "autoencoder",
        "sha256": {AUTOENCODER: store.sha256(tmp_path / "autoencoder" / AUTOENCODER)},
        "seed": 3,
    }
    with pytest.raises(ValueError, match=r"expected a teacher or student in .*autoencoder, got kind 'autoencoder'"):
        load_model(tmp_path / "autoencoder")


def test_files_of_a_folder(student: SRModel, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {CONFIG, UNET, AUTOENCODER}
    content = json.loads((folder / CONFIG).read_text())
    assert content["sha256"] == {name: store.sha256(folder / name) for name in (UNET, AUTOENCODER)}
    assert sr_models.ModelConfig.model_validate(content["model"]) == student.config


def test_shared_autoencoder(student: SRModel, tmp_path: Path) -> None:
    save_autoencoder(student.autoencoder, tmp_path / "shared")
    save_model(student, tmp_path / "student", autoencoder_from="shared")
    assert {path.name for path in (tmp_path / "student").iterdir()} == {CONFIG, UNET}
    assert_same(student.autoencoder, load_model(tmp_path / "student").autoencoder)
    assert_same(student.autoencoder, load_autoencoder(tmp_path / "student"))

    # From a whole model as well.
    save_model(student, tmp_path / "whole")
    save_model(student, tmp_path / "second", autoencoder_from="whole")
    assert_same(student.autoencoder, load_model(tmp_path / "second").autoencoder)


def test_wrong_neighbours_are_refused(student: SRModel, build_model: Build, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    save_model(student, folder, autoencoder_from="shared")
    with pytest.raises(FileNotFoundError, match="shared"):
        load_model(folder)
    other = sr_models.VQAutoencoder(student.autoencoder.config.model_copy(update={"latent_scale": 0.5}))
    save_autoencoder(other, tmp_path / "shared")
    with pytest.raises(ValueError, match=r"expected the autoencoder of .*student, got that of another model"):
        load_model(folder)


@pytest.mark.parametrize("name", ["student", "second"])
def test_circles_are_refused(student: SRModel, tmp_path: Path, name: str) -> None:
    save_model(student, tmp_path / "student", autoencoder_from=name)
    save_model(student, tmp_path / "second", autoencoder_from="student")
    with pytest.raises(ValueError, match=r"expected a folder with an autoencoder of its own, got .*"):
        load_model(tmp_path / "student")


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "/elsewhere", 3])
def test_autoencoder_from_elsewhere_is_refused(folder: Path, name: Any) -> None:
    rewrite(folder, autoencoder_from=name)
    with pytest.raises(ValueError, match="expected autoencoder_from to name a neighbouring folder"):
        load_model(folder)


def test_existing_folder_is_refused(student: SRModel, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for save, network in ((save_model, student), (save_autoencoder, student.autoencoder)):
        with pytest.raises(FileExistsError, match=r"expected a new folder, got .*student, which exists"):
            save(network, folder)  # type: ignore[operator]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    student: SRModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    original, calls = store.save_file, []

    def fail_at_the_second(tensors: Any, path: Path) -> None:
        calls.append(path)
        assert not (tmp_path / "student").exists(), "a process that dies now leaves half a folder"
        if len(calls) == 2:
            raise error
        original(tensors, path)

    monkeypatch.setattr(store, "save_file", fail_at_the_second)
    with pytest.raises(type(error)):
        save_model(student, tmp_path / "student")
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def rewrite(folder: Path, **fields: Any) -> None:
    """Change fields of ``config.json``; None removes one."""
    content = json.loads((folder / CONFIG).read_text()) | fields
    content = {key: value for key, value in content.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(content))


def trust(folder: Path) -> None:
    """Write the sha256 of the files that are there, as one who replaces files on purpose would."""
    rewrite(folder, sha256={name: store.sha256(folder / name) for name in (UNET, AUTOENCODER)})


def _truncate(folder: Path) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[:-100])


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / AUTOENCODER).read_bytes())
    content[-1] ^= 1
    (folder / AUTOENCODER).write_bytes(content)


def _no_safetensors(folder: Path) -> None:
    (folder / UNET).write_bytes(b"\x80\x04\x95 not safetensors")
    trust(folder)


def _truncate_trusted(folder: Path) -> None:
    _truncate(folder)
    trust(folder)


def _swap(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / AUTOENCODER).read_bytes())
    trust(folder)


def _other_shape(folder: Path) -> None:
    tensors = store.load_file(folder / UNET)
    store.save_file(tensors | {"head.bias": torch.zeros(5)}, folder / UNET)
    trust(folder)


def _unknown_key(folder: Path) -> None:
    model = json.loads((folder / CONFIG).read_text())["model"]
    model["unet"]["chanels"] = 3
    rewrite(folder, model=model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, rf"expected .*{UNET} with the sha256 in {CONFIG}, got other bytes"),
        (_flip_a_bit, rf"expected .*{AUTOENCODER} with the sha256 in {CONFIG}, got other bytes"),
        (_no_safetensors, rf"expected safetensors in .*{UNET}, got something else"),
        (_truncate_trusted, rf"expected safetensors in .*{UNET}, got something else"),
        (
            _swap,
            rf"the tensors that .* in .*{UNET}, got others: missing: .*surplus: (codebook|decoder)",
        ),
        (
            _other_shape,
            rf"the tensors that .* in .*{UNET}, got others: of another shape: head\.bias \(.*\) instead of \(",
        ),
        (_unknown_key, rf"expected a valid .*{CONFIG}, got a wrong model\.unet\.chanels: Extra inputs"),
        (lambda f: (f / CONFIG).write_text("{"), rf"expected JSON in .*{CONFIG}, got something else"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), rf"expected JSON in .*{CONFIG}, got something else"),
        (lambda f: (f / CONFIG).write_text("[1]"), rf"expected a model folder of format 1, got another {CONFIG} in"),
        (lambda f: rewrite(f, format=2), rf"expected a model folder of format 1, got another {CONFIG} in .*student"),
        (lambda f: rewrite(f, sha256=None), rf"expected a model folder of format 1, got another {CONFIG} in"),
        (lambda f: rewrite(f, sha256=[]), rf"expected a model folder of format 1, got another {CONFIG} in"),
        (lambda f: rewrite(f, kind=None), rf"expected a model folder of format 1, got another {CONFIG} in"),
        (lambda f: rewrite(f, kind="fake"), r"expected a teacher or student in .*student, got kind 'fake'"),
        (lambda f: rewrite(f, model=None), rf"expected a valid .*{CONFIG}, got a wrong model: "),
        (lambda f: rewrite(f, model=3), rf"expected a valid .*{CONFIG}, got a wrong model: "),
        (lambda f: rewrite(f, sha256={UNET: "0" * 64}), rf"expected .*{UNET} with the sha256 in {CONFIG}, got other"),
    ],
)
def test_damage_is_refused(folder: Path, change: Change, message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        SuperResolver.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_weights_of_another_model_are_refused(build_model: Build, folder: Path, kind: str) -> None:
    """The same shapes do not suffice, nor does a matching sha256."""
    save_model(build_model(kind, seed=1), folder.parent / "other")
    (folder / UNET).write_bytes((folder.parent / "other" / UNET).read_bytes())
    with pytest.raises(ValueError, match=rf"expected .*{UNET} with the sha256"):
        load_model(folder)
    trust(folder)
    if kind == "teacher":
        with pytest.raises(ValueError, match=r"got others: (missing|surplus): noise_stem\.weight$"):
            load_model(folder)


@pytest.mark.parametrize("name", [UNET, AUTOENCODER])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"expected weights at .*student/{name}, got no such file"):
        load_model(folder)


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    for name in ("no-such-model", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"expected a model folder with a {CONFIG} or one of .*, got"):
            load_model(name)


FORBIDDEN = (
    *("pickle", "joblib", "dill", "torch.load", "torch.save", "torch.serialization", "torch.jit", "torch.hub"),
    *("torch as ", "np.load", "numpy.load"),
)
READERS = ("t2i/prompts.py", "t2i/published.py", "published/weight_files.py")
"""They read published pickles, as tensors and numbers alone."""
LOOK = "torch.serialization.get_unsafe_globals_in_checkpoint"
"""It names what a pickle would import, and imports nothing."""
WRITER = "t2i/published.py"
"""It writes one in a published layout."""


def pickles(name: str, source: str) -> list[str]:
    """Ways from a module of the package to a pickle, but for what published files need."""
    mentioned: dict[ast.AST, str] = {}
    allowed: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            mentioned |= {alias: f"{module}{ast.unparse(alias)}" for alias in node.names}
            if isinstance(node, ast.Import) and name in READERS:
                allowed |= {alias for alias in node.names if ast.unparse(alias) == "pickle"}
        elif isinstance(node, ast.Attribute | ast.Name):
            mentioned[node] = ast.unparse(node)
        elif isinstance(node, ast.Call):
            safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
            function = ast.unparse(node.func)
            if (function == "torch.load" and safe and name in READERS) or (function == "torch.save" and name == WRITER):
                allowed.add(node.func)
            if function == LOOK and name in READERS:
                allowed |= {part for part in ast.walk(node.func) if isinstance(part, ast.Attribute)}
        elif isinstance(node, ast.ExceptHandler) and node.type is not None and name in READERS:
            errors = [part for part in ast.walk(node.type) if ast.unparse(part) == "pickle.UnpicklingError"]
            allowed |= {part for error in errors for part in ast.walk(error)}
    return [text for node, text in mentioned.items() if node not in allowed and _is_pickle(text)]


def _is_pickle(text: str) -> bool:
    return text.startswith(FORBIDDEN) or ".pickle" in text


def test_no_pickle_in_the_package() -> None:
    root = Path(sr_models.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*.py"))}
    assert {"store.py", *READERS, WRITER} <= set(sources)
    assert {name: found for name, source in sources.items() if (found := pickles(name, source))} == {}


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("torch.load(path, map_location='cpu', weights_only=True)", READERS),
        ("torch.save(content, path)", (WRITER,)),
        ("import pickle", READERS),
        ("try:\n    f()\nexcept pickle.UnpicklingError:\n    pass", READERS),
        ("try:\n    f()\nexcept (OSError, pickle.UnpicklingError) as error:\n    pass", READERS),
        (f"{LOOK}(path)", READERS),
        (f"look = {LOOK}", ()),
        ("torch.load(path)", ()),
        ("torch.load(path, weights_only=False)", ()),
        ("torch.load(path, weights_only=trusted)", ()),
        ("torch.load(path, **{'weights_only': True})", ()),
        ("read = torch.load", ()),
        ("read(torch.load, weights_only=True)", ()),
        ("from torch import load", ()),
        ("import torch as t", ()),
        ("from torch.serialization import load", ()),
        ("pickle.loads(content)", ()),
        ("raise pickle.UnpicklingError", ()),
        ("try:\n    f()\nexcept pickle.PickleError:\n    pass", ()),
        ("getattr(pickle, 'loads')(content)", ()),
        ("import pickle as p", ()),
        ("from pickle import UnpicklingError", ()),
        ("import torch.jit", ()),
        ("np.load(path)", ()),
        ("pandas.io.pickle.read(path)", ()),
    ],
)
def test_which_ways_to_a_pickle_are_seen(source: str, where: tuple[str, ...]) -> None:
    names = ("store.py", "t2i/folder.py", "published.py", *READERS)
    assert [name for name in names if not pickles(name, source)] == [name for name in READERS if name in where]


@pytest.mark.parametrize("name", sorted(store.shipped()))
def test_shipped_models_load(name: str) -> None:
    assert all(parameter.isfinite().all() for network in shipped_networks(name) for parameter in network.parameters())


def shipped_networks(name: str) -> list[nn.Module]:
    """Networks of a shipped model, each loaded as its kind is."""
    kind = store.read_about(name)["kind"]
    if kind == "t2i-teacher":
        pytest.importorskip("diffusers")
        from sr_models.t2i.base import load_base

        base = load_base(name, local_files_only=True)
        return [base.predictor.network, base.vae]
    return [load_autoencoder(name) if kind == "autoencoder" else load_model(name).unet]


def test_shipped_student_fits_its_teacher() -> None:
    teacher, student = load_model("tiny-teacher"), load_model("tiny-student")
    assert (teacher.kind, student.kind) == ("teacher", "student")
    assert student.config.unet == teacher.config.unet.model_copy(update={"noise_channels": 1})
    assert_same(teacher.autoencoder, student.autoencoder)
