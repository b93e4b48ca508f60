"""The files of `sr-bench complexity`: nothing lost between them, published rows marked, the page on its own."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sr_bench.complexity import pages
from sr_bench.complexity.result import PARTS, Ceiling, Complexity, Memory, Published, Row, Spread
from sr_bench.record import provenance


@pytest.fixture(scope="module")
def result() -> Complexity:
    seconds = {part: Spread(median=index / 10, p10=index / 20, p90=index / 5) for index, part in enumerate(PARTS, 1)}
    seconds["total"] = Spread(median=2.1, p10=1.05, p90=4.2)
    measured = Row(
        model="tiny-student",
        device="cpu",
        dtype="bf16",
        path="cpu, bf16 autocast, channels_last",
        size=64,
        batch=2,
        weights="stored",
        scale=4,
        evaluations=1,
        color="adain",
        parameters={"encode": 1_000_000, "network": 120_000_000, "decode": 3_000_000},
        adapters=5000,
        macs={"encode": 10**9, "network": 2 * 10**9, "decode": 3 * 10**9},
        rounds=7,
        seconds=seconds,
        memory=Memory(kind="resident", loaded=400.0, peak=555.5),
        shares={"encode": 0.1, "network": 0.25, "decode": 0.3, "networks": 0.28, "color": 0.5},
    )
    failed = Row(model="<b>a|b</b>", device="cpu", dtype="fp32", path="cpu, fp32", size=64, batch=1, problem="no <i>|")
    published = Published(
        table="rsd-4",
        source="RSD Table 4",
        hardware="NVIDIA A100",
        method="RSD",
        values={"nfe": "1", "seconds": "0.059", "parameters_m": "174", "memory_mb": "539"},
    )
    ceiling = Ceiling(device="cpu", dtype="bf16", operation="3x3 convolution", matrix_gflops=812.4, copy_gbs=20.3)
    about = provenance("sr-bench complexity --size 64")
    return Complexity(rows=(measured, failed), ceilings=(ceiling,), published=(published,), provenance=about)


def test_all_four_files(result: Complexity, tmp_path: Path) -> None:
    pages.write(result, tmp_path / "new")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"complexity.json", "complexity.csv", "complexity.md", "complexity.html"}
    content = json.loads((tmp_path / "new" / "complexity.json").read_text())
    assert Complexity.model_validate(content) == result
    assert content["provenance"]["command"] == "sr-bench complexity --size 64"


def test_csv_has_every_value(result: Complexity) -> None:
    measured, failed, published = csv.DictReader(io.StringIO(pages.as_csv(result)))
    assert (measured["origin"], published["origin"]) == ("measured", "published: RSD Table 4")
    assert float(measured["network_p90_s"]) == 3 / 5
    assert int(measured["parameters_total"]) == 124_000_000
    assert int(measured["macs_total"]) == 6 * 10**9
    assert (measured["memory_kind"], float(measured["memory_peak_mb"])) == ("resident", 555.5)
    assert float(measured["share_networks"]) == 0.28
    assert (failed["problem"], failed["nfe"]) == ("no <i>|", "")
    assert (published["total_median_s"], published["parameters_total"]) == ("0.059", "174000000")


def test_markdown(result: Complexity) -> None:
    text = pages.as_markdown(result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    path = "cpu, bf16 autocast, channels_last"
    assert (
        f"| tiny-student | {path} | 64 x 2 | 1 | 124.0 | 6.0 | 2.100 | min 1.050 to max 4.200 (7) | 556 | 400 |"
        in lines
    )
    split = "0.1000 | 0.2000 10% | 0.3000 25% | 0.4000 30% | 0.5000 50% | 0.6000 | 28% |"
    assert f"| tiny-student | {path} | 64 x 2 | {split}" in lines
    assert "| tiny-student | stored | 64 x 2 | 1.00 | 120.0 | 3.00 | 0.01 | 1 | 1.0 | 2.0 | 3.0 |" in lines
    assert "| RSD | RSD Table 4 | 1 | 174 | 0.059 | 539 |" in lines
    assert "## PUBLISHED, other hardware: not measured here" in text
    assert "- RSD Table 4: published, NVIDIA A100" in text
    assert "812 GFLOP/s (3x3 convolution), 20.3 GB/s" in text
    assert "not measured: <b>a|b</b>, cpu, fp32, 64 px x 1: no <i>|" in text


@pytest.mark.parametrize(("rounds", "said"), [(10, "min 1.050 to max 4.200 (10)"), (11, "p10 1.050 to p90 4.200 (11)")])
def test_deciles_are_named_so_of_enough_rounds(result: Complexity, rounds: int, said: str) -> None:
    row = result.rows[0].model_copy(update={"rounds": rounds})
    assert said in pages.as_markdown(result.model_copy(update={"rows": (row,)}))


def test_page_stands_alone(result: Complexity) -> None:
    page = pages.as_html(result)
    assert '<html lang="en">' in page
    assert not re.search(r"https?:|src=|@import|url\(|<script", page)
    assert "<b>a" not in page
    assert "no <i>" not in page
    assert "no &lt;i&gt;" in page


def test_page_in_a_browser(result: Complexity, tmp_path: Path, chromium: Any) -> None:
    file = tmp_path / "page.html"
    file.write_text(pages.as_html(result))
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.evaluate("[...document.querySelectorAll('.bar rect')].map(r => r.getBoundingClientRect().width)")
    assert [width / sum(widths) for width in widths] == pytest.approx([part / 21 for part in range(1, 7)], rel=0.01)
    colors = page.evaluate("[...document.querySelectorAll('.bar rect')].map(r => getComputedStyle(r).fill)")
    assert len(set(colors)) == len(PARTS)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    page.close()
