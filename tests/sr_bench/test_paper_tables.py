"""The published tables: whole, and equal to the papers' text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sr_bench.paper.tables import OTHERS, PaperTable, paper_table, paper_tables
from sr_bench.quality.metrics import METRICS

NAMES = [
    *(f"rsd-{number}" for number in (1, 2, 3, 4, 5, 6, 9, 10, 11, 12)),
    *(f"tsd-{number}" for number in range(1, 8)),
]
TRANSPOSED = ("rsd-4", "tsd-3")
PRINTED = {
    "PSNR": "psnr",
    "SSIM": "ssim",
    "LPIPS": "lpips",
    "DISTS": "dists",
    "FID": "fid",
    "NIQE": "niqe",
    "MUSIQ": "musiq",
    "MANIQA": "maniqa-pipal",
    "CLIPIQA": "clipiqa",
    "NFE": "nfe",
}
DATASETS = ("DIV2K-Val", "DRealSR", "RealSR")
NUMBER = re.compile(r"\d+(\.\d+)?")


def test_the_tables_that_there_are() -> None:
    assert list(paper_tables()) == NAMES
    for name, table in paper_tables().items():
        paper = {"rsd": "RSD", "tsd": "TSD-SR"}[name[:3]]
        assert (table.name, table.paper, table.number) == (name, paper, int(name[4:]))
        assert table.source.startswith(f"{paper} Table {table.number}, arXiv ")
        assert table.title
    with pytest.raises(ValueError, match=r"expected a table of rsd-1, .*, tsd-7, got 'rsd-7'"):
        paper_table("rsd-7")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_whole(name: str) -> None:
    table = paper_table(name)
    columns = [(column.dataset, column.metric) for column in table.columns]
    rows = [(row.dataset, row.method) for row in table.rows]
    assert len(set(columns)) == len(columns)
    assert len(set(rows)) == len(rows)
    for column in table.columns:
        assert column.metric in (*METRICS, *OTHERS)
        if column.metric in METRICS:
            known = METRICS[column.metric]
            assert (column.title, column.higher_is_better) == (known.title, known.higher_is_better)
    for row in table.rows:
        assert len(row.values) == len(columns)
        for column, value in zip(table.columns, row.values, strict=True):
            assert value is not None, "the papers leave no cell empty"
            assert NUMBER.fullmatch(value) or column.metric == "base"
            if column.metric in METRICS:
                assert (row.dataset is None) != (column.dataset is None)
    assert (table.protocol is None) == (table.hardware is not None) == (name in TRANSPOSED)
    assert bool(table.datasets) == (table.protocol is not None)


def test_protocols() -> None:
    of = {name: table.protocol for name, table in paper_tables().items()}
    assert {name for name in NAMES if of[name] == "sinsr-fullsize"} == {"rsd-1", "rsd-5", "rsd-6", "rsd-9", "rsd-10"}
    assert {name for name in NAMES if of[name] == "imagenet-test"} == {"rsd-2", "rsd-11"}
    crops = {"rsd-3", "rsd-12", "tsd-1", "tsd-2", "tsd-4", "tsd-5", "tsd-6", "tsd-7"}
    assert {name for name in NAMES if of[name] == "osediff-crops512"} == crops


def test_single_figures() -> None:
    """By eye, from the papers."""
    assert paper_table("rsd-3").value("RSD", "niqe", "RealSR") == "5.7500"
    assert paper_table("rsd-1").value("ResShift", "musiq", "RealSet65") == "61.330"
    assert paper_table("rsd-4").value("RSD", "parameters_m") == "174"
    assert paper_table("tsd-2").value("AddSR-4s", "fid", "DIV2K-Val") == "35.41"
    assert paper_table("tsd-6").value("N = 8, s = 50", "dists") == "0.2633"
    with pytest.raises(ValueError, match=r"expected one figure of 'RSD psnr' in RSD Table 3, .*, got 3"):
        paper_table("rsd-3").value("RSD", "psnr")
    assert paper_table("rsd-12").datasets == DATASETS
    assert paper_table("rsd-1").datasets == ("RealSR", "RealSet65")


# ---- against the text. A table is (metrics of the header, rows of (dataset, method, values)), whatever its layout.

Parsed = tuple[list[str], list[tuple[str | None, str, list[str]]]]


@pytest.fixture(scope="module")
def papers(shared_dir: Path) -> dict[str, list[str]]:
    found = {name: shared_dir / "papers" / f"{name}.txt" for name in ("RSD", "TSD-SR")}
    if not all(path.is_file() for path in found.values()):
        pytest.skip("the papers' text is absent from the folder beside the checkout")
    return {name: path.read_text().splitlines() for name, path in found.items()}


def metrics_of(words: list[str]) -> list[str]:
    names = (re.match(r"[A-Za-z]+", word) for word in words)
    return [PRINTED[name[0]] for name in names if name and name[0] in PRINTED]


def published_name(text: str) -> str:
    """What a method is called, without citation, markup and "Ours" of the RSD paper."""
    text = re.sub(r"<[^>]+>|\s*\[\d+\]|\s*\(Appendix A\)", "", text).strip()
    return text.replace(" (Ours)", "").replace("(Ours, distill only)", "(distill only)")


def rsd_block(lines: list[str], number: int) -> list[list[str]]:
    """Cells of the lines above the caption, those that are not empty."""
    caption = next(index for index, line in enumerate(lines) if line.startswith(f"Table {number}. "))
    end = caption - 1
    while not lines[end].strip():
        end -= 1
    start = end
    while lines[start - 1].strip():
        start -= 1
    cells = [[re.sub(r"</?u>", "", cell).strip(" ,") for cell in line.split("\t")] for line in lines[start : end + 1]]
    return [[cell for cell in line if cell] for line in cells]


def rsd_table(lines: list[str], number: int) -> Parsed:
    known = {dataset.casefold(): dataset for dataset in DATASETS}
    header, rows = [], []
    for line in rsd_block(lines, number):
        tail = len(line)
        while tail > 0 and NUMBER.fullmatch(line[tail - 1]):
            tail -= 1
        values = line[tail:]
        if not values:
            header += metrics_of(line)
            continue
        labels = [label for label in line[:tail] if label != "_"]
        dataset = known.get(labels[0].casefold())
        rows.append((dataset, published_name(labels[-1]), values))
    return header, rows


def with_datasets(rows: list[tuple[str | None, str, list[str]]]) -> list[tuple[str | None, str, list[str]]]:
    """Give rows of a table of three datasets theirs: each begins with the same method, and its name is in one row."""
    starts = [index for index, (_, method, _) in enumerate(rows) if method == rows[0][1]]
    assert len(starts) == len(DATASETS)
    found = [DATASETS[sum(start <= index for start in starts) - 1] for index in range(len(rows))]
    assert [(named, dataset) for (named, _, _), dataset in zip(rows, found, strict=True) if named] == [
        (dataset, dataset) for dataset in DATASETS
    ]
    return [(dataset, method, values) for dataset, (_, method, values) in zip(found, rows, strict=True)]


def ours(table: PaperTable) -> Parsed:
    rows = [(row.dataset, row.method, [str(value) for value in row.values]) for row in table.rows]
    return [column.metric for column in table.columns], rows


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 10, 11, 12])
def test_rsd_tables_are_those_of_the_text(papers: dict[str, list[str]], number: int) -> None:
    header, rows = rsd_table(papers["RSD"], number)
    table = paper_table(f"rsd-{number}")
    if number in (1, 10):  # NFE stands in the line above
        header = ["nfe", *header] if "nfe" not in header else header
        datasets = [column.dataset for column in table.columns]
        assert datasets == [None, *["RealSR"] * 5, *["RealSet65"] * 2]
    if number in (3, 12):
        rows = with_datasets(rows)
    else:
        (dataset,) = {row.dataset for row in table.rows}
        rows = [(dataset, method, values) for _, method, values in rows]
    assert (header, rows) == ours(table)


def test_rsd_table_4_is_that_of_the_text(papers: dict[str, list[str]]) -> None:
    names, *lines = rsd_block(papers["RSD"], 4)
    titles = ["Inference Step", "Inference Time (s)", "# Total Param (M)", "Maximum GPU memory (MB)"]
    assert [line[0] for line in lines] == titles
    columns, rows = ours(paper_table("rsd-4"))
    assert columns == ["nfe", "seconds", "parameters_m", "memory_mb"]
    expected = zip(*(line[1:] for line in lines), strict=True)
    assert rows == [
        (None, published_name(name), list(values)) for name, values in zip(names[1:], expected, strict=True)
    ]


def test_rsd_table_5_is_that_of_the_text(papers: dict[str, list[str]]) -> None:
    """The numbers of steps are torn in the text: "1:" and "5" for 15."""
    header, *lines = rsd_block(papers["RSD"], 5)
    columns, rows = ours(paper_table("rsd-5"))
    assert columns == ["n", *metrics_of(header)]
    torn = ["".join(re.sub(r"\D", "", cell) for cell in line[:-5]) for line in lines]
    assert torn == ["1", "2", "4", "8", "15"]
    assert rows == [("RealSR", f"N = {n}", [n, *line[-5:]]) for n, line in zip(torn, lines, strict=True)]


def tsd_block(lines: list[str], number: int) -> list[str]:
    start = next(index for index, line in enumerate(lines) if line.startswith(f"Table {number}: ")) + 1
    end = start
    while lines[end].strip() and not lines[end].startswith("Refer to caption"):
        end += 1
    return lines[start:end]


def tsd_rows(lines: list[str]) -> list[tuple[str | None, str, list[str]]]:
    """A dataset is printed in one line of its rows: the first or the last."""
    rows: list[tuple[str | None, str, list[str]]] = []
    for line in lines:
        words = line.split()
        dataset = words.pop(0) if words[0] in DATASETS else None
        count = next(index for index, word in enumerate(words) if NUMBER.fullmatch(word))
        rows.append((dataset, " ".join(words[:count]), words[count:]))
    order = range(len(rows)) if rows[0][0] else range(len(rows) - 1, -1, -1)
    current: str | None = None
    for index in order:
        current = rows[index][0] or current
        rows[index] = (current, *rows[index][1:])
    return rows


@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_tsd_tables_are_those_of_the_text(papers: dict[str, list[str]], number: int) -> None:
    header, *lines = tsd_block(papers["TSD-SR"], number)
    expected: list[tuple[str | None, str, list[str]]] = []
    for dataset, printed, values in tsd_rows(lines):
        name, steps = re.fullmatch(r"(.+?)(?:-(\d+)s)?", printed).groups()  # type: ignore[union-attr]
        method = {"Ours": "TSD-SR", "AddSR": printed}.get(name, name)
        expected.append((dataset, method, [*([steps] if steps else []), *values]))
    metrics = metrics_of(header.split())
    assert (["nfe", *metrics] if number in (1, 2) else metrics, expected) == ours(paper_table(f"tsd-{number}"))


def test_tsd_table_3_is_that_of_the_text(papers: dict[str, list[str]]) -> None:
    names, steps, times = (line.split() for line in tsd_block(papers["TSD-SR"], 3))
    assert (steps[:2], times[:2]) == (["Inference", "Step"], ["Inference", "Time"])
    columns, rows = ours(paper_table("tsd-3"))
    assert columns == ["nfe", "seconds"]
    expected = [
        (None, {"Ours": "TSD-SR", "AddSR": f"AddSR-{step}s"}.get(name, name), [step, time])
        for name, step, time in zip(names, steps[2:], times[2:], strict=True)
    ]
    assert rows == expected


def test_tsd_tables_5_and_6_are_those_of_the_text(papers: dict[str, list[str]]) -> None:
    header, *lines = tsd_block(papers["TSD-SR"], 5)
    columns, rows = ours(paper_table("tsd-5"))
    assert columns == ["base", *metrics_of(header.split())]
    printed = [line.split() for line in lines]
    assert [values for _, _, values in rows] == [words[1:] for words in printed]
    names = {"Ours": "TSD-SR ({})", "AddSR": "AddSR-1s", "OSEDiff": "OSEDiff"}
    assert [method for _, method, _ in rows] == [names[words[0]].format(words[1]) for words in printed]

    header, *lines = tsd_block(papers["TSD-SR"], 6)
    columns, rows = ours(paper_table("tsd-6"))
    assert columns == ["n", "s", *metrics_of(header.split())]
    assert [values for _, _, values in rows] == [line.split() for line in lines]
    assert all(method == f"N = {values[0]}, s = {values[1]}" for _, method, values in rows)
    assert {dataset for dataset, _, _ in rows} == {"DRealSR"}
