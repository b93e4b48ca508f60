"""What the page of ``sr-bench compare`` shows: which values, which images, which regions."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_bench import statistics
from sr_bench.compare.cases import Case, choose
from sr_bench.compare.figures import all_differences, all_means, digits, ranks, written
from sr_bench.compare.load import Comparison, load
from sr_bench.compare.pictures import Cell, Folders, Strip, busiest, disagreement
from sr_bench.compare.published import published
from sr_bench.compare.views import picture_view, scatter_view, table_views
from sr_bench.paper.tables import PaperTable, paper_tables
from sr_bench.quality.protocols import Protocol
from sr_bench.quality.result import MethodResult, QualityResult
from sr_bench.record import Provenance, write_json
from sr_data.images import write_image

PROTOCOL = Protocol(name="crops", version=1, source="here", about="Pictures.", metrics=("lpips", "psnr"))
MADE = Provenance(
    command="sr-bench quality",
    date="2026-11-22",
    git_commit=None,
    python="3.11",
    platform="Linux",
    processor="CPU",
    device="cpu",
    threads=1,
    versions={"pyiqa": "0.1.13"},
)


def measured(values: Mapping[str, Sequence[float]], **more: Any) -> MethodResult:
    return MethodResult(source="folder", values={key: tuple(row) for key, row in values.items()}, **more)


def result(folder: Path, methods: Mapping[str, MethodResult], images: Sequence[str], **more: Any) -> Path:
    kept = {"protocol": PROTOCOL, "provenance": MADE, **more}
    write_json(folder / "result.json", QualityResult(images=tuple(images), methods=methods, **kept))
    return folder


def comparison(folder: Path, **values: Mapping[str, Sequence[float]]) -> Comparison:
    count = len(next(iter(next(iter(values.values())).values())))
    names = [f"i{index}" for index in range(count)]
    return load([result(folder, {label: measured(rows) for label, rows in values.items()}, names)])


def test_results_are_joined_by_the_names_of_images_and_methods(tmp_path: Path) -> None:
    first = {"ours": measured({"psnr": (1, 2, 3)}, whole={"fid": 9.0}), "bicubic": measured({"psnr": (4, 5, 6)})}
    second = {"ours": measured({"psnr": (7, 8)}), "new": measured({"psnr": (30, 10)}, whole={"fid": 5.0})}
    paths = [result(tmp_path / "one", first, ("a", "b", "c")), result(tmp_path / "two", second, ("c", "a"))]
    joined = load(paths)
    assert joined.images == ("a", "c")
    found = {method.label: method.values["psnr"].tolist() for method in joined.methods}
    assert found == {"ours (one)": [1, 3], "bicubic": [4, 6], "ours (two)": [8, 7], "new": [10, 30]}
    assert joined.notes[:-1] == ("Only 2 of the 3 images of one are in all results and compared.",)
    assert "could not be checked" in joined.notes[-1]
    # FID of three images says nothing about two of them; that of the other result holds.
    assert joined.method("ours (one)", "").mean("fid") is None
    assert "more images" in joined.method("ours (one)", "").missing["fid"]
    assert joined.method("new", "").mean("fid") == 5.0
    assert joined.metrics == ("psnr", "fid")


def test_folders_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    methods = {"ours": measured({"psnr": (1.0,)})}
    paths = [result(tmp_path / name / "result", methods, ("a",)) for name in ("one", "two")]
    assert [method.label for method in load(paths).methods] == ["ours (one/result)", "ours (two/result)"]


def test_results_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    methods = {"ours": measured({"psnr": (1.0,)})}
    one = result(tmp_path / "one", methods, ("a",))
    other = PROTOCOL.model_copy(update={"crop_border": 4})
    with pytest.raises(ValueError, match=r"one protocol.*crop_border differ.*--protocol"):
        load([one, result(tmp_path / "cropped", methods, ("a",), protocol=other)])
    with pytest.raises(ValueError, match="none in common"):
        load([one, result(tmp_path / "b", methods, ("b",))])
    with pytest.raises(ValueError, match="every result once"):
        load([one, one / "result.json"])


def on_pictures(folder: Path, levels: Mapping[str, int]) -> Path:
    """A result of the image ``a`` with a folder ``lr`` or ``gt`` for each of ``levels``, of one grey."""
    for kind, level in levels.items():
        write_image(folder / kind / "a.png", np.full((8, 8, 3), level, np.uint8))
        os.utime(folder / kind / "a.png", (1, 1))  # as files are that were unpacked from archives
    places = {kind: kind for kind in levels}
    return result(folder, {folder.name: measured({"psnr": (1.0,)})}, ("a",), **places)


def test_results_of_other_pictures_are_refused(tmp_path: Path) -> None:
    one, same = (on_pictures(tmp_path / name, {"lr": 1, "gt": 2}) for name in ("one", "same"))
    assert load([one, same]).notes == ()
    for kind, levels in (("ground truth", {"lr": 1, "gt": 3}), ("LR", {"lr": 3, "gt": 2})):
        other = on_pictures(tmp_path / kind, levels)
        with pytest.raises(ValueError, match=rf"the same pictures, got different {kind} files .*; measure one of them"):
            load([one, same, other])
    shared = result(tmp_path / "two", {"two": measured({"psnr": (1.0,)})}, ("a",), gt="../one/gt")
    assert load([one, shared]).notes == ()
    shutil.rmtree(same / "gt")
    assert load([one, same]).notes == ()  # LR says enough
    shutil.rmtree(same / "lr")
    (note,) = load([one, same]).notes
    assert note.startswith("one and same have images of the same names; whether they are the same pictures could not")


def test_other_versions_of_pyiqa_are_noted(tmp_path: Path) -> None:
    methods = {"ours": measured({"psnr": (1.0,)})}
    newer = MADE.model_copy(update={"versions": {"pyiqa": "0.1.14"}})
    paths = [
        result(tmp_path / "one", methods, ("a",)),
        result(tmp_path / "two", methods, ("a",), provenance=newer),
    ]
    assert load(paths).notes[:1] == ("The results were measured with different versions of pyiqa: 0.1.13, 0.1.14.",)


def test_cases_are_worst_best_most_different_and_a_spread(tmp_path: Path) -> None:
    lpips = [0.10, 0.90, 0.20, 0.80, 0.30, 0.70, 0.40, 0.60, 0.45, 0.55, 0.50, 0.52]
    other = [*lpips]
    other[10], other[8], other[1] = 0.0, 0.05, 0.1  # differ by 0.50, 0.40 and, on the worst image, 0.80
    found = choose(comparison(tmp_path, base={"lpips": other}, ours={"lpips": lpips}), 8)
    assert [case.index for case in found[:6]] == [1, 3, 0, 2, 10, 8]
    assert found[0].reason == "worst LPIPS of ours: 0.9000"
    assert found[2].reason == "best LPIPS of ours: 0.1000"
    assert found[4].reason == "methods differ by 0.5000 in LPIPS"
    assert [(case.index, case.reason) for case in found[6:]] == [(4, "even spread"), (11, "even spread")]


def test_cases_follow_the_direction_of_the_metric_and_the_choice(tmp_path: Path) -> None:
    both = comparison(tmp_path, ours={"psnr": [20, 30, 10, 15]}, base={"psnr": [1, 2, 3, 0], "lpips": [1, 2, 3, 4]})
    assert choose(both, 1, "psnr", "ours")[0].index == 2
    assert choose(both, 1, "psnr", "base")[0].index == 3
    assert choose(both, 1)[0].reason.startswith("worst LPIPS of base")
    assert sorted(case.index for case in choose(both, 99)) == [0, 1, 2, 3]
    assert choose(both, 0) == []
    with pytest.raises(ValueError, match=r"metrics psnr, got 'lpips'.*--metric"):
        choose(both, 1, "lpips", "ours")
    with pytest.raises(ValueError, match=r"methods ours, base, got 'x'.*--method"):
        choose(both, 1, None, "x")


def test_ranks_know_the_direction_and_ties() -> None:
    assert ranks([30.0, None, 20.0, 25.0, 30.0], "psnr", 2) == ["best", "", "", "second", "best"]
    assert ranks([0.3, 0.1, 0.2], "lpips", 4) == ["", "best", "second"]
    assert ranks([1.0, 1.0], "psnr", 2) == ["", ""]
    assert ranks([1.0, None], "psnr", 2) == ["", ""]
    assert ranks([float("inf"), 30.0], "psnr", 2) == ["best", "second"]


def test_what_is_written_alike_shares_a_rank(tmp_path: Path) -> None:
    assert ranks([0.10004, 0.09996, 0.2], "lpips", 4) == ["best", "best", "second"]
    values = {"a": 0.10004, "b": 0.09996, "c": 0.2}
    three = comparison(tmp_path, **{label: {"lpips": [value] * 2} for label, value in values.items()})
    rows = table_views(three, all_means(three), None)["rows"]
    assert [row["cells"][0]["rank"] for row in rows] == ["best", "best", "second"]
    strip = Strip(tuple(Cell(label, "method", None) for label in values), 8, 8, (8, 8), (0, 0), (0.5, 0.5))
    cells = picture_view(three, Case(0, ""), strip)["cells"]
    assert [cell["figures"][0]["rank"] for cell in cells] == ["best", "best", "second"]


def test_numbers_are_written_for_their_column() -> None:
    assert (digits([26.1, 3.0]), digits([0.7, -0.2])) == (2, 4)
    minus = "\N{MINUS SIGN}"
    assert [written(value, 2, sign=True) for value in (0.5, -0.5)] == ["+0.50", f"{minus}0.50"]
    assert written(float("inf"), 2) == "∞"


def test_means_and_differences_are_those_of_the_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.6, 20)
    ours = base - rng.uniform(0.01, 0.05, 20)
    ours[0] = base[0] + 0.01
    both = comparison(tmp_path, base={"lpips": base, "psnr": base}, ours={"lpips": ours, "psnr": base})
    mean = all_means(both)["ours", "lpips"]
    interval = statistics.bootstrap(ours.tolist())
    assert (mean.value, mean.low, mean.high) == pytest.approx((ours.mean(), interval.low, interval.high))
    found = all_differences(both)
    forth, back = found["ours", "base"]["lpips"], found["base", "ours"]["lpips"]
    assert forth.paired.difference.mean == pytest.approx((ours - base).mean())
    assert (forth.verdict, forth.paired.wins, forth.paired.count) == ("better", 19, 20)
    assert (back.verdict, back.paired.wins) == ("worse", 1)
    assert back.paired.difference.low == -forth.paired.difference.high
    assert forth.p == pytest.approx(2 * forth.paired.p)  # Holm: two metrics
    assert found["ours", "base"]["psnr"].verdict == "open"


def verdicts(folder: Path, differences: Sequence[float], key: str) -> tuple[str, str]:
    base = np.full(len(differences), 10.0)
    both = comparison(folder, base={key: base}, ours={key: base + differences})
    found = all_differences(both)
    return found["ours", "base"][key].verdict, found["base", "ours"][key].verdict


def test_a_verdict_is_where_test_and_mean_have_one_direction(tmp_path: Path) -> None:
    """With p below 0.001: all better; more wins and a worse mean by one image; fewer wins, which are larger."""
    wins = [0.01 + 0.001 * index for index in range(20)]
    assert verdicts(tmp_path, wins, "psnr") == ("better", "worse")
    assert verdicts(tmp_path, wins, "lpips") == ("worse", "better")
    assert verdicts(tmp_path, [*wins, -5.0], "psnr") == ("open", "open")
    assert verdicts(tmp_path, [*wins, -5.0], "lpips") == ("open", "open")
    fewer = [*np.linspace(-0.002, -0.001, 31), *np.linspace(1.0, 2.0, 29)]
    assert verdicts(tmp_path, fewer, "psnr") == ("better", "worse")
    assert verdicts(tmp_path, fewer, "lpips") == ("worse", "better")


def test_values_that_are_not_finite_have_no_interval_and_no_mark(tmp_path: Path) -> None:
    both = comparison(tmp_path, ours={"psnr": [1.0, np.inf], "ssim": [0.5, 1.0]}, base={"psnr": [1, 2], "ssim": [0, 1]})
    means = all_means(both)
    assert means["ours", "psnr"].low is None
    assert "psnr" not in all_differences(both)["ours", "base"]
    marks = {mark["label"]: mark["values"] for mark in scatter_view(both, means, None)["marks"]}
    assert set(marks["ours"]) == {"ssim"}
    assert table_views(both, means, None)["rows"][0]["cells"][0]["text"] == "∞"


def test_what_sees_the_ground_truth_is_never_best(tmp_path: Path) -> None:
    methods = {
        "ceiling": measured({"psnr": [40.0, 41.0]}, sees_gt=True),
        "a": measured({"psnr": [20.0, 22.0]}),
        "b": measured({"psnr": [19.0, 21.0]}),
    }
    three = load([result(tmp_path, methods, ("i0", "i1"))])
    rows = table_views(three, all_means(three), None)["rows"]
    assert [row["cells"][0]["rank"] for row in rows] == ["", "best", "second"]
    assert [row["ranked"] for row in rows] == [False, True, True]


def test_the_busiest_window_is_that_with_the_largest_sum() -> None:
    values = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    for step in (1, 4):
        sums = {
            (top, left): values[top : top + 8, left : left + 5].astype(float).sum()
            for top in range(0, 13, step)
            for left in range(0, 26, step)
        }
        assert busiest(values, (8, 5), step) == max(sums, key=lambda corner: sums[corner])
    assert busiest(np.zeros((20, 30), np.float32), (10, 10)) == (5, 10)


def test_disagreement_is_the_spread_over_methods_or_the_distance_of_one() -> None:
    pictures = list(np.random.default_rng(2).integers(0, 256, (3, 6, 7, 3), dtype=np.uint8))
    wanted = np.sqrt(np.var(np.stack(pictures).astype(float), axis=0).mean(-1))
    np.testing.assert_allclose(disagreement(pictures, pictures[0]), wanted, rtol=1e-4)
    assert not disagreement([pictures[0]] * 3, None).any()
    one = disagreement(pictures[:1], pictures[1])
    np.testing.assert_allclose(one, disagreement(pictures[:2], None))


def decoded(strip: Strip) -> dict[str, np.ndarray]:
    found = {}
    for cell in strip.cells:
        assert cell.uri is not None
        found[cell.name] = np.asarray(Image.open(io.BytesIO(base64.b64decode(cell.uri.partition(",")[2]))))
    return found


def test_a_strip_shows_the_same_region_of_every_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    gt, lr = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 128), (24, 32)))
    ours = gt.copy()
    ours[57:81, 99:123] = 255 - ours[57:81, 99:123]
    for name, picture in (("gt", gt), ("lr", lr), ("two/ours", ours), ("two/base", gt)):
        write_image(tmp_path / name / "deep" / "a.png", picture)
    methods = {label: measured({"psnr": (1.0,)}, pictures=label) for label in ("ours", "base")}
    methods["table only"] = measured({"psnr": (1.0,)})
    folders = Folders(load([result(tmp_path / "two", methods, ["deep/a"], gt="../gt", lr="../lr")]))
    assert folders.notes() == ["In the tables only, as their pictures were not kept or not found: table only."]
    strip = folders.strip("deep/a", 64, lossless=True)
    assert strip is not None
    left, top = strip.corner
    assert (strip.width, strip.height, strip.whole) == (64, 64, (128, 96))
    assert left % 4 == 0
    assert left <= 99 < 123 <= left + 64
    assert top % 4 == 0
    assert top <= 57 < 81 <= top + 64
    found = decoded(strip)
    assert list(found) == ["LR", "ours", "base", "ground truth"]
    np.testing.assert_array_equal(found["ours"], ours[top : top + 64, left : left + 64])
    np.testing.assert_array_equal(found["ground truth"], gt[top : top + 64, left : left + 64])
    np.testing.assert_array_equal(found["LR"], lr[top // 4 : top // 4 + 16, left // 4 : left // 4 + 16])
    # The window that is magnified first holds all that differs.
    x, y = left + strip.place[0] * 64, top + strip.place[1] * 64
    assert abs(x - 111) <= 12
    assert abs(y - 69) <= 12


@pytest.mark.parametrize("crop", [50, 64, 200])
def test_a_region_is_of_whole_lr_pixels(crop: int, tmp_path: Path) -> None:
    """Whatever the crop is, LR is that of the region pixel by pixel; 3 is no divisor of 50 and 64."""
    rng = np.random.default_rng(4)
    gt, lr = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 120), (32, 40)))
    for name, picture in (("gt", gt), ("lr", lr), ("ours", 255 - gt)):
        write_image(tmp_path / name / "a.png", picture)
    methods = {"ours": measured({"psnr": (1.0,)}, pictures="ours")}
    strip = Folders(load([result(tmp_path, methods, ["a"], gt="gt", lr="lr")])).strip("a", crop, lossless=True)
    assert strip is not None
    assert (strip.width, strip.height) == {50: (48, 48), 64: (63, 63), 200: (120, 96)}[crop]
    left, top = (corner // 3 for corner in strip.corner)
    wanted = lr[top : top + strip.height // 3, left : left + strip.width // 3]
    np.testing.assert_array_equal(decoded(strip)["LR"], wanted)


def test_pictures_that_are_absent_leave_a_gap(tmp_path: Path) -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    for name in ("ours/a", "base/b"):
        write_image(tmp_path / f"{name}.png", grey)
    methods = {label: measured({"psnr": (1, 2, 3)}, pictures=label) for label in ("ours", "base", "gone")}
    folders = Folders(load([result(tmp_path, methods, ["a", "b", "c"])]))
    strip = folders.strip("a", 64, lossless=True)
    assert strip is not None
    assert [(cell.name, cell.uri is None) for cell in strip.cells] == [("ours", False), ("base", True)]
    assert folders.strip("c", 64, lossless=True) is None
    assert [note.partition(" ")[2] for note in folders.notes()[1:]] == [
        "LR pictures were found; --lr FOLDER names them.",
        "ground truth pictures were found; --gt FOLDER names them.",
    ]


def test_folders_can_be_named_instead_of_the_recorded_ones(tmp_path: Path) -> None:
    write_image(tmp_path / "moved" / "a.png", np.zeros((8, 8, 3), np.uint8))
    folder = result(tmp_path / "one", {"ours": measured({"psnr": (1.0,)})}, ["a"], gt="../gone", lr="../gone")
    found = load([folder], gt=tmp_path / "moved", lr=tmp_path / "moved")
    assert set(Folders(found).gt) == set(Folders(found).lr) == {"a"}
    assert not Folders(load([folder])).gt


def test_pictures_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "gt" / "a.png", np.zeros((32, 32, 3), np.uint8))
    write_image(tmp_path / "ours" / "a.png", np.zeros((16, 32, 3), np.uint8))
    folder = result(tmp_path, {"ours": measured({"psnr": (1.0,)}, pictures="ours")}, ["a"], gt="gt")
    with pytest.raises(ValueError, match=r"one size for a, got 32x16 of ours beside 32x32.*--gt"):
        Folders(load([folder])).strip("a", 64, lossless=True)


def test_published_rows_are_those_of_the_table_and_dataset() -> None:
    found = published("osediff-crops512", "rsd-3", "RealSR")
    assert found is not None
    assert found.title == "RSD Table 3, RealSR"
    assert [label for label, _ in found.rows] == ["SUPIR", "ResShift", "SinSR", "OSEDiff", "RSD"]
    assert dict(found.rows)["RSD"]["psnr"] == "25.61"
    by_columns = published("sinsr-fullsize", "rsd-1", "RealSet65")
    assert by_columns is not None
    assert dict(by_columns.rows)["RSD"] == {"clipiqa": "0.7267", "musiq": "69.172"}
    assert published("any", None, None) is None
    with pytest.raises(ValueError, match=r"osediff-crops512.*got mine.*--other-protocol"):
        published("mine", "rsd-3", "RealSR")
    other = published("mine", "rsd-3", "RealSR", other_protocol=True)
    assert other is not None
    assert "not that of these results" in other.note
    with pytest.raises(ValueError, match=r"RealSR.*got None; change --dataset"):
        published("osediff-crops512", "rsd-3", None)
    with pytest.raises(ValueError, match="add --paper"):
        published("osediff-crops512", None, "RealSR")


@pytest.mark.parametrize("table", [table for table in paper_tables().values() if table.protocol], ids=lambda t: t.name)
def test_every_published_table_of_quality_can_be_drawn(table: PaperTable) -> None:
    for dataset in table.datasets:
        found = published(str(table.protocol), table.name, dataset)
        assert found is not None
        assert len({label for label, _ in found.rows}) == len(found.rows) > 0
        assert all(np.isfinite(float(value)) for _, row in found.rows for value in row.values())
