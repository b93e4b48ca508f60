"""What the answers of a study say, as figures and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sr_bench.record import Provenance
from sr_bench.study.definition import Study
from sr_bench.study.preference import Counts, Estimate, Share, resamples, share, strengths
from sr_bench.study.store import Answer, StudyFile


class MethodResult(BaseModel):
    """What people said about one method.

    Args:
        votes: for it, of the questions it was shown in and that were decided.
        strength: of Luce's choice model; a difference d of two methods is odds of exp(d).
        categories: votes by category.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    votes: Share
    strength: Estimate
    categories: Mapping[str, Share]


class StudyResult(BaseModel):
    """What a study has found so far.

    Args:
        format: of this record.
        study: what was asked.
        people: who answered at least once.
        finished: of these, who answered everything.
        answers: without repeats, with those that could not decide.
        undecided: of these, who could not decide: they count for no method.
        median_seconds: of an answer; None: no answers.
        same_again: how often the same method was chosen when a picture came again, of those decided both times.
        guessing: how often blind choice would do that.
        places: how often A, B, C ... was chosen.
        methods: by label, most votes first.
        provenance: of the day the study began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["sr-bench study 1"] = "sr-bench study 1"
    study: Study
    people: int
    finished: int
    answers: int
    undecided: int
    median_seconds: float | None
    same_again: Share
    guessing: float
    places: tuple[int, ...]
    methods: Mapping[str, MethodResult]
    provenance: Provenance


def evaluate(file: StudyFile, draws: int = 1000) -> StudyResult:
    """Count the votes and estimate their intervals.

    Args:
        file: of the study.
        draws: of the bootstrap, seeded by the study's seed.
    """
    study, answers = file.study, file.answers()
    people = sorted({answer.person for answer in answers})
    row = {person: index for index, person in enumerate(people)}
    sampled = resamples(len(people), draws, study.seed) if people else np.zeros((1, 0), np.int64)
    first = [answer for answer in answers if not answer.repeat]
    decided = [answer for answer in first if answer.choice is not None]
    votes, sets = _votes(decided, study.methods, row)
    scores = strengths(votes, sets, sampled) if decided else [Estimate(value=None, low=None, high=None)] * len(sets.T)

    def votes_of(method: str, category: str | None = None) -> Share:
        own = [one for one in decided if category is None or study.categories[one.image] == category]
        shown = [answer for answer in own if method in answer.shown]
        return share(_tally([a for a in shown if a.choice == method], row), _tally(shown, row), sampled)

    categories = sorted(set(study.categories.values()))
    methods = {
        name: MethodResult(
            votes=votes_of(name), strength=score, categories={one: votes_of(name, one) for one in categories}
        )
        for name, score in zip(study.methods, scores, strict=True)
    }
    order = sorted(methods, key=lambda name: -(methods[name].strength.value or 0.0))
    places = [0] * study.candidates
    for answer in decided:
        places[answer.shown.index(str(answer.choice))] += 1
    return StudyResult(
        study=study,
        people=len(people),
        finished=int((_tally(answers, row) == study.per_person + study.repeats).sum()),
        answers=len(first),
        undecided=len(first) - len(decided),
        median_seconds=float(np.median([answer.seconds for answer in first])) if first else None,
        same_again=_same_again(answers, row, sampled),
        guessing=1 / study.candidates,
        places=tuple(places),
        methods={name: methods[name] for name in order},
        provenance=file.provenance,
    )


def _votes(
    answers: Sequence[Answer], methods: Sequence[str], row: Mapping[int, int]
) -> tuple[Counts, NDArray[np.bool_]]:
    """(people, sets, methods) votes, and (sets, methods) which methods each set has."""
    found = sorted({tuple(method in answer.shown for method in methods) for answer in answers})
    votes = np.zeros((len(row), len(found), len(methods)), np.int64)
    for answer in answers:
        members = found.index(tuple(method in answer.shown for method in methods))
        votes[row[answer.person], members, methods.index(str(answer.choice))] += 1
    return votes, np.array(found, bool).reshape(len(found), len(methods))


def _tally(answers: Sequence[Answer], row: Mapping[int, int]) -> Counts:
    return np.bincount([row[answer.person] for answer in answers], minlength=len(row)).astype(np.int64)


def _same_again(answers: Sequence[Answer], row: Mapping[int, int], draws: Counts) -> Share:
    before = {(answer.person, answer.image): answer.choice for answer in answers if not answer.repeat}
    again = [answer for answer in answers if answer.repeat and answer.choice is not None]
    both = [answer for answer in again if before[answer.person, answer.image] is not None]
    same = [answer for answer in both if before[answer.person, answer.image] == answer.choice]
    return share(_tally(same, row), _tally(both, row), draws)


def percent(one: Estimate) -> str:
    """``61.5 % [50.0, 72.1]``."""
    return _text(one, 100, 1, " %")


def strength_text(one: Estimate) -> str:
    """``0.52 [0.10, 0.95]``."""
    return _text(one, 1, 2, "")


def _text(one: Estimate, scale: float, digits: int, unit: str) -> str:
    if one.value is None:
        return "-"
    value = f"{one.value * scale:.{digits}f}{unit}"
    if one.low is None or one.high is None:
        return value
    return f"{value} [{one.low * scale:.{digits}f}, {one.high * scale:.{digits}f}]"


def method_rows(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of methods."""
    lines = [
        [name, f"{one.votes.won} of {one.votes.of}", percent(one.votes), strength_text(one.strength)]
        for name, one in result.methods.items()
    ]
    return ["method", "votes", "share", "strength"], lines


def category_rows(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of shares by category; no lines: no categories."""
    categories = sorted(set(result.study.categories.values()))
    lines = [[name, *(percent(one.categories[name]) for one in result.methods.values())] for name in categories]
    return ["category", *result.methods], lines


def facts(result: StudyResult) -> list[str]:
    """What must be known to read the table, one sentence each."""
    study, again = result.study, result.same_again
    candidates = "all methods" if study.candidates == len(study.methods) else f"{study.candidates} drawn methods"
    lines = [
        f"Question: {study.question}",
        f"{result.people} people ({result.finished} finished) gave {result.answers} answers about "
        f"{len(study.images)} pictures, each with {candidates}; seed {study.seed}.",
        f"{result.undecided} could not decide; they count for no method.",
    ]
    if result.median_seconds is not None:
        lines.append(f"Median time of an answer: {result.median_seconds:.1f} s.")
        chosen = ", ".join(f"{'ABCDEF'[place]} {count}" for place, count in enumerate(result.places))
        lines.append(f"Chosen by place on the page: {chosen}.")
    if study.repeats:
        lines.append(
            f"Same choice when a picture came again: {again.won} of {again.of}, {percent(again)}; "
            f"guessing gives {100 * result.guessing:.0f} %."
        )
    method = (
        "over people (bootstrap); they speak of other people and the same pictures."
        if result.people > 1
        else "over answers (Wilson), as only one person answered; they say nothing of other people."
    )
    few = " With fewer than ten people they are too narrow." if 1 < result.people < 10 else ""
    lines.append(f"Intervals hold 95 % {method}{few}")
    lines.append(
        "Strength: Luce's choice model (Bradley-Terry for two methods), half a vote added for every method, mean 0; "
        "a difference of d is odds of exp(d)."
    )
    return lines + _without_interval(result)


def _without_interval(result: StudyResult) -> list[str]:
    """Which strengths are not what the votes alone say, or cannot be given an interval."""
    found = {name: one for name, one in result.methods.items() if one.strength.value is not None}
    never = [name for name, one in found.items() if one.votes.won == 0]
    always = [name for name, one in found.items() if one.votes.won == one.votes.of > 0]
    unsure = [name for name, one in found.items() if one.strength.low is None and name not in (*never, *always)]
    lines = [
        f"{when} chosen: {', '.join(names)} (the strength comes from the half vote alone, so it has no interval)."
        for when, names in (("Never", never), ("Always", always))
        if names
    ]
    if unsure and result.people > 1:
        lines.append(f"Too few or too equal votes for an interval of the strength of {', '.join(unsure)}.")
    return lines


def to_table(result: StudyResult) -> Group:
    """For the terminal."""
    return Group(*(_table(*table) for table in _tables(result)), *(Text(fact) for fact in facts(result)))


def to_markdown(result: StudyResult) -> str:
    """Tables and a list."""
    parts = [_markdown(head, lines) for head, lines in _tables(result)]
    return "\n\n".join([*parts, "\n".join(f"- {fact}" for fact in facts(result))]) + "\n"


def to_csv(result: StudyResult) -> str:
    """One line for each method and category, figures not rounded; the category of all pictures is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("value", "low", "high")
    writer.writerow(["method", "category", "won", "of", *names, *(f"strength_{name}" for name in names)])
    for method, one in result.methods.items():
        for category, votes in {"": one.votes, **one.categories}.items():
            strength = one.strength if not category else Estimate(value=None, low=None, high=None)
            figures = [getattr(estimate, name) for estimate in (votes, strength) for name in names]
            writer.writerow([method, category, votes.won, votes.of, *figures])
    return text.getvalue()


def _tables(result: StudyResult) -> list[tuple[list[str], list[list[str]]]]:
    return [table for table in (method_rows(result), category_rows(result)) if table[1]]


def _table(head: list[str], lines: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE)
    for index, name in enumerate(head):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *lines)]
    return "\n".join([text[0], "| --- |" + " ---: |" * (len(head) - 1), *text[1:]])
