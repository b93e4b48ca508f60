"""The page of a study and what it asks the server for.

Nothing that leaves here names a method or a picture: candidates are letters, and the token of a picture is derived
from the person's id, the position of the question and the letter alone. An answer names the token of what was on the
page, so that it cannot count for another person or picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import secrets
import signal
import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, PackageLoader
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from sr_bench.study.definition import Question, questions_of
from sr_bench.study.folders import Files, Material
from sr_bench.study.store import Person, StudyFile
from sr_data.images import read_image

YEAR = 365 * 24 * 3600
REFERENCE_TITLES = {"lr": "Low resolution input", "gt": "Original"}
QUESTION = "question"  # beside "lr", "gt" and the letters: what has a token
Token = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Start(BaseModel):
    """Nothing, but as JSON: a form of another site cannot send that, and so cannot replace the cookie."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Asked(BaseModel):
    """Which question the page means; alone: take its answer back.

    Args:
        position: of the question, far below the largest number of SQLite.
        token: of the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int = Field(ge=0, le=1_000_000)
    token: Token


class GivenAnswer(Asked):
    """An answer, as the page sends it.

    Args:
        position: of the question that was on the page.
        token: of the chosen picture; of the question: cannot decide.
        seconds: since its pictures were on the screen.
    """

    seconds: float = Field(ge=0, le=1e6)


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
        found["undo"] = _token(person, position - 1, QUESTION) if position else None
        if position < len(questions):
            found["question"] = _shown(person, position, questions[position], study.references)
        if position + 1 < len(questions):
            following = _shown(person, position + 1, questions[position + 1], study.references)
            found["next"] = [one["token"] for one in (*following["references"], *following["candidates"])]
        return found

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> Response:
        return Response(status_code=422)  # the usual reply repeats the input, and JSON cannot hold all of it

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
    def start(_: Start, request: Request, response: Response) -> dict[str, Any]:
        one = file.person(request.cookies.get(cookie, "")) or file.new_person()
        response.set_cookie(cookie, one.id, max_age=YEAR, httponly=True, samesite="strict")
        return state(one)

    @app.post("/answer")
    def answer(given: GivenAnswer, request: Request) -> dict[str, Any]:
        one = known(request)
        questions = questions_of(study, one.number)
        choices = _choices(one, given.position, questions[given.position]) if given.position < len(questions) else {}
        if given.token not in choices:
            raise HTTPException(409, "not shown to this person")
        file.add(one, given.position, questions[given.position], choices[given.token], given.seconds)
        return state(one)

    @app.post("/undo")
    def undo(given: Asked, request: Request) -> dict[str, Any]:
        one = known(request)
        if given.token != _token(one, given.position, QUESTION):
            raise HTTPException(409, "not shown to this person")
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
    """Serve the study until Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server raises again what ended it
    try:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a study ends; the answers are on disk
            config = uvicorn.Config(create_app(material, file), log_level="warning", server_header=False)
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _shown(person: Person, position: int, question: Question, references: tuple[Any, ...]) -> dict[str, Any]:
    def entry(place: str, title: str) -> dict[str, str]:
        return {"name": title, "token": _token(person, position, place)}

    return {
        "token": _token(person, position, QUESTION),
        "references": [entry(name, REFERENCE_TITLES[name]) for name in references],
        "candidates": [entry(letter, letter) for letter in question.letters],
    }


def _choices(person: Person, position: int, question: Question) -> dict[str, str | None]:
    """Token -> method; of the question itself: None, cannot decide."""
    methods = dict(zip(question.letters, question.shown, strict=True))
    return {_token(person, position, place): method for place, method in ({QUESTION: None} | methods).items()}


def _token(person: Person, position: int, place: str) -> str:
    return hmac.new(person.id.encode(), f"{position} {place}".encode(), hashlib.sha256).hexdigest()[:32]


@lru_cache(maxsize=64)
def _png(path: Path) -> bytes:
    """The pixels alone: no metadata, no name, one codec with one setting for all methods."""
    content = io.BytesIO()
    Image.fromarray(read_image(path)).save(content, "PNG", compress_level=3)
    return content.getvalue()
