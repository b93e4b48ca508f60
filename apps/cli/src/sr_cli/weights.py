"""``sr-distill weights``: import published weights, look into them, verify them, list what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sr_cli.offline import Offline, go_offline

if TYPE_CHECKING:
    from sr_models.published.inspecting import Inspection

weights_app = typer.Typer(no_args_is_help=True, help="Published weights: import, inspect, verify, list.")

Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@weights_app.callback()
def weights() -> None:
    """Published weights: import, inspect, verify, list."""


@weights_app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="published files in any order, or a folder with them: .pth, .pkl, .safetensors", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="model folder to write", show_default=False)],
    kind: Annotated[
        str | None, typer.Option(help="teacher or student, of a U-Net without noise channel \\[default: by its name]")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="enlargement \\[default: as the tensors tell, else 4]")] = None,
    steps: Annotated[int, typer.Option(help="T of the schedule that the network was trained with")] = 15,
    kappa: Annotated[float, typer.Option(help="kappa of that schedule")] = 2.0,
    student_steps: Annotated[
        int | None, typer.Option(help="number of times that an RSD student was trained at \\[default: 4]")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="side of the latents it was made for \\[default: as its shift masks tell, else 64]"),
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="model folder or shipped name to take the autoencoder from")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="base of TSD-SR or OSEDiff adapters: diffusers folder, hub id or shipped name")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="folder with the prompt of TSD-SR or OSEDiff, if it is not beside the files")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="licence to record \\[default: what is known of the files]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="of the stored tensors: fp32, bf16 or fp16")] = "fp32",
    offline: Offline = False,
) -> None:
    """Make a model folder of published files of ResShift, SinSR, RSD, TSD-SR or OSEDiff.

    What a file is follows from its tensors; sizes are read off them. Pickles are read without running code.
    """
    if offline:
        go_offline()
    from sr_models.published.importing import Settings, import_weights

    settings = Settings(
        kind=kind,
        scale=scale,
        steps=steps,
        kappa=kappa,
        student_steps=student_steps,
        image_size=image_size,
        autoencoder=autoencoder,
        base=base,
        prompt=prompt,
        licence=licence,
        dtype=dtype,
        offline=offline,
    )
    import_weights(files, output, settings, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"{output}: written; check it with: sr-distill weights verify {output}")


@weights_app.command()
def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="model folders, shipped names or weight files", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Say what files and folders are: networks, parameters, sizes, schedule, licence, source, sha256."""
    from sr_models.published.inspecting import inspect as look

    found = [look(path) for path in paths]
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "parameters": one.parameters} for one in found], indent=2))
        return
    for one in found:
        _print_inspection(one)


@weights_app.command()
def verify(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="model folders, shipped names or weight files", show_default=False),
    ],
    base: Annotated[str | None, typer.Option(help="base of a text-to-image student")] = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Compare every file with its sha256, load the networks, and run them once; exit code 1 when anything is wrong."""
    if offline:
        go_offline()
    from sr_models.published.verifying import verify as check

    outcomes = []
    for path in paths:
        outcome = check(path, base, offline=offline)
        outcomes.append(outcome)
        if not as_json:
            typer.echo(f"{path}: ok ({_summary(outcome.passed)})" if outcome.ok else f"{path}: FAILED")
            for problem in outcome.problems:
                typer.echo(f"  {problem}")
    if as_json:
        typer.echo(json.dumps([{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes], indent=2))
    if failed := [outcome.path for outcome in outcomes if not outcome.ok]:
        typer.echo(f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@weights_app.command("list")
def list_(
    folder: Annotated[Path | None, typer.Argument(help="list the model folders below it as well")] = None,
    as_json: Json = False,
) -> None:
    """List the models that ship, and those below a folder."""
    from sr_models.published.inspecting import list_models

    found = list_models(folder)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    rows = [("name", "kind", "scale", "parameters", "on disk", "licence")]
    for one in found:
        scale = "" if one.scale is None else f"x{one.scale}"
        rows.append((one.name, one.kind, scale, f"{one.parameters:,}", _size(one.bytes), one.licence))
    _print_table(rows, right=(3, 4))


def _summary(passed: list[str]) -> str:
    """What was found right, the files with their sha256 as a number."""
    files = sum(what.startswith("sha256 of ") for what in passed)
    counted = [f"sha256 of {files} file{'s' if files > 1 else ''}"] if files else []
    return "; ".join([*counted, *(what for what in passed if not what.startswith("sha256 of "))])


def _print_inspection(one: Inspection) -> None:
    typer.echo(f"{one.path}: {one.what}")
    rows = [("part", "tensors", "parameters", "dtype")]
    rows += [(f"{part.file}: {part.name}", str(part.tensors), f"{part.parameters:,}", part.dtype) for part in one.parts]
    rows.append(("all", str(sum(part.tensors for part in one.parts)), f"{one.parameters:,}", _size(one.bytes)))
    _print_table(rows, right=(1, 2), indent="  ")
    for line in _lines(one.sizes):
        typer.echo(f"  {line}")
    typer.echo(f"  licence: {one.licence}")
    for line in _lines({"source": one.source}):
        typer.echo(f"  {line}")
    for file, state in one.sha256.items():
        typer.echo(f"  sha256 of {file}: {state['digest']} ({state['state']})")


def _lines(values: dict[str, Any], place: str = "") -> list[str]:
    """One line for the plain values of every nested dictionary, the values without dictionary before them."""
    plain = {key: value for key, value in values.items() if not _is_nested(value) and value is not None}
    told = [f"{key} {_words(value)}" for key, value in plain.items()]
    lines = [f"{place}: {', '.join(told)}"] if place and told else [f"{key}: {_words(plain[key])}" for key in plain]
    for key, value in values.items():
        if _is_nested(value):
            parts = value if isinstance(value, list) else [value]
            lines += [line for part in parts for line in _lines(part, f"{place}.{key}" if place else key)]
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _words(value: Any) -> str:
    return "(" + " ".join(map(str, value)) + ")" if isinstance(value, list) else str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _print_table(rows: Sequence[tuple[str, ...]], right: tuple[int, ...], indent: str = "") -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo(indent + "  ".join(cells).rstrip())
