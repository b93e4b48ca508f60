"""``sr-bench compare``: the command, and its page in a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_bench.compare.page import Options, write_page
from sr_bench.quality.protocols import Protocol
from sr_bench.quality.result import MethodResult, QualityResult
from sr_bench.record import provenance, write_json
from sr_data.images import write_image

PROTOCOL = Protocol(
    name="osediff-crops512", version=1, source="here", about="Pictures.", metrics=("psnr", "ssim", "lpips", "niqe")
)
IMAGES = tuple(f"deep/i{index}" for index in range(6))
HOSTILE = "<b>bold</b></script>"
NEEDS = "not available: needs weights.pth"
MEANS = {"plain": (24.0, 0.70, 0.40), "sharp": (22.0, 0.60, 0.10), HOSTILE: (23.0, 0.75, 0.20)}
"""PSNR, SSIM and LPIPS of each method."""
SIZE = (160, 128)  # width, height


def make_results(folder: Path) -> tuple[Path, Path]:
    """Two results: three methods with pictures, one without; the fourth has no LPIPS, none has NIQE."""
    rng = np.random.default_rng(0)
    spread = np.array([-0.05, -0.03, -0.01, 0.01, 0.03, 0.05])
    for name in IMAGES:
        lr = rng.integers(0, 256, (SIZE[1] // 4, SIZE[0] // 4, 3), dtype=np.uint8)
        write_image(folder / "lr" / f"{name}.png", lr)
        for place, how in (
            ("gt", "BICUBIC"),
            ("one/plain", "NEAREST"),
            ("one/sharp", "BILINEAR"),
            ("two/x", "LANCZOS"),
        ):
            large = np.asarray(Image.fromarray(lr).resize(SIZE, Image.Resampling[how]))
            write_image(folder / place / f"{name}.png", large)

    def measured(label: str, pictures: str | None) -> MethodResult:
        values = {key: tuple(mean + spread) for key, mean in zip(("psnr", "ssim", "lpips"), MEANS[label], strict=True)}
        return MethodResult(source=label, pictures=pictures, values=values, missing={"niqe": NEEDS})

    bare = MethodResult(source="x", values={"psnr": (20.0,) * 6, "ssim": (0.5,) * 6}, missing={"lpips": NEEDS})
    parts = {
        "one": {"plain": measured("plain", "plain"), "sharp": measured("sharp", "sharp")},
        "two": {HOSTILE: measured(HOSTILE, "x"), "bare": bare},
    }
    for name, methods in parts.items():
        made = QualityResult(
            protocol=PROTOCOL, images=IMAGES, lr="../lr", gt="../gt", methods=methods, provenance=provenance("sr-bench")
        )
        write_json(folder / name / "result.json", made)
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_results(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def report(results: tuple[Path, Path]) -> Path:
    out = results[0].parent / "report.html"
    write_page(results, out, Options(images=3, paper="rsd-3", dataset="RealSR"))
    return out


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The page at desktop width; whatever it complains about or asks for outside itself fails the test."""
    yield from opened(chromium, report, viewport={"width": 1280, "height": 900})


@pytest.fixture
def phone(chromium: Any, report: Path) -> Iterator[Any]:
    yield from opened(chromium, report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)


def opened(chromium: Any, report: Path, **context: Any) -> Iterator[Any]:
    page = chromium.new_page(**context)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if known(request.url) else problems.append(request.url))

    def known(url: str) -> bool:
        return url.startswith("data:") or url.partition("#")[0] == report.as_uri()

    page.goto(report.as_uri())
    yield page
    page.close()
    assert problems == []


def marks(page: Any) -> dict[str, tuple[float, float]]:
    """Label -> (x, y) of the marks of our own methods."""
    shapes = page.locator("#plot .mark:not(.published)")
    found = {}
    for index in range(shapes.count()):
        shape = shapes.nth(index)
        box = shape.locator("path.shape").bounding_box()
        center = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        found[shape.get_attribute("aria-label").partition(", ")[0]] = center
    return found


def test_the_scatter_has_a_mark_for_every_method_and_better_is_up_and_right(page: Any) -> None:
    assert (page.input_value("#axis-x"), page.input_value("#axis-y")) == ("psnr", "lpips")
    found = marks(page)
    assert set(found) == set(MEANS)  # bare has no LPIPS
    assert "bare" in page.inner_text("#without")
    across = [found[label][0] for label in ("sharp", HOSTILE, "plain")]  # PSNR 22, 23, 24
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=1.5)
    assert across[2] - across[0] > 100
    heights = [found[label][1] for label in ("sharp", HOSTILE, "plain")]  # LPIPS 0.1, 0.2, 0.4: lower is better
    assert heights[2] - heights[1] == pytest.approx(2 * (heights[1] - heights[0]), abs=2)
    assert heights[1] - heights[0] > 30
    assert page.locator("#plot .mark.published").count() == 5
    page.uncheck("#published")
    assert page.locator("#plot .mark.published").count() == 0


def test_the_scatter_follows_the_chosen_metrics(page: Any) -> None:
    before = marks(page)
    page.select_option("#axis-y", "ssim")
    after = marks(page)
    assert set(after) == {*MEANS, "bare"}
    assert page.inner_text("#without") == ""
    order = sorted(after, key=lambda label: after[label][1])
    assert order == [HOSTILE, "plain", "sharp", "bare"]  # SSIM 0.75, 0.7, 0.6, 0.5: higher is better
    assert after["sharp"] != before["sharp"]
    mark = page.locator('#plot .mark[aria-label^="sharp"]')
    mark.focus()
    assert page.inner_text(".tip").splitlines()[:2] == ["sharp", "PSNR 22.00 (21.96 … 22.04)"]
    mark.blur()
    assert page.locator(".tip").is_hidden()


def test_labels_in_the_scatter_do_not_cover_each_other(page: Any) -> None:
    page.select_option("#axis-y", "ssim")
    texts = page.locator("#plot text.label")
    boxes = [texts.nth(index).bounding_box() for index in range(texts.count())]
    assert len(boxes) == 9
    for index, a in enumerate(boxes):
        for b in boxes[:index]:
            across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            assert across < 1 or down < 4


def many(folder: Path, labels: Sequence[str]) -> Path:
    """A page of methods with the same pictures, the figures far apart."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    for place in ("lr", "gt", "sr"):
        write_image(folder / place / "a.png", grey[:16, :16] if place == "lr" else grey)
    methods = {
        label: MethodResult(source="folder", pictures="sr", values={"psnr": (20.0 + index,), "ssim": (0.1 * index,)})
        for index, label in enumerate(labels)
    }
    made = QualityResult(
        protocol=PROTOCOL, images=("a",), lr="lr", gt="gt", methods=methods, provenance=provenance("sr-bench")
    )
    write_json(folder / "result.json", made)
    write_page([folder], folder / "page.html", Options(images=1))
    return folder / "page.html"


def test_long_labels_are_shortened_in_the_scatter_alone(chromium: Any, tmp_path: Path) -> None:
    labels = [
        "a-student-of-the-second-run-with-a-very-long-name-indeed",
        "short",
        "another-name-of-far-too-many-letters",
    ]
    for page in opened(chromium, many(tmp_path, labels), viewport={"width": 390, "height": 844}):
        plot = page.locator("#plot svg").bounding_box()
        texts = page.locator("#plot text.label")
        for index in range(texts.count()):
            box = texts.nth(index).bounding_box()
            assert box["width"] < plot["width"] / 3
            assert plot["x"] + 64 - 2 <= box["x"]  # right of the axis
            assert box["x"] + box["width"] <= plot["x"] + plot["width"]
        shown = set(texts.all_text_contents())
        assert "short" in shown
        assert sum(text.endswith("…") for text in shown) == 2
        assert page.locator("#legend span").all_inner_texts() == labels


def in_sight(strip: Any, kind: str) -> bool:
    outer, inner = strip.bounding_box(), strip.locator(f".cell.{kind}").bounding_box()
    return bool(outer["x"] <= inner["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"])


def test_lr_and_ground_truth_stay_in_sight(chromium: Any, tmp_path: Path) -> None:
    """While there is room for others between them."""
    report = many(tmp_path, [f"method {index}" for index in range(20)])
    for page in opened(chromium, report, viewport={"width": 1280, "height": 900}):
        strip = page.locator(".strip")
        strip.scroll_into_view_if_needed()
        for place in (0, 600, 99999):
            strip.evaluate("(node, place) => node.scrollTo(place, 0)", place)
            assert in_sight(strip, "lr")
            assert in_sight(strip, "gt")
        page.select_option("#size", "512")
        strip.evaluate("node => node.scrollTo(2000, 0)")
        assert not in_sight(strip, "lr")
        assert not in_sight(strip, "gt")


def test_tables_mark_the_best_and_say_what_is_missing(page: Any) -> None:
    rows = page.locator("#means tbody:not(.published) tr")
    assert [rows.nth(i).locator("th").inner_text() for i in range(4)] == ["plain", "sharp", HOSTILE, "bare"]
    best, second = (
        [cell.inner_text() for cell in page.locator(f"#means td .{kind}").all()] for kind in ("best", "second")
    )
    assert best == ["24.00", "0.1000", "0.7500"]  # by rows: PSNR of plain, LPIPS of sharp, SSIM of the third
    assert second == ["0.7000", "23.00", "0.2000"]
    assert rows.nth(3).locator("td.missing").inner_text() == NEEDS
    assert page.locator("#means ul li").all_inner_texts() == [f"NIQE: {NEEDS}"]
    assert "23.96 … 24.04" in rows.nth(0).inner_text()
    published = page.locator("#means tbody.published tr", has_text="ResShift").locator("td")
    assert published.first.inner_text() == "26.31"
    assert page.locator("main b", has_text="bold").count() == 0  # a label is text, not HTML


def test_differences_are_against_the_chosen_method(page: Any) -> None:
    visible = page.locator(".reference:visible")
    assert visible.locator("thead th").first.inner_text() == "minus plain"
    page.select_option("#reference", label="sharp")
    assert visible.count() == 1
    plain = visible.locator("tbody tr", has_text="plain").locator("td")
    assert plain.nth(0).inner_text().splitlines()[0].startswith("+2.00")
    assert plain.nth(2).inner_text().splitlines()[0].startswith("+0.3000")
    assert "6 : 0" in plain.nth(0).inner_text()
    assert "0 : 6" in plain.nth(2).inner_text()  # LPIPS: lower is better


def windows(strip: Any) -> list[tuple[float, ...]]:
    """Size and position of the background of every magnified window, and the window's own size."""
    return [
        tuple(numbers)
        for numbers in strip.evaluate(
            """node => [...node.querySelectorAll(".window")].map(view => {
                const style = getComputedStyle(view);
                return [style.backgroundSize, style.backgroundPosition].flatMap(text => text.split(" ").map(parseFloat))
                    .concat(view.clientWidth, view.clientHeight);
            })"""
        )
    ]


def wanted(place: tuple[float, float], factor: float, box: tuple[float, float]) -> tuple[float, ...]:
    """The background that has a place (0 to 1) of the picture in the middle, without going beyond its border."""
    full = [side * factor for side in SIZE]
    offset = [
        min(0.0, max(inside - whole, inside / 2 - part * whole))
        for part, whole, inside in zip(place, full, box, strict=True)
    ]
    return (*full, *offset, *box)


def first_strip(page: Any) -> Any:
    """The first strip, at the lower end of the view: the controls stick to the upper one."""
    strip = page.locator(".strip").first
    strip.evaluate("node => node.scrollIntoView({block: 'end'})")
    page.wait_for_function("document.querySelector('.window').style.backgroundImage !== ''")
    return strip


def test_the_pointer_moves_the_zoom_of_all_pictures_to_the_same_place(page: Any) -> None:
    strip = first_strip(page)
    captions = strip.locator("figcaption").all_inner_texts()
    assert captions == ["LR", "plain", "sharp", HOSTILE, "ground truth"]
    frame = strip.locator(".frame").nth(2)
    box = frame.bounding_box()
    for factor, place in ((3, (0.5, 0.6)), (8, (0.25, 0.75)), (8, (0.99, 0.01))):
        page.select_option("#zoom", str(factor))
        page.mouse.move(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
        found = windows(strip)
        assert len(found) == 5
        for numbers in found:
            assert numbers == pytest.approx(wanted(place, factor, numbers[4:]), abs=0.02 * factor * SIZE[0] / 8)
        assert len(set(found)) == 1
    same = "node => [...node.querySelectorAll('.cell')].every(cell => getComputedStyle(cell.querySelector('.window'))"
    assert strip.evaluate(same + ".backgroundImage === `url(\"${cell.querySelector('img').src}\")`)")
    assert strip.evaluate("node => new Set([...node.querySelectorAll('img')].map(image => image.src)).size") == 5


def test_a_click_fixes_the_place_and_the_marker_shows_it(page: Any) -> None:
    strip = first_strip(page)
    page.select_option("#zoom", "8")
    box = strip.locator(".frame").nth(1).bounding_box()
    at = (box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.click(*at)
    fixed = windows(strip)
    marker = strip.locator(".marker").nth(1).bounding_box()
    assert marker["x"] + marker["width"] / 2 == pytest.approx(at[0], abs=1)
    assert marker["y"] + marker["height"] / 2 == pytest.approx(at[1], abs=1)
    assert marker["width"] == pytest.approx(box["width"] * fixed[0][4] / (8 * SIZE[0]), abs=1)
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert windows(strip) == fixed
    page.mouse.click(*at)  # on the fixed place: lets go
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert windows(strip) != fixed


def test_a_window_can_be_dragged(page: Any) -> None:
    strip = first_strip(page)
    page.select_option("#zoom", "8")
    before = windows(strip)[0]
    box = strip.locator(".window").nth(3).bounding_box()
    at = (box["x"] + 60, box["y"] + 60)
    page.mouse.move(*at)
    assert windows(strip)[0] == before
    page.mouse.down()
    page.mouse.move(at[0] - 16, at[1] + 24, steps=4)
    page.mouse.up()
    after = windows(strip)
    assert (after[0][2] - before[2], after[0][3] - before[3]) == pytest.approx((-16, 24), abs=0.1)
    assert len(set(after)) == 1


def test_arrow_keys_move_the_zoom_of_the_strip_in_focus(page: Any) -> None:
    strip = first_strip(page)
    page.select_option("#zoom", "8")
    box = strip.locator(".frame").nth(1).bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    strip.focus()
    for keys, moved in (("Shift+ArrowRight", (-8, 0)), ("Shift+ArrowUp", (0, 8)), ("ArrowDown", (0, -32))):
        before = windows(strip)[0]
        page.keyboard.press(keys)
        after = windows(strip)[0]
        assert (after[2] - before[2], after[3] - before[3]) == pytest.approx(moved, abs=0.1)
    assert len(set(windows(strip))) == 1
    page.keyboard.press("+")
    assert windows(strip)[0][0] == 12 * SIZE[0]
    other = page.locator(".strip").nth(1)
    other.scroll_into_view_if_needed()
    kept = windows(other)
    strip.focus()
    page.keyboard.press("ArrowDown")
    assert windows(other) == kept
    page.keyboard.press("Escape")
    first_strip(page)
    box = strip.locator(".frame").nth(1).bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert windows(strip)[0][2:4] == (0, 0)


def test_values_below_the_pictures_can_be_chosen(page: Any) -> None:
    strip = first_strip(page)
    shown = strip.locator("dl div:visible")
    before = shown.count()
    page.click("details.values summary")
    page.uncheck('input[data-metric="ssim"]')
    assert before - shown.count() == 3
    best = strip.locator("dl .best").all_inner_texts()
    assert len(best) == 3


def test_the_page_fits_a_phone_and_its_controls_a_finger(phone: Any) -> None:
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    controls = phone.locator("nav a, .controls label, summary, select")
    heights = [control.bounding_box()["height"] for control in controls.all() if control.is_visible()]
    assert len(heights) > 10
    assert min(heights) >= 40
    strip = first_strip(phone)
    assert strip.evaluate("node => node.scrollWidth > node.clientWidth")  # it scrolls inside its own box
    phone.select_option("#zoom", "8")
    box = strip.locator(".frame").nth(1).bounding_box()
    phone.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"])
    found = windows(strip)
    assert found[0] == pytest.approx(wanted((0.5, 0.6), 8, found[0][4:]), abs=8)
    assert len(set(found)) == 1


def test_dark_mode_turns_paper_and_ink(chromium: Any, report: Path) -> None:
    def lightness(page: Any, name: str) -> int:
        color = page.evaluate(f"getComputedStyle(document.body).{name}")
        return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(", "))

    for page in opened(chromium, report, color_scheme="dark"):
        assert lightness(page, "backgroundColor") < 150 < 600 < lightness(page, "color")
    for page in opened(chromium, report, color_scheme="light"):
        assert lightness(page, "color") < 150 < 600 < lightness(page, "backgroundColor")


def test_the_command_writes_one_file_and_says_its_size(run: Any, results: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    lossy = run("sr-bench", "compare", *results, "-o", out, "--images", 2, "--title", "A & B", "--crop", 64)
    assert lossy.code == 0, lossy.err
    text = out.read_text()
    assert lossy.out.strip() == f"{out}: {out.stat().st_size / 1e6:.1f} MB, 4 methods, pictures of 2 of 6 images"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert "<title>A &amp; B</title>" in text
    assert "64 x 64 at (" in text
    assert text.count("data:image/jpeg") == 2 * 4
    assert text.count("data:image/png") == 2  # LR is always exact
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "In the tables only, as their pictures were not kept or not found: bare." in text
    lossless = run("sr-bench", "compare", *results, "-o", out, "--images", 2, "--lossless")
    assert lossless.code == 0
    assert out.read_text().count("data:image/png") == 2 * 5


def test_mistakes_are_one_line_with_the_remedy(run: Any, results: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    for options, remedy in (
        (("--against", "nobody"), "change --against"),
        (("--gt", tmp_path / "no"), "change --gt"),
        (("--metric", "niqe"), "change --metric"),
        (("--paper", "rsd-1", "--dataset", "RealSR"), "--other-protocol"),
    ):
        outcome = run("sr-bench", "compare", results[0], "-o", out, *options)
        assert outcome.code == 2
        assert outcome.err.startswith("error: expected")
        assert remedy in outcome.err
        assert not out.exists()
    assert "change --out" in run("sr-bench", "compare", results[0], "-o", tmp_path).err


def test_one_method_without_pictures_makes_a_page_too(run: Any, chromium: Any, tmp_path: Path) -> None:
    made = QualityResult(
        protocol=PROTOCOL,
        images=("a",),
        methods={"only": MethodResult(source="folder", values={"psnr": (30.0,)})},
        provenance=provenance("sr-bench quality"),
    )
    write_json(tmp_path / "result.json", made)
    out = tmp_path / "page.html"
    outcome = run("sr-bench", "compare", tmp_path, "-o", out)
    assert outcome.code == 0, outcome.err
    for page in opened(chromium, out):
        assert page.locator("#means td").all_inner_texts() == ["30.00"]
        assert "needs two measured metrics" in page.inner_text("#scatter")
        assert page.locator("#differences, #pictures, .best").count() == 1  # the legend's word
