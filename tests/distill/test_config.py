"""Configurations: presets, YAML, overrides; a typo or a wrong value ends in one line that says what is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config import (
    AnyRun,
    AutoencoderRun,
    OSEDiffRun,
    RSDRun,
    TeacherRun,
    TSDRun,
    parse_assignment,
    read_yaml,
    resolve,
    to_yaml,
)
from distill.presets import PRESETS, describe_presets, preset
from sr_models import SwinUNet, VQAutoencoder, presets

NAMES = [(task, name) for task, named in PRESETS.items() for name in named]
RSD = preset("rsd", "tiny")


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_every_preset_is_complete_and_says_what_it_is(task: str, name: str) -> None:
    config = preset(task, name)
    assert (config.task, config.preset) == (task, name)
    assert resolve(config, []) == config
    assert config.data.hr_size <= config.data.image_size


def test_the_tiny_presets_describe_networks_that_can_be_built_and_fit_each_other() -> None:
    autoencoder, teacher = preset("autoencoder", "tiny"), preset("teacher", "tiny")
    assert isinstance(autoencoder, AutoencoderRun)
    assert isinstance(teacher, TeacherRun)
    assert autoencoder.model == teacher.model == presets.tiny()
    assert teacher.autoencoder == "tiny-autoencoder"
    SwinUNet(teacher.model.unet)
    VQAutoencoder(teacher.model.autoencoder)
    assert isinstance(RSD, RSDRun)
    assert RSD.teacher == "tiny-teacher"


def test_the_published_presets_are_as_published() -> None:
    teacher, rsd = preset("teacher", "x4"), preset("rsd", "rsd-paper")
    assert isinstance(teacher, TeacherRun)
    assert teacher.model == presets.x4()
    assert isinstance(rsd, RSDRun)
    # RSD Appendix C and Sec. 4
    assert (rsd.steps, rsd.batch_size, rsd.fake_updates, rsd.student_timesteps) == (3000, 64, 5, 4)
    assert (rsd.optimizer.lr, rsd.optimizer.betas, rsd.optimizer.weight_decay) == (5e-5, (0.9, 0.95), 0)
    assert (rsd.optimizer.schedule, rsd.ema_decay, rsd.normalize) == ("constant", 0.999, True)
    assert rsd.terms == {"distillation": 1, "lpips": 2, "gan": 3e-3}
    assert (rsd.data.hr_size, rsd.precision, rsd.autoencoder_dtype, rsd.micro_batch) == (256, "fp32", "float16", 8)
    assert rsd.lpips.backbone is None  # torchvision's weights, never a random backbone


def test_the_published_text_to_image_presets_are_as_published() -> None:
    tsd, osediff = preset("tsd", "sd3-paper"), preset("osediff", "sd21-paper")
    assert isinstance(tsd, TSDRun)
    # TSD-SR Sec. 4, Appendix D and E, and its training program
    assert (tsd.batch_size, tsd.data.hr_size, tsd.rank, tsd.vae_rank, tsd.fake_rank) == (16, 512, 64, 64, 64)
    assert (tsd.optimizer.lr, tsd.fake_lr, tsd.fake_updates) == (5e-6, 1e-6, 1)
    assert (tsd.optimizer.betas, tsd.optimizer.weight_decay) == ((0.9, 0.999), 1e-4)
    assert (tsd.optimizer.schedule, tsd.optimizer.warmup_steps, tsd.clip_norm) == ("cosine", 3000, 1.0)
    assert (tsd.guidance, tsd.times) == (7.5, (50, 949))
    assert (tsd.dasm.weights, tsd.dasm.stride, tsd.dasm.bias) == ((1.0, 0.3, 0.3, 0.3), 50, 25)
    assert (tsd.schedule.gamma_1.start, tsd.schedule.gamma_1.end) == (1, 2)
    assert tsd.terms == {"distillation": 1, "lpips": 1, "latent_mse": 1}
    assert tsd.lpips.net == "alex"
    assert isinstance(osediff, OSEDiffRun)
    assert (osediff.batch_size, osediff.data.hr_size, osediff.rank, osediff.vae_rank) == (16, 512, 4, 4)
    assert (osediff.optimizer.lr, osediff.fake_lr, osediff.optimizer.weight_decay) == (5e-5, 5e-5, 1e-2)
    assert (osediff.guidance, osediff.times, osediff.clip_norm, osediff.steps) == (7.5, (20, 979), 1.0, 100_000)
    assert osediff.terms == {"distillation": 1, "lpips": 2, "pixel_mse": 1}
    assert osediff.base_dtype is None  # conv_in is trained whole
    small, sd21 = preset("tsd", "sd3-24gb").model_dump(), preset("tsd", "sd21").model_dump()
    changed = {key for key, value in tsd.model_dump().items() if small[key] != value}
    assert changed == {"preset", "micro_batch", "checkpointing"}
    changed = {key for key, value in tsd.model_dump().items() if sd21[key] != value}
    assert changed == {"preset", "base", "rank", "vae_rank", "fake_rank", "precision", "base_dtype"}


def test_the_other_presets_change_what_they_say_and_nothing_else() -> None:
    def changed(name: str) -> set[str]:
        published, other = preset("rsd", "rsd-paper").model_dump(), preset("rsd", name).model_dump()
        return {key for key in published if published[key] != other[key]} - {"preset"}

    assert changed("rsd-distill-only") == {"terms"}
    assert changed("rsd-24gb") == {"micro_batch", "precision", "checkpointing"}
    assert changed("rsd-512") == {"micro_batch", "data", "validation"}
    distill_only, large = preset("rsd", "rsd-distill-only"), preset("rsd", "rsd-512")
    assert isinstance(distill_only, RSDRun)
    assert distill_only.terms == {"distillation": 1}
    assert (large.data.hr_size, large.validation.hr_size) == (512, 512)


def test_every_preset_is_listed_and_bears_its_own_name() -> None:
    for task, found in PRESETS.items():
        listed = describe_presets(task).splitlines()
        assert [line.split()[0] for line in listed] == list(found)
        assert all(preset(task, name).preset == name for name in found)


def test_unknown_presets_are_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match="expected a task of autoencoder, teacher, rsd, vsd, sinsr, flow-teacher, tsd, osediff, got 'rds'",
    ):
        preset("rds", "tiny")
    with pytest.raises(ValueError, match=r"expected a preset of tiny, rsd-paper, .* for rsd, got 'x2'"):
        preset("rsd", "x2")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("stepz", "steps"),
        ("batchsize", "batch_size"),
        ("optimizer.lrr", "optimizer.lr"),
        ("optimiser.lr", "optimizer"),
        ("lr", "optimizer.lr"),
        ("hr_folder", "data.hr_folder"),
        ("data.hrfolder", "data.hr_folder"),
        ("data.degradation.first.jpeg_qualty", "data.degradation.first.jpeg_quality"),
        ("validation.image", "validation.images"),
        ("fake_update", "fake_updates"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_key(typo: str, meant: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resolve(RSD, [parse_assignment(f"{typo}=1")])
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "assignment", "message"),
    [
        ("rsd", "terms.lpip=1", "unknown term 'lpip' in this task; did you mean 'lpips'?"),
        ("sinsr", "terms.gan=1", "unknown term 'gan' in this task; there are distillation, inverse, consistency"),
        ("vsd", "terms.distillation=null", "expected at least one term"),
        ("teacher", "terms.z_0=-1", "with weights above 0"),
    ],
)
def test_terms_that_there_are_not(task: str, assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(preset(task, "tiny"), [parse_assignment(assignment)])


def test_the_weights_of_the_divergence_need_two_steps() -> None:
    layers = [parse_assignment("weighting=kl"), parse_assignment("model.schedule.num_steps=1")]
    with pytest.raises(ValueError, match="set weighting=uniform"):
        resolve(preset("teacher", "tiny"), layers)


def test_a_word_like_no_key_is_answered_with_where_the_keys_are() -> None:
    with pytest.raises(ValueError, match="unknown configuration key 'xyz'; --print-config shows all keys"):
        resolve(RSD, [{"xyz": 1}])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=0", "steps: Input should be greater than or equal to 1"),
        ("steps=many", "steps: Input should be a valid integer"),
        ("steps=1.5", "steps: Input should be a valid integer"),
        ("optimizer.lr=-1", "optimizer.lr: Input should be greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr: Input should be greater than 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: Field required"),
        ("optimizer=3", "optimizer: Input should be a valid dictionary"),
        ("ema_decay=1", "ema_decay: Input should be less than 1"),
        ("precision=fp8", "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
        ("task=teacher", "task: Input should be 'rsd'"),
        ("data.source=folder", "data: source 'folder' needs data.hr_folder"),
        ("data.source=pairs", "data: source 'pairs' needs data.hr_folder"),
        ("data.hr_folder=photos", "data: source 'generated' takes no data.hr_folder"),
        ("data.lr_folder=photos", "data: source 'generated' takes no data.lr_folder"),
    ],
)
def test_a_wrong_value_names_its_key(assignment: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resolve(RSD, [parse_assignment(assignment)])
    assert str(caught.value).startswith(f"invalid configuration: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "folder", "hr_folder": "a", "lr_folder": "b"}, "source 'folder' takes no data.lr_folder"),
        ({"source": "pairs", "hr_folder": "a"}, "source 'pairs' needs data.lr_folder"),
    ],
)
def test_folders_belong_to_their_source(data: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(RSD, [{"data": data}])


CODES = ("model.autoencoder.num_codes=16", "sigma=null", "terms.kl=null")


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (CODES[:1], "expected sigma=null with a codebook"),
        (CODES[:2], r"with a codebook and codebook.update=gradient, got kl; set terms\.kl=null"),
        (CODES, r"expected the term codebook .*; set terms\.codebook=1 or codebook\.update=ema"),
        ((*CODES, "codebook.update=ema", "terms.codebook=1"), r"codebook.update=ema, got codebook; set terms\.code"),
        (("terms.commitment=1", "terms.codebook=1"), r"continuous latents .*, got codebook, commitment; set terms\.c"),
        (("sigma=null",), r"expected a number for sigma with continuous latents, got null; set sigma=0\.1"),
        (("terms.l1=null", "terms.mse=null", "terms.colour=null"), "expected a term of l1, mse, colour, lpips, got kl"),
        (("terms.gan=1", "precision=fp16"), r"expected precision fp32 or bf16 with terms\.gan, got fp16"),
    ],
)
def test_terms_that_do_not_belong_to_a_latent_are_refused(assignments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve(preset("autoencoder", "tiny"), [parse_assignment(text) for text in assignments])
    assert "\n" not in str(caught.value)


def test_a_continuous_autoencoder_can_be_turned_into_one_with_codes() -> None:
    resolve(preset("autoencoder", "tiny"), [parse_assignment(text) for text in (*CODES, "terms.codebook=1")])
    resolve(preset("autoencoder", "tiny"), [parse_assignment(text) for text in (*CODES, "codebook.update=ema")])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("optimizer.lr=1e-4", {"optimizer": {"lr": 0.0001}}),
        ("steps=10", {"steps": 10}),
        ("optimizer.betas=[0.5, 0.9]", {"optimizer": {"betas": [0.5, 0.9]}}),
        ("clip_norm=null", {"clip_norm": None}),
        ("normalize=false", {"normalize": False}),
        ("teacher=runs/a=b", {"teacher": "runs/a=b"}),
        ("teacher=", {"teacher": None}),
    ],
)
def test_assignments_are_read_as_yaml(text: str, wanted: dict[str, Any]) -> None:
    assert parse_assignment(text) == wanted


@pytest.mark.parametrize("text", ["steps", "=3", "", "optimizer.betas=[0.5", "teacher=a: b: c"])
def test_other_assignments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected key=value, got"):
        parse_assignment(text)


def test_later_layers_win_and_leave_their_neighbours_alone() -> None:
    layers = [{"optimizer": {"lr": 1.0, "warmup_steps": 7}}, {"steps": 5}, {"optimizer": {"lr": 2.0}}]
    config = resolve(RSD, layers)
    assert (config.optimizer.lr, config.optimizer.warmup_steps, config.steps) == (2.0, 7, 5)
    assert config.optimizer.betas == RSD.optimizer.betas
    assert config.data == RSD.data


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_a_configuration_written_as_yaml_reads_back_equal(task: str, name: str, tmp_path: Path) -> None:
    changed: AnyRun = resolve(
        preset(task, name),
        [
            {"seed": 3, "clip_norm": 1e-05, "optimizer": {"lr": 1e-07, "betas": [0.1, 0.2]}},
            {"data": {"source": "folder", "hr_folder": "photos/1", "degradation": {"first": {"jpeg_quality": [5, 9]}}}},
        ],
    )
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(changed))
    assert resolve(preset(task, name), [read_yaml(path)]) == changed
    assert changed != preset(task, name)
    # Laid over the preset that is the default, too: terms that it has and the file has not do not come back.
    assert resolve(preset(task, "tiny"), [read_yaml(path)]) == changed


def test_numbers_in_yaml_files_may_have_an_exponent_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optimizer: {lr: 1e-4}\n")  # YAML 1.1 takes this for text
    assert resolve(RSD, [read_yaml(path)]).optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "expected keys and values in .*, got list"),
        (b"", "expected keys and values in .*, got NoneType"),
        (b"steps: [1\n", "expected YAML in"),
        (b"\xff\xfe\x00", "expected YAML in"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="expected a YAML file, got"):
        read_yaml(tmp_path / name)


def test_the_written_configuration_has_every_key() -> None:
    assert set(yaml.safe_load(to_yaml(RSD))) == set(type(RSD).model_fields)
