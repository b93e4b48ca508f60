"""``sr-bench study`` and ``sr-bench study-results``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def study(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="a folder for each method: DIR, LABEL=DIR, or a result of quality"),
    ],
    answers: Annotated[Path, typer.Option(help="SQLite file for the answers; continued where it is there")],
    lr: Annotated[Path | None, typer.Option(help="folder of the low resolution pictures, shown beside")] = None,
    gt: Annotated[Path | None, typer.Option(help="folder of the originals, shown beside")] = None,
    categories: Annotated[Path | None, typer.Option(help="CSV file with lines image,category")] = None,
    per_person: Annotated[int | None, typer.Option(min=1, help="pictures for each person; default: all")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=2, max=6, help="methods in one question, drawn at random; default: all, up to 6")
    ] = None,
    repeats: Annotated[int, typer.Option(min=0, help="pictures shown twice, for the consistency of answers")] = 0,
    question: Annotated[str | None, typer.Option(help="default: which picture is the best restoration")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of all orders")] = 0,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0: all networks of this machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port")] = 8765,
) -> None:
    """Ask people which restoration is best, blind, on a web page; Ctrl-C ends it, the same command continues it."""
    from sr_bench.record import command_line, provenance
    from sr_bench.study.folders import find_folders, gather
    from sr_bench.study.server import listen, serve
    from sr_bench.study.store import open_study

    found = find_folders(folders, lr, gt)
    material = gather(
        found,
        question=question,
        categories=categories,
        candidates=candidates,
        per_person=per_person,
        repeats=repeats,
        seed=seed,
    )
    with listen(host, port) as listening:
        file = open_study(answers, material.study, provenance(command_line(answers)))
        # Flushed, as whoever started this in the background waits for the address.
        print(f"{len(found.methods)} methods, {len(material.study.images)} pictures; end with Ctrl-C", flush=True)
        shown, taken = listening.getsockname()[:2]
        if shown in ("0.0.0.0", "::"):
            print("everybody who can reach this machine can take part", flush=True)
        print(f"open http://{f'[{shown}]' if ':' in shown else shown}:{taken}/", flush=True)
        serve(material, file, listening)
    given = file.answers()
    print(f"{len(given)} answers of {len({answer.person for answer in given})} people in {answers}")


def study_results(
    file: Annotated[Path, typer.Argument(help="SQLite file of sr-bench study")],
    format: Annotated[str | None, typer.Option(help="table, md, json, csv or html; default: of the file name")] = None,
    out: Annotated[Path | None, typer.Option(help="file to write instead of the terminal")] = None,
) -> None:
    """Votes, win rates and strengths of the methods of a study, with 95 % intervals."""
    from rich.console import Console

    from distill.folder import write_text
    from sr_bench.study.results import evaluate, to_csv, to_markdown, to_table
    from sr_bench.study.results_page import to_html
    from sr_bench.study.store import read_study

    kind = format or (out.suffix.lstrip(".").lower() if out is not None else "table")
    texts = {
        "md": to_markdown,
        "json": lambda result: result.model_dump_json(indent=1) + "\n",
        "csv": to_csv,
        "html": to_html,
    }
    if kind not in texts and (kind != "table" or out is not None):
        raise ValueError(f"expected {', '.join(texts)} (or table without --out), got {kind!r}; set --format")
    result = evaluate(read_study(file))
    if kind == "table":
        Console().print(to_table(result))
    elif out is None:
        print(texts[kind](result), end="")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, texts[kind](result))
