"""``sr-distill``: train one-step super-resolution models and restore photographs with them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sr_cli.data import data_app
from sr_cli.export import export_app
from sr_cli.offline import Offline, go_offline
from sr_cli.upscale.command import upscale
from sr_cli.weights import weights_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a multi-step diffusion teacher into a student that restores a photograph in one network evaluation.",
    epilog="First steps:  sr-distill train rsd   then   sr-distill upscale photo.jpg",
)
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.add_typer(weights_app, name="weights")


@app.command()
def train(
    task: Annotated[
        str,
        typer.Argument(help="autoencoder, teacher, rsd, vsd, sinsr, flow-teacher, tsd or osediff", show_default=False),
    ],
    preset: Annotated[
        str, typer.Option(help="named configuration to start from: tiny (CPU) or a published one, see --list-presets")
    ] = "tiny",
    config: Annotated[Path | None, typer.Option(help="YAML file laid over the preset")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="override one value, for example --set optimizer.lr=1e-4; repeatable",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of HR photographs to train on instead of generated images")
    ] = None,
    lr_data: Annotated[
        Path | None, typer.Option(help="folder of matching LR photographs; without it they are degraded")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="number of updates")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same result")] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder to create or to continue \\[default: runs/TASK-PRESET-NNN]")
    ] = None,
    tracker: Annotated[
        str | None, typer.Option(help="tensorboard, none, or another tracker of accelerate \\[default: tensorboard]")
    ] = None,
    offline: Offline = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print configuration, parameters, updates and a memory forecast, and stop"),
    ] = False,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="print the presets of the task and stop")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print the resolved configuration and stop")
    ] = False,
) -> None:
    """Train an autoencoder or a teacher, or distil a student (rsd, vsd, sinsr; of text-to-image models: tsd, osediff).

    Without options `sr-distill train rsd` distils a one-step student from the small teacher that ships, on generated
    images, in a few minutes on two CPU cores. Everything is written to a new run folder. The same command again
    continues a run that was interrupted. On several GPUs: accelerate launch --num_processes 4 -m sr_cli train ...
    """
    if offline:
        go_offline()
    from distill.config import parse_assignment, read_yaml, resolve, to_yaml
    from distill.presets import describe_presets
    from distill.presets import preset as find_preset

    if list_presets:
        typer.echo(describe_presets(task))
        return

    layers = [read_yaml(config)] if config else []
    if data or lr_data:
        layers.append({"data": {"source": "pairs" if lr_data else "folder", "hr_folder": data, "lr_folder": lr_data}})
    layers.extend(
        {name: value} for name, value in (("steps", steps), ("seed", seed), ("tracker", tracker)) if value is not None
    )
    layers.extend(parse_assignment(text) for text in set_ or [])
    resolved = resolve(find_preset(task, preset), layers)
    if print_config:
        typer.echo(to_yaml(resolved), nl=False)
        return
    if dry_run:
        from sr_cli.dry_run import print_dry_run

        print_dry_run(resolved)
        return

    from sr_cli.training import run_and_tell

    run_and_tell(resolved, out, command=_repeatable(sys.argv[1:]))


def _repeatable(arguments: list[str]) -> str:
    """The command line for the record, without ``--out``: where a run lies does not change what it is."""
    kept = list(arguments)
    while "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return shlex.join(["sr-distill", *(part for part in kept if not part.startswith("--out="))])


app.command()(upscale)


def one_line(error: Exception) -> str:
    """Return the message of an error on one line.

    A data-loading process hands its error on with the traceback as the message; its own message stands at the end.
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text[text.rindex(f"\n{type(error).__name__}: ") :].partition(": ")[2]
    return " ".join(text.split())


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("SR_DISTILL_DEBUG"):
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
