"""What each kind of run is told: one frozen class for one task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from distill.config.sections import (
    CheckpointConfig,
    CodebookConfig,
    DASMConfig,
    DataConfig,
    FlowTeacherConfig,
    GuardConfig,
    LPIPSConfig,
    OptimizerConfig,
    PatchGANConfig,
    PromptsConfig,
    Section,
    TSDScheduleConfig,
    ValidationConfig,
)
from sr_models.model import ModelConfig


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


class TermsRun(RunConfig):
    """A run whose loss is a sum of weighted terms.

    A weight of null leaves a term out.
    """

    terms: Any = Field(description="name -> weight; subclasses say which names there are")
    lpips: LPIPSConfig = LPIPSConfig()

    @property
    def weights(self) -> Mapping[str, float]:
        """``terms``, for code that does not know the names."""
        found: Mapping[str, float] = self.terms
        return found

    @classmethod
    def term_names(cls) -> tuple[str, ...]:
        """The terms that this kind of run knows."""
        names, _ = get_args(cls.model_fields["terms"].annotation)
        return get_args(names)

    @field_validator("terms", mode="before")
    @classmethod
    def _drop_null(cls, terms: Any) -> Any:
        if not isinstance(terms, Mapping):
            return terms
        return {name: weight for name, weight in terms.items() if weight is not None}

    @field_validator("terms")
    @classmethod
    def _positive(cls, terms: dict[str, float]) -> dict[str, float]:
        if not terms or any(weight <= 0 for weight in terms.values()):
            raise ValueError(
                f"expected at least one term, with weights above 0, got {terms}; leave terms out with null, but not all"
            )
        return terms


class AutoencoderRun(TermsRun):
    """Train an autoencoder, continuous or with a codebook (``model.autoencoder.num_codes``)."""

    task: Literal["autoencoder"] = "autoencoder"
    model: ModelConfig
    terms: dict[Literal["l1", "mse", "colour", "lpips", "kl", "codebook", "commitment", "gan"], float] = Field(
        default={"l1": 1.0, "mse": 1.0, "colour": 0.5, "kl": 1e-4}, description="weights of the loss terms"
    )
    sigma: float | None = Field(
        default=0.1, ge=0, description="width of the latent posterior; null with a codebook, which has none"
    )
    balance_colours: bool = Field(
        default=True, description="the fresh encoder sees brightness and both colour axes at unit variance"
    )
    codebook: CodebookConfig = CodebookConfig()
    gan: PatchGANConfig = PatchGANConfig()

    @model_validator(mode="after")
    def _terms_fit_the_latent(self) -> Self:
        if self.model.autoencoder.num_codes is None:
            wrong, needed = {"codebook", "commitment"} & set(self.terms), set()
            if self.sigma is None:
                raise ValueError("expected a number for sigma with continuous latents, got null; set sigma=0.1")
        else:
            by_gradient = self.codebook.update == "gradient"
            wrong = ({"kl"} if by_gradient else {"kl", "codebook"}) & set(self.terms)
            needed = ({"codebook"} if by_gradient else set()) - set(self.terms)
            if self.sigma is not None:
                raise ValueError("expected sigma=null with a codebook (model.autoencoder.num_codes): no posterior")
        kind = self._latent_kind()
        if wrong:
            names = ", ".join(f"terms.{name}=null" for name in sorted(wrong))
            raise ValueError(f"expected other terms with {kind}, got {', '.join(sorted(wrong))}; set {names}")
        if needed:
            raise ValueError(f"expected the term codebook with {kind}; set terms.codebook=1 or codebook.update=ema")
        return self

    @model_validator(mode="after")
    def _reconstructs(self) -> Self:
        if not {"l1", "mse", "colour", "lpips"} & set(self.terms):
            raise ValueError(f"expected a term of l1, mse, colour, lpips, got {', '.join(self.terms)}; set terms.l1=1")
        if "gan" in self.terms and self.precision == "fp16":
            raise ValueError(
                "expected precision fp32 or bf16 with terms.gan, got fp16: gradients at the last layer are too small "
                "for it; set precision=bf16"
            )
        return self

    def _latent_kind(self) -> str:
        if self.model.autoencoder.num_codes is None:
            return "continuous latents (model.autoencoder.num_codes=null)"
        return f"a codebook and codebook.update={self.codebook.update}"


class LatentRun(TermsRun):
    """A run in the latent space of an autoencoder that stays as it is."""

    autoencoder_dtype: Literal["bfloat16", "float16"] | None = Field(
        default=None, description="compute latents and pixels in it; null: in the run's precision"
    )


class TeacherRun(LatentRun):
    """Train a ResShift teacher in the latent space of an autoencoder."""

    task: Literal["teacher"] = "teacher"
    model: ModelConfig
    autoencoder: str = Field(description="shipped name or folder")
    terms: dict[Literal["z_0", "lpips"], float] = Field(default={"z_0": 1.0}, description="weights of the loss terms")
    weighting: Literal["uniform", "kl"] = Field(
        default="uniform", description="of the squared error over t: w_t = 1 as published, or the KL divergence's"
    )

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.weighting == "kl" and self.model.schedule.num_steps == 1:
            raise ValueError("expected weighting=uniform for a schedule of one step, got kl; set weighting=uniform")
        return self


class FlowTeacherRun(RunConfig):
    """Train a small text-to-image teacher by flow matching, in diffusers' own classes."""

    task: Literal["flow-teacher"] = "flow-teacher"
    model: FlowTeacherConfig = FlowTeacherConfig()
    autoencoder: str = Field(description="shipped name or folder; it becomes an AutoencoderKL")
    null_percent: int = Field(default=15, ge=0, le=100, description="of the samples are trained with the null prompt")
    default_percent: int = Field(default=10, ge=0, le=100, description="of the samples get the default prompt")

    @model_validator(mode="after")
    def _prompts_left(self) -> Self:
        if self.null_percent + self.default_percent > 100:
            raise ValueError("expected null_percent + default_percent of at most 100; make one smaller")
        return self


class DistillationRun(LatentRun):
    """Distil a teacher into a one-step student."""

    teacher: str = Field(description="shipped name or folder")


class FakeModelRun(DistillationRun):
    """Distil with a fake model, which is trained on the student's output.

    ``terms`` are the weighted terms of the student's loss (Eq. 9). The GAN term's weight also counts in the fake
    model's loss, which trains the discriminator.
    """

    terms: dict[Literal["distillation", "lpips", "gan", "latent_mse", "pixel_mse"], float] = Field(
        default={"distillation": 1.0}, description="weights of the student's loss terms"
    )
    fake_updates: int = Field(default=5, ge=1, description="K")
    normalize: bool = Field(
        default=True, description="divide each sample's distillation loss by its gap to the teacher"
    )


class RSDRun(FakeModelRun):
    """Residual Shifting Distillation (RSD, Algorithm 1)."""

    task: Literal["rsd"] = "rsd"
    student_timesteps: int = Field(default=4, ge=1, description="N")


class VSDRun(FakeModelRun):
    """ResShift-VSD (RSD, Algorithm 2)."""

    task: Literal["vsd"] = "vsd"


class SinSRRun(DistillationRun):
    """SinSR: the student learns the whole deterministic chain of the teacher, and its inverse."""

    task: Literal["sinsr"] = "sinsr"
    terms: dict[Literal["distillation", "inverse", "consistency", "lpips", "latent_mse", "pixel_mse"], float] = Field(
        default={"distillation": 1.0, "inverse": 1.0, "consistency": 1.0},
        description="weights of the student's loss terms",
    )


class T2IRun(TermsRun):
    """Distil a text-to-image teacher into a one-step student: LoRA on its network and on the VAE's encoder.

    ``optimizer`` is the student's; the fake model's differs in its learning rate.
    """

    base: str = Field(description="the teacher: shipped name, diffusers folder or hub id")
    base_dtype: Literal["bfloat16", "float16"] | None = Field(
        default=None, description="of the frozen weights; null: float32; the adapters stay in float32"
    )
    teacher_lora: Path | None = Field(
        default=None, description="adapters of the teacher, in the published layout (teacher.safetensors)"
    )
    start: Path | None = Field(
        default=None,
        description="student to go on from: a run's model folder, one as published, or OSEDiff's .pkl; null: the base",
    )
    scale: int = Field(default=4, ge=1)
    rank: int = Field(default=64, ge=1, description="of the student's LoRA")
    vae_rank: int = Field(default=64, ge=1, description="of the LoRA of the VAE's encoder")
    fake_rank: int = Field(default=64, ge=1, description="of the fake model's LoRA")
    fake_lr: float = Field(gt=0)
    fake_updates: int = Field(default=1, ge=1, description="of the fake model, for one of the student")
    guidance: float = Field(default=7.5, ge=1, description="scale of classifier-free guidance; 1: none")
    prompts: PromptsConfig = PromptsConfig()
    times: tuple[int, int] = Field(description="first and last index of the times that are drawn")

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if not 0 <= self.times[0] <= self.times[1]:
            raise ValueError(f"expected times=[first, last] with 0 <= first <= last, got {list(self.times)}; swap them")
        return self


class TSDRun(T2IRun):
    """TSD-SR: target score distillation with distribution-aware sampling.

    ``terms`` are the weighted terms of the student's loss (Eq. 7, 8). ``features`` compares features of the frozen
    VAE's encoder: it stands in for LPIPS where no pretrained backbone can be had.
    """

    task: Literal["tsd"] = "tsd"
    terms: dict[Literal["distillation", "lpips", "features", "latent_mse", "pixel_mse"], float] = Field(
        default={"distillation": 1.0, "lpips": 1.0, "latent_mse": 1.0},
        description="weights of the student's loss terms",
    )
    parameterisation: Literal["noise", "velocity"] = Field(
        default="noise", description="what stands for the paper's epsilon; velocity: as published code has it"
    )
    times: tuple[int, int] = (50, 949)
    dasm: DASMConfig = DASMConfig()
    schedule: TSDScheduleConfig = TSDScheduleConfig()

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        for name in ("latent_mse_until", "dasm_from"):
            at = getattr(self.schedule, name)
            if at is not None and at > self.steps:
                raise ValueError(
                    f"expected schedule.{name} of at most steps={self.steps}, got {at}: the run would end before; set "
                    f"schedule.latent_mse_until and schedule.dasm_from, to null for never"
                )
        gone = set() if self.schedule.latent_mse_until is None else {"latent_mse"}
        if 0 in (self.schedule.gamma_1.start, self.schedule.gamma_1.end):
            gone |= {"lpips", "features"}
        if not set(self.terms) - gone:
            raise ValueError(
                f"expected a term that holds all the time, got {', '.join(self.terms)}, which the schedule takes away "
                "at times; add one, or set schedule.latent_mse_until=null"
            )
        return self


class OSEDiffRun(T2IRun):
    """OSEDiff: variational score distillation with pixel MSE and LPIPS."""

    task: Literal["osediff"] = "osediff"
    terms: dict[Literal["distillation", "lpips", "features", "latent_mse", "pixel_mse"], float] = Field(
        default={"distillation": 1.0, "lpips": 2.0, "pixel_mse": 1.0},
        description="weights of the student's loss terms",
    )
    times: tuple[int, int] = (20, 979)
    student_prompt: Literal["default", "own"] = Field(
        default="default", description="what the student gets in training; in use it gets the default"
    )


AnyRun = T2IRun | FlowTeacherRun | AutoencoderRun | TeacherRun | DistillationRun
