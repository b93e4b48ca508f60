"""``sr-distill export``: models as files for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(no_args_is_help=True, help="Write a model as a file for another runtime: ONNX.")


@export_app.callback()
def export() -> None:
    """Write a model as a file for another runtime: ONNX."""


@export_app.command()
def onnx(
    weights: Annotated[str, typer.Argument(help="model folder or name of a shipped model", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write")] = Path("model.onnx"),
    steps: Annotated[
        int | None,
        typer.Option(help="1, or all steps of the model \\[default: 1 for a student, all for a teacher]"),
    ] = None,
    opset: Annotated[int, typer.Option(help="version of the ONNX operators, 17 to 20")] = 17,
) -> None:
    """Write a model as one ONNX file, and compare it with PyTorch on three sizes.

    Batch, height and width are free. The file is written only where both agree; the comparison is in NAME.onnx.json.
    """
    from sr_models.export import ParityError, export_onnx

    try:
        cases = export_onnx(weights, output, steps=steps, opset=opset)
    except ParityError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo("batch x LR size  max difference  mean      PSNR dB  codes changed  ONNX s  PyTorch s")
    for case in cases:
        size = f"{case.batch}x{case.width}x{case.height}"
        typer.echo(
            f"{size:<15}  {case.maximum:<14.2e}  {case.mean:.2e}  {case.psnr:<7.1f}  {case.codes_changed:<13}  "
            f"{case.onnx_seconds:<6.3f}  {case.torch_seconds:.3f}"
        )
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, agrees with PyTorch")
