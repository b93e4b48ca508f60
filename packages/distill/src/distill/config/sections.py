"""The sections that configurations are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sr_data.degradation import DegradationConfig


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


class FlowTeacherConfig(Section):
    """Sizes of a flow-matching teacher, an SD3Transformer2DModel, and its schedule."""

    layers: int = Field(default=5, ge=1)
    heads: int = Field(default=6, ge=1)
    head_channels: int = Field(default=16, ge=4)
    patch: int = Field(default=2, ge=1)
    prompt_tokens: int = Field(default=4, ge=1)
    prompt_channels: int = Field(default=32, ge=1)
    num_steps: int = Field(default=1000, ge=2)
    shift: float = Field(default=3.0, gt=0, description="of the table of sigmas, as SD3's")


class PromptsConfig(Section):
    """Which prompts a text-to-image teacher sees."""

    folder: Path | None = Field(default=None, description="of sr-distill data prompts; null: those of the base")
    own: Literal["name", "detail", "default"] = Field(
        default="name",
        description="each image's prompt: under its file's name; by its amount of detail (the small teacher that "
        "ships); or the default for all",
    )


class RampConfig(Section):
    """A number that moves in a straight line from the first update to the last."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)

    def at(self, progress: float) -> float:
        """The number when the part ``progress`` (0 to 1) of the run is over."""
        return self.start + (self.end - self.start) * min(progress, 1.0)


class DASMConfig(Section):
    """Distribution-aware sampling: directions along N Euler steps (TSD-SR Algorithm 1)."""

    weights: tuple[float, ...] = Field(
        default=(1.0, 0.3, 0.3, 0.3), min_length=1, description="of the directions at the N times, noisiest first"
    )
    stride: int = Field(default=50, ge=1, description="s, indexes between two times")
    bias: int = Field(default=25, ge=0, description="the last index moves by up to this at random")


class TSDScheduleConfig(Section):
    """What changes in the course of a TSD run; the two phases of the paper are the two step numbers."""

    latent_mse_until: int | None = Field(
        default=None, ge=0, description="updates of the student with the term latent_mse; null: all"
    )
    dasm_from: int | None = Field(
        default=0, ge=0, description="updates of the student before DASM begins; null: it never does"
    )
    gamma_1: RampConfig = Field(
        default=RampConfig(start=1.0, end=2.0), description="factor of the perceptual terms (Eq. 7)"
    )
    vsd_weight: RampConfig = Field(
        default=RampConfig(start=0.7, end=0.3), description="lambda (Eq. 5): share of VSD; the rest is TSM"
    )

    @model_validator(mode="after")
    def _is_a_share(self) -> Self:
        if max(self.vsd_weight.start, self.vsd_weight.end) > 1:
            raise ValueError("expected vsd_weight between 0 (TSM alone) and 1 (VSD alone); set both ends so")
        return self


class CodebookConfig(Section):
    """How the codes of an autoencoder with a codebook learn, and what becomes of codes that nothing uses."""

    update: Literal["gradient", "ema"] = Field(
        default="gradient", description="gradient: the term codebook moves them; ema: averages of what chose them"
    )
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the moving averages of usage and codes")
    smoothing: float = Field(default=1e-5, gt=0, description="Laplace smoothing of the usage, for ema")
    revive_below: float | None = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="codes used less than this part of the mean move to an encoder output; null: none do",
    )


class PatchGANConfig(Section):
    """The patch discriminator of the GAN term, and when it joins."""

    start: int = Field(default=0, ge=0, description="updates of the autoencoder before the GAN joins")
    base_channels: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1, description="strided convolutions; 3 make patches of 70x70 pixels")
    norm_groups: int = Field(default=32, ge=1)
