"""``sr-bench paper`` as a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_the_list(run: Any) -> None:
    done = run("sr-bench", "paper")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines() if line.startswith(("rsd-", "tsd-"))][:2] == [
        "rsd-1",
        "rsd-2",
    ]
    assert "tsd-7" in done.out
    refused = run("sr-bench", "paper", "--dataset", "RealSR")
    assert refused.code == 2
    assert "`sr-bench paper` lists the tables" in refused.err


def test_a_table(run: Any) -> None:
    done = run("sr-bench", "paper", "rsd-3", "--dataset", "RealSR")
    assert done.code == 0
    assert "SUPIR" in done.out
    assert "tsd-1 has another value for 12 of 16 figures that both print" in done.out
    assert "OSEDiff, RealSR, MUSIQ" not in done.out
    every = run("sr-bench", "paper", "rsd-3", "--dataset", "RealSR", "--differences")
    assert "OSEDiff, RealSR, MUSIQ: 69.09 here, 69.10 in tsd-1." in every.out
    assert every.out.count(" here, ") == 28


def test_files(run: Any, tmp_path: Path) -> None:
    assert run("sr-bench", "paper", "rsd-4", "--out", tmp_path / "new" / "table.json").code == 0
    content = json.loads((tmp_path / "new" / "table.json").read_text())
    assert content["hardware"].startswith("NVIDIA A100")
    assert run("sr-bench", "paper", "rsd-4", "--format", "csv", "--out", tmp_path / "table.json").code == 0
    assert (tmp_path / "table.json").read_text().startswith("dataset,method,ours,nfe,seconds")
    for options, told in (
        (("rsd-4", "--out", tmp_path / "x.pdf"), "expected a format of table, md, csv, json, html"),
        (("rsd-7",), "expected a table of rsd-1, rsd-2"),
        (("rsd-4", "--dataset", "RealSR"), "expected a dataset of rsd-4, got 'RealSR'; drop --dataset"),
        (("rsd-3", "--dataset", "RealSR", "--join", tmp_path), "expected a result.json of sr-bench quality"),
    ):
        refused = run("sr-bench", "paper", *options)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert told in refused.err
    assert not (tmp_path / "x.pdf").exists()


def test_the_page_in_a_browser(run: Any, tmp_path: Path, chromium: Any) -> None:
    """On a phone the table scrolls in its box, the page does not."""
    out = tmp_path / "table.html"
    assert run("sr-bench", "paper", "rsd-12", "--out", out).code == 0
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    assert asked == [out.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("tbody").first.locator("tr").count() == 39
    assert page.locator("td.best").count() == 3 * 8
    page.locator("summary").click()
    assert page.locator("details tbody tr").count() == 273
    page.close()
