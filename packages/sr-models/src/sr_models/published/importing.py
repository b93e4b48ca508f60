"""Published files of the ResShift family -> a model folder of ours.

What a file is follows from its tensors, not from its name. Only one thing does not: a SinSR student has the same
tensors as its ResShift teacher, so that its name, or ``kind``, decides. Adapters of text-to-image students are
imported by :mod:`sr_models.t2i.importing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from resshift_core import student_timesteps
from sr_models import store
from sr_models.autoencoder import AutoencoderConfig, VQAutoencoder
from sr_models.compute.paths import DTYPES as SHORT_DTYPES
from sr_models.model import Kind, ModelConfig, ScheduleConfig, SRModel
from sr_models.published.provenance import is_student_name, resshift_source, write_card
from sr_models.published.reference_sizes import autoencoder_sizes, messages, swin_unet_sizes
from sr_models.published.weight_files import FAMILIES, SUFFIXES, WeightFile, read_weights, some
from sr_models.reference import autoencoder_tensors, swin_unet_tensors
from sr_models.swin_unet import SwinUNet, SwinUNetConfig

DTYPES = {**SHORT_DTYPES, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RGB = 3
PUBLISHED_SCALE = 4
PUBLISHED_STUDENT_STEPS = 4


@dataclass(frozen=True)
class Settings:
    """What the tensors of a published file cannot tell; None: as the files tell, or as published.

    Args:
        kind: teacher or student, of a U-Net without a noise channel.
        scale: enlargement.
        steps: T of the schedule the network was trained with.
        kappa: of the schedule.
        student_steps: number of times that an RSD student was trained at, evenly placed; None: the published 4.
        image_size: side of the latents that the U-Net was made for.
        autoencoder: model folder or shipped name to take the autoencoder from, where no file of it is given.
        base: base of a text-to-image student: diffusers folder, hub id or shipped name.
        prompt: folder with its prompt: ``prompt_embeds.pt`` and ``pool_embeds.pt``, or one of ours.
        licence: of the weights.
        dtype: of the stored tensors: fp32, bf16 or fp16; the long names, as float32, too.
        offline: never ask a hub.
    """

    kind: str | None = None
    scale: int | None = None
    steps: int = 15
    kappa: float = 2.0
    student_steps: int | None = None
    image_size: int | None = None
    autoencoder: str | None = None
    base: str | None = None
    prompt: Path | None = None
    licence: str | None = None
    dtype: str = "fp32"
    offline: bool = False

    def __post_init__(self) -> None:
        if self.kind not in (None, "teacher", "student"):
            raise ValueError(f"expected kind teacher or student, got {self.kind!r}; give one of them")
        if self.dtype not in DTYPES:
            raise ValueError(f"expected dtype {', '.join(DTYPES)}, got {self.dtype!r}; give one of them")
        if self.scale is not None and self.scale < 1:
            raise ValueError(f"expected a scale of 1 or more, got {self.scale}; leave it out for the published one")


def import_weights(
    paths: Sequence[Path], folder: Path, settings: Settings | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Read published files and write a model folder, whole or not at all.

    Args:
        paths: files in any order, or a folder with them.
        folder: to write; it does not exist yet.
        settings: what the files cannot tell.
        say: is told what happens, a sentence at a time.

    Raises:
        FileExistsError: ``folder`` exists.
        FileNotFoundError: a file, or the base, is not there.
        ValueError: a file is damaged, holds code, or is of another kind; files that do not belong together.
    """
    settings = settings or Settings()
    if folder.exists():
        raise FileExistsError(f"expected a new folder, got {folder}, which exists; choose another name")
    files: dict[str, WeightFile] = {}
    for path in _expanded(paths):
        say(f"reading {path} ({path.stat().st_size / 1e6:,.1f} MB)" if path.is_file() else f"reading {path}")
        found = read_weights(path)
        say(f"{path.name}: {FAMILIES[found.family]}, {len(found.tensors)} tensors")
        if found.family == "unknown":
            raise ValueError(
                f"expected weights of ResShift, SinSR, RSD, their autoencoder, TSD-SR or OSEDiff, got {path} with the "
                f"tensors {some(found.tensors)}; give a published file"
            )
        if found.family in files:
            raise ValueError(
                f"expected one file of a kind, got two of the {FAMILIES[found.family]}: {files[found.family].path} and "
                f"{path}; give one of them"
            )
        files[found.family] = found
    if {"osediff", "tsd-network", "tsd-vae"} & set(files):
        from sr_models.t2i.importing import import_adapters

        import_adapters(files, folder, settings, say)
    else:
        _import_resshift(files, folder, settings, say)


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the weight files in them."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        if store.is_model_folder(path):
            raise ValueError(f"expected published files, got {path}, which is a model folder already; use it as it is")
        inside = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and not _is_prompt(file)]
        if not inside:
            raise ValueError(f"expected weight files ({', '.join(SUFFIXES)}) in {path}, got none; give their paths")
        found += inside
    if not found:
        raise ValueError("expected weight files, got none; give their paths")
    return found


def _is_prompt(file: Path) -> bool:
    return file.name in ("prompt_embeds.pt", "pool_embeds.pt")


def _import_resshift(
    files: Mapping[str, WeightFile], folder: Path, settings: Settings, say: Callable[[str], None]
) -> None:
    for name in ("base", "prompt"):
        if getattr(settings, name) is not None:
            raise ValueError(f"expected --{name} with adapters of TSD-SR or OSEDiff, got {some(files)}; leave it out")
    unet_file, autoencoder_file = files.get("unet"), files.get("autoencoder")
    if unet_file is not None and autoencoder_file is None and settings.autoencoder is None:
        raise ValueError(
            f"expected the autoencoder as well, got the U-Net {unet_file.path.name} alone; give autoencoder_vq_f4.pth "
            "beside it, or --autoencoder with a model folder that has it"
        )
    if autoencoder_file is not None and settings.autoencoder is not None:
        raise ValueError(
            f"expected one autoencoder, got {autoencoder_file.path} and --autoencoder {settings.autoencoder}; give one"
        )
    autoencoder, autoencoder_state = _autoencoder(autoencoder_file, settings.autoencoder)
    networks = {store.AUTOENCODER: autoencoder_state}
    if unet_file is None:
        _refuse_unused(settings)
        fields: dict[str, Any] = {"kind": "autoencoder", "autoencoder": autoencoder.config.model_dump(mode="json")}
    else:
        with _told_of(unet_file), torch.device("meta"):
            unet = SwinUNet(swin_unet_sizes(unet_file.tensors, image_size=settings.image_size))
            networks = {store.UNET: swin_unet_tensors(unet_file.tensors, unet), **networks}
        kind = _kind(unet_file, unet.config, settings.kind, say)
        config = _model_config(unet.config, autoencoder.config, settings)
        if settings.student_steps is not None and not unet.config.noise_channels:
            raise ValueError("expected student_steps for a student with a noise channel, got another; leave it out")
        model = SRModel(kind, config, unet, autoencoder)
        multiple, steps = model.lr_multiple, " or ".join(map(str, model.steps))
        say(f"{kind} for x{config.scale}, steps: {steps}; LR images are padded to multiples of {multiple} px")
        fields = {"kind": kind, "model": config.model_dump(mode="json"), "autoencoder_from": None}
    for file, tensors in networks.items():
        if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(f"expected finite numbers, got inf or nan in {some(bad)} of {file}; download it again")

    parameters = {Path(file).stem: sum(map(Tensor.numel, tensors.values())) for file, tensors in networks.items()}
    source = resshift_source(files, fields["kind"], settings.autoencoder, settings.licence)
    size = sum(parameters.values()) * DTYPES[settings.dtype].itemsize
    say(f"writing {folder} ({size / 1e6:,.1f} MB, {settings.dtype})")
    store.write_tensors(folder, networks, fields, DTYPES[settings.dtype], source.about(parameters))
    write_card(folder, source, parameters)
    say(f"licence: {source.licence}")


def _refuse_unused(settings: Settings) -> None:
    """An autoencoder alone has no schedule, scale or kind: an option for them means that a file was forgotten."""
    default = Settings()
    names = {"kind": "kind", "scale": "scale", "steps": "steps", "kappa": "kappa", "image_size": "image-size"}
    given = [option for field, option in names.items() if getattr(settings, field) != getattr(default, field)]
    if given:
        raise ValueError(
            f"expected a U-Net for --{given[0]}, got an autoencoder alone; give the U-Net's file too, or leave it out"
        )


def _autoencoder(file: WeightFile | None, name: str | None) -> tuple[VQAutoencoder, dict[str, Tensor]]:
    if file is None:
        assert name is not None
        loaded = store.load_autoencoder(name)
        return loaded, dict(loaded.state_dict())
    with _told_of(file), torch.device("meta"):
        network = VQAutoencoder(autoencoder_sizes(file.tensors))
        return network, autoencoder_tensors(file.tensors, network)


def _kind(file: WeightFile, config: SwinUNetConfig, asked: str | None, say: Callable[[str], None]) -> Kind:
    """Teacher or student: by the noise channel, else as asked for, else by the file's name."""
    if config.noise_channels:
        if asked == "teacher":
            raise ValueError(f"expected a teacher, got {file.path} with a noise channel, as students have; drop --kind")
        say(f"{file.path.name}: a noise channel, so it is a student of RSD")
        return "student"
    if asked is not None:
        return "student" if asked == "student" else "teacher"
    student = is_student_name(file.path.name)
    say(
        f"{file.path.name}: a teacher of ResShift and a student of SinSR have the same tensors; "
        f"taken as a {'student' if student else 'teacher'} by the file's name, --kind overrides it"
    )
    return "student" if student else "teacher"


def _model_config(unet: SwinUNetConfig, autoencoder: AutoencoderConfig, settings: Settings) -> ModelConfig:
    """Put the sizes together; the scale follows from an unshuffled LR image, else it is the published 4."""
    unshuffled = math.isqrt(max(unet.condition_channels // RGB, 1))
    scale = settings.scale
    if scale is None:
        scale = autoencoder.factor // unshuffled if unshuffled > 1 else max(PUBLISHED_SCALE, autoencoder.factor)
    try:
        schedule = ScheduleConfig(num_steps=settings.steps, kappa=settings.kappa)
        times = None
        if unet.noise_channels:
            wanted = settings.student_steps
            if wanted is None:
                wanted = min(PUBLISHED_STUDENT_STEPS, schedule.num_steps)
            times = student_timesteps(schedule.num_steps, wanted)
        return ModelConfig(scale=scale, schedule=schedule, unet=unet, autoencoder=autoencoder, student_timesteps=times)
    except ValidationError as error:
        told = "; ".join(messages(error))
        raise ValueError(
            f"{told}; give the U-Net and the autoencoder of one model, and --scale if it is not {scale}"
        ) from error


@contextmanager
def _told_of(file: WeightFile) -> Iterator[None]:
    """Errors inside name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
