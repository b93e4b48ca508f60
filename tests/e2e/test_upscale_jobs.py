"""Runs of ``upscale`` over many pictures, with a fast stand-in for the model: places, skipping, failures, ends."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_cli.upscale.plan import Source, find, place
from sr_cli.upscale.record import RECORD, Record, read_entries
from sr_cli.upscale.report import Entry, RunReport
from sr_cli.upscale.request import Request
from sr_cli.upscale.run import run
from sr_cli.upscale.screen import Screen
from sr_cli.upscale.settings import Settings, fitted
from sr_data.pictures import read_picture
from sr_models.options import Options, Report

BAND = 8


class Enlarger:
    """Repeats pixels, in bands; ``on_band`` is called with the number of bands that it has given."""

    scale = 4
    model = SimpleNamespace(kind="student", steps=(1,))

    def __init__(self, on_band: Callable[[int], None] = lambda count: None) -> None:
        self.loads = 0
        self.count = 0
        self._on_band = on_band

    def load(self, settings: Settings) -> Enlarger:
        self.loads += 1
        return self

    def stream(self, pixels: Any, options: Options | None = None, progress: Any = None) -> Any:
        options = options or Options()
        height, width = options.output_size(*pixels.shape[:2], self.scale)
        rows = np.arange(height) * pixels.shape[0] // height
        columns = np.arange(width) * pixels.shape[1] // width
        # Another seed gives other pixels, as a model's would.
        out = pixels[rows[:, None], columns] ^ pixels.dtype.type(options.seed)
        report = Report(4, options.seed, 1, 0, 1, "cpu", "fp32", "none", options.fidelity, 1.5, ["a note"])
        return Restored(out, report, self)

    def band_done(self) -> None:
        self.count += 1
        self._on_band(self.count)


class Restored:
    def __init__(self, out: Any, report: Report, owner: Enlarger) -> None:
        self.height, self.width, self.channels = out.shape
        self.dtype, self.report, self._out, self._owner = out.dtype, report, out, owner

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.height, BAND):
            yield self._out[start : start + BAND]
            self._owner.band_done()


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
    elif mode == "CMYK":
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "CMYK")
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA")
        image = image.convert("RGB").convert("P") if mode == "P" else image.convert(mode)
    image.save(path)
    return path


def go(
    *paths: object,
    output: object = None,
    loader: Enlarger | None = None,
    overwrite: bool = False,
    report: Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> int:
    request = Request(
        tuple(str(path) for path in paths),
        None if output is None else str(output),
        Settings(device="cpu", **settings),
        overwrite=overwrite,
        report=report,
        quiet=quiet,
    )
    return run(request, (loader or Enlarger()).load)


def written(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for the record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def size_and_mode(path: Path) -> tuple[tuple[int, int], str]:
    with Image.open(path) as image:
        return image.size, image.mode


# Places


def test_a_tree_is_mirrored_and_what_is_no_picture_is_left(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("b.jpg", "a.png", "sub/c.PNG", "sub/deep/d.webp", ".hidden.png", ".hidden/e.png", "sub/._f.png"):
        save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    assert go(photos, output=tmp_path / "out") == 0
    assert list(written(tmp_path / "out")) == ["a.png", "b.png", "sub/c.png", "sub/deep/d.png"]
    assert size_and_mode(tmp_path / "out/sub/c.png") == ((24, 20), "RGB")
    assert go(photos) == 0
    assert written(tmp_path / "photos_x4") == written(tmp_path / "out")


def test_places_without_o_are_beside_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "photos/a.jpg")
    save(tmp_path / "b.png")
    assert go(tmp_path / "photos", tmp_path / "b.png", scale=2.5) == 0
    assert size_and_mode(tmp_path / "photos_x2.5/a.png")[0] == (15, 12)
    assert (tmp_path / "b_x2.5.png").is_file()
    assert not (tmp_path / RECORD).exists()  # a record is kept in folders that a run makes, not in the user's
    monkeypatch.chdir(tmp_path / "photos")
    assert go(".", size="12x") == 0
    assert size_and_mode(tmp_path / "photos_12x/a.png")[0] == (12, 10)


def test_folders_of_one_run_stay_apart(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/a.png", "x/one/a.png", "c.png"):
        save(tmp_path / name)
    assert go(tmp_path / "one", tmp_path / "two", tmp_path / "x/one", tmp_path / "c.png", output=tmp_path / "out") == 0
    names = list(written(tmp_path / "out"))
    assert len(names) == 4
    assert {"two/a.png", "c.png"} < set(names)
    assert all(name.startswith("one/a.png-") for name in set(names) - {"two/a.png", "c.png"})


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "a.jpg", "b.jpg"], ["a.png.png", "a.jpg.png", "b.png"]),
        (["a.png", "A.jpg"], ["a.png.png", "A.jpg.png"]),
        (["a.png", "A.PNG"], ["a.png-?.png", "A.PNG-?.png"]),
        ([f"{NFC}.jpg", f"{NFD}.png"], [f"{NFC}.jpg.png", f"{NFD}.png.png"]),
        ([f"{NFC}.png", f"{NFD}.png"], [f"{NFC}.png-?.png", f"{NFD}.png-?.png"]),
        (["a.png", "a.jpg", "a.png.tif"], ["a.png-?.png", "a.jpg.png", "a.png.tif.png"]),
        (["d/a.png", "D/a.jpg"], ["d/a.png.png", "D/a.jpg.png"]),
        (["straße.png", "STRASSE.jpg"], ["straße.png.png", "STRASSE.jpg.png"]),
    ],
)
def test_names_that_collide_are_told_apart_whatever_their_order(names: list[str], expected: list[str]) -> None:
    given = Path("photos")
    found = None
    for order in itertools.permutations(names):
        sources = [Source(given / name, PurePosixPath(name), given, in_folder=True) for name in order]
        jobs = place(sources, "out", label="x4", suffix=".png")
        targets = {job.source.below.as_posix(): str(job.target) for job in jobs}
        assert found in (None, targets)
        found = targets
    assert found is not None
    for name, pattern in zip(names, expected, strict=True):
        before, _, after = pattern.partition("?")
        target = found[name].removeprefix(f"out{os.sep}").replace(os.sep, "/")
        assert target.startswith(before), (name, target)
        assert target.endswith(after)
        assert ("?" in pattern) == (len(target) == len(before) + 8 + len(after)), target
    assert len(set(found.values())) == len(names)


def test_same_keeps_each_format(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.tif"):
        save(tmp_path / "photos" / name)
    assert go(tmp_path / "photos", output=tmp_path / "out", format="same", quality=90) == 0
    assert list(written(tmp_path / "out")) == ["a.jpg", "a.png", "b.tif"]
    with Image.open(tmp_path / "out/a.jpg") as image:
        assert image.format == "JPEG"


def test_no_input_is_overwritten_and_no_output_read(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    before = save(photos / "a.png").read_bytes()
    with pytest.raises(ValueError, match="another folder than the input"):
        go(photos, output=f"{photos}/.")
    with pytest.raises(ValueError, match="outputs that are no inputs"):
        go(photos / "a.png", save(photos / "b.jpg"), output=photos)
    with pytest.raises(ValueError, match="outputs that are no inputs"):
        go(photos / "a.png", output=photos / "a.png", overwrite=True)
    (tmp_path / "link.png").symlink_to(photos / "a.png")
    with pytest.raises(ValueError, match="outputs that are no inputs"):
        go(photos / "a.png", output=tmp_path / "link.png", overwrite=True)
    assert (photos / "a.png").read_bytes() == before
    save(photos / "large/mine.png")  # what is in the output folder is no input, whoever made it
    for _ in range(2):
        assert go(photos, output=photos / "large") == 0
        assert list(written(photos / "large")) == ["a.png", "b.png", "mine.png"]
    (photos / "large/mine.png").unlink()
    # What a run made below is known by the record, whatever -o says now; named itself it is read.
    assert go(photos, output=tmp_path / "again") == 0
    assert list(written(tmp_path / "again")) == ["a.png", "b.png"]
    assert go(photos / "large", output=tmp_path / "twice") == 0
    assert size_and_mode(tmp_path / "twice/a.png")[0] == (96, 80)


def test_a_picture_named_twice_is_made_once(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png")
    found = find([str(tmp_path / "photos"), str(tmp_path / "photos/a.png"), f"{tmp_path}/photos/../photos"])
    assert [source.path for source in found.sources] == [tmp_path / "photos/a.png"]


# What is done


def test_what_is_done_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out, enlarger = tmp_path / "photos", tmp_path / "out", Enlarger()
    for name in ("a.png", "b.png"):
        save(photos / name)
    assert go(photos, output=out, loader=enlarger) == 0
    first = written(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert go(photos, output=out, loader=enlarger, report=tmp_path / "run.json") == 0
    assert enlarger.loads == 1  # nothing to make: no model
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == times
    assert "2 of 2 pictures were done before" in capsys.readouterr().out
    entries = json.loads((tmp_path / "run.json").read_text())["files"]
    assert [(entry["status"], entry["notes"]) for entry in entries] == [("skipped", ["done before"])] * 2
    save(photos / "c.png")
    assert go(photos, output=out, loader=enlarger) == 0
    assert enlarger.loads == 2
    assert {name: content for name, content in written(out).items() if name != "c.png"} == first
    assert "[1/1]" not in capsys.readouterr().out


def test_other_settings_or_inputs_are_made_again(tmp_path: Path) -> None:
    photos, out, report = tmp_path / "photos", tmp_path / "out", tmp_path / "run.json"
    for name in ("a.png", "b.png"):
        save(photos / name)

    def statuses(**settings: Any) -> list[tuple[str, str]]:
        assert go(photos, output=out, report=report, **settings) == 0
        entries = json.loads(report.read_text())["files"]
        return [(entry["status"], entry["notes"][0]) for entry in entries]

    assert statuses() == [("done", "a note")] * 2
    assert statuses(seed=1, fidelity=0.5) == [("done", "made again: other fidelity, seed")] * 2
    assert statuses(seed=1, fidelity=0.5, batch=4) == [("skipped", "done before")] * 2  # the same picture
    again = {"seed": 1, "fidelity": 0.5}
    os.utime(photos / "a.png", ns=(1, 1))  # another time, the same content
    assert statuses(**again) == [("skipped", "done before")] * 2
    save(photos / "a.png", seed=5)
    assert statuses(**again) == [("done", "made again: the input changed"), ("skipped", "done before")]
    assert np.array_equal(read_picture(out / "a.png").pixels[::4, ::4], read_picture(photos / "a.png").pixels ^ 1)
    save(photos / "a.png", size=(7, 7))
    assert statuses(**again)[0] == ("done", "made again: the input changed")


def test_files_of_others_are_never_replaced_unasked(tmp_path: Path) -> None:
    photos, out, report = tmp_path / "photos", tmp_path / "out", tmp_path / "run.json"
    for name in ("a.png", "b.png"):
        save(photos / name)
    mine = save(out / "a.png", seed=9).read_bytes()
    assert go(photos, output=out) == 0
    retouched = save(out / "b.png", seed=8).read_bytes()
    assert go(photos, output=out, seed=1, report=report) == 0
    assert written(out) == {"a.png": mine, "b.png": retouched}
    notes = [entry["notes"][0] for entry in json.loads(report.read_text())["files"]]
    assert notes[0] == "exists; --overwrite makes it again"
    assert notes[1] == "exists, and was changed after it was made; --overwrite makes it again"
    assert go(photos, output=out, seed=1, overwrite=True) == 0
    assert mine not in written(out).values()
    assert retouched not in written(out).values()


def test_one_picture_beside_its_input_is_skipped_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = save(tmp_path / "a.png")
    assert go(photo) == 0
    assert go(photo, seed=1) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{tmp_path / 'a_x4.png'}: skipped, exists; --overwrite makes it again"
    )
    assert go(photo, seed=1, overwrite=True) == 0
    assert np.array_equal(read_picture(tmp_path / "a_x4.png").pixels[::4, ::4], read_picture(photo).pixels ^ 1)


def test_lines_that_a_killed_run_left_in_the_record_do_no_harm(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    save(photos / "a.png")
    assert go(photos, output=out) == 0
    with (out / RECORD).open("a") as file:
        file.write('{"output": "a.png", "sett')
    made = read_entries(out)["a.png"]
    assert made.output is not None
    with Record(out) as record:
        record.write(out / "b.png", made.settings, made.source, None)
    assert {name: entry.output for name, entry in read_entries(out).items()} == {"a.png": made.output, "b.png": None}


@pytest.mark.skipif(sys.platform == "win32", reason="locks are of POSIX")
def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png")
    with Record(tmp_path / "out"), pytest.raises(ValueError, match="one run at a time"):
        go(tmp_path / "photos", output=tmp_path / "out")
    assert go(tmp_path / "photos", output=tmp_path / "out") == 0


# Odd and broken pictures


def odd_folder(folder: Path) -> Path:
    for name, mode in (
        ("grey.png", "L"),
        ("grey16.png", "I;16"),
        ("grey16.tif", "I;16"),
        ("alpha.png", "RGBA"),
        ("grey_alpha.png", "LA"),
        ("palette.png", "P"),
        ("bits.png", "1"),
        ("rgb.jpg", "RGB"),
        ("grey.jpg", "L"),
        ("rgb.webp", "RGB"),
        ("rgb.bmp", "RGB"),
        ("rgb.tif", "RGB"),
        ("cmyk.jpg", "CMYK"),
        ("short.png", "RGB"),
    ):
        save(folder / name, mode)
    (folder / "short.png").write_bytes((folder / "short.png").read_bytes()[:70])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    save(folder / "ünï ©ode [bold].png")
    return folder


def test_a_folder_of_odd_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = odd_folder(tmp_path / "photos"), tmp_path / "out"
    assert go(photos, output=out, report=tmp_path / "run.json") == 1
    modes = {name: size_and_mode(out / name)[1] for name in written(out)}
    assert modes == {
        "alpha.png": "RGBA",
        "bits.png": "L",
        "grey.jpg.png": "L",
        "grey.png.png": "L",
        "grey16.png.png": "I;16",
        "grey16.tif.png": "I;16",
        "grey_alpha.png": "LA",
        "palette.png": "RGB",
        "rgb.bmp.png": "RGB",
        "rgb.jpg.png": "RGB",
        "rgb.tif.png": "RGB",
        "rgb.webp.png": "RGB",
        "ünï ©ode [bold].png": "RGB",
    }
    captured = capsys.readouterr()
    failed = captured.err.splitlines()
    assert len(failed) == 5
    for line, (name, reason) in zip(
        failed,
        [
            ("cmyk.jpg", "CMYK"),
            ("empty.jpg", "expected"),
            ("lost.png", "no such file"),
            ("short.png", "expected"),
            ("text.png", "not a picture"),
        ],
        strict=True,
    ):
        assert line.startswith(f"failed: {photos / name}: "), line
        assert reason in line
    assert captured.out.splitlines()[-1] == "13 done, 0 skipped, 5 failed"
    assert "[18/18] " in captured.out
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["counts"] == {"done": 13, "failed": 5}
    # The same command again tries the failed ones only.
    enlarger = Enlarger()
    assert go(photos, output=out, loader=enlarger) == 1
    assert enlarger.count == 0


def test_what_is_missing_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = save(tmp_path / "a.png")
    (tmp_path / "none").mkdir()
    assert go(tmp_path / "b.png", photo, tmp_path / "none", output=tmp_path / "out") == 1
    assert list(written(tmp_path / "out")) == ["a.png"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no pictures in" in lines[0]
    assert "no such file" in lines[1]


def test_an_error_nobody_thought_of_is_noted_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "photos" / name)

    def fail(count: int) -> None:
        if count == 1:
            raise ZeroDivisionError("by zero")

    assert go(tmp_path / "photos", output=tmp_path / "out", loader=Enlarger(fail)) == 1
    assert list(written(tmp_path / "out")) == ["b.png"]
    assert capsys.readouterr().err == f"failed: {tmp_path / 'photos/a.png'}: ZeroDivisionError: by zero\n"


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "photos" / name)

    def fail(count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    enlarger = Enlarger(fail)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path / "photos", output=tmp_path / "out", loader=enlarger, report=tmp_path / "run.json")
    assert enlarger.count == 1
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["status"], report["counts"]) == ("failed", {"failed": 1, "waiting": 1})
    assert written(tmp_path / "out") == {}


# How a run ends


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_whole_files_and_a_report(
    tmp_path: Path, kind: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a.png", "b.png", "c.png"):
        save(photos / name, seed=len(name))
    before = signal.getsignal(signal.SIGTERM)
    bands = -(-20 // BAND)

    def interrupt(count: int) -> None:
        if count == bands + 1:  # in the middle of the second picture
            signal.raise_signal(kind)

    report = tmp_path / "run.json"
    assert go(photos, output=out, loader=Enlarger(interrupt), report=report) == code
    assert signal.getsignal(signal.SIGTERM) is before
    assert "interrupted: 1 of 3 pictures made; the same command continues" in capsys.readouterr().err
    assert list(written(out)) == ["a.png"]  # no temporary file either
    content = json.loads(report.read_text())
    assert content["status"] == "interrupted"
    assert [entry["status"] for entry in content["files"]] == ["done", "interrupted", "waiting"]
    assert go(photos, output=out) == 0
    assert go(photos, output=tmp_path / "whole") == 0
    assert written(out) == written(tmp_path / "whole")


def test_a_single_picture_that_is_interrupted(tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        signal.raise_signal(signal.SIGINT)

    assert go(save(tmp_path / "a.png"), output=tmp_path / "b.png", loader=Enlarger(interrupt)) == 130
    assert list(written(tmp_path)) == ["a.png"]


def killed_run(photos: str, out: str) -> None:
    """Runs in a process of its own, which does not survive the third picture."""

    def kill(count: int) -> None:
        if count == 2 * -(-20 // BAND) + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    go(photos, output=out, loader=Enlarger(kill))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for index, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        save(photos / name, seed=index)
    code = f"import runpy; runpy.run_path({__file__!r})['killed_run']({str(photos)!r}, {str(out)!r})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert outcome.returncode == -signal.SIGKILL, outcome.stderr
    left = [name for name in written(out) if name.startswith(".")]
    assert len(left) == 1  # the unfinished file, hidden
    assert left[0].startswith(".c.png.")
    assert [name for name in written(out) if not name.startswith(".")] == ["a.png", "b.png"]
    (out / ".c.png.backup.tmp").write_text("of someone else")
    enlarger = Enlarger()
    assert go(photos, output=out, loader=enlarger) == 0
    assert enlarger.count == 2 * -(-20 // BAND)  # c and d only
    (out / ".c.png.backup.tmp").unlink()
    assert go(photos, output=tmp_path / "whole") == 0
    assert written(out) == written(tmp_path / "whole")


def test_a_run_killed_between_picture_and_record_makes_it_again(tmp_path: Path) -> None:
    """The file could be of the run before, with other settings: only the record tells."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    save(photos / "a.png")
    assert go(photos, output=out) == 0
    lines = (out / RECORD).read_text().splitlines()
    (out / RECORD).write_text("\n".join(lines[:-1]) + "\n")
    assert go(photos, output=out, report=tmp_path / "run.json") == 0
    entry = json.loads((tmp_path / "run.json").read_text())["files"][0]
    assert (entry["status"], entry["notes"][0]) == ("done", "made again: its run was interrupted")


# What is told


def test_the_report_has_all_there_is_to_know(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png", "RGBA")
    report = tmp_path / "run.json"
    assert go(tmp_path / "photos", output=tmp_path / "out", report=report, format="jpg", seed=3) == 0
    content = json.loads(report.read_text())
    assert set(content) == {
        "status", "started", "seconds", "settings", "model", "versions", "machine", "counts", "files",
    }  # fmt: skip
    assert content["status"] == "finished"
    assert content["settings"]["seed"] == 3
    assert content["settings"]["output"] == str(tmp_path / "out")
    assert content["model"]["weights"] == "tiny-student"
    assert len(content["model"]["sha256"]) == 64
    assert content["versions"]["torch"]
    (entry,) = content["files"]
    seconds, memory = entry.pop("seconds"), entry.pop("peak_memory_mb")
    assert seconds >= 0
    assert memory > 10
    assert entry == {
        "input": str(tmp_path / "photos/a.png"),
        "output": str(tmp_path / "out/a.jpg"),
        "status": "done",
        "input_size": [6, 5],
        "output_size": [24, 20],
        "lr_consistency": 1.5,
        "restoration": {
            "scale": 4, "seed": 3, "steps": 1, "tile": 0, "tiles": 1, "device": "cpu", "dtype": "fp32",
            "color": "none", "fidelity": 0.0,
        },
        "notes": ["a note"],
        "dropped": ["alpha: JPEG has none, the picture lies on white"],
        "error": None,
    }  # fmt: skip


def test_the_report_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    now = 0.0
    report = RunReport(tmp_path / "run.json", {}, [Entry("a", "b")], lambda: now)
    for moment, expected in ((0.0, True), (1.0, False), (1.9, False), (2.5, True)):
        now = moment
        (tmp_path / "run.json").unlink(missing_ok=True)
        report.write("running")
        assert (tmp_path / "run.json").exists() == expected, moment
    now = 2.6
    report.write("finished")
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    assert list(written(tmp_path)) == ["run.json"]


def test_numbers_that_json_does_not_know_stay_out_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "photos/a.png")
    stream = Enlarger.stream

    def blind(*arguments: Any) -> Any:
        bands = stream(*arguments)
        bands.report = replace(bands.report, lr_consistency=float("nan"))
        return bands

    monkeypatch.setattr(Enlarger, "stream", blind)
    assert go(tmp_path / "photos", output=tmp_path / "out", report=tmp_path / "run.json") == 0
    assert "NaN" not in (tmp_path / "run.json").read_text()


def test_lines_count_and_tell_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    screen = Screen(3, quiet=False, clock=lambda: now)
    done = Entry(
        "a", "b", "done", (1, 2), (4, 8), 1.25, lr_consistency=2.04, dropped=["DPI: x"], notes=["smaller tiles"]
    )
    with screen:
        for now in (100.0, 110.0, 120.0):  # noqa: B007 (the clock reads it)
            screen.end(done)
    assert capsys.readouterr().out.splitlines() == [
        "[1/3] b: 4x8 from 1x2, 1.2 s, LR consistency 2.0/255 (smaller tiles; dropped DPI: x), about 3 min left",
        "[2/3] b: 4x8 from 1x2, 1.2 s, LR consistency 2.0/255 (smaller tiles; dropped DPI: x), about 55 s left",
        "[3/3] b: 4x8 from 1x2, 1.2 s, LR consistency 2.0/255 (smaller tiles; dropped DPI: x)",
    ]


def test_quiet_prints_failures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "photos/a.png")
    (tmp_path / "photos/text.png").write_text("no")
    assert go(tmp_path / "photos", output=tmp_path / "out", quiet=True) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("failed: ")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("12x34", (12, 34)), ("300x", (300, 200)), ("x100", (150, 100)), ("1x", (1, 1)), ("x7", (10, 7))],
)
def test_sizes_keep_the_aspect_ratio(text: str, size: tuple[int, int]) -> None:
    assert fitted(text, 20, 30) == size


@pytest.mark.parametrize("text", ["", "x", "12", "0x5", "axb", "1920X1080", "-3x", "1.5x2"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected --size"):
        fitted(text, 20, 30)


def test_steps_that_the_model_does_not_have_are_refused_before_the_first_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "photos" / name)
    with pytest.raises(ValueError, match="expected steps=1 for this student, got 4"):
        go(tmp_path / "photos", output=tmp_path / "out", steps=4)
    assert not (tmp_path / "out").exists()


def test_a_bad_picture_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no")
    enlarger = Enlarger()
    for output in (None, tmp_path / "out.png", tmp_path / "out"):
        with pytest.raises(ValueError, match="not a picture"):
            go(tmp_path / "text.png", output=output, loader=enlarger)
    assert enlarger.loads == 0
    assert list(written(tmp_path)) == ["text.png"]


def test_a_stop_while_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(settings: Settings) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Enlarger, "load", lambda self, settings: load(settings))
    assert go(save(tmp_path / "a.png")) == 143
    assert list(written(tmp_path)) == ["a.png"]


# What must not be lost, waited for, or said on two lines


def test_a_report_replaces_no_file_of_the_run(tmp_path: Path) -> None:
    photo = save(tmp_path / "photos/a.png")
    out = tmp_path / "out"
    before = photo.read_bytes()
    (tmp_path / "link.json").hardlink_to(photo)
    (tmp_path / "soft.json").symlink_to(out / "a.png")
    (tmp_path / "record.json").symlink_to(out / RECORD)
    (tmp_path / "named.json").write_bytes(before)
    for name in ("link.json", "soft.json", "record.json"):
        with pytest.raises(ValueError, match=rf"expected --report a file of its own, got .*{name}"):
            go(tmp_path / "photos", output=out, report=tmp_path / name)
    with pytest.raises(ValueError, match="expected --report a file of its own"):
        go(tmp_path / "named.json", output=out, report=tmp_path / "photos/../named.json")
    with pytest.raises(ValueError, match=r"expected --report FILE\.json, got .*a\.png"):
        go(photo, output=out, report=photo)
    assert not out.exists()
    assert photo.read_bytes() == (tmp_path / "named.json").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
def test_a_pipe_in_a_folder_fails_and_the_others_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "photos/a.png")
    os.mkfifo(tmp_path / "photos/b.png")
    assert go(tmp_path / "photos", output=tmp_path / "out") == 1
    assert list(written(tmp_path / "out")) == ["a.png"]
    assert "b.png: a pipe or device; name a regular file" in capsys.readouterr().err


def test_an_error_nobody_thought_of_is_one_line_for_one_picture_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(count: int) -> None:
        raise OverflowError("too\nlarge")

    photo = save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: OverflowError: too large$"):
        go(photo, loader=Enlarger(fail))
    monkeypatch.setenv("SR_DISTILL_DEBUG", "1")
    with pytest.raises(OverflowError):
        go(photo, loader=Enlarger(fail))


def test_names_that_would_break_a_line_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    save(photos / "two\nlines.png")
    save(photos / "narrow\u202fno-break é.png")
    (photos / "bad\n.png").write_text("no")
    (photos / os.fsdecode(b"raw\xff.png")).write_text("no")
    assert go(photos, output=tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 5
    assert len(captured.err.splitlines()) == 2
    for words in (r"two\nlines.png: 24x20", "narrow\u202fno-break é.png: 24x20"):
        assert words in captured.out
    for words in (r"bad\n.png: ", r"raw\udcff.png: "):
        assert words in captured.err


def test_an_onnx_file_is_known_by_its_own_content(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text('{"sha256": {}, "kind": "student", "format": 1}')
    for weights, backend, file in (("m", "onnx", "m/model.onnx"), ("n.onnx", "auto", "n.onnx")):
        hashes = set()
        for content in (b"one", b"two"):
            (tmp_path / file).write_bytes(content)
            hashes.add(Settings(weights=str(tmp_path / weights), backend=backend).identity()["weights"])
        assert len(hashes) == 2
        (tmp_path / file).unlink()
        with pytest.raises(FileNotFoundError, match="expected an ONNX file"):
            Settings(weights=str(tmp_path / weights), backend=backend).identity()


def test_formats_by_their_other_names(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png")
    for asked, form in (("JPEG", "JPEG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("bmp", "BMP"), ("TIFF", "TIFF")):
        assert go(tmp_path / "photos", output=tmp_path / asked, format=asked) == 0
        (path,) = (tmp_path / asked).glob("a.*")
        with Image.open(path) as image:
            assert image.format == form
    assert Settings(format="JPEG").identity() == Settings(format="jpg").identity()


def test_a_record_is_on_the_disk_before_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, begun = tmp_path / "out", []

    def fsync(number: int) -> None:
        begun.append((out / "a.png").exists())

    save(tmp_path / "photos/a.png")
    monkeypatch.setattr(os, "fsync", fsync)
    assert go(tmp_path / "photos", output=out) == 0
    assert begun == [False, False, True]  # begun, the picture, made
