"""``sr-bench study`` as people meet it: served by the command, answered in a browser, read by ``study-results``."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr_data.images import write_image

PROGRAM = "import sys; from sr_bench.main import main; sys.argv[0] = 'sr-bench'; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods and originals of four pictures; the level of red tells the method."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three", "four"):
        original = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        for index, label in enumerate(("gt", "mine", "yours", "hers")):
            pixels = original.copy()
            pixels[..., 0] = 50 * index
            write_image(folder / label / f"{name}.png", pixels)
    lines = ["image,category", "one,odd", "three,odd", "two,even", "four,even"]
    (folder / "categories.csv").write_text("\n".join(lines))
    return folder


class Served:
    """The command in a process of its own."""

    def __init__(self, folder: Path, answers: Path) -> None:
        words = ["study", *(str(folder / label) for label in ("mine", "yours", "hers")), "--gt", str(folder / "gt")]
        words += ["--categories", str(folder / "categories.csv"), "--repeats", "1", "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--answers", str(answers)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = next(line.split()[1] for line in self.process.stdout if line.startswith("open "))

    def end(self, number: signal.Signals = signal.SIGINT) -> str:
        """Press Ctrl-C, or what else ends a process."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return out


@pytest.fixture(scope="module")
def answers(folder: Path) -> Path:
    return folder / "answers.sqlite"


@pytest.fixture(scope="module")
def served(folder: Path, answers: Path) -> Iterator[Served]:
    served = Served(folder, answers)
    yield served
    if served.process.poll() is None:
        served.process.kill()
        served.process.wait()


@pytest.fixture
def page(chromium: Any, served: Served) -> Iterator[Any]:
    """A person with a browser of their own; errors and addresses elsewhere fail the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    elsewhere: list[str] = []
    page.on("request", lambda one: None if one.url.startswith((served.address, "data:")) else elsewhere.append(one.url))
    page.goto(served.address)
    page.click("#begin")
    ready(page, "1 / 5")
    yield page
    context.close()
    assert problems == []
    assert elsewhere == []


def ready(page: Any, count: str) -> None:
    """Wait until the pictures of a question can be answered."""
    condition = "c => document.getElementById('count').textContent === c && !locked"
    page.wait_for_function(condition, arg=count)


def stored(path: Path) -> list[tuple[int, str | None, list[str]]]:
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute(
            "SELECT position, choice, shown FROM answers WHERE person = (SELECT MAX(number) FROM people)"
        )
        return [(position, choice, json.loads(shown)) for position, choice, shown in rows]


def people(path: Path) -> int:
    with closing(sqlite3.connect(path)) as file:
        return int(file.execute("SELECT COUNT(*) FROM people").fetchone()[0])


def test_choose_by_key_and_click_undo_reload_and_finish(page: Any, answers: Path) -> None:
    page.keyboard.press("b")
    ready(page, "2 / 5")
    page.locator(".candidate .frame").nth(2).click()
    ready(page, "3 / 5")
    page.get_by_role("button", name="Choose A").click()
    ready(page, "4 / 5")
    _, choice, shown = stored(answers)[2]
    assert choice == shown[0]
    page.keyboard.press("u")
    ready(page, "3 / 5")
    page.reload()
    ready(page, "3 / 5")
    page.keyboard.press("0")
    ready(page, "4 / 5")
    page.get_by_role("button", name="Undo").click()
    ready(page, "3 / 5")
    page.get_by_role("button", name="Cannot decide").click()
    ready(page, "4 / 5")
    page.keyboard.press("D")  # there is no D
    page.keyboard.press("a")
    ready(page, "5 / 5")
    page.keyboard.press("C")
    page.wait_for_selector("#end:not([hidden])")
    found = stored(answers)
    assert [position for position, _, _ in found] == [0, 1, 2, 3, 4]
    wanted = [1, 2, None, 0, 2]
    assert [choice for _, choice, _ in found] == [
        None if place is None else shown[place] for place, (_, _, shown) in zip(wanted, found, strict=True)
    ]


def test_the_picture_under_a_letter_is_the_one_that_is_chosen(page: Any, answers: Path) -> None:
    red = page.evaluate(
        """() => [...document.querySelectorAll('.candidate img')].map(image => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            return context.getImageData(0, 0, 1, 1).data[0];
        })"""
    )
    page.keyboard.press("B")
    ready(page, "2 / 5")
    (answer,) = stored(answers)
    assert [("mine", "yours", "hers")[value // 50 - 1] for value in red] == answer[2]
    assert answer[1] == answer[2][1]


def test_impatient_fingers_count_once(page: Any, answers: Path) -> None:
    page.evaluate("() => { window.tokens = state.question.candidates.map(one => one.token); }")
    page.evaluate("() => { answer(tokens[0]); answer(tokens[0]); answer(tokens[1]); }")
    ready(page, "2 / 5")
    assert page.evaluate("() => ask('answer', {position: 0, token: tokens[1], seconds: 1})")["position"] == 1
    ((position, choice, shown),) = stored(answers)
    assert (position, choice) == (0, shown[0])


def test_a_double_click_on_start_makes_one_person(chromium: Any, served: Served, answers: Path) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served.address)
    page.wait_for_selector("#begin")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if one.url.endswith("/start") else None)
    before = people(answers)
    page.evaluate("() => { by('begin').click(); by('begin').click(); }")
    ready(page, "1 / 5")
    assert len(asked) == 1
    assert people(answers) == before + 1
    context.close()


def test_the_page_of_one_person_does_not_answer_for_another(chromium: Any, served: Served, answers: Path) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served.address)
    page.click("#begin")
    ready(page, "1 / 5")
    before = people(answers)
    context.clear_cookies()
    page.evaluate("() => ask('start', {})")  # somebody else in this browser
    page.keyboard.press("A")
    page.wait_for_selector("#problem:not([hidden])")
    assert people(answers) == before + 1
    assert stored(answers) == []
    page.reload()
    ready(page, "1 / 5")
    page.keyboard.press("B")
    ready(page, "2 / 5")
    ((position, choice, shown),) = stored(answers)
    assert (position, choice) == (0, shown[1])
    context.close()


def test_all_pictures_are_enlarged_at_the_same_place(page: Any) -> None:
    frame = page.locator(".frame").nth(1).bounding_box()
    page.mouse.move(frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 2)
    look = (
        "() => [...document.querySelectorAll('.frame img')].map(i => [getComputedStyle(i).transform, i.style.cssText])"
    )
    enlarged = page.evaluate(look)
    assert len(enlarged) == 4
    assert {transform for transform, _ in enlarged} == {"matrix(3, 0, 0, 3, 0, 0)"}
    boxes = [page.locator(".frame img").nth(index).bounding_box() for index in range(4)]
    frames = [page.locator(".frame").nth(index).bounding_box() for index in range(4)]
    for image, around in zip(boxes, frames, strict=True):
        assert image["width"] == pytest.approx(3 * around["width"], abs=1)
        # The point under the pointer stays where it is: a quarter of the width, half of the height.
        assert around["x"] - image["x"] == pytest.approx(2 * around["width"] / 4, abs=1)
        assert around["y"] - image["y"] == pytest.approx(2 * around["height"] / 2, abs=1)
    page.mouse.move(2, 2)
    assert {transform for transform, _ in page.evaluate(look)} == {"matrix(1, 0, 0, 1, 0, 0)"}
    page.keyboard.press("z")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.getElementById('pictures').style.cssText").count("60%") == 1


def test_a_question_fits_a_window_and_a_phone(page: Any) -> None:
    overflow = (
        "() => [document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
    )
    assert page.evaluate(overflow) == [0, 0]
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.querySelector('.frame').offsetWidth < 200")
    assert page.evaluate(overflow)[0] == 0
    tops = page.evaluate("() => [...document.querySelectorAll('figure')].map(figure => figure.offsetTop)")
    assert tops[0] < tops[1] == tops[2] < tops[3]  # the original, A and B, C


def test_a_finger_enlarges_a_picture_and_does_not_choose_it(chromium: Any, served: Served) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(served.address)
    page.tap("#begin")
    ready(page, "1 / 5")
    page.tap(".candidate .frame >> nth=1")
    assert page.evaluate("() => zoomed()")
    page.tap(".candidate .frame >> nth=1")
    assert not page.evaluate("() => zoomed()")
    assert page.text_content("#count") == "1 / 5"
    page.tap(".candidate button >> nth=1")
    ready(page, "2 / 5")
    context.close()


def test_ctrl_c_ends_the_study_and_its_results_can_be_read(
    served: Served, answers: Path, run: Any, chromium: Any, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(answers)) as file:
        count, people = file.execute("SELECT COUNT(*), COUNT(DISTINCT person) FROM answers").fetchone()
    assert served.end().splitlines()[-1] == f"{count} answers of {people} people in {answers}"
    assert served.process.returncode == 0
    table = run("sr-bench", "study-results", answers)
    assert table.code == 0
    assert all(word in table.out for word in ("mine", "yours", "hers", "strength", "odd", "could not decide"))
    as_json = json.loads(run("sr-bench", "study-results", answers, "--format", "json").out)
    assert as_json["people"] == people
    assert run("sr-bench", "study-results", answers, "--format", "md").out.startswith("| method | votes |")
    assert run("sr-bench", "study-results", answers, "--out", tmp_path / "deeper" / "r.csv").code == 0
    assert (tmp_path / "deeper" / "r.csv").read_text().startswith("method,category,won,of,")
    assert run("sr-bench", "study-results", answers, "--out", tmp_path / "r.html").code == 0
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "r.html").as_uri())
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    assert page.locator(".bar").count() == 3 + 2 * 3
    page.close()


def test_sigterm_ends_the_study_as_ctrl_c_does(folder: Path, tmp_path: Path) -> None:
    served = Served(folder, tmp_path / "a.sqlite")
    urllib.request.urlopen(served.address).close()  # it serves
    assert served.end(signal.SIGTERM).splitlines()[-1] == f"0 answers of 0 people in {tmp_path / 'a.sqlite'}"
    assert served.process.returncode == 0


def test_what_cannot_be_done_is_one_line(run: Any, folder: Path, tmp_path: Path) -> None:
    missing = run("sr-bench", "study-results", tmp_path / "none.sqlite")
    assert missing.code == 2
    assert re.fullmatch(r"error: expected the file of a study, .*\n", missing.err)
    options = [folder / "mine", folder / "yours", "--answers", tmp_path / "a.sqlite"]
    few = run("sr-bench", "study", *options, "--per-person", 9)
    assert few.code == 2
    assert few.err == "error: expected at most 4 pictures per person, got 9; lower --per-person\n"
    assert not (tmp_path / "a.sqlite").exists()
    kind = run("sr-bench", "study-results", tmp_path / "none.sqlite", "--out", tmp_path / "r.docx")
    assert "set --format" in kind.err
