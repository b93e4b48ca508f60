"""The page: reads results, computes what it shows, fills the template, writes the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import typer
from rich.console import Console
from rich.progress import track

from distill.folder import write_text
from sr_bench.compare.cases import choose
from sr_bench.compare.figures import all_means
from sr_bench.compare.load import Comparison, load
from sr_bench.compare.pictures import Folders
from sr_bench.compare.published import Published, published
from sr_bench.compare.views import picture_view, scatter_view, table_views


@dataclass(frozen=True)
class Options:
    """What the command line says; see there."""

    title: str | None = None
    against: str | None = None
    images: int = 12
    metric: str | None = None
    method: str | None = None
    crop: int = 512
    lossless: bool = False
    gt: Path | None = None
    lr: Path | None = None
    paper: str | None = None
    dataset: str | None = None
    other_protocol: bool = False


def write_page(results: Sequence[Path], out: Path, options: Options) -> None:
    """Write the page of some results, whole or not at all, and say how large it is.

    Args:
        results: ``result.json`` or their folders.
        out: HTML file to write.
        options: see there.

    Raises:
        ValueError: the results do not belong together, or an option names what is not in them.
    """
    if out.is_dir():
        raise ValueError(f"expected a file to write, got the folder {out}; change --out")
    for name, folder in (("--gt", options.gt), ("--lr", options.lr)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"expected a folder of pictures, got {folder}; change {name}")
    comparison = load(results, options.gt, options.lr)
    table = published(comparison.protocol.name, options.paper, options.dataset, options.other_protocol)
    text, shown = render(comparison, table, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    methods, images = len(comparison.methods), len(comparison.images)
    size = len(text.encode()) / 1e6
    typer.echo(f"{out}: {size:.1f} MB, {_count(methods, 'method')}, pictures of {shown} of {_count(images, 'image')}")


def render(comparison: Comparison, table: Published | None, options: Options) -> tuple[str, int]:
    """The page as text, and the number of images that it shows pictures of."""
    folders, means = Folders(comparison), all_means(comparison)
    if options.against is not None:
        comparison.method(options.against, "--against")
    cases = choose(comparison, options.images, options.metric, options.method)
    views = []
    for case in track(cases, "pictures", disable=not cases, transient=True, console=Console(stderr=True)):
        strip = folders.strip(comparison.images[case.index], options.crop, options.lossless)
        if strip is not None:
            views.append(picture_view(comparison, case, strip))
    count = len(comparison.methods)
    content: dict[str, Any] = {
        "title": options.title or f"Comparison of {_count(count, 'method')}",
        "comparison": comparison,
        "summary": f"{_count(count, 'method')}, {_count(len(comparison.images), 'image')}",
        "notes": [*comparison.notes, *folders.notes()],
        "published": table,
        "scatter": scatter_view(comparison, means, table),
        "tables": table_views(comparison, means, table, options.against),
        "strips": views,
        "lossless": options.lossless,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(content) + "\n", len(views)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
