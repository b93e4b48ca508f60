"""``sr-distill upscale`` as a person uses it: pictures, streams, exit codes, and what it says to bad input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def upscale(run: Any, trained: Any) -> Callable[..., Any]:
    """The command with the model of the minute run, in float32."""

    def call(*arguments: object) -> Any:
        return run("sr-distill", "upscale", "--weights", trained.student, "--dtype", "fp32", *arguments)

    return call


def truncated(path: Path) -> Path:
    """The first half of a file, in its place."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def copied(folder: Path, to: Path, file: str) -> Path:
    """A model folder with one file cut in half."""
    shutil.copytree(folder, to)
    truncated(to / file)
    return to


def check_refused(outcome: Any, message: str) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == 2, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in outcome.err + outcome.out


def pixels_of(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_bad_input_is_refused_in_one_line(run: Any, trained: Any, photo: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    short = copied(trained.student, tmp_path / "short", "unet.safetensors")
    unreadable = copied(trained.student, tmp_path / "unreadable", "config.json")
    headless = copied(trained.student, tmp_path / "headless", "config.json")
    (headless / "config.json").unlink()
    Image.new("RGB", (40, 40)).save(tmp_path / "half.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.json").mkdir()
    plain = tmp_path / "plain"
    plain.touch()
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none.png"], "no such file"),
        ([tmp_path / "empty"], "no pictures in"),
        ([text], "not a picture"),
        ([truncated(tmp_path / "half.png")], "expected a complete image"),
        ([photo, "-o", tmp_path / "result.gif"], "expected an output ending in .png"),
        ([photo, text, "-o", tmp_path / "result.png"], "expected -o a folder"),
        ([photo, text, "-o", "-"], "expected one picture for stdout, got 2"),
        ([photo, "-o", photo, "--overwrite"], "expected outputs that are no inputs"),
        ([photo, "-o", tmp_path / "a.png", "--format", "jpg"], "expected --format to agree with the name"),
        ([photo, "--format", "gif"], "expected --format png, jpg, webp, tiff, avif, bmp or same, got 'gif'"),
        (["-", "--format", "same"], "for a picture from stdin, got same"),
        ([photo, "--quality", "90"], "expected no --quality for lossless png"),
        ([photo, "-o", tmp_path / "a.jpg", "--quality", "0"], "expected --quality 1 to 100, got 0"),
        ([photo, "--report", tmp_path / "none/run.json"], "expected --report in a folder that exists"),
        ([photo, "--report", photo], "expected --report FILE.json, got"),
        ([photo, "--report", tmp_path / "folder.json"], "expected --report FILE.json, got the folder"),
        ([photo, "-o", plain], f"expected -o a folder, got the file {plain}; give another name"),
        ([photo, "-o", text / "x"], f"expected -o a folder, got the file {text}; give another name"),
        ([photo, "--max-pixels", "659"], "expected at most 659 pixels, got"),
        ([photo, "--max-pixels", "0"], "expected --max-pixels of at least 1"),
        ([photo, "--backend", "onnx"], "expected an ONNX file"),
        ([photo, "--weights", tmp_path / "none.onnx"], "expected an ONNX file"),
        ([photo, "--scale", "2", "--size", "100x"], "expected --scale or --size, got both: 2 and 100x; leave one out"),
        ([photo, "--dtype", "float16"], "fp32, bf16, fp16"),
        ([photo, "--weights", tmp_path / "none"], "expected a model folder"),
        ([photo, "--weights", headless], "expected a model folder"),
        ([photo, "--weights", trained.autoencoder], "got kind 'autoencoder'"),
        ([photo, "--weights", short], "truncated or changed"),
        ([photo, "--weights", unreadable], "expected JSON"),
        ([photo, "--steps", "7"], "for this student, got 7"),
        ([photo, "--weights", trained.teacher, "--steps", "2"], "expected steps=1 or 4 for this teacher, got 2"),
        ([photo, "--tile", "-1"], "expected the side of a tile"),
        ([photo, "--tile", "big"], "expected --tile auto or a number"),
        ([photo, "--scale", "0"], "expected a positive scale"),
        ([photo, "--scale", "2", "--size", "10x10"], "expected --scale or --size, got both: 2 and 10x10"),
        ([photo, "--size", "10"], "expected --size WIDTHxHEIGHT"),
        ([photo, "--color", "red"], "expected color none, adain, wavelet, lab"),
        ([photo, "--fidelity", "2"], "expected fidelity from 0 to 1"),
        ([photo, "--batch", "0"], "expected a batch of at least 1"),
        ([photo, "--seed", "-1"], "expected a seed of 0 or more"),
        ([photo, "--device", "gpu"], "expected a device of"),
        ([photo, "--dtype", "int8"], "expected dtype auto, fp32"),
        ([photo, "--backend", "tpu"], "expected --backend auto, torch, onnx"),
    ]
    files = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        check_refused(run("sr-distill", "upscale", "--weights", trained.student, *arguments), message)
        assert sorted(tmp_path.rglob("*")) == files, message


def test_bad_options_are_refused_before_the_model_is_loaded(
    upscale: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sr_models

    monkeypatch.setattr(sr_models, "SuperResolver", None)
    for options in (["--color", "red"], ["--tile", "x"], ["--device", "gpu"], ["-o", tmp_path / "a.gif"]):
        check_refused(upscale(photo, *options), "expected")


def test_a_picture_is_enlarged_exactly_by_the_scale(upscale: Any, photo: Path, tmp_path: Path) -> None:
    outcome = upscale(photo)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'photo_x4.png'}: 120x88 from 30x22, ")
    assert "LR consistency" in outcome.out
    assert len(outcome.out.splitlines()) == 1
    assert outcome.err.startswith("computed on cpu, fp32")
    with Image.open(tmp_path / "photo_x4.png") as image:
        assert (image.size, image.mode) == ((120, 88), "RGB")
        first = np.asarray(image)
    for name, options, equal in (("again", [], True), ("other", ["--seed", "1"], False)):
        path = tmp_path / f"{name}.png"
        upscale(photo, "-o", path, *options)
        assert np.array_equal(pixels_of(path), first) == equal, name


def test_the_options_reach_the_restorer(upscale: Any, photo: Path, tmp_path: Path) -> None:
    report = tmp_path / "run.json"
    photo = tmp_path / "wide.png"
    Image.effect_noise((200, 40), 40).convert("RGB").save(photo)
    options = ["--size", "x50", "--color", "wavelet", "--fidelity", "1", "--tile", "64", "--batch", "2", "--steps", "1"]
    outcome = upscale(photo, "-o", tmp_path / "out.webp", "--quality", "80", "--report", report, *options)
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "out.webp") as image:
        assert (image.size, image.format) == ((250, 50), "WEBP")
    content = json.loads(report.read_text())
    assert content["model"]["compute"].startswith("cpu, fp32")
    (entry,) = content["files"]
    restoration = entry["restoration"]
    assert (restoration["color"], restoration["fidelity"], restoration["dtype"]) == ("wavelet", 1.0, "fp32")
    assert restoration["tiles"] > 1
    assert entry["lr_consistency"] < 3


def test_depth_alpha_and_profile_come_through(upscale: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = Image.fromarray(rng.integers(0, 65536, (8, 8), dtype=np.uint16))
    clear = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    (tmp_path / "in").mkdir()
    deep.save(tmp_path / "in/deep.tif")
    clear.save(tmp_path / "in/clear.png", dpi=(300, 300))
    assert upscale(tmp_path / "in", "-o", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out/deep.png") as image:
        assert image.mode == "I;16"
        assert np.asarray(image).max() > 255
    with Image.open(tmp_path / "out/clear.png") as image:
        assert image.mode == "RGBA"
        assert round(image.info["dpi"][0]) == 300
    outcome = upscale(tmp_path / "in/clear.png", "-o", tmp_path / "clear.jpg")
    assert "dropped alpha: JPEG has none" in outcome.out


def test_a_folder_with_a_broken_picture(upscale: Any, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in/a.jpg")
    (tmp_path / "in/b.png").write_text("no picture")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert (tmp_path / "out/a.png").is_file()
    assert outcome.err.splitlines()[-1].startswith(f"failed: {tmp_path / 'in/b.png'}: ")
    assert "1 done, 0 skipped, 1 failed" in outcome.out
    (tmp_path / "in/b.png").unlink()
    assert upscale(tmp_path / "in", "-o", tmp_path / "out").code == 0


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_picture_through_a_pipe(
    trained: Any, photo: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from sr_cli.main import app

    def call(*arguments: str) -> tuple[bytes, bytes]:
        options = ["--weights", str(trained.student), "--dtype", "fp32"]
        assert not app(["upscale", *arguments, *options], standalone_mode=False)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return captured.out, captured.err

    feed(monkeypatch, photo.read_bytes())
    picture, said = call("-", "-o", "-")
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.size, image.format) == ((120, 88), "PNG")
        first = np.asarray(image)
    assert said.splitlines()[-1].startswith(b"stdout: 120x88 from 30x22")
    feed(monkeypatch, photo.read_bytes())
    with Image.open(io.BytesIO(call("-", "--format", "jpg")[0])) as image:
        assert image.format == "JPEG"
    with Image.open(io.BytesIO(call(str(photo), "-o", "-")[0])) as image:
        assert np.array_equal(np.asarray(image), first)
    feed(monkeypatch, photo.read_bytes())
    said_out, _ = call("-", "-o", str(photo.with_name("piped.png")))
    assert said_out.startswith(str(photo.with_name("piped.png")).encode())
    assert np.array_equal(pixels_of(photo.with_name("piped.png")), first)


def test_nonsense_through_a_pipe(upscale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, reason in ((b"", "it is empty"), (b"no picture", "not a picture")):
        feed(monkeypatch, content)
        check_refused(upscale("-", "-o", tmp_path / "out.png"), f"expected an image, got stdin: {reason}")


def test_a_terminal_gets_no_picture(upscale: Any, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    check_refused(upscale(photo, "-o", "-"), "expected stdout to be a file or a pipe")


def test_the_help_teaches(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = run("sr-distill", "upscale", "--help")
    assert outcome.code == 0
    for words in ("What is written", "How it is restored", "How it is computed", "--size 3840x", "Exit code"):
        assert words in outcome.out


def test_a_folder_with_only_an_onnx_file(run: Any, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "model"
    folder.mkdir()
    assert run("sr-distill", "export", "onnx", "tiny-student", "-o", folder / "model.onnx").code == 0
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in/a.jpg")
    ask = ("sr-distill", "upscale", tmp_path / "in", "-o", tmp_path / "out", "--dtype", "fp32")
    assert run(*ask, "--weights", folder, "--backend", "onnx").code == 0
    assert "done before" in run(*ask, "--weights", folder, "--backend", "onnx").out
    assert size_of(tmp_path / "out/a.png") == (120, 88)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
