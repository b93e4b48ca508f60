"""The page of a study and what it asks the server for.

Nothing that leaves here names a method or a picture: candidates are letters, and the address of a picture is derived
from the person's id, the position of the question and the letter alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import secrets
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from jinja2 import Environment, PackageLoader
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from sr_bench.study.definition import Question, questions_of
from sr_bench.study.folders import Files, Material
from sr_bench.study.store import Person, StudyFile
from sr_data.images import read_image

YEAR = 365 * 24 * 3600
REFERENCE_TITLES = {"lr": "Low resolution input", "gt": "Original"}


class GivenAnswer(BaseModel):
    """An answer, as the page sends it.

    Args:
        position: of the question that was on the page.
        choice: letter; None: cannot decide.
        seconds: since its pictures were on the screen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int = Field(ge=0)
    choice: str | None = Field(pattern="^[A-F]$")
    seconds: float = Field(ge=0, le=1e6)


class Position(BaseModel):
    """Which answer to take back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int = Field(ge=0)


def create_app(material: Material, file: StudyFile) -> FastAPI:
    """Make the server of a study.

    Args:
        material: study and pictures.
        file: where answers go.
    """
    study = material.study
    app = FastAPI(openapi_url=None)  # no description of the interface: the page is all there is to see
    environment = Environment(loader=PackageLoader("sr_bench.study", "."), autoescape=True)
    template = environment.get_template("page.html.j2")

    # Browsers do not tell ports apart: another study on this machine needs a cookie of another name.
    cookie = f"person-{hashlib.sha256(study.model_dump_json().encode()).hexdigest()[:8]}"

    def known(request: Request) -> Person:
        person = file.person(request.cookies.get(cookie, ""))
        if person is None:
            raise HTTPException(401, "not started")
        return person

    def state(person: Person) -> dict[str, Any]:
        questions = questions_of(study, person.number)
        position = file.answered(person)
        found: dict[str, Any] = {"position": position, "total": len(questions), "question": None, "next": []}
        if position < len(questions):
            found["question"] = _addresses(person, position, questions[position], study.references)
        if position + 1 < len(questions):
            following = _addresses(person, position + 1, questions[position + 1], study.references)
            found["next"] = [one["address"] for one in (*following["references"], *following["candidates"])]
        return found

    @app.get("/")
    def page() -> Response:
        beside = [REFERENCE_TITLES[name] for name in study.references]
        nonce = secrets.token_urlsafe(16)
        text = template.render(study=study, nonce=nonce, total=study.per_person + study.repeats, beside=beside)
        policy = "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        policy += f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; frame-ancestors 'none'"
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return Response(text, media_type="text/html", headers=headers)

    @app.get("/state")
    def current(request: Request, response: Response) -> dict[str, Any] | None:
        response.headers["Cache-Control"] = "no-store"
        person = file.person(request.cookies.get(cookie, ""))
        return state(person) if person is not None else None

    @app.post("/start")
    def start(request: Request, response: Response) -> dict[str, Any]:
        one = file.person(request.cookies.get(cookie, "")) or file.new_person()
        response.set_cookie(cookie, one.id, max_age=YEAR, httponly=True, samesite="strict")
        return state(one)

    @app.post("/answer")
    def answer(given: GivenAnswer, request: Request) -> dict[str, Any]:
        one = known(request)
        questions = questions_of(study, one.number)
        if given.position < len(questions):
            question = questions[given.position]
            if given.choice is not None and given.choice not in question.letters:
                raise HTTPException(422, f"expected one of {question.letters}")
            method = None if given.choice is None else question.shown[question.letters.index(given.choice)]
            file.add(one, given.position, question, method, given.seconds)
        return state(one)

    @app.post("/undo")
    def undo(given: Position, request: Request) -> dict[str, Any]:
        one = known(request)
        file.undo(one, given.position)
        return state(one)

    @app.get("/picture/{token}")
    def picture(token: str, request: Request) -> Response:
        one = known(request)
        questions = questions_of(study, one.number)
        for position, question in enumerate(questions[: file.answered(one) + 2]):
            places: dict[str, Files] = {name: material.references[name] for name in study.references}
            places |= {letter: material.methods[m] for letter, m in zip(question.letters, question.shown, strict=True)}
            for place, files in places.items():
                if hmac.compare_digest(_token(one, position, place).encode(), token.encode()):
                    headers = {"Cache-Control": "private, max-age=3600"}
                    return Response(_png(files[question.image]), media_type="image/png", headers=headers)
        raise HTTPException(404, "no such picture")

    return app


def serve(material: Material, file: StudyFile, listening: socket.socket) -> None:
    """Serve the study until Ctrl-C."""
    config = uvicorn.Config(create_app(material, file), log_level="warning", server_header=False)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a study ends; the answers are on disk
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Take the address that the study is served under.

    Raises:
        ValueError: it is not free, or not of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"expected a free address, got {host} port {port}: {error.strerror}; name another --port or --host"
        ) from error


def _addresses(person: Person, position: int, question: Question, references: tuple[Any, ...]) -> dict[str, Any]:
    def entry(place: str, title: str) -> dict[str, str]:
        return {"name": title, "address": f"picture/{_token(person, position, place)}"}

    return {
        "references": [entry(name, REFERENCE_TITLES[name]) for name in references],
        "candidates": [entry(letter, letter) for letter in question.letters],
    }


def _token(person: Person, position: int, place: str) -> str:
    return hmac.new(person.id.encode(), f"{position} {place}".encode(), hashlib.sha256).hexdigest()[:32]


@lru_cache(maxsize=64)
def _png(path: Path) -> bytes:
    """The pixels alone: no metadata, no name, one codec with one setting for all methods."""
    content = io.BytesIO()
    Image.fromarray(read_image(path)).save(content, "PNG", compress_level=3)
    return content.getvalue()
