"""What a study asks: methods, pictures and the questions of each person, drawn from the seed of the study."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CANDIDATES = 6
Reference = Literal["lr", "gt"]


class Study(BaseModel):
    """A question about pictures of several methods; everything that decides what people see.

    Args:
        question: as it is asked.
        methods: labels, never shown to the people asked.
        images: names of the pictures, the same for every method.
        categories: image -> category; empty: none.
        references: shown beside the candidates: ``lr`` (the input), ``gt`` (the original).
        candidates: methods in one question; all of them, or so many drawn at random for each question.
        per_person: pictures that one person is asked about.
        repeats: of these shown a second time, for the consistency of the answers.
        seed: of all orders.
        pictures_sha256: of the pixels of all pictures, so that answers to other pictures are not mixed in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=2)
    images: tuple[str, ...] = Field(min_length=1)
    categories: Mapping[str, str] = Field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    candidates: int = Field(ge=2, le=MOST_CANDIDATES)
    per_person: int = Field(ge=1)
    repeats: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    pictures_sha256: str

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if self.candidates > len(self.methods):
            raise ValueError(f"expected at most {len(self.methods)} candidates, got {self.candidates}; add methods")
        if self.per_person > len(self.images):
            raise ValueError(
                f"expected at most {len(self.images)} pictures per person, got {self.per_person}; lower --per-person"
            )
        if self.repeats and self.repeats >= _first_half(self.per_person):
            raise ValueError(
                f"expected fewer repeats than half of the {self.per_person} pictures of a person, "
                f"got {self.repeats}; lower --repeats"
            )
        return self


@dataclass(frozen=True)
class Question:
    """One picture, restored by several methods.

    Args:
        image: its name.
        shown: the methods, in the order A, B, C ...
        repeat: the person has been asked about this picture before.
    """

    image: str
    shown: tuple[str, ...]
    repeat: bool = False

    @property
    def letters(self) -> str:
        """``ABC`` for three candidates."""
        return string.ascii_uppercase[: len(self.shown)]


def questions_of(study: Study, person: int) -> tuple[Question, ...]:
    """Draw the questions of one person: which pictures, in which order, with which candidate where.

    People take turns through one shuffled list of all pictures, so that every picture is asked about equally often, up
    to one. Of a repeated picture the candidates are the same, in a new order, and at least one other picture lies
    in between.

    Args:
        study: the study.
        person: number of the person, from 0.
    """
    count = study.per_person
    rng = np.random.default_rng([study.seed, 1, person])
    turn = np.random.default_rng([study.seed, 0]).permutation(len(study.images))
    own = turn[(person * count + np.arange(count)) % len(turn)]
    first = [
        Question(study.images[index], tuple(study.methods[i] for i in rng.permutation(len(study.methods))))
        for index in rng.permutation(own)
    ]
    first = [Question(question.image, question.shown[: study.candidates]) for question in first]
    again = [Question(one.image, tuple(rng.permutation(one.shown).tolist()), True) for one in first[: study.repeats]]
    half = _first_half(count)
    late = [*first[half:], *again]
    return (*first[:half], *(late[index] for index in rng.permutation(len(late))))


def _first_half(count: int) -> int:
    return (count + 1) // 2
