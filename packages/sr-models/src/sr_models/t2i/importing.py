"""Adapters as TSD-SR and OSEDiff publish them -> a folder of a text-to-image student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sr_models.published.importing import DTYPES, PUBLISHED_SCALE, Settings
from sr_models.published.provenance import LICENCES, Source, described, write_card
from sr_models.published.weight_files import FAMILIES, WeightFile, some
from sr_models.t2i.base import Base, load_base
from sr_models.t2i.folder import save_student
from sr_models.t2i.lora import LoRA, tsd_student, tsd_vae
from sr_models.t2i.prompts import DEFAULT, Prompt, prompt_path, read_prompt, read_published_prompt
from sr_models.t2i.published import read_osediff, read_tsd
from sr_models.t2i.student import T2IStudent

PUBLISHED_PROMPT = ("prompt_embeds.pt", "pool_embeds.pt")
TRAINING_LATENT = 64
"""Side of the latents that both were trained on: 512 px through an autoencoder of factor 8."""


def import_adapters(
    files: Mapping[str, WeightFile], folder: Path, settings: Settings, say: Callable[[str], None]
) -> None:
    """Put published adapters on their base and write the student's folder; the base is named in it, not copied.

    Args:
        files: family -> file: ``osediff``, or ``tsd-network`` and ``tsd-vae``.
        folder: to write.
        settings: ``base`` is needed, and ``prompt`` unless it lies beside the files or comes with the base.
        say: is told what happens.

    Raises:
        FileNotFoundError: the base or the prompt is not there.
        ValueError: files, base and prompt that do not belong together.
    """
    _check(files, settings)
    say(f"loading the base {settings.base}")
    base = load_base(str(settings.base), local_files_only=settings.offline)
    family = "OSEDiff" if "osediff" in files else "TSD-SR"
    expected = "sd2" if family == "OSEDiff" else "sd3"
    if base.family != expected:
        raise ValueError(f"expected a base of the family {expected} for {family}, got {base.family} at {base.name!r}")
    recipes = _adapters(files, base)
    paths = [file.path for file in files.values()]
    prompt, place = _prompt(base, settings.prompt, {path.parent for path in paths})
    say(f"prompt from {place}")
    student = T2IStudent(
        base, *recipes, prompt, PUBLISHED_SCALE if settings.scale is None else settings.scale, _tile(base)
    )
    parameters = {
        part: sum(value.numel() for name, value in student.parameters().items() if name.startswith(f"{part}."))
        for part in ("network", "vae")
    }
    notes = {"base": base.name, "prompt": place}
    source = Source((family,), settings.licence or LICENCES[family], described(paths), "t2i-student", notes)
    say(f"writing {folder} ({sum(parameters.values()) * DTYPES[settings.dtype].itemsize / 1e6:,.1f} MB)")
    save_student(student, folder, dtype=DTYPES[settings.dtype], about=source.about(parameters))
    write_card(folder, source, parameters)
    say(f"licence: {source.licence}")


def _check(files: Mapping[str, WeightFile], settings: Settings) -> None:
    """Refuse files and options that cannot belong together, before the base is loaded."""
    groups = [{"osediff"}, {"tsd-network", "tsd-vae"}]
    if not any(set(files) <= group for group in groups):
        found = ", ".join(f"{file.path.name} ({FAMILIES[file.family]})" for file in files.values())
        raise ValueError(f"expected the files of one model, got {found}; import them one by one")
    for family in {"tsd-network", "tsd-vae"} - set(files) if "osediff" not in files else ():
        raise ValueError(
            f"expected transformer.safetensors and vae.safetensors of TSD-SR, got no {FAMILIES[family]}; "  # type: ignore[index]
            "give both files, or their folder"
        )
    if settings.base is None:
        found = some(file.path.name for file in files.values())
        raise ValueError(
            f"expected --base, the model that the adapters in {found} belong to (a diffusers folder or hub id of "
            f"{'SD2.1' if 'osediff' in files else 'SD3'}), got none; give it"
        )
    given = [name for name in ("autoencoder", "image_size") if getattr(settings, name) is not None]
    if settings.kind == "teacher":
        given.append("kind teacher")
    if given:
        raise ValueError(
            f"expected no --{given[0].replace('_', '-')} for a text-to-image student, got it; leave it out"
        )


def _adapters(files: Mapping[str, WeightFile], base: Base) -> tuple[LoRA, LoRA]:
    network, vae = base.predictor.network, base.vae
    if "osediff" in files:
        return read_osediff(files["osediff"].path, network, vae)
    return (
        read_tsd(files["tsd-network"].path, network, targets=tsd_student),
        read_tsd(files["tsd-vae"].path, vae, targets=tsd_vae),
    )


def _prompt(base: Base, asked: Path | None, beside: set[Path]) -> tuple[Prompt, str]:
    """The student's prompt and where it was found: as asked, beside the adapters, or with the base."""
    places = [asked] if asked is not None else [*sorted(beside), *([base.prompts] if base.prompts else [])]
    for place in places:
        if all((place / name).is_file() for name in PUBLISHED_PROMPT):
            prompt = read_published_prompt(place)
        elif prompt_path(place, DEFAULT).is_file():
            prompt = read_prompt(place, DEFAULT)
        else:
            continue
        if wrong := base.mismatch(prompt):
            raise ValueError(f"expected a prompt of {wrong} in {place}; give the prompt of this base with --prompt")
        return prompt, place.name
    if asked is not None:
        raise FileNotFoundError(
            f"expected {' and '.join(PUBLISHED_PROMPT)} or {DEFAULT}.safetensors in {asked}, got neither; give the "
            "folder with the student's prompt"
        )
    raise FileNotFoundError(
        "expected --prompt, a folder with the student's prompt, got none beside the adapters either; TSD-SR publishes "
        "it (dataset/default), or make it with: sr-distill data prompts"
    )


def _tile(base: Base) -> int:
    """Side of the latents that the adapters were trained on, or the largest that the base takes."""
    config = base.predictor.network.config
    if base.family == "sd3":
        return min(TRAINING_LATENT, int(config.pos_embed_max_size * config.patch_size))
    return TRAINING_LATENT
