"""Best and second best, differences between tables, rows of ours, and the formats."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sr_bench.complexity.result import Complexity, Memory, Spread
from sr_bench.complexity.result import Row as ComplexityRow
from sr_bench.paper.differences import differences, summary
from sr_bench.paper.formats import FORMATS, Page, as_csv, as_html, as_json, as_markdown, as_text
from sr_bench.paper.join import join
from sr_bench.paper.tables import PaperTable, paper_table
from sr_bench.paper.view import Line, View, marks, select
from sr_bench.quality.protocols import PROTOCOLS, Protocol
from sr_bench.quality.result import MethodResult, QualityResult
from sr_bench.record import Provenance, write_json

PROVENANCE = Provenance(
    command="sr-bench quality",
    date="2026-11-22",
    git_commit=None,
    python="3.11",
    platform="Linux x86_64",
    processor="CPU",
    device="cpu",
    threads=1,
    versions={},
)


def marked(view: View, metric: str, mark: str) -> list[str]:
    """Methods with a mark in the column of a metric."""
    index = [column.metric for column in view.columns].index(metric)
    return [line.method for line, found in zip(view.lines, marks(view), strict=True) if found[index] == mark]


def measured(folder: Path, protocol: str | Protocol, **methods: MethodResult) -> Path:
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    result = QualityResult(protocol=rules, images=("a", "b"), methods=methods, provenance=PROVENANCE)
    write_json(folder / "result.json", result)
    return folder


def method(steps: int | None = None, **values: tuple[float, float]) -> MethodResult:
    return MethodResult(source="test", settings={"steps": steps}, values=values)


def test_best_and_second_best_are_those_of_the_paper() -> None:
    """RSD's tables print the second best underlined."""
    view = select(paper_table("rsd-3"), "DRealSR")
    assert marked(view, "psnr", "best") == ["ResShift"]
    assert marked(view, "ssim", "second") == ["ResShift"]
    assert marked(view, "niqe", "best") == ["RSD"]
    assert marked(view, "niqe", "second") == ["OSEDiff"]
    assert marked(view, "nfe", "best") == []
    whole = select(paper_table("rsd-3"))
    assert marked(whole, "niqe", "best") == ["OSEDiff", "RSD", "OSEDiff"]  # of each dataset


def test_equal_figures_share_a_mark() -> None:
    view = select(paper_table("rsd-1"), "RealSR")
    assert marked(view, "ssim", "best") == ["ResShift", "RSD"]
    assert marked(view, "ssim", "second") == ["OSEDiff"]
    equal = ("1", "26.490", None, None, None, None)
    assert marked(replace(view, lines=(*view.lines, Line("other", None, equal))), "psnr", "best") == [
        "ResShift",
        "other",
    ]
    assert marked(replace(view, lines=(*view.lines, Line("ours", None, equal, "ours"))), "psnr", "best") == ["ResShift"]


def test_one_dataset_has_its_rows_and_columns() -> None:
    view = select(paper_table("rsd-10"), "RealSet65")
    assert view.titles == ("NFE", "CLIPIQA ↑", "MUSIQ ↑")
    assert view.lines[0].values == ("1", "0.6163", "65.582")
    assert view.title.endswith(", RealSet65")
    assert select(paper_table("rsd-10")).titles[-1] == "RealSet65 MUSIQ ↑"
    assert len(select(paper_table("rsd-12"), "RealSR").lines) == 13
    with pytest.raises(ValueError, match=r"expected a dataset of rsd-2, .*choose --dataset of ImageNet-Test"):
        select(paper_table("rsd-2"), "RealSR")


def table_of(name: str, values: dict[str, str], protocol: str | None = "sinsr-fullsize") -> PaperTable:
    """The first row of RSD's Table 6 with other figures."""
    known = paper_table("rsd-6")
    (row,) = (row for row in known.rows if row.method == "RSD")
    changed = tuple(values.get(column.metric) for column in known.columns)
    return replace(known, name=name, protocol=protocol, rows=(replace(row, values=changed),))


def test_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    one = table_of("one", {"psnr": "25.91", "ssim": "0.7538", "lpips": "0.2726", "musiq": "65.860"})
    rounded = table_of("rounded", {"psnr": "25.9", "ssim": "0.754", "lpips": "0.2726"})
    other = table_of("other", {"psnr": "25.92", "ssim": "0.753", "lpips": "0.2720", "musiq": "65.860"})
    elsewhere = table_of("elsewhere", {"psnr": "20.00"}, "imagenet-test")
    tables = {table.name: table for table in (one, rounded, other, elsewhere)}
    monkeypatch.setattr("sr_bench.paper.differences.paper_tables", lambda: tables)
    found = differences(one)
    assert [(difference.other, difference.cell.metric, difference.value) for difference in found] == [
        ("other", "psnr", "25.92"),
        ("other", "ssim", "0.753"),
        ("other", "lpips", "0.2720"),
    ]
    (note,) = summary(one, found)
    assert note == (
        "other has another value for 3 of 4 figures that both print; "
        "most: RSD, RealSR, LPIPS: 0.2726 here, 0.2720 in other."
    )
    assert differences(one, "RealSet65") == ()
    assert differences(replace(one, protocol=None)) == ()


def test_the_papers_differ() -> None:
    """RSD borrows its figures from OSEDiff's paper; TSD-SR's authors measured anew."""
    found = {
        (d.cell.method, d.cell.metric): d for d in differences(paper_table("rsd-12"), "RealSR") if d.other == "tsd-7"
    }
    assert found["Real-ESRGAN", "psnr"].cell.value == "25.69"
    assert found["Real-ESRGAN", "psnr"].value == "26.65"
    assert not differences(paper_table("rsd-1"))  # Tables 1, 5, 6 and 10 agree, rounding aside


def test_rows_of_ours(tmp_path: Path) -> None:
    ours = method(1, psnr=(30.004, 31.0), niqe=(5.0, 6.00004))
    path = measured(tmp_path, "osediff-crops512", student=ours, bicubic=method(psnr=(25.0, 26.0)))
    view = join(paper_table("rsd-3"), (path,), dataset="RealSR")
    student, bicubic = view.lines[-2:]
    assert (student.method, student.ours) == ("student", "ours: 2 images, osediff-crops512 v1")
    values = dict(zip((column.metric for column in view.columns), student.values, strict=True))
    assert values == {column.metric: None for column in view.columns} | {"nfe": "1", "psnr": "30.50", "niqe": "5.5000"}
    assert bicubic.values[:3] == (None, "25.50", None)
    assert marked(view, "psnr", "best") == ["ResShift"]  # of the published rows: ours has more
    assert marked(view, "psnr", "second") == ["SinSR"]
    assert [line.ours for line in view.lines[:-2]] == [None] * 5


def test_what_saw_the_ground_truth_says_so(tmp_path: Path) -> None:
    seen = MethodResult(source="ground truth and back", sees_gt=True, values={"psnr": (40.0, 41.0)})
    view = join(paper_table("rsd-2"), (measured(tmp_path, "imagenet-test", autoencoder=seen),))
    assert view.lines[-1].ours == "ours, sees the ground truth: 2 images, imagenet-test v1"


def test_figures_of_all_pictures_together_are_joined(tmp_path: Path) -> None:
    ours = MethodResult(source="test", values={}, whole={"fid": 101.236})
    view = join(paper_table("tsd-1"), (measured(tmp_path, "osediff-crops512", x=ours),), dataset="DRealSR")
    assert dict(zip(view.titles, view.lines[-1].values, strict=True))["FID ↓"] == "101.24"


def test_a_result_that_does_not_suit_is_refused(tmp_path: Path) -> None:
    path = measured(tmp_path, "weight-free", student=method(psnr=(50.0, 51.0)))
    table = paper_table("rsd-3")
    with pytest.raises(
        ValueError, match=r"protocol osediff-crops512 v1 for rsd-3, got weight-free v1 .* --other-protocol"
    ):
        join(table, (path,), dataset="RealSR")
    for change in ({"version": 2}, {"crop_border": 4}):
        changed = PROTOCOLS["osediff-crops512"].model_copy(update=change)
        other = measured(tmp_path / "changed", changed, student=method(psnr=(50.0, 51.0)))
        with pytest.raises(ValueError, match=r"expected a result of protocol osediff-crops512 v1 for rsd-3"):
            join(table, (other,), dataset="RealSR")
    with pytest.raises(ValueError, match=r"expected one dataset for --join, .* name yours with --dataset"):
        join(table, (path,))
    with pytest.raises(ValueError, match="expected a result of sr-bench complexity for rsd-4"):
        join(paper_table("rsd-4"), (path / "result.json",))
    with pytest.raises(FileNotFoundError, match=r"expected complexity\.json"):
        join(paper_table("rsd-4"), (path,))
    view = join(table, (path,), dataset="RealSR", other_protocol=True)
    assert view.lines[-1].ours == "ours, another protocol: 2 images, weight-free v1"
    assert marked(view, "psnr", "best") == ["ResShift"]  # not ours, which has more
    assert join(paper_table("rsd-2"), (path,), other_protocol=True).lines[-1].dataset == "ImageNet-Test"


def test_complexity_of_ours(tmp_path: Path) -> None:
    part = Spread(median=0.5, p10=0.1, p90=0.9)
    row = ComplexityRow(
        model="x4",
        device="cpu",
        dtype="fp32",
        path="cpu, fp32",
        size=64,
        batch=2,
        evaluations=15,
        parameters={"encode": 100_000_000, "network": 73_900_000},
        seconds=dict.fromkeys(("read", "encode", "network", "decode", "write", "total"), part),
        memory=Memory(kind="resident", loaded=900, peak=1234.4),
    )
    failed = row.model_copy(update={"problem": "out of memory", "seconds": {}})
    shapes = row.model_copy(update={"seconds": {}, "memory": None, "path": "", "device": "meta"})
    result = Complexity(rows=(row, failed, shapes), ceilings=(), published=(), provenance=PROVENANCE)
    write_json(tmp_path / "complexity.json", result)
    view = join(paper_table("rsd-4"), (tmp_path,))
    assert [line.values for line in view.lines[-3:]] == [
        ("15", "0.750", "174", "1234"),
        (None,) * 4,
        ("15", None, "174", None),
    ]
    assert view.lines[-3].ours == "ours: cpu, fp32, LR 64x64, batch 2, memory of the whole process"
    assert view.lines[-2].ours == "ours: out of memory"
    assert view.lines[-1].ours == "ours: meta, LR 64x64, batch 2"
    assert marked(view, "parameters_m", "best") == ["ResShift", "SinSR", "RSD"]  # rows of ours take no part
    assert join(paper_table("tsd-3"), (tmp_path,)).lines[-3].values == ("15", "0.7500")


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = measured(tmp_path, "osediff-crops512", **{"<b>student|": method(1, psnr=(30.0, 31.0))})
    view = join(paper_table("rsd-3"), (path,), dataset="RealSR")
    return Page(replace(view, notes=("A note.",)), differences(paper_table("rsd-3"), "RealSR"))


def test_text(page: Page) -> None:
    lines = as_text(page).splitlines()
    (rsd,) = (line for line in lines if line.startswith("RSD "))
    assert rsd.split() == [
        "RSD",
        "1",
        "25.61",
        "0.7420+",
        "0.2675*",
        "0.2205+",
        "5.7500+",
        "66.02+",
        "0.5930+",
        "0.6793*",
    ]
    (ours,) = (line for line in lines if line.startswith("<b>student|"))
    assert ours.split()[-10:] == ["v1", "1", "30.50", *["-"] * 7]
    assert {"protocol: osediff-crops512", "A note."} <= set(lines)


def test_markdown(page: Page) -> None:
    rows = [line for line in as_markdown(page).splitlines() if line.startswith("|")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert "| RSD |  | 1 | 25.61 | <u>0.7420</u> | **0.2675** |" in rows[6]
    assert rows[-1].startswith("| &lt;b>student\\| | ours: 2 images, osediff-crops512 v1 | 1 | 30.50 | - |")


def test_csv_and_json(page: Page) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(page))))
    assert rows[4]["niqe"] == "5.7500"
    assert (rows[5]["method"], rows[5]["dataset"], rows[5]["psnr"], rows[5]["ssim"]) == (
        "<b>student|",
        "RealSR",
        "30.50",
        "",
    )
    content: dict[str, Any] = json.loads(as_json(page))
    assert content["rows"][4]["values"][5] == "5.7500"
    assert content["rows"][5]["marks"][:3] == ["", "", ""]
    assert content["rows"][1]["marks"][:3] == ["", "best", "best"]
    assert len(content["differences"]) == len(page.differences)
    both = Page(select(paper_table("rsd-1")))
    assert next(csv.reader(io.StringIO(as_csv(both))))[-1] == "RealSet65/musiq"


def test_formats_have_every_row_of_every_table(page: Page) -> None:
    for name in ("rsd-12", "tsd-5"):
        view = select(paper_table(name))
        for write in FORMATS.values():
            text = write(Page(view))
            assert all(value in text for line in view.lines for value in line.values if value)


def test_html(page: Page) -> None:
    text = as_html(page)
    assert "&lt;b&gt;student|" in text
    assert "<b>student" not in text
    assert "://" not in text
    assert '<td class="best">26.31</td>' in text
    assert '<td class="second">0.7420</td>' in text
