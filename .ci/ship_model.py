"""Copy a run's model into the sr-models package: ``uv run python .ci/ship_model.py runs/RUN NAME [TABLE.md]``.

The shipped ResShift teacher and student take their autoencoder from ``tiny-autoencoder`` beside them instead of
carrying it twice more. TABLE.md, as ``sr-bench quality`` writes it for the 34 RealSR crops, is appended to the model
card.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from distill.card import write_card
from sr_models.store import add_about, load_autoencoder, load_model, read_about, save_autoencoder, save_model

WEIGHTS = Path(__file__).parents[1] / "packages" / "sr-models" / "src" / "sr_models" / "weights"
AUTOENCODER = "tiny-autoencoder"
LICENCE = "Apache-2.0"


def ship(run: Path, name: str, table: Path | None) -> None:
    """Replace ``weights/NAME`` by the model of ``run``, in float16, with its card."""
    target = WEIGHTS / name
    about = {key: value for key, value in read_about(run / "model").items() if key not in ("kind", "sha256")}
    shutil.rmtree(target, ignore_errors=True)
    if read_about(run / "model")["kind"] == "t2i-teacher":
        shutil.copytree(run / "model", target)  # in float16 already
    elif name == AUTOENCODER:
        save_autoencoder(load_autoencoder(run / "model"), target, dtype=torch.float16, about=about)
    else:
        model = load_model(run / "model")
        save_model(model, target, dtype=torch.float16, about=about, autoencoder_from=AUTOENCODER)
    summary = json.loads((run / "summary.json").read_text())
    if summary["data"] != "generated":
        raise ValueError(f"expected a model trained on generated images, got {summary['data']}; ship no other")
    add_about(target, licence=LICENCE, source=f"trained by `{summary['command']}` on generated images only")
    write_card(target, summary, read_about(target)["sha256"])
    if table is not None:
        with (target / "README.md").open("a") as card:
            card.write(
                "\n34 crops of RealSR v3, LR 128x128 and HR 512x512, `sr-bench quality`:\n\n" + table.read_text()
            )


if __name__ == "__main__":
    ship(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
