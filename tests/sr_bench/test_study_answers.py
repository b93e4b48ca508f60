"""Studies: the questions of each person, the file of the answers, the results."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sr_bench.record import Provenance
from sr_bench.study.definition import Question, Study, questions_of
from sr_bench.study.results import StudyResult, evaluate, facts, to_csv, to_markdown
from sr_bench.study.results_page import to_html
from sr_bench.study.store import StudyFile, open_study, read_study

PROVENANCE = Provenance(
    command="sr-bench study",
    date="2026-11-22",
    git_commit=None,
    python="3",
    platform="any",
    processor="any",
    device="cpu",
    threads=1,
    versions={},
)


def study(**changes: Any) -> Study:
    images = tuple(f"image{number}" for number in range(10))
    given = {
        "question": "Which?",
        "methods": ("ours", "theirs", "old"),
        "images": images,
        "candidates": 3,
        "per_person": 10,
        "pictures_sha256": "0",
    }
    return Study.model_validate(given | changes)


def test_everybody_has_an_order_of_their_own_that_comes_back() -> None:
    one = study()
    orders = {tuple(q.image for q in questions_of(one, person)) for person in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == sorted(one.images) for order in orders)
    assert questions_of(one, 3) == questions_of(one, 3)
    assert questions_of(one, 3) != questions_of(study(seed=1), 3)


def test_every_method_stands_everywhere_equally_often() -> None:
    one = study()
    shown = [question.shown for person in range(120) for question in questions_of(one, person)]
    assert all(sorted(methods) == sorted(one.methods) for methods in shown)
    counts = Counter(shown)  # 1200 questions, 6 orders: 200 each, standard deviation 13
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())


def test_pictures_are_dealt_out_equally() -> None:
    one = study(per_person=4)
    asked = [[question.image for question in questions_of(one, person)] for person in range(5)]
    assert all(len(set(own)) == 4 for own in asked)
    assert set(Counter(image for own in asked for image in own).values()) == {2}


def test_some_candidates_are_drawn_where_not_all_are_shown() -> None:
    one = study(candidates=2)
    pairs = Counter(frozenset(q.shown) for person in range(60) for q in questions_of(one, person))
    assert len(pairs) == 3
    assert all(len(pair) == 2 and 150 < count < 250 for pair, count in pairs.items())


def test_repeats_come_later_with_the_same_candidates_in_a_new_order() -> None:
    one = study(repeats=4, candidates=2, methods=("a", "b", "c", "d"))
    new_order = 0
    for person in range(50):
        questions = questions_of(one, person)
        assert len(questions) == 14
        again = [place for place, question in enumerate(questions) if question.repeat]
        assert len({questions[place].image for place in again}) == len(again) == 4
        for place in again:
            before = next(index for index, q in enumerate(questions) if q.image == questions[place].image)
            assert place - before > 1
            assert set(questions[before].shown) == set(questions[place].shown)
            new_order += questions[before].shown != questions[place].shown
    assert 60 < new_order < 140


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 4}, "at most 3 candidates"),
        ({"per_person": 11}, "lower --per-person"),
        ({"repeats": 5}, "lower --repeats"),
        ({"per_person": 2, "repeats": 1}, "lower --repeats"),
        ({"methods": ("ours",), "candidates": 2}, "at least 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_an_answer_counts_once_and_can_be_taken_back(tmp_path: Path) -> None:
    file = open_study(tmp_path / "deeper" / "a.sqlite", study(), PROVENANCE)
    one, other = file.new_person(), file.new_person()
    assert (one.number, other.number) == (0, 1)
    assert file.person(one.id) == one
    assert file.person("somebody") is None
    first, second = questions_of(file.study, 0)[:2]
    assert file.add(one, 0, first, first.shown[1], 2.5)
    assert not file.add(one, 0, first, first.shown[0], 0.1)  # a double click
    assert not file.add(one, 2, second, None, 0.1)
    assert file.add(one, 1, second, None, 1.0)
    assert (file.answered(one), file.answered(other)) == (2, 0)
    assert not file.undo(one, 0)
    assert not file.undo(other, 1)
    assert file.undo(one, 1)
    assert not file.undo(one, 1)
    (answer,) = file.answers()
    assert (answer.person, answer.image, answer.shown, answer.choice) == (0, first.image, first.shown, first.shown[1])
    assert (answer.seconds, answer.repeat) == (2.5, False)


def test_the_same_study_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    person = open_study(path, study(), PROVENANCE).new_person()
    later = PROVENANCE.model_copy(update={"date": "2026-12-01"})
    again = open_study(path, study(), later)
    assert again.person(person.id) == person
    assert again.provenance == PROVENANCE
    for change in ({"question": "Why?"}, {"pictures_sha256": "1"}, {"seed": 2}):
        with pytest.raises(ValueError, match=r"got other (question|pixels|seed); name another --answers"):
            open_study(path, study(**change), PROVENANCE)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "a.txt", tmp_path / "b.sqlite", tmp_path / "c.sqlite"
    text.write_text("not a database, but long enough to look at" * 50)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE things (a)")
    connection.close()
    open_study(newer, study(), PROVENANCE)
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for path, message in ((text, "file of a study"), (other, "another kind of file"), (newer, "got 99")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            open_study(path, study(), PROVENANCE)
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="sr-bench study"):
        read_study(tmp_path / "none.sqlite")


def test_many_people_answer_at_once(tmp_path: Path) -> None:
    one = study()

    def take_part(_: int) -> int:
        file = open_study(tmp_path / "a.sqlite", one, PROVENANCE)
        person = file.new_person()
        for position, question in enumerate(questions_of(one, person.number)[:5]):
            for _ in range(2):
                file.add(person, position, question, question.shown[0], 1.0)
        return person.number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(take_part, range(16)))
    assert sorted(numbers) == list(range(16))
    file = read_study(tmp_path / "a.sqlite")
    assert len(file.answers()) == 16 * 5
    with sqlite3.connect(file.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.fixture
def answered(tmp_path: Path) -> StudyFile:
    """Two people who choose ours, but in buildings theirs; the second cannot decide at first."""
    categories = {f"image{number}": ("animals", "buildings", "faces | eyes")[number % 3] for number in range(10)}
    file = open_study(tmp_path / "a.sqlite", study(categories=categories, repeats=3), PROVENANCE)
    for _ in range(2):
        person = file.new_person()
        questions = questions_of(file.study, person.number)
        last = next(question for question in reversed(questions) if question.repeat)
        for position, question in enumerate(questions):
            choice = "theirs" if categories[question.image] == "buildings" else "ours"
            undecided = position < 3 if person.number == 1 else question == last
            again = "old" if question.repeat and person.number == 0 else choice
            file.add(person, position, question, None if undecided else again, 1.0 + position)
    return file


def test_votes_are_counted_by_method_and_category(answered: StudyFile) -> None:
    result = evaluate(answered)
    undecided = [question.image for question in questions_of(answered.study, 1)[:3]]
    lost = sum(answered.study.categories[image] == "buildings" for image in undecided)
    assert (result.people, result.finished, result.answers, result.undecided) == (2, 2, 20, 3)
    assert list(result.methods) == ["ours", "theirs", "old"]
    votes = {name: (one.votes.won, one.votes.of) for name, one in result.methods.items()}
    assert votes == {"ours": (14 - 3 + lost, 17), "theirs": (6 - lost, 17), "old": (0, 17)}
    by_category = result.methods["theirs"].categories
    assert {name: one.value for name, one in by_category.items()} == {"animals": 0, "buildings": 1, "faces | eyes": 0}
    assert by_category["buildings"].of == 6 - lost
    assert sum(result.places) == 17
    # Repeats are no votes. Person 0 changed two and left one; person 1 had left the three that came again.
    assert (result.same_again.won, result.same_again.of) == (0, 2)


def test_an_unfinished_study_without_answers_has_results(tmp_path: Path) -> None:
    file = open_study(tmp_path / "a.sqlite", study(), PROVENANCE)
    file.new_person()
    result = evaluate(file)
    assert (result.people, result.answers, result.median_seconds) == (0, 0, None)
    assert all(one.votes.value is None and one.strength.value is None for one in result.methods.values())
    assert "| ours | 0 of 0 | - | - |" in to_markdown(result)
    assert "0 people" in to_html(result)


def test_a_single_person_has_wilson_intervals_and_says_so(tmp_path: Path) -> None:
    file = open_study(tmp_path / "a.sqlite", study(), PROVENANCE)
    person = file.new_person()
    for position in range(4):
        file.add(person, position, Question(f"image{position}", ("ours", "old", "theirs")), "ours", 1.0)
    result = evaluate(file)
    assert result.methods["ours"].votes.low == pytest.approx(0.5101, abs=1e-4)
    assert result.methods["ours"].strength.low is None
    assert any("Wilson" in fact and "nothing of other people" in fact for fact in facts(result))
    assert result.finished == 0


def test_strengths_that_the_votes_do_not_give_are_named(tmp_path: Path, answered: StudyFile) -> None:
    half = "(the strength comes from the half vote alone, so it has no interval)."
    assert f"Never chosen: old {half}" in facts(evaluate(answered, draws=50))
    file = open_study(tmp_path / "b.sqlite", study(methods=("ours", "old", "x"), candidates=2), PROVENANCE)
    for number in range(8):
        person = file.new_person()
        file.add(person, 0, Question("image0", ("old", "ours")), "ours", 1.0)
        file.add(person, 1, Question("image1", ("x", "old")), "x" if number else "old", 1.0)
    result = evaluate(file, draws=200)
    assert result.methods["ours"].strength.low is None
    assert f"Always chosen: ours {half}" in facts(result)
    assert "Too few or too equal votes for an interval of the strength of x, old." in facts(result)
    assert "Never chosen" not in "".join(facts(result))


def test_results_are_written_as_text(answered: StudyFile) -> None:
    result = evaluate(answered)
    assert StudyResult.model_validate_json(result.model_dump_json()) == result
    lines = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [(line["method"], line["category"]) for line in lines[:4]] == [
        ("ours", ""),
        ("ours", "animals"),
        ("ours", "buildings"),
        ("ours", "faces | eyes"),
    ]
    assert float(lines[0]["value"]) == pytest.approx(result.methods["ours"].votes.value)
    assert float(lines[0]["strength_value"]) == pytest.approx(result.methods["ours"].strength.value)
    markdown = to_markdown(result)
    assert "| faces \\| eyes |" in markdown
    assert "3 could not decide" in markdown
    assert "too narrow" in markdown


def test_the_page_draws_what_was_counted(answered: StudyFile) -> None:
    result = evaluate(answered)
    page = to_html(result)
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", page)
    widths = re.findall(r'class="fill" style="width:([\d.]+)%', page)
    assert widths[:3] == [f"{100 * (one.votes.value or 0):.2f}" for one in result.methods.values()]
    assert len(widths) == 3 + 9
    shapes = re.findall(r'<polygon points="([^"]+)"', page)
    assert len(shapes) == 3
    # ours: all of animals (straight up), none of buildings, all of faces.
    up, none, faces = (tuple(map(float, point.split(","))) for point in shapes[0].split())
    assert up == (250.0, 45.0)
    assert none == (250.0, 175.0)
    assert faces == pytest.approx((250 - 130 * 0.866, 175 + 65), abs=0.1)
    assert "faces | eyes" in page


def test_names_in_the_page_are_text(tmp_path: Path) -> None:
    one = study(methods=("<script>alert(1)</script>", "b&b", "c"), question="<b>?")
    page = to_html(evaluate(open_study(tmp_path / "a.sqlite", one, PROVENANCE)))
    assert "<script>" not in page
    assert "b&amp;b" in page


def test_long_names_do_not_make_the_page_wider_than_a_phone(chromium: Any, tmp_path: Path) -> None:
    long = "no_place_to_break_" * 8
    kinds = {f"image{number}": f"{number % 3}{long}" for number in range(10)}
    one = study(methods=(f"a{long}", f"b{long}", "c"), categories=kinds, question=long)
    file = open_study(tmp_path / "a.sqlite", one, PROVENANCE)
    person = file.new_person()
    for position, question in enumerate(questions_of(one, person.number)):
        file.add(person, position, question, "c", 1.0)
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.set_content(to_html(evaluate(file)))
    assert page.locator(".legend li").count() == 3
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    page.close()


def test_json_is_plain(answered: StudyFile) -> None:
    content = json.loads(evaluate(answered).model_dump_json())
    assert content["format"] == "sr-bench study 1"
    assert content["provenance"]["command"] == "sr-bench study"
