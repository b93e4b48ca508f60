"""Studies: the folders they are made of, and what the server sends."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from sr_bench.quality.protocols import Protocol
from sr_bench.quality.result import MethodResult, QualityResult
from sr_bench.record import Provenance, write_json
from sr_bench.study.definition import questions_of
from sr_bench.study.folders import Material, find_folders, gather, read_categories
from sr_bench.study.server import QUESTION, _token, create_app, listen
from sr_bench.study.store import StudyFile, open_study

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
LABELS = ("zebra-net", "quokka-net", "walrus-net")
NAMES = ("portrait-of-anna", "town/hall")


def pictures(folder: Path, names: tuple[str, ...] = NAMES, size: tuple[int, int] = (16, 12), level: int = 0) -> Path:
    """Pictures of one level each, with the label in every kind of metadata."""
    for index, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        info.add_text("Software", folder.name)
        pixels = np.full((size[1], size[0], 3), level + 10 * index, np.uint8)
        exif = Image.Exif()
        exif[0x010E] = folder.name
        Image.fromarray(pixels).save(path, pnginfo=info, exif=exif)
    return folder


@pytest.fixture
def material(tmp_path: Path) -> Material:
    for index, label in enumerate(LABELS):
        pictures(tmp_path / label, level=40 * index)
    (tmp_path / "c.csv").write_text("image,category\nportrait-of-anna,wombat-faces\ntown/hall,wombat-houses\n")
    folders = find_folders(
        [str(tmp_path / label) for label in LABELS],
        pictures(tmp_path / "small", size=(4, 3), level=200),
        pictures(tmp_path / "large", level=220),
    )
    return gather(folders, categories=tmp_path / "c.csv")


@pytest.fixture
def file(material: Material, tmp_path: Path) -> StudyFile:
    return open_study(tmp_path / "answers.sqlite", material.study, PROVENANCE)


@pytest.fixture
def browser(material: Material, file: StudyFile) -> Callable[[], TestClient]:
    app = create_app(material, file)
    return lambda: TestClient(app)


def level(client: TestClient, token: str) -> int:
    return int(np.asarray(Image.open(io.BytesIO(client.get(f"picture/{token}").content)))[0, 0, 0])


def chosen(current: dict[str, Any], letter: str | None, seconds: float = 1) -> dict[str, Any]:
    """The answer to what is on the page."""
    question = current["question"]
    tokens = {None: question["token"], **{entry["name"]: entry["token"] for entry in question["candidates"]}}
    return {"position": current["position"], "token": tokens[letter], "seconds": seconds}


def test_folders_become_a_study(material: Material) -> None:
    study = material.study
    assert (study.methods, study.images, study.references) == (LABELS, NAMES, ("lr", "gt"))
    assert study.categories == {"portrait-of-anna": "wombat-faces", "town/hall": "wombat-houses"}
    assert (study.candidates, study.per_person, study.repeats) == (3, 2, 0)
    assert "like the original, true to the input" in study.question


def test_other_pixels_are_another_study(tmp_path: Path) -> None:
    folders = find_folders([f"a={pictures(tmp_path / 'a')}", f"b={pictures(tmp_path / 'b', level=9)}"])
    before = gather(folders).study
    assert before.methods == ("a", "b")
    assert gather(folders).study == before
    pictures(tmp_path / "b", level=10)
    assert gather(folders).study.pictures_sha256 != before.pictures_sha256


def test_names_that_differ_are_listed(tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "one", ("a", "b", "c")), pictures(tmp_path / "other", ("a", "c", "d"))
    with pytest.raises(ValueError, match=r"other lacks b; one lacks d of other"):
        gather(find_folders([str(one), str(other)]))
    same = pictures(tmp_path / "same", ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"gt lacks b"):
        gather(find_folders([str(one), str(same)], gt=other))


def test_sizes_that_differ_are_listed(tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "one"), pictures(tmp_path / "other", size=(16, 13))
    with pytest.raises(ValueError, match=r"portrait-of-anna\.png is 16x13, not 16x12.*hall\.png is 16x13"):
        gather(find_folders([str(one), str(other)]))
    same = pictures(tmp_path / "same")
    with pytest.raises(ValueError, match="is 4x4, not 16x12"):
        gather(find_folders([str(one), str(same)], lr=pictures(tmp_path / "lr", size=(4, 4))))
    with pytest.raises(ValueError, match="is 4x3, not 16x12"):
        gather(find_folders([str(one), str(same)], gt=pictures(tmp_path / "gt", size=(4, 3))))


def test_labels_must_differ(tmp_path: Path) -> None:
    one = str(pictures(tmp_path / "x" / "one"))
    with pytest.raises(ValueError, match="got one twice; write LABEL=DIR"):
        find_folders([one, one])
    with pytest.raises(ValueError, match="at least two methods"):
        find_folders([one])
    assert list(find_folders([one, f"again={one}"]).methods) == ["one", "again"]


def test_a_result_of_quality_stands_for_its_methods(tmp_path: Path) -> None:
    methods = {label: MethodResult(source="any", pictures=f"pictures/{label}", values={}) for label in LABELS[:2]}
    result = QualityResult(
        protocol=Protocol(name="any", version=1, source="any", about="any", metrics=()),
        images=NAMES,
        lr="../lr",
        methods=methods | {"not-kept": MethodResult(source="any", values={})},
        provenance=PROVENANCE,
    )
    write_json(tmp_path / "result" / "result.json", result)
    found = find_folders([str(tmp_path / "result"), f"more={tmp_path}"])
    assert list(found.methods) == [*LABELS[:2], "more"]
    assert found.methods[LABELS[0]] == tmp_path / "result" / "pictures" / LABELS[0]
    assert found.references == {"lr": tmp_path / "result" / ".." / "lr"}
    assert find_folders([str(tmp_path / "result")], lr=tmp_path).references == {"lr": tmp_path}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nx,one\n", "header image,category"),
        ("image,category\nx,one\n", "no category for y"),
        ("image,category\nx,one\ny,two\nz,two\n", "no image for z"),
        ("image,category\nx,one\ny,two\ny.png,two\n", "twice"),
        ("image,category\nx,one\ny,\n", "add what is missing"),
    ],
)
def test_categories_must_be_complete(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_categories(tmp_path / "c.csv", ["x", "y"])


def test_categories_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("\ufeffimage,category\ny.png,two\n\nx.1, one \n", encoding="utf-8")
    assert read_categories(tmp_path / "c.csv", ["x.1", "y"]) == {"x.1": "one", "y": "two"}


def test_nothing_that_is_served_names_a_method_or_picture(
    browser: Callable[[], TestClient], material: Material
) -> None:
    client, seen = browser(), []

    def keep(response: Any) -> Any:
        seen.append(repr(response.headers).encode() + str(response.url).encode() + response.content)
        return response

    keep(client.get("/"))
    keep(client.get("/state"))
    current = keep(client.post("/start", json={})).json()
    while current["question"]:
        entries = (*current["question"]["references"], *current["question"]["candidates"])
        for token in [entry["token"] for entry in entries] + current["next"]:
            picture = keep(client.get(f"picture/{token}"))
            assert picture.status_code == 200
            assert "etag" not in picture.headers
            assert "last-modified" not in picture.headers
            image = Image.open(io.BytesIO(picture.content))
            image.load()
            assert (image.format, image.info, dict(image.getexif())) == ("PNG", {}, {})
        current = keep(client.post("/answer", json=chosen(current, "A")))
        current = current.json()
    for path in ("docs", "openapi.json", "picture/zzz", "none"):
        keep(client.get(path))
    keep(client.post("/answer", json={"position": "x"}))
    everything = b"\n".join(seen).lower()
    parts = [*LABELS, *material.study.categories.values(), "portrait", "anna", "hall", "sha256", "-net", ".png"]
    assert [word for word in parts if word.encode() in everything] == []


def test_letters_show_and_store_the_right_methods(browser: Callable[[], TestClient], file: StudyFile) -> None:
    client = browser()
    current = client.post("/start", json={}).json()
    questions = questions_of(file.study, 0)
    for position, letter in enumerate("BC"):
        question = questions[position]
        of_image = 10 * NAMES.index(question.image)
        candidates = current["question"]["candidates"]
        assert [entry["name"] for entry in candidates] == ["A", "B", "C"]
        assert [level(client, entry["token"]) for entry in candidates] == [
            40 * LABELS.index(method) + of_image for method in question.shown
        ]
        references = [level(client, entry["token"]) for entry in current["question"]["references"]]
        assert references == [200 + of_image, 220 + of_image]
        current = client.post("/answer", json=chosen(current, letter, 2.5)).json()
    assert current == {"position": 2, "total": 2, "question": None, "next": [], "undo": current["undo"]}
    stored = [(answer.image, answer.choice, answer.seconds) for answer in file.answers()]
    assert stored == [
        (questions[0].image, questions[0].shown[1], 2.5),
        (questions[1].image, questions[1].shown[2], 2.5),
    ]


def test_a_person_goes_on_undoes_and_cannot_decide(browser: Callable[[], TestClient], file: StudyFile) -> None:
    client = browser()
    assert client.get("/state").json() is None
    assert "set-cookie" not in client.get("/").headers  # nothing is kept before the start
    started = client.post("/start", json={})
    cookie = started.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    first = started.json()
    second = client.post("/answer", json=chosen(first, None)).json()
    assert [answer.choice for answer in file.answers()] == [None]
    twice = client.post("/answer", json=chosen(first, "A")).json()
    assert twice == second == client.get("/state").json() == client.post("/start", json={}).json()
    assert second["position"] == 1
    assert second["question"] != first["question"]
    assert first["next"] == [e["token"] for kind in ("references", "candidates") for e in second["question"][kind]]
    assert (first["undo"], second["undo"]) == (None, first["question"]["token"])
    undo = {"position": 0, "token": second["undo"]}
    assert client.post("/undo", json=undo).json() == first
    assert client.post("/undo", json=undo).json() == first
    assert file.answers() == []


def test_people_are_strangers_to_each_other(browser: Callable[[], TestClient]) -> None:
    one, other, nobody = browser(), browser(), browser()
    first = one.post("/start", json={}).json()
    tokens = [entry["token"] for entry in other.post("/start", json={}).json()["question"]["candidates"]]
    token = first["question"]["candidates"][0]["token"]
    assert token not in tokens
    assert one.get(f"picture/{token}").status_code == 200
    assert other.get(f"picture/{token}").status_code == 404
    assert nobody.get(f"picture/{token}").status_code == 401
    assert nobody.post("/answer", json=chosen(first, "A")).status_code == 401
    assert nobody.post("/undo", json={"position": 0, "token": token}).status_code == 401


def test_nobody_answers_for_another_or_about_what_was_not_asked(
    browser: Callable[[], TestClient], file: StudyFile
) -> None:
    one, other = browser(), browser()
    first, second = (client.post("/start", json={}).json() for client in (one, other))
    reference = first["question"]["references"][0]["token"]
    strange = [
        (other, chosen(first, "A")),
        (other, chosen(first, None)),
        (one, chosen(first, "A") | {"token": reference}),
        (one, chosen(first, "A") | {"position": 1}),
        (one, chosen(first, "A") | {"position": 2}),
    ]
    assert [client.post("/answer", json=body).status_code for client, body in strange] == [409] * 5
    assert file.answers() == []
    assert other.post("/answer", json=chosen(second, "B")).status_code == 200
    undo = {"position": 0, "token": first["question"]["token"]}
    assert other.post("/undo", json=undo).status_code == 409
    assert len(file.answers()) == 1


def test_a_form_of_another_site_cannot_make_a_browser_somebody_else(browser: Callable[[], TestClient]) -> None:
    client = browser()
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"):
        response = client.post("/start", content="{}", headers={"Content-Type": kind})
        assert (response.status_code, "set-cookie" in response.headers) == (422, False)
    assert client.post("/start").status_code == 422
    assert client.get("/state").json() is None


TOKEN = "0" * 32


@pytest.mark.parametrize(
    "body",
    [
        '{"position": 0, "token": "zebra-net", "seconds": 1}',
        '{"position": 0, "token": null, "seconds": 1}',
        f'{{"position": 0, "token": "{TOKEN}", "seconds": -1}}',
        f'{{"position": 0, "token": "{TOKEN}", "seconds": NaN}}',
        f'{{"position": 0, "token": "{TOKEN}", "seconds": 1e400}}',
        f'{{"position": -1, "token": "{TOKEN}", "seconds": 1}}',
        f'{{"position": {10**30}, "token": "{TOKEN}", "seconds": 1}}',
        f'{{"position": 0, "token": "{TOKEN}", "seconds": 1, "more": 1}}',
    ],
)
def test_answers_that_cannot_be_are_refused(browser: Callable[[], TestClient], file: StudyFile, body: str) -> None:
    client = browser()
    client.post("/start", json={})
    response = client.post("/answer", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.content) == (422, b"")
    assert file.answers() == []


def test_a_position_too_large_for_the_file_is_refused(browser: Callable[[], TestClient], file: StudyFile) -> None:
    client = browser()
    client.post("/start", json={})
    (person,) = (file.person(value) for value in client.cookies.values())
    assert person is not None
    own = {"position": 10**30, "token": _token(person, 10**30, QUESTION)}
    assert client.post("/undo", json=own).status_code == 422


def test_the_page_asks_nobody_else_and_shows_the_question_as_text(tmp_path: Path) -> None:
    folders = find_folders([str(pictures(tmp_path / "a")), str(pictures(tmp_path / "b"))])
    material = gather(folders, question="<i>Which</i>?")
    client = TestClient(create_app(material, open_study(tmp_path / "x.sqlite", material.study, PROVENANCE)))
    page = client.get("/")
    assert "&lt;i&gt;Which&lt;/i&gt;?" in page.text
    assert "<i>" not in page.text
    assert "://" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'; img-src 'self'")
    assert "2 different" in page.text
    assert "original" not in page.text.split("<script")[0]
    assert json.dumps(client.post("/start", json={}).json()["question"]["references"]) == "[]"


def test_an_address_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=f"got 127.0.0.1 port {port}: .* name another --port"):
            listen("127.0.0.1", port)
