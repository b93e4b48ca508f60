"""Where imported weights come from and under which licence: kept in ``config.json`` and on the model card.

Only what is known is claimed. A family is known by a noise channel, by a layout, or by the published file's name; the
licence of anything else is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sr_models import store
from sr_models.published.weight_files import WeightFile

SEE = "as published; see the source repository"
UNKNOWN = "not known; see where the files came from"
LICENCES = {
    "ResShift": "S-Lab License 1.0 (non-commercial)",
    "SinSR": f"non-commercial, {SEE}",
    "RSD": f"non-commercial, {SEE}",
    "VQ autoencoder of latent diffusion, as distributed with ResShift": SEE,
    "TSD-SR": "Apache-2.0 (TSD-SR's repository); the base has a licence of its own",
    "OSEDiff": f"{SEE}; the base has a licence of its own",
}
"""Family -> licence of its published weights."""
AUTOENCODER = "VQ autoencoder of latent diffusion, as distributed with ResShift"


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Args:
        families: what they were published as; empty where that is not known.
        licence: of the weights.
        files: name, bytes and sha256 of every file that was read.
        kind: what was made of them.
        notes: more for the card, by name.
    """

    families: tuple[str, ...]
    licence: str
    files: tuple[dict[str, Any], ...]
    kind: str
    notes: dict[str, str] = field(default_factory=dict)

    def about(self, parameters: Mapping[str, int]) -> dict[str, Any]:
        """Provenance for ``config.json``."""
        return {
            "task": "import",
            "licence": self.licence,
            "source": {"family": " + ".join(self.families) or "unknown", "files": list(self.files), **self.notes},
            "parameters": dict(parameters),
        }


def described(paths: Iterable[Path]) -> tuple[dict[str, Any], ...]:
    """Name, bytes and sha256 of files."""
    return tuple({"name": path.name, "bytes": path.stat().st_size, "sha256": store.sha256(path)} for path in paths)


def is_student_name(name: str) -> bool:
    """Whether a file's name says that a U-Net without noise channel runs in one step."""
    return any(word in name.lower() for word in ("sinsr", "student", "vsd"))


def resshift_source(files: Mapping[str, WeightFile], kind: str, autoencoder: str | None, licence: str | None) -> Source:
    """Source of a U-Net with its autoencoder, or of an autoencoder alone.

    Args:
        files: family -> file.
        kind: what is made of them.
        autoencoder: name of the model folder that the autoencoder is from, if it is.
        licence: as the user states it; None: what is known of the published files.
    """
    families: list[str] = []
    licences: dict[str, str] = {}
    if (unet := files.get("unet")) is not None:
        name = _family(unet)
        families.append(name or "unknown")
        licences["U-Net"] = LICENCES.get(name, UNKNOWN)
    if (file := files.get("autoencoder")) is not None:
        known = file.path.name.startswith("autoencoder_vq_f4")
        families.append(AUTOENCODER if known else "unknown")
        licences["autoencoder"] = LICENCES[AUTOENCODER] if known else UNKNOWN
    notes = {}
    if autoencoder is not None:
        notes["autoencoder"] = Path(autoencoder).name
        stated = str(store.read_about(autoencoder).get("licence", UNKNOWN))
        licences["autoencoder"] = stated.rpartition("autoencoder: ")[2]  # of a whole model, that part
    known_licence = "; ".join(f"{part}: {text}" for part, text in licences.items())
    return Source(
        tuple(families), licence or known_licence, described(file.path for file in files.values()), kind, notes
    )


def _family(unet: WeightFile) -> str:
    """What a U-Net was published as; empty where that is not known."""
    stem, out = unet.tensors["input_blocks.0.0.weight"], unet.tensors["out.2.weight"]
    if (stem.shape[1] - out.shape[0]) % 3:
        return "RSD"
    name = unet.path.name.lower()
    return next((family for family in ("SinSR", "ResShift") if family.lower() in name), "")


def write_card(folder: Path, source: Source, parameters: Mapping[str, int]) -> None:
    """Write ``README.md``, the model card; it has no sha256, so that it may be edited."""
    config = store.read_config(folder)
    facts = {
        "kind": source.kind,
        "published as": " + ".join(source.families) or "unknown",
        **source.notes,
        "parameters": ", ".join(f"{name} {count:,}" for name, count in parameters.items()),
        "licence": source.licence,
        **{
            f"imported from {file['name']}": f"{file['bytes']:,} bytes, sha256 `{file['sha256']}`"
            for file in source.files
        },
        **{f"sha256 of {name}": f"`{digest}`" for name, digest in config["sha256"].items()},
    }
    lines = [f"# {folder.name}", "", "Imported by `sr-distill weights import`.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += [
        "",
        f"Use it: `sr-distill upscale photo.jpg --weights {folder.name}`" if source.kind != "autoencoder" else "",
    ]
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n")
