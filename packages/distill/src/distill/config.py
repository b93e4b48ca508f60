"""Configuration of a run: presets, YAML files and ``key=value`` overrides become one frozen, checked object.

Unknown keys are refused with the nearest valid name. The resolved configuration is written into every run folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sr_data.degradation import DegradationConfig
from sr_models.model import ModelConfig


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StreamConfig(Section):
    """Images that arrive as a stream; the fields are those of :class:`sr_data.streaming.StreamedImages`."""

    path: str = Field(description="webdataset, parquet or imagefolder with data_files; a folder; or a hub id")
    data_files: str | tuple[str, ...] | None = None
    split: str = "train"
    column: str = "auto"
    shuffle_buffer: int = Field(default=1000, ge=1, description="images that every process holds to draw from")


class DataConfig(Section):
    """Where training images come from.

    ``source``: ``generated`` images need no download; ``folder`` takes HR images and degrades them;
    ``pairs`` takes HR and LR folders with the same names; ``stream`` takes HR images from shards or a hub.
    """

    source: Literal["generated", "folder", "pairs", "stream"] = "generated"
    stream: StreamConfig | None = None
    hr_folder: Path | None = None
    lr_folder: Path | None = None
    hr_size: int = Field(default=256, ge=8, description="side of the HR crops in pixels")
    image_size: int = Field(default=256, ge=64, description="side of a generated image")
    crops_per_image: int = Field(default=16, ge=1, description="crops cut from one generated image")
    workers: int = Field(default=1, ge=0, description="processes that prepare batches")
    degrade_on: Literal["workers", "device"] = Field(
        default="workers", description="where LR images are made; those of a stream always on the training device"
    )
    degradation: DegradationConfig = DegradationConfig.real_esrgan()

    @model_validator(mode="after")
    def _folders(self) -> Self:
        needed = {
            "generated": (),
            "folder": ("hr_folder",),
            "pairs": ("hr_folder", "lr_folder"),
            "stream": ("stream",),
        }[self.source]
        for name in ("hr_folder", "lr_folder", "stream"):
            if (getattr(self, name) is not None) != (name in needed):
                verb = "needs" if name in needed else "takes no"
                raise ValueError(f"source {self.source!r} {verb} data.{name}")
        return self


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class ValidationConfig(Section):
    """Images that are measured before and after.

    Generated ones that the run never trains on; with folders, other crops of the same folder.
    """

    images: int = Field(default=8, ge=1)
    hr_size: int = Field(default=256, ge=8)
    seed: int = Field(default=1_000_003, ge=0)
    every: int | None = Field(default=None, ge=1, description="updates between measurements on the way; null: none")


class CheckpointConfig(Section):
    """Checkpoints that a run continues from."""

    every: int = Field(default=500, ge=1, description="updates between checkpoints")
    keep: int = Field(default=2, ge=1, description="how many of the newest stay")


class GuardConfig(Section):
    """What to do when a loss or gradient is not finite."""

    on_nonfinite: Literal["abort", "skip"] = Field(default="abort", description="skip drops the update and goes on")
    max_skips: int = Field(default=10, ge=1, description="so many skipped updates in a row end the run all the same")


class LPIPSConfig(Section):
    """The network of the LPIPS term."""

    net: Literal["vgg", "alex"] = "vgg"
    backbone: str | None = Field(
        default=None, description="file of ImageNet weights; null: torchvision's; random: a random backbone, by name"
    )


class RunConfig(Section):
    """What every run has."""

    task: str
    preset: str
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1, description="updates of the network that the run is for")
    batch_size: int = Field(default=64, ge=1, description="images of one update, over all processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="images at a time in one process; the rest is accumulated; null: no accumulation",
    )
    log_every: int = Field(default=10, ge=1)
    tracker: str = Field(default="tensorboard", description="none, or a tracker that accelerate knows")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    compile: str | None = Field(default=None, description="torch.compile backend for the networks, such as inductor")
    checkpointing: bool = Field(default=False, description="compute activations again instead of keeping them")
    clip_norm: float | None = Field(default=None, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    save_dtype: Literal["float32", "float16"] = Field(default="float32", description="of the saved model's tensors")
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()


class AutoencoderRun(RunConfig):
    """Train an autoencoder."""

    task: Literal["autoencoder"] = "autoencoder"
    model: ModelConfig
    sigma: float = Field(default=0.1, ge=0, description="width of the latent posterior")
    l1_weight: float = Field(default=1.0, ge=0)
    mse_weight: float = Field(default=1.0, ge=0)
    colour_weight: float = Field(default=0.5, ge=0)
    kl_weight: float = Field(default=1e-4, ge=0)

    @model_validator(mode="after")
    def _continuous(self) -> Self:
        if self.model.autoencoder.num_codes is not None:
            raise ValueError("expected model.autoencoder.num_codes=null: this objective trains continuous latents")
        return self


class TeacherRun(RunConfig):
    """Train a ResShift teacher in the latent space of an autoencoder."""

    task: Literal["teacher"] = "teacher"
    model: ModelConfig
    autoencoder: str = Field(description="shipped name or folder")


RSDTerm = Literal["distillation", "lpips", "gan", "latent_mse", "pixel_mse"]


class RSDRun(RunConfig):
    """Distil a teacher into a one-step student by RSD.

    ``terms`` are the weighted terms of the student's loss (Eq. 9). A weight of null leaves a term out. The GAN term's
    weight also counts in the fake model's loss, which trains the discriminator.
    """

    task: Literal["rsd"] = "rsd"
    teacher: str = Field(description="shipped name or folder")
    student_timesteps: int = Field(default=4, ge=1, description="N")
    fake_updates: int = Field(default=5, ge=1, description="K")
    terms: dict[RSDTerm, float] = Field(
        default={"distillation": 1.0}, description="weights of the student's loss terms"
    )
    normalize: bool = Field(
        default=True, description="divide each sample's distillation loss by its gap to the teacher"
    )
    lpips: LPIPSConfig = LPIPSConfig()
    autoencoder_dtype: Literal["bfloat16", "float16"] | None = Field(
        default=None, description="compute latents and pixels in it; null: in the run's precision"
    )

    @field_validator("terms", mode="before")
    @classmethod
    def _drop_null(cls, terms: Any) -> Any:
        return {name: weight for name, weight in terms.items() if weight is not None} if _is_mapping(terms) else terms

    @field_validator("terms")
    @classmethod
    def _positive(cls, terms: dict[RSDTerm, float]) -> dict[RSDTerm, float]:
        if not terms or any(weight <= 0 for weight in terms.values()):
            raise ValueError(f"expected at least one term, with weights above 0, got {terms}; leave one out with null")
        return terms


AnyRun = AutoencoderRun | TeacherRun | RSDRun
Run = TypeVar("Run", bound=RunConfig)


def resolve(base: Run, layers: Sequence[Mapping[str, Any]]) -> Run:
    """Lay overrides over a complete configuration and check the result.

    Args:
        base: what a preset returned.
        layers: nested dictionaries, later ones win.

    Raises:
        ValueError: unknown key (with the nearest valid name) or invalid value.
    """
    merged = base.model_dump(mode="python")
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        return type(base).model_validate(merged)
    except ValidationError as error:
        raise ValueError(_explain(error, type(base))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file as a nested dictionary."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a YAML file, got {path}, which is not a file; check the path")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {path}, got: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"expected keys and values in {path}, got {type(content).__name__}; write lines such as 'steps: 100'"
        )
    return content


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn ``a.b=value`` into ``{"a": {"b": value}}``; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"expected key=value, got {text!r}; for example --set optimizer.lr=1e-4")
    try:
        content: Any = _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ValueError(
            f"expected key=value, got {text!r}: the value is not YAML; quote it or close its brackets"
        ) from error
    for part in reversed(key.split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        current = merged.get(key)
        merged[key] = _merge(current, value) if isinstance(current, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] != "extra_forbidden":
        # pydantic prefixes the messages of our own validators.
        message = problem["msg"].removeprefix("Value error, ")
        return f"invalid configuration: {name + ': ' if name else ''}{message}"
    near = _nearest(name, _keys(kind))
    remedy = f"did you mean {near!r}?" if near else "--print-config shows all keys"
    return f"unknown configuration key {name!r}; {remedy}"


def _nearest(name: str, keys: Sequence[str]) -> str | None:
    """The key most like ``name``: of the same section first, otherwise by the last part of its name."""
    section, _, leaf = name.rpartition(".")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    for candidates in (siblings, keys):
        by_leaf = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        if found := difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6):
            return by_leaf[found[0]]
    return None


def _keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in kind.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys.extend(_keys(info.annotation, f"{prefix}{name}."))
    return keys
