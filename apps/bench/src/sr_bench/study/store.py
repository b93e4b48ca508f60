"""The SQLite file of a study: the study itself, who took part, and every answer."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sr_bench.record import Provenance
from sr_bench.study.definition import Question, Study

APPLICATION = 0x53525354  # "SRST", tells this file from other SQLite files
VERSION = 1
SCHEMA = """
CREATE TABLE study (
    id INTEGER PRIMARY KEY CHECK (id = 1), definition TEXT NOT NULL, provenance TEXT NOT NULL
) STRICT;
CREATE TABLE people (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, started TEXT NOT NULL) STRICT;
CREATE TABLE answers (
    person INTEGER NOT NULL REFERENCES people (number), position INTEGER NOT NULL, image TEXT NOT NULL,
    repeat INTEGER NOT NULL, shown TEXT NOT NULL, choice TEXT, seconds REAL NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (person, position)
) STRICT;
"""


@dataclass(frozen=True)
class Person:
    """Somebody who takes part: a number from 0 and a random id, nothing else."""

    number: int
    id: str


@dataclass(frozen=True)
class Answer:
    """What a person said.

    Args:
        person: number.
        position: of the question among those of the person, from 0.
        image: name.
        repeat: the second answer of this person to this picture.
        shown: methods in the order A, B, C ...
        choice: the method; None: could not decide.
        seconds: from the pictures on the screen to the answer, as the browser measured it.
        at: UTC.
    """

    person: int
    position: int
    image: str
    repeat: bool
    shown: tuple[str, ...]
    choice: str | None
    seconds: float
    at: str


class StudyFile:
    """An open study; every call is a transaction of its own, so that threads and processes can share the file.

    Args:
        path: of the file, as :func:`open_study` or :func:`read_study` checked it.
        study: that is stored in it.
        provenance: of the first time it was served.
    """

    def __init__(self, path: Path, study: Study, provenance: Provenance) -> None:
        self.path = path
        self.study = study
        self.provenance = provenance

    def new_person(self) -> Person:
        """Let somebody take part."""
        key = secrets.token_urlsafe(16)
        with _connected(self.path) as file:
            file.execute(
                "INSERT INTO people SELECT COALESCE(MAX(number) + 1, 0), ?, ? FROM people", (key, _now())
            )  # one statement: no two get one number
            (number,) = file.execute("SELECT number FROM people WHERE id = ?", (key,)).fetchone()
        return Person(number, key)

    def person(self, key: str) -> Person | None:
        """Who has this id."""
        with _connected(self.path) as file:
            found = file.execute("SELECT number FROM people WHERE id = ?", (key,)).fetchone()
        return Person(found[0], key) if found else None

    def answered(self, person: Person) -> int:
        """How many questions the person has answered, which is the position of the next."""
        with _connected(self.path) as file:
            (count,) = file.execute("SELECT COUNT(*) FROM answers WHERE person = ?", (person.number,)).fetchone()
        return int(count)

    def add(self, person: Person, position: int, question: Question, choice: str | None, seconds: float) -> bool:
        """Store an answer to the next question; False where ``position`` is another, as after a double click."""
        row = (person.number, position, question.image, question.repeat, json.dumps(question.shown), choice, seconds)
        with _connected(self.path) as file:
            done = file.execute(
                "INSERT INTO answers SELECT ?, ?, ?, ?, ?, ?, ?, ? "
                "WHERE ? = (SELECT COUNT(*) FROM answers WHERE person = ?)",
                (*row, _now(), position, person.number),
            )
        return done.rowcount == 1

    def undo(self, person: Person, position: int) -> bool:
        """Forget the last answer; False where it is not the one at ``position``."""
        with _connected(self.path) as file:
            done = file.execute(
                "DELETE FROM answers WHERE person = ? AND position = ? "
                "AND position = (SELECT MAX(position) FROM answers WHERE person = ?)",
                (person.number, position, person.number),
            )
        return done.rowcount == 1

    def answers(self) -> list[Answer]:
        """All answers, by person and position."""
        with _connected(self.path) as file:
            rows = file.execute("SELECT * FROM answers ORDER BY person, position").fetchall()
        return [
            Answer(person, position, image, bool(repeat), tuple(json.loads(shown)), choice, seconds, at)
            for person, position, image, repeat, shown, choice, seconds, at in rows
        ]


def open_study(path: Path, study: Study, provenance: Provenance) -> StudyFile:
    """Continue the study of a file, or begin it where there is none.

    Raises:
        ValueError: the file is of another study, or of something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _connected(path, create=True) as file:
        if _is_empty(file):
            _begin(file, study, provenance)
    found = read_study(path)
    if found.study != study:
        changed = [name for name in Study.model_fields if getattr(found.study, name) != getattr(study, name)]
        names = ", ".join("pixels" if name == "pictures_sha256" else name.replace("_", " ") for name in changed)
        raise ValueError(f"expected the study that {path} was begun with, got other {names}; name another --answers")
    return found


def read_study(path: Path) -> StudyFile:
    """Open the file of a study that has begun.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind or version of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected the file of a study, got {path}: no such file; make it with sr-bench study")
    with _connected(path) as file:
        kind = file.execute("PRAGMA application_id").fetchone()[0]
        version = file.execute("PRAGMA user_version").fetchone()[0]
        if kind != APPLICATION:
            raise ValueError(f"expected the file of a study, got {path}: another kind of file; name another")
        if version != VERSION:
            raise ValueError(f"expected version {VERSION} of the file, got {version} in {path}; use that sr-bench")
        definition, provenance = file.execute("SELECT definition, provenance FROM study").fetchone()
    return StudyFile(path, Study.model_validate_json(definition), Provenance.model_validate_json(provenance))


def _begin(file: sqlite3.Connection, study: Study, provenance: Provenance) -> None:
    """Write tables and study in one transaction: whoever opens the file sees all of it or nothing."""
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("BEGIN IMMEDIATE")
    if _is_empty(file):  # nobody else has begun in the meantime
        for statement in SCHEMA.split(";\n"):
            file.execute(statement)
        stored = (study.model_dump_json(), provenance.model_dump_json())
        file.execute("INSERT INTO study VALUES (1, ?, ?)", stored)
        file.execute(f"PRAGMA application_id = {APPLICATION}")
        file.execute(f"PRAGMA user_version = {VERSION}")
    file.execute("COMMIT")


def _is_empty(file: sqlite3.Connection) -> bool:
    return bool(file.execute("SELECT COUNT(*) = 0 FROM sqlite_master").fetchone()[0])


@contextmanager
def _connected(path: Path, create: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection in which every statement outside BEGIN ... COMMIT is a transaction."""
    address = f"{path.resolve().as_uri()}?mode={'rwc' if create else 'rw'}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=30, isolation_level=None)) as file:
            yield file
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"expected the file of a study, got {path}: {error}; name another or check the disk"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
