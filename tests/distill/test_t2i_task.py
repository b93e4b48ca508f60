"""Runs that distil text-to-image teachers, with minute networks of diffusers: who learns what, and what is saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import dry_run
from distill.config import (
    DataConfig,
    OptimizerConfig,
    OSEDiffRun,
    PromptsConfig,
    RampConfig,
    T2IRun,
    TSDRun,
    TSDScheduleConfig,
    ValidationConfig,
)
from distill.dry_run import plan
from distill.objectives.terms import Features
from distill.perceptual import BACKBONES
from distill.presets import preset
from distill.prompting import DETAIL, detail_names
from distill.run import train
from distill.tasks import Task, build_task
from distill.tasks import t2i as t2i_tasks
from distill.trainer import Player
from sr_data.images import write_image
from sr_models import SuperResolver
from sr_models.layers import count_parameters

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from sr_models.t2i.base import Base, load_base  # noqa: E402
from sr_models.t2i.folder import load_student, save_flow_base  # noqa: E402
from sr_models.t2i.lora import add_lora, lora_parameters, tsd_student  # noqa: E402
from sr_models.t2i.prompts import DEFAULT, NULL, Prompt, save_prompt  # noqa: E402
from sr_models.t2i.published import write_tsd  # noqa: E402
from sr_models.t2i.vae import encode, features  # noqa: E402

SD3 = {
    **{"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "num_layers": 2},
    **{"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4},
    **{"joint_attention_dim": 12, "pooled_projection_dim": 12, "pos_embed_max_size": 8},
}
SD2 = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "use_linear_projection": True},
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    **{"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 12},
}
VAE = {
    **{"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 1.5},
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SIZE = 16
"""Side of HR images; latents are 8x8."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_base(folder: Path, family: str, seed: int = 0) -> Path:
    """A base as diffusers saves it, and prompts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(**VAE)
        if family == "sd3":
            network, part, pipeline = diffusers.SD3Transformer2DModel(**SD3), "transformer", "StableDiffusion3Pipeline"
            scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        else:
            network, part, pipeline = diffusers.UNet2DConditionModel(**SD2), "unet", "StableDiffusionPipeline"
            scheduler = diffusers.DDPMScheduler(**SCALED_LINEAR)
    for name, module in ((part, network), ("vae", vae), ("scheduler", scheduler)):
        module.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for number, name in enumerate((DEFAULT, NULL, *DETAIL)):
        save_prompt(folder / "prompts", name, prompt(family, number))
    return folder


def prompt(family: str, seed: int) -> Prompt:
    return Prompt(normal(1, 5, 12, seed=seed), normal(1, 12, seed=seed + 100) if family == "sd3" else None)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: write_base(folder / family, family) for family in ("sd3", "sd2")}


def run(base: Path, **changes: Any) -> Any:
    """TSD-SR or OSEDiff of a base in minute size."""
    kind = OSEDiffRun if "sd2" in base.name else TSDRun
    settings: dict[str, Any] = {
        "preset": "minute",
        "steps": 2,
        "batch_size": 2,
        "log_every": 1,
        "device": "cpu",
        "tracker": "none",
        "data": DataConfig(hr_size=SIZE, image_size=64, workers=0),
        "validation": ValidationConfig(images=2, hr_size=SIZE),
        "optimizer": OptimizerConfig(lr=0.03),
        "fake_lr": 0.02,
        "base": str(base),
        "prompts": PromptsConfig(own="detail"),
        "rank": 2,
        "vae_rank": 3,
        "fake_rank": 2,
        "terms": {"distillation": 1.0, "features": 1.0, "latent_mse": 1.0},
    }
    return kind(**{**settings, **changes})


@dataclass
class Parts:
    """A run with the networks that it was built of."""

    own: Base
    shared: Base
    networks: t2i_tasks.T2INetworks
    task: Task

    @property
    def student(self) -> Player:
        return self.task.trainer.players[0]

    @property
    def fake(self) -> Player:
        return self.task.trainer.players[1]

    def update(self, player: Player) -> None:
        self.task.trainer._activate(player)
        self.task.trainer._update(player)

    def all_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of both copies of the base."""
        for place, base in (("own", self.own), ("shared", self.shared)):
            for part, module in (("network", base.predictor.network), ("vae", base.vae)):
                yield from ((f"{place}.{part}.{name}", value) for name, value in module.named_parameters())


def build(config: T2IRun) -> Parts:
    """Build a run in the usual way, and keep its networks."""
    made: list[Any] = []
    make_networks = t2i_tasks.make_networks

    def keep(*arguments: Any) -> t2i_tasks.T2INetworks:
        networks = make_networks(*arguments)
        made.extend((*(part for part in arguments if isinstance(part, Base)), networks))
        return networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t2i_tasks, "make_networks", keep)
        task = build_task(config)
    own, shared, networks = made
    return Parts(own, shared, networks, task)


def disturb(parameters: Iterator[nn.Parameter] | list[nn.Parameter], seed: int = 2) -> None:
    """Give adapters, which do nothing at first, an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def ask(predict: Any, family: str) -> Tensor:
    """A network's prediction for fixed input, without gradient."""
    with torch.no_grad():
        result: Tensor = predict(normal(2, 4, 8, 8), torch.tensor([100, 700]), prompt(family, 0).repeat(2))
    return result


# Gradients and updates


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_the_first_update_trains_every_adapter_of_the_student_and_nothing_else(
    bases: dict[str, Path], family: str
) -> None:
    parts = build(run(bases[family]))
    before = {name: value.detach().clone() for name, value in parts.all_parameters()}
    parts.update(parts.student)
    trained = {id(value) for value in parts.student.network.parameters()}
    recipes = {"network": parts.networks.student.network_lora, "vae": parts.networks.student.vae_lora}
    expected = {
        f"own.{part}.{name}"
        for part, module in (("network", parts.own.predictor.network), ("vae", parts.own.vae))
        for name in lora_parameters(module, recipes[part])
    }
    assert {name for name, value in parts.all_parameters() if id(value) in trained} == expected
    for name, value in parts.all_parameters():
        if name not in expected:
            assert value.grad is None, name
            assert torch.equal(value, before[name]), name
            continue
        assert value.grad is not None, name
        # A gets its gradient through B, which is 0; the last block has no use for the queries of its context.
        begins = ".lora_A." in name or "transformer_blocks.1.attn.add_q_proj" in name
        assert (value.grad.abs().sum() == 0) == begins, name
        assert torch.equal(value, before[name]) == begins, name
    assert not any("decoder" in name for name in expected if ".vae." in name)
    assert any("conv_in.base_layer" in name for name in expected) == (family == "sd2")
    disturb(list(parts.student.network.parameters()))
    parts.update(parts.student)
    for name, value in parts.student.network.named_parameters():
        assert value.grad is not None
        assert value.grad.abs().sum() > 0 or "transformer_blocks/1/attn/add_q_proj" in name, name


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_the_fake_models_update_touches_its_adapters_alone(bases: dict[str, Path], family: str) -> None:
    parts = build(run(bases[family]))
    before = {name: value.detach().clone() for name, value in parts.all_parameters()}
    parts.update(parts.fake)
    expected = {
        f"shared.network.{name}" for name in lora_parameters(parts.shared.predictor.network, parts.networks.fake_lora)
    }
    assert {f"shared.network.{name.replace('/', '.')}" for name, _ in parts.fake.network.named_parameters()} == expected
    for name, value in parts.all_parameters():
        assert (value.grad is not None) == (name in expected), name
        if name not in expected or ".lora_A." in name:
            assert torch.equal(value, before[name]), name
    moved = [name for name, value in parts.all_parameters() if not torch.equal(value, before[name])]
    still = expected - set(moved)
    assert all(".lora_A." in name or "transformer_blocks.1.attn.add_q_proj" in name for name in still)


def test_a_turn_is_one_update_of_the_student_and_the_fake_models(bases: dict[str, Path]) -> None:
    parts = build(run(bases["sd3"], fake_updates=2))
    assert [(player.name, player.updates) for player in parts.task.trainer.players] == [("student", 1), ("fake", 2)]
    assert parts.student.ema is not None
    assert parts.fake.ema is None
    rates = [player.optimizer.param_groups[0]["lr"] for player in parts.task.trainer.players]
    assert rates == [0.03, 0.02]


def test_an_inactive_adapter_is_refused(bases: dict[str, Path]) -> None:
    """It would get no gradient and stay as it is, without a word."""
    parts = build(run(bases["sd3"]))
    parts.own.predictor.network.disable_adapters()
    with pytest.raises(RuntimeError, match="expected a gradient for every parameter of student"):
        parts.task.trainer.run_step()
    parts = build(run(bases["sd3"]))
    parts.own.vae.disable_adapters()
    with pytest.raises(RuntimeError, match=r"expected a gradient for every parameter of student, got none.*vae"):
        parts.task.trainer.run_step()
    parts = build(run(bases["sd2"]))
    parts.shared.predictor.network.set_adapter(["default_encoder", "default_others"])
    with pytest.raises(RuntimeError, match=r"expected a gradient for every parameter of fake, got none.*up_blocks"):
        parts.task.trainer.run_step()


# The teacher


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_the_teacher_is_the_plain_base(bases: dict[str, Path], family: str, checkpointing: bool) -> None:
    """Bit for bit, whatever student and fake model have become."""
    parts = build(run(bases[family], checkpointing=checkpointing))
    parts.task.trainer.run_step()
    disturb(list(parts.student.network.parameters()))
    disturb(list(parts.fake.network.parameters()))
    plain = load_base(bases[family]).predictor
    plain.network.to(memory_format=torch.channels_last)
    wanted = ask(plain, family)
    assert torch.equal(ask(parts.networks.teacher, family), wanted)
    assert not torch.equal(ask(parts.networks.fake, family), wanted)
    assert not torch.equal(ask(parts.own.predictor, family), wanted)
    assert torch.equal(ask(parts.networks.teacher, family), wanted)


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_checkpointing_changes_no_gradient(bases: dict[str, Path], family: str) -> None:
    found = []
    for checkpointing in (False, True):
        parts = build(run(bases[family], checkpointing=checkpointing))
        for seed, player in enumerate((parts.student, parts.fake)):
            disturb(list(player.network.parameters()), seed)
        parts.task.trainer.run_step()
        assert parts.shared.predictor.network.is_gradient_checkpointing is checkpointing
        both = (parts.student, parts.fake)
        found.append([value.grad for player in both for value in player.network.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_the_teacher_may_have_adapters_of_its_own(bases: dict[str, Path], tmp_path: Path) -> None:
    """The fake model is then the base with its own adapters still, without the teacher's."""
    wanted = load_base(bases["sd3"]).predictor
    plain = ask(wanted, "sd3")
    recipe = tsd_student(wanted.network, 4, adapter="there")
    add_lora(wanted.network, recipe, seed=5)
    disturb(list(lora_parameters(wanted.network, recipe).values()))
    write_tsd(tmp_path / "teacher.safetensors", wanted.network, "there")
    parts = build(run(bases["sd3"], teacher_lora=tmp_path / "teacher.safetensors"))
    with_adapters = ask(wanted, "sd3")
    torch.testing.assert_close(ask(parts.networks.teacher, "sd3"), with_adapters, rtol=1e-5, atol=1e-6)
    assert (with_adapters - plain).abs().max() > 1e-3
    torch.testing.assert_close(ask(parts.networks.fake, "sd3"), plain, rtol=1e-5, atol=1e-6)
    before = {name: value.detach().clone() for name, value in parts.all_parameters()}
    parts.task.trainer.run_step()
    for name, value in parts.all_parameters():
        if ".teacher." in name:
            assert value.grad is None
            assert torch.equal(value, before[name])
    assert any(".teacher." in name for name in before)
    torch.testing.assert_close(ask(parts.networks.teacher, "sd3"), with_adapters, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="teacher_lora=null"):
        build(run(bases["sd2"], teacher_lora=tmp_path / "teacher.safetensors"))


@pytest.mark.parametrize(("method", "family"), [(TSDRun, "sd2"), (OSEDiffRun, "sd3")])
def test_each_method_can_have_the_other_ones_base(bases: dict[str, Path], method: Any, family: str) -> None:
    """The trainer checks that every adapter gets a gradient."""
    usual = run(bases["sd3" if method is TSDRun else "sd2"]).model_dump()
    trainer = build(method(**{**usual, "base": str(bases[family])})).task.trainer
    trainer.run_step()
    assert trainer.step == 1


# The student's step


def test_the_student_subtracts_the_velocity_at_time_1000(bases: dict[str, Path]) -> None:
    parts = build(run(bases["sd3"]))
    disturb(list(parts.student.network.parameters()))
    pixels, noise, given = normal(2, 3, SIZE, SIZE), normal(2, 4, 8, 8, seed=1), prompt("sd3", 7).repeat(2)
    with torch.no_grad():
        posterior = parts.own.vae.encode(pixels).latent_dist
        z_L = (posterior.mean + posterior.std * noise) * 1.5
        velocity = parts.own.predictor.network(
            hidden_states=z_L,
            timestep=torch.tensor([1000.0, 1000.0]),
            encoder_hidden_states=given.embeds,
            pooled_projections=given.pooled,
        ).sample
        torch.testing.assert_close(parts.networks.student(pixels, noise, given), z_L - velocity)
        default = parts.networks.student(pixels, noise)
        again = parts.networks.student(pixels, noise, prompt("sd3", 0).repeat(2))
    assert torch.equal(default, again)


def test_the_student_of_sd2_is_x_0_at_time_999(bases: dict[str, Path]) -> None:
    parts = build(run(bases["sd2"]))
    disturb(list(parts.student.network.parameters()))
    pixels, noise, given = normal(2, 3, SIZE, SIZE), normal(2, 4, 8, 8, seed=1), prompt("sd2", 7).repeat(2)
    ab = diffusers.DDPMScheduler(**SCALED_LINEAR).alphas_cumprod[999]
    with torch.no_grad():
        z_L = encode(parts.own.vae, pixels, noise)
        found = parts.own.predictor.network(z_L, timestep=999, encoder_hidden_states=given.embeds).sample
        wanted = (z_L - (1 - ab).sqrt() * found) / ab.sqrt()
        torch.testing.assert_close(parts.networks.student(pixels, noise, given), wanted, rtol=1e-4, atol=1e-4)


def test_features_of_the_vae_reach_the_pixels_and_train_nothing(bases: dict[str, Path]) -> None:
    @dataclass
    class Images:
        pixels: Tensor
        hr: Tensor

        @property
        def latents(self) -> Images:
            return self

    vae = build(run(bases["sd3"])).shared.vae
    term = Features(partial(features, vae))
    hr, pixels = normal(2, 3, SIZE, SIZE), normal(2, 3, SIZE, SIZE, seed=1).requires_grad_(True)
    assert len(features(vae, hr)) == 3
    assert torch.equal(term(Images(hr, hr)).values, torch.zeros(2))
    values = term(Images(pixels, hr)).values
    assert values.min() > 0
    values.mean().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert all(value.grad is None for value in vae.parameters())


# Prompts

NAMES = {"a": -0.8, "b.c": 0.0, "sub/d.e": 0.8}
"""Names of pictures without suffix, and their grey."""


@pytest.fixture
def pictures(tmp_path: Path) -> DataConfig:
    for name, grey in NAMES.items():
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.full((20, 24, 3), round((grey + 1) * 127.5), np.uint8))
    return DataConfig(source="folder", hr_folder=tmp_path / "pictures", hr_size=SIZE, workers=0)


def own_prompts(folder: Path, names: list[str]) -> PromptsConfig:
    """Prompts with the grey of their picture in every element."""
    greys = {**NAMES, DEFAULT: 5.0, NULL: 6.0}
    for name in (DEFAULT, NULL, *names):
        save_prompt(folder, name, Prompt(torch.full((1, 5, 12), greys[name]), torch.full((1, 12), greys[name])))
    return PromptsConfig(folder=folder)


def test_each_image_gets_the_prompt_of_its_file(bases: dict[str, Path], pictures: DataConfig, tmp_path: Path) -> None:
    prompts = own_prompts(tmp_path / "prompts", list(NAMES))
    trainer = build(run(bases["sd3"], data=pictures, prompts=prompts)).task.trainer
    for start in (0, 4):  # a resumed run too
        batches = trainer.batches(start)
        seen = set()
        for first in range(start, start + 6, 2):
            pairs = trainer.prepare(next(batches), range(first, first + 2))
            greys = pairs.hr.mean((1, 2, 3))
            torch.testing.assert_close(pairs.own.embeds.mean((1, 2)), greys, rtol=0, atol=0.01)
            torch.testing.assert_close(pairs.own.pooled.mean(1), greys, rtol=0, atol=0.01)
            assert torch.equal(pairs.null.embeds, torch.full((2, 5, 12), 6.0))
            assert torch.equal(pairs.student.embeds, torch.full((2, 5, 12), 5.0))
            seen |= {round(grey, 1) for grey in greys.tolist()}
        assert seen == {-0.8, 0.0, 0.8}
    trainer.run_step()


def test_images_without_a_prompt_are_named_before_training(
    bases: dict[str, Path], pictures: DataConfig, tmp_path: Path
) -> None:
    prompts = own_prompts(tmp_path / "prompts", ["a", "b.c"])
    with pytest.raises(
        ValueError, match=r"a prompt for every image in .*, got none for 1 of 3 \('sub/d\.e', ...\); encode its caption"
    ):
        build(run(bases["sd3"], data=pictures, prompts=prompts))


def test_generated_images_have_no_names(bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"prompts\.own=name, got generated.*set prompts\.own=default"):
        build_task(run(bases["sd3"], prompts=PromptsConfig(own="name")))


def test_prompts_by_detail_or_the_same_for_all(bases: dict[str, Path]) -> None:
    trainer = build(run(bases["sd3"], batch_size=6)).task.trainer
    pairs = trainer.prepare(next(trainer.batches(0)), range(6))
    names = detail_names(pairs.hr)
    assert len(set(names)) > 1
    numbers = {name: number for number, name in enumerate((DEFAULT, NULL, *DETAIL))}
    wanted = torch.cat([prompt("sd3", numbers[name]).embeds for name in names])
    assert torch.equal(pairs.own.embeds, wanted)
    trainer = build(run(bases["sd3"], prompts=PromptsConfig(own="default"))).task.trainer
    pairs = trainer.prepare(next(trainer.batches(0)), range(2))
    assert torch.equal(pairs.own.embeds, prompt("sd3", 0).repeat(2).embeds)
    assert torch.equal(pairs.null.embeds, prompt("sd3", 1).repeat(2).embeds)


def test_osediffs_student_gets_the_default_or_each_images_prompt(bases: dict[str, Path]) -> None:
    pairs = {}
    for which in ("default", "own"):
        trainer = build(run(bases["sd2"], student_prompt=which)).task.trainer
        pairs[which] = trainer.prepare(next(trainer.batches(0)), range(2))
    assert torch.equal(pairs["default"].student.embeds, prompt("sd2", 0).repeat(2).embeds)
    assert pairs["own"].student.embeds is pairs["own"].own.embeds
    assert not torch.equal(pairs["own"].own.embeds, pairs["default"].student.embeds)


def test_the_hr_latent_is_a_sample_of_the_plain_encoder(bases: dict[str, Path]) -> None:
    """The student's own encoder has learned something else."""
    parts = build(run(bases["sd3"]))
    disturb(list(parts.student.network.parameters()))
    raw = next(parts.task.trainer.batches(0))
    pairs = parts.task.trainer.prepare(raw, range(2))
    posterior = load_base(bases["sd3"]).vae.encode(pairs.hr).latent_dist
    noise = ((pairs.z_0 / 1.5 - posterior.mean) / posterior.std).detach()
    assert 0.8 < noise.std() < 1.2
    assert pairs.lr_up.shape == pairs.hr.shape
    again = parts.task.trainer.prepare(raw, range(2))
    assert torch.equal(pairs.z_0, again.z_0)
    assert not torch.equal(pairs.z_0, parts.task.trainer.prepare(raw, range(2, 4)).z_0)


# Whole runs


def test_the_log_shows_the_phases(bases: dict[str, Path], tmp_path: Path) -> None:
    schedule = TSDScheduleConfig(latent_mse_until=2, dasm_from=3)
    result = train(run(bases["sd3"], steps=4, schedule=schedule), out=tmp_path / "run", quiet=True)
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert ["student/term/latent_mse" in record for record in records] == [True, True, False, False]
    for record in records:
        names = {"student/term/distillation", "student/term/features", "student/direction", "fake/term/z_0"}
        assert names <= record.keys()
        assert any(name.startswith("student/loss_t/") for name in record)
    assert list(result.after.rows) == ["bicubic", "autoencoder (of HR)", "student 1 step, before", "student 1 step"]
    assert result.after.rows["student 1 step"] != result.after.rows["student 1 step, before"]
    assert result.summary["images_seen"] == 4 * 2 * 2


def trained(base: Path) -> tuple[Parts, Tensor, Tensor]:
    """A run after two steps, its validation LR images and what its average makes of them."""
    parts = build(run(base, ema_decay=0.5))
    parts.task.evaluate()
    for _ in range(2):
        parts.task.trainer.run_step()
    pictures = parts.task.evaluate().pictures
    lr = nn.functional.interpolate(pictures["LR"], scale_factor=0.25, mode="nearest")
    return parts, lr, pictures["student 1 step"]


def restored(model: Any, lr: Tensor) -> Tensor:
    return SuperResolver(model).upscale(lr, seed=0, steps=1)


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_a_saved_student_is_the_average_in_memory(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    parts, lr, wanted = trained(bases[family])
    parts.task.save(tmp_path / "student", {"seed": 3})
    loaded = SuperResolver.from_pretrained(tmp_path / "student")
    found = loaded.upscale(lr, seed=0, steps=1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (restored(parts.networks.student, lr) - wanted).abs().max() > 1e-3  # the weights themselves differ
    assert loaded.upscale(np.zeros((4, 4, 3), np.uint8)).shape == (16, 16, 3)
    content = json.loads((tmp_path / "student" / "config.json").read_text())
    assert content["kind"] == "t2i-student"
    assert (content["t2i"]["scale"], content["t2i"]["tile"]) == (4, 8)
    assert content["about"] == {"seed": 3}


def test_a_base_that_is_not_ours_may_change(bases: dict[str, Path], tmp_path: Path) -> None:
    """Nothing is known of its files."""
    base = write_base(tmp_path / "sd3", "sd3")
    parts, lr, wanted = trained(base)
    parts.task.save(tmp_path / "student", {})
    other = write_base(tmp_path / "other-sd3", "sd3", seed=1)
    found = restored(load_student(tmp_path / "student", str(other)), lr)
    assert not torch.equal(found, wanted)
    with pytest.raises(ValueError, match="expected a base of the family sd3, got sd2"):
        load_student(tmp_path / "student", str(bases["sd2"]))


def test_a_changed_base_of_ours_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    prompts = {name: prompt("sd3", number) for number, name in enumerate((DEFAULT, NULL, *DETAIL))}
    ours, other = tmp_path / "ours-sd3", tmp_path / "other-sd3"
    save_flow_base(load_base(bases["sd3"]), prompts, ours, about={})
    changed = write_base(tmp_path / "changed-sd3", "sd3", seed=1)
    save_flow_base(load_base(changed), prompts, other, about={})
    parts, lr, wanted = trained(ours)
    parts.task.save(tmp_path / "student", {})
    torch.testing.assert_close(restored(load_student(tmp_path / "student"), lr), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected the base that .*student was trained on, got another"):
        load_student(tmp_path / "student", str(other))
    file = ours / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        load_student(tmp_path / "student")


# Dry runs


@pytest.mark.parametrize("family", ["sd3", "sd2"])
def test_a_dry_run_of_a_base_that_is_here(bases: dict[str, Path], family: str) -> None:
    """Every weight of both copies counts, those of convolutions too, of which no operator returns a view."""
    config = run(bases[family], steps=5, fake_updates=2, prompts=PromptsConfig(own="default"))
    found = plan(config)
    base = load_base(bases[family])
    networks = (base.predictor.network, base.vae)
    tensors = [value for network in networks for value in (*network.parameters(), *network.buffers())]
    whole = 0 if family == "sd3" else sum(value.nbytes for value in base.predictor.network.conv_in.parameters())
    expected = 2 * sum(value.nbytes for value in tensors) - whole  # the student trains its conv_in
    assert found.memory.by_part["frozen networks"] == expected
    assert found.parameters == {
        player.name: count_parameters(player.network) for player in build(config).task.trainer.players
    }
    assert found.updates == {"student": 5, "fake": 10}
    assert found.missing == ()
    assert 0 < found.memory.tensor_bytes < found.memory.total_bytes


def test_a_dry_run_of_sd3_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the published size; their forecast, half a minute, is that of the small one above."""
    seen = []
    monkeypatch.setattr(dry_run, "forecast_trainer", lambda trainer, *_: seen.append(trainer))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = preset("tsd", "sd3-24gb").model_copy(update={"device": "cpu", "base": "nobody/stable-diffusion-3"})
    small = {"data": DataConfig(hr_size=64, workers=0), "validation": ValidationConfig(images=1, hr_size=64)}
    found = plan(published.model_copy(update=small))
    assert found.parameters == {"student": 89_268_224 + 5_910_208, "fake": 33_030_144}
    assert found.updates == {"student": 200_000, "fake": 200_000}
    assert (found.accumulate, len(seen)) == (16, 1)
    base, prompts = (next(line for line in found.missing if line.startswith(name)) for name in ("base", "prompts"))
    assert "networks of the size of SD3-medium without weights" in base
    assert "make them with" in prompts
    assert any(BACKBONES["alex"].file in line for line in found.missing)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_known_beforehand_is_refused_before_training(bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"expected times below 1000, the length of the table, got \[50, 1000\]"):
        build(run(bases["sd3"], times=(50, 1000)))
    with pytest.raises(ValueError, match="expected latents of at most 16x16 with sides that divide by 2, got 18x18"):
        build(run(bases["sd3"], data=DataConfig(hr_size=36, image_size=64, workers=0)))
    alone = {"terms": {"latent_mse": 1.0}}
    with pytest.raises(ValueError, match="expected a term that holds all the time, got latent_mse"):
        run(bases["sd3"], **alone, schedule=TSDScheduleConfig(latent_mse_until=1))
    run(bases["sd3"], **alone)
    for name in ("latent_mse_until", "dasm_from"):
        with pytest.raises(ValueError, match=f"expected schedule.{name} of at most steps=2, got 3: the run would end"):
            run(bases["sd3"], schedule=TSDScheduleConfig(**{name: 3}))
        run(bases["sd3"], schedule=TSDScheduleConfig(**{name: 2}))
    with pytest.raises(ValueError, match=r"expected base_dtype=null for .*sd2.*: conv_in is trained whole"):
        build(run(bases["sd2"], base_dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"expected data.hr_size as a multiple of 4 for .*sd2.*, got 18; change it"):
        build(run(bases["sd2"], data=DataConfig(hr_size=18, image_size=64, workers=0), scale=2))
    ramp = RampConfig(start=0, end=1)
    with pytest.raises(ValueError, match="expected a term that holds all the time, got features"):
        run(bases["sd3"], terms={"features": 1.0}, schedule=TSDScheduleConfig(gamma_1=ramp))


def test_a_run_goes_on_from_a_student(bases: dict[str, Path], tmp_path: Path) -> None:
    """Its first picture is the last one of the run before, in both families."""
    for family in ("sd3", "sd2"):
        parts, _, wanted = trained(bases[family])
        parts.task.save(tmp_path / family, {})
        continued = build(run(bases[family], start=tmp_path / family))
        found = continued.task.evaluate().pictures["student 1 step, before"]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        continued.task.trainer.run_step()
        with pytest.raises(ValueError, match="expected rank=2 and vae_rank=3, those of the student in"):
            build(run(bases[family], start=tmp_path / family, rank=1))


def test_prompts_of_another_base_are_refused(bases: dict[str, Path]) -> None:
    for one, other in (("sd3", "sd2"), ("sd2", "sd3")):
        prompts = PromptsConfig(folder=bases[other] / "prompts", own="detail")
        with pytest.raises(ValueError, match=r"expected prompts for .*: tokens of 12 and pooled .*, got 12 and"):
            build(run(bases[one], prompts=prompts))


def test_a_base_that_is_gone_is_said_to_be_gone(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was relative, and is looked for somewhere else."""
    monkeypatch.chdir(tmp_path)
    prompts = {name: prompt("sd3", number) for number, name in enumerate((DEFAULT, NULL, *DETAIL))}
    save_flow_base(load_base(bases["sd3"]), prompts, Path("ours-sd3"), about={})
    parts, lr, wanted = trained(Path("ours-sd3"))
    parts.task.save(tmp_path / "student", {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"expected the base of .*student at 'ours-sd3', got no such folder; .*--base"
    ):
        SuperResolver.from_pretrained(tmp_path / "student")
    moved = SuperResolver.from_pretrained(tmp_path / "student", base=str(tmp_path / "ours-sd3"))
    found = moved.upscale(lr, seed=0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
