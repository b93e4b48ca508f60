"""One step of the student and of the fake model against RSD's formulas, written out here in float64.

Nothing of the package is used on the reference's side but the forward functions of the networks: schedule, marginal,
prior, input scale, time index, losses and AdamW are written from the paper, the gradients are plain autograd of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import distill.tasks.common as common
import distill.tasks.students as students
from distill.config import DataConfig, LPIPSConfig, RSDRun, ValidationConfig
from distill.noise import SampleNoise
from distill.objectives import rsd, terms
from distill.objectives.output import Latents, ObjectiveOutput, WeightedTerm, weighted_sum
from distill.perceptual import load_lpips
from distill.tasks import build_task
from distill.tasks.common import make_player
from distill.trainer import Player, Trainer
from resshift_core import student_timesteps
from sr_models import (
    AutoencoderConfig,
    Denoiser,
    ModelConfig,
    ScheduleConfig,
    SRModel,
    SwinUNet,
    SwinUNetConfig,
    VQAutoencoder,
)
from sr_models.discriminator import make_head
from sr_models.store import save_model
from sr_models.student import make_fake, make_student

T, KAPPA, SCALE = 15, 2.0, 1.5
WEIGHTS = {"distillation": 1.0, "lpips": 2.0, "gan": 0.3, "latent_mse": 0.7, "pixel_mse": 0.4}
MODEL = ModelConfig(
    schedule=ScheduleConfig(),  # the published one
    unet=SwinUNetConfig(
        image_size=8,
        latent_channels=2,
        out_channels=2,
        base_channels=8,
        channel_multipliers=(1, 2),
        res_blocks=(1, 1),
        attention_levels=(0, 1),
        swin_embed_channels=8,
        swin_mlp_ratio=1.0,
        head_channels=4,
        window_size=4,
        norm_groups=2,
    ),
    autoencoder=AutoencoderConfig(
        latent_channels=2,
        z_channels=2,
        base_channels=4,
        channel_multipliers=(1, 1, 1),
        res_blocks=1,
        mid_attention=False,
        num_codes=12,
        norm_groups=2,
        latent_scale=SCALE,
    ),
)
LR_RATE, BETA_1, BETA_2, ADAM_EPS = 5e-5, 0.9, 0.95, 1e-8


# The reference: formulas of the paper, and nothing else.


def published_etas() -> Tensor:
    """eta_0..eta_T: sqrt(eta_t) = sqrt(eta_1) b^beta_t with beta_t = ((t - 1) / (T - 1))^0.3 (T - 1)."""
    first = min(0.04 / KAPPA, 0.04, math.sqrt(0.001))
    b = math.exp(math.log(0.99 / first) / (T - 1))
    roots = [first * b ** (((t - 1) / (T - 1)) ** 0.3 * (T - 1)) for t in range(1, T + 1)]
    return torch.tensor([0.0, *(root**2 for root in roots)], dtype=torch.float64)


ETAS = published_etas()


class Data(NamedTuple):
    lr: Tensor
    hr: Tensor
    z_y: Tensor
    z_0: Tensor


class Draws(NamedTuple):
    t_n: Tensor
    noise_n: Tensor
    epsilon: Tensor
    t: Tensor
    noise_t: Tensor
    noise_T: Tensor


class Networks(NamedTuple):
    student: Any
    fake: Any
    teacher: Any
    head: Any
    autoencoder: Any
    lpips: Any


def eta_of(t: Tensor) -> Tensor:
    return ETAS[t].view(-1, 1, 1, 1)


def noised(z_0: Tensor, z_y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Eq. 20: N((1 - eta_t) z_0 + eta_t z_y, kappa^2 eta_t I)."""
    return (1 - eta_of(t)) * z_0 + eta_of(t) * z_y + KAPPA * eta_of(t).sqrt() * noise


def predicted(network: Any, z_t: Tensor, lr: Tensor, t: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """Networks see z_t / sqrt(kappa^2 eta_t + 1) and the index t - 1."""
    out: Tensor = network(z_t / (KAPPA**2 * eta_of(t) + 1).sqrt(), t - 1, lr, epsilon)
    return out


def student_output(nets: Networks, data: Data, draws: Draws) -> Tensor:
    z_tn = noised(data.z_0, data.z_y, draws.t_n, draws.noise_n)
    return predicted(nets.student, z_tn, data.lr, draws.t_n, draws.epsilon)


def one_step_output(nets: Networks, data: Data, draws: Draws) -> Tensor:
    """The student at T on z_T ~ N(z_y, kappa^2 eta_T I), with the epsilon of t_n (Algorithm 1, lines 42-44)."""
    z_T = data.z_y + KAPPA * math.sqrt(ETAS[T].item()) * draws.noise_T
    return predicted(nets.student, z_T, data.lr, torch.full_like(draws.t, T), draws.epsilon)


def decoded(autoencoder: Any, z: Tensor) -> Tensor:
    """Unscale, snap to the nearest code (the gradient passes straight through), decode."""
    z = z / SCALE
    codes = autoencoder.codebook.weight.detach()
    distances = (z.detach().permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)
    nearest = codes[distances.argmin(-1)].permute(0, 3, 1, 2)
    out: Tensor = autoencoder.decoder(autoencoder.post_quant_conv(nearest + z - z.detach()))
    return out


def logits(nets: Networks, z: Tensor, lr: Tensor) -> Tensor:
    """The head on what leaves the fake U-Net's middle, for a clean latent scaled as at t = 1, at time index 0."""
    found: list[Tensor] = []
    hook = nets.fake.middle[-1].register_forward_hook(lambda module, inputs, output: found.append(output))
    nets.fake(z / math.sqrt(KAPPA**2 * ETAS[1].item() + 1), torch.zeros(len(z), dtype=torch.int64), lr)
    hook.remove()
    out: Tensor = nets.head(found[0])
    return out


def means(values: Tensor) -> Tensor:
    return values.mean((1, 2, 3))


def student_terms(nets: Networks, data: Data, draws: Draws) -> dict[str, Tensor]:
    """Eq. 7 (normalised per sample), 8 and the supervised terms, per sample."""
    z_0_hat = student_output(nets, data, draws)
    z_t = noised(z_0_hat, data.z_y, draws.t, draws.noise_t)
    f_star = predicted(nets.teacher, z_t, data.lr, draws.t)
    f_phi = predicted(nets.fake, z_t, data.lr, draws.t)
    eq_7 = -means(-(f_star**2) + f_phi**2 - 2 * (f_phi - f_star) * z_0_hat)
    z_1 = one_step_output(nets, data, draws)
    x_1 = decoded(nets.autoencoder, z_1)
    return {
        "distillation": eq_7 / (means((f_star - z_0_hat).abs()) + 1e-8).detach(),
        "lpips": nets.lpips(data.hr, x_1)[:, 0, 0, 0],
        "gan": -torch.log(torch.sigmoid(logits(nets, z_0_hat, data.lr))),
        "latent_mse": means((z_1 - data.z_0) ** 2),
        "pixel_mse": means((x_1 - data.hr) ** 2),
    }


def fake_terms(nets: Networks, data: Data, draws: Draws) -> dict[str, Tensor]:
    """Eq. 5 on the student's data, and the discriminator's part of Eq. 8, per sample."""
    z_0_hat = student_output(nets, data, draws).detach()
    z_t = noised(z_0_hat, data.z_y, draws.t, draws.noise_t)
    real, generated = logits(nets, data.z_0, data.lr), logits(nets, z_0_hat, data.lr)
    return {
        "z_0": means((predicted(nets.fake, z_t, data.lr, draws.t) - z_0_hat) ** 2),
        "gan": -torch.log(torch.sigmoid(real)) - torch.log(1 - torch.sigmoid(generated)),
    }


def weighted(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Eq. 9."""
    parts = [weight * values[name].mean() for name, weight in weights.items()]
    return torch.stack(parts).sum()


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


class Adam:
    """AdamW without weight decay, for one list of parameters."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]
        self.steps = 0

    def step(self, gradient: list[Tensor | None]) -> None:
        self.steps += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradient, self.m, self.v, strict=True):
                if g is None:
                    continue
                m.copy_(BETA_1 * m + (1 - BETA_1) * g)
                v.copy_(BETA_2 * v + (1 - BETA_2) * g * g)
                m_hat, v_hat = m / (1 - BETA_1**self.steps), v / (1 - BETA_2**self.steps)
                p.copy_(p - LR_RATE * m_hat / (v_hat.sqrt() + ADAM_EPS))


# The package, on the same networks and numbers.


def shake_(network: nn.Module, seed: int) -> None:
    """Move every parameter at random: networks differ from each other, and layers that start at zero speak."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def random_teacher() -> tuple[SwinUNet, VQAutoencoder]:
    torch.manual_seed(0)
    unet, autoencoder = SwinUNet(MODEL.unet), VQAutoencoder(MODEL.autoencoder)
    assert autoencoder.codebook is not None
    nn.init.normal_(autoencoder.codebook.weight)  # fresh codes all but coincide
    shake_(unet, 1)
    shake_(autoencoder, 2)
    return unet, autoencoder


@pytest.fixture(scope="module")
def originals() -> Networks:
    unet, autoencoder = random_teacher()
    head = make_head(MODEL.unet, torch.Generator().manual_seed(3))
    lpips = load_lpips("alex", "random", torch.Generator().manual_seed(4)).network
    nets = Networks(make_student(unet), make_fake(unet), unet, head, autoencoder, lpips)
    for seed, network in enumerate(nets[:4]):
        shake_(network, 10 + seed)
    for network in nets:
        network.double().requires_grad_(False).eval()
    return nets


@pytest.fixture
def nets(originals: Networks) -> Networks:
    return copied(originals)


def copied(nets: Networks) -> Networks:
    """The four networks with the rest shared."""
    return Networks(*(copy.deepcopy(network) for network in nets[:4]), *nets[4:])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def data() -> Data:
    lr, hr = normal(20, 4, 3, 8, 8).clamp(-1, 1), normal(21, 4, 3, 32, 32).clamp(-1, 1)
    return Data(lr, hr, normal(22, 4, 2, 8, 8), normal(23, 4, 2, 8, 8))


@pytest.fixture(scope="module")
def draws() -> Draws:
    def latent(seed: int) -> Tensor:
        return normal(seed, 4, 2, 8, 8)

    t_n, t = torch.tensor([4, 8, 12, 15]), torch.tensor([9, 1, 15, 3])
    return Draws(t_n, latent(24), normal(25, 4, 1, 8, 8), t, latent(26), latent(27))


def player_networks(nets: Networks) -> nn.ModuleDict:
    return nn.ModuleDict({"unet": nets.fake, "head": nets.head})


def run_of(weights: Mapping[str, float] = WEIGHTS, **rest: Any) -> RSDRun:
    """Everything that is not named is a default: lr 5e-5, betas 0.9 and 0.95, no decay."""
    return RSDRun(preset="reference", teacher="unused", steps=1, terms=dict(weights), device="cpu", **rest)


def denoisers(nets: Networks) -> dict[str, Denoiser]:
    schedule = MODEL.schedule.build()
    return {name: Denoiser(getattr(nets, name), schedule) for name in ("student", "fake", "teacher")}


def package_student(nets: Networks, data: Data, draws: Draws, weights: Mapping[str, float]) -> ObjectiveOutput:
    known: dict[str, Any] = {
        "distillation": rsd.Distillation(),
        "lpips": terms.LPIPS(nets.lpips),
        "gan": terms.GeneratorGAN(terms.Discriminator(denoisers(nets)["fake"], nets.head)),
        "latent_mse": terms.latent_mse,
        "pixel_mse": terms.pixel_mse,
    }
    step = rsd.StudentPass(
        **denoisers(nets), latents=Latents(*data), draws=rsd.RSDDraws(*draws), decode=nets.autoencoder.decode
    )
    return weighted_sum(step, [WeightedTerm(name, weight, known[name]) for name, weight in weights.items()])


def package_fake(nets: Networks, data: Data, draws: Draws, weights: Mapping[str, float]) -> ObjectiveOutput:
    models = denoisers(nets)
    known: dict[str, Any] = {
        "z_0": rsd.fake_mse,
        "gan": terms.DiscriminatorGAN(terms.Discriminator(models["fake"], nets.head)),
    }
    step = rsd.FakePass(models["fake"], models["student"], Latents(*data), rsd.RSDDraws(*draws))
    return weighted_sum(step, [WeightedTerm(name, weight, known[name]) for name, weight in weights.items()])


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    """Equal to ``tolerance`` of the largest element."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def assert_step_is_the_reference(
    network: nn.Module,
    reference: nn.Module,
    output: ObjectiveOutput,
    values: dict[str, Tensor],
    weights: dict[str, float],
) -> None:
    """Values, gradients of every parameter, and the parameters after AdamW."""
    assert list(output.terms) == list(weights)
    for name in weights:
        assert_same(output.terms[name], values[name].detach())
    loss = weighted(values, weights)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    assert_same(output.per_sample, sum(weights[name] * values[name].detach() for name in weights))  # type: ignore[arg-type]
    player = make_player("player", network, run_of(), lambda data, noise: output, ema=False)
    output.loss.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(loss, list(reference.parameters()))
    assert any(gradient is not None for gradient in wanted)
    for (name, parameter), gradient in zip(network.named_parameters(), wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            assert parameter.grad is not None
            assert gradient.abs().max() > 1e-9, f"{name}: nothing to compare"
            assert_same(parameter.grad, gradient)
    player.optimizer.step()
    Adam(list(reference.parameters())).step(wanted)
    for parameter, new in zip(network.parameters(), reference.parameters(), strict=True):
        assert (parameter - new).abs().max() < 1e-9 * LR_RATE + 1e-15


def alone(weights: Mapping[str, float]) -> list[Any]:
    every = [pytest.param(dict(weights), id="all")]
    return every + [pytest.param({name: weight}, id=name) for name, weight in weights.items()]


@pytest.mark.parametrize("weights", alone(WEIGHTS))
def test_student_step(nets: Networks, data: Data, draws: Draws, weights: dict[str, float]) -> None:
    reference = copied(nets)
    nets.student.requires_grad_(True)
    reference.student.requires_grad_(True)
    output = package_student(nets, data, draws, weights)
    values = student_terms(reference, data, draws)
    assert_step_is_the_reference(nets.student, reference.student, output, values, weights)


@pytest.mark.parametrize("weights", alone({"z_0": 1.0, "gan": 0.3}))
def test_fake_step(nets: Networks, data: Data, draws: Draws, weights: dict[str, float]) -> None:
    reference = copied(nets)
    for some in (nets, reference):
        some.student.requires_grad_(True)  # not the loss's to rely on: the pass itself stops the gradient
        player_networks(some).requires_grad_(True)
    output = package_fake(nets, data, draws, weights)
    values = fake_terms(reference, data, draws)
    assert_step_is_the_reference(player_networks(nets), player_networks(reference), output, values, weights)
    assert all(parameter.grad is None for parameter in nets.student.parameters())
    if "gan" not in weights:
        assert all(parameter.grad is None for parameter in nets.head.parameters())
    else:
        assert all(parameter.grad is not None for parameter in nets.head.parameters())


def test_metrics_of_both_steps(nets: Networks, data: Data, draws: Draws) -> None:
    student = package_student(nets, data, draws, WEIGHTS)
    fake = package_fake(nets, data, draws, {"z_0": 1.0, "gan": 0.3})
    z_0_hat = student_output(nets, data, draws)
    z_t = noised(z_0_hat, data.z_y, draws.t, draws.noise_t)
    f_star, f_phi = (predicted(net, z_t, data.lr, draws.t) for net in (nets.teacher, nets.fake))
    right = torch.cat([logits(nets, data.z_0, data.lr) > 0, logits(nets, z_0_hat, data.lr) < 0])
    wanted = {
        "teacher_gap": (f_star - z_0_hat).abs().mean(),
        "fake_gap": (f_phi - f_star).square().mean(),
        "fake_lag": (f_phi - z_0_hat).square().mean() / (f_star - z_0_hat).square().mean(),
        "gan_accuracy": right.double().mean(),
    }
    found = {**student.metrics, **fake.metrics}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}, rel=1e-7
    )
    assert student.times is not None
    assert fake.times is not None
    assert torch.equal(student.times, draws.t)
    assert torch.equal(fake.times, draws.t)


def reference_step(
    nets: Networks, batches: Iterator[tuple[Data, Draws]], fake_updates: int, weights: dict[str, float]
) -> list[list[Tensor | None]]:
    """Lines 25-51 of Algorithm 1, in place; returns the gradients of the last fake update and of the student's."""
    fake = list(player_networks(nets).requires_grad_(True).parameters())
    student = list(nets.student.requires_grad_(True).parameters())
    fake_adam, student_adam = Adam(fake), Adam(student)
    of_fake: list[Tensor | None] = []
    for _ in range(fake_updates):
        loss = weighted(fake_terms(nets, *next(batches)), {"z_0": 1.0, "gan": weights["gan"]})
        of_fake = gradients(loss, fake)
        fake_adam.step(of_fake)
    of_student = gradients(weighted(student_terms(nets, *next(batches)), weights), student)
    student_adam.step(of_student)
    return [of_fake, of_student]


def doubled(draws: rsd.RSDDraws) -> Draws:
    return Draws(*(value.double() if value.is_floating_point() else value for value in draws))


def test_trainer_step_in_float64(nets: Networks, data: Data) -> None:
    """The real trainer and optimizers: two fake updates on their own batches, then the student's."""
    reference, timesteps, schedule = copied(nets), student_timesteps(T, 4), MODEL.schedule.build()

    def batch(number: int) -> Data:
        return Data(*(part.roll(number, 0) + 0.1 * number for part in data))

    def draws_of(noise: SampleNoise) -> Draws:
        return doubled(rsd.draw(schedule, timesteps, Latents(*data), noise))

    def fake_loss(latents: Data, noise: SampleNoise) -> ObjectiveOutput:
        return package_fake(nets, latents, draws_of(noise), {"z_0": 1.0, "gan": WEIGHTS["gan"]})

    def student_loss(latents: Data, noise: SampleNoise) -> ObjectiveOutput:
        return package_student(nets, latents, draws_of(noise), WEIGHTS)

    run = run_of()
    players = [
        make_player("fake", player_networks(nets), run, fake_loss, updates=2, ema=False),
        make_player("student", nets.student, run, student_loss),
    ]
    Trainer(players, lambda start: (batch(i) for i in count()), lambda b, _: Data(*b), seed=7).run_step()
    numbered = ((batch(i), draws_of(SampleNoise(7, range(4 * i, 4 * i + 4)))) for i in count())
    wanted = reference_step(reference, numbered, 2, WEIGHTS)
    for player, other, gradient in zip(players, (player_networks(reference), reference.student), wanted, strict=True):
        for found, new, g in zip(player.network.parameters(), other.parameters(), gradient, strict=True):
            assert found.grad is not None
            assert g is not None
            assert_same(found.grad, g)
            assert (found - new).abs().max() < 1e-7 * LR_RATE


# The builder, as a user runs it: float32, the default optimizer, a teacher from its folder.


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "teacher"
    unet, autoencoder = random_teacher()
    save_model(SRModel("teacher", MODEL, unet, autoencoder), folder)
    return folder


class Loaded:
    """What the builder loads: frozen networks that no player shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[SRModel] = []
        self.lpips: list[nn.Module] = []
        load_model, load = students.load_model, common.load_lpips

        def spy_model(name: Any) -> SRModel:
            self.models.append(load_model(name))
            return self.models[-1]

        def spy_lpips(*arguments: Any) -> Any:
            perceptual = load(*arguments)
            self.lpips.append(perceptual.network)
            return perceptual

        monkeypatch.setattr(students, "load_model", spy_model)
        monkeypatch.setattr(common, "load_lpips", spy_lpips)

    @property
    def frozen(self) -> list[nn.Module]:
        (model,), (lpips,) = self.models, self.lpips
        return [model.unet, model.autoencoder, lpips]


def watch_turns(players: list[Player], frozen: list[nn.Module]) -> list[str]:
    """Check at every loss who trains and who is frozen; return the names in order."""
    seen: list[str] = []
    for player in players:

        def loss(data: Any, noise: SampleNoise, player: Player = player, plain: Any = player.loss) -> ObjectiveOutput:
            for other in players:
                for module in other.network.modules():
                    assert module.training == (other is player)
                assert all(p.requires_grad == (other is player) for p in other.network.parameters())
            for network in frozen:
                assert not any(module.training for module in network.modules())
                assert not any(p.requires_grad for p in network.parameters())
            seen.append(player.name)
            output: ObjectiveOutput = plain(data, noise)
            return output

        player.loss = loss
    return seen


def data_of(autoencoder: Any, lr: Tensor, hr: Tensor) -> Data:
    """z_y = Enc(bicubic upsampling of LR, clamped), z_0 = Enc(HR), times the latent scale."""
    lr, hr = lr.double(), hr.double()
    upsampled = nn.functional.interpolate(lr, size=hr.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)
    encoded = [SCALE * autoencoder.quant_conv(autoencoder.encoder(image)) for image in (upsampled, hr)]
    return Data(lr, hr, *encoded)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_built_run_step_in_float32(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    loaded = Loaded(monkeypatch)
    run = run_of(
        seed=5,
        fake_updates=1,
        batch_size=4,
        micro_batch=micro_batch,
        lpips=LPIPSConfig(net="alex", backbone="random"),
        data=DataConfig(hr_size=32, image_size=64, workers=0),
        validation=ValidationConfig(images=1, hr_size=32),
    ).model_copy(update={"teacher": str(teacher_folder)})
    trainer = build_task(run).trainer
    fake, student = trainer.players
    assert isinstance(fake.network, nn.ModuleDict)
    assert set(fake.network) == {"unet", "head"}
    shake_(fake.network, 30)  # the three start equal, and their losses' differences with them
    shake_(student.network, 31)
    model = loaded.models[0]
    parts = (
        student.network,
        fake.network["unet"],
        model.unet,
        fake.network["head"],
        model.autoencoder,
        loaded.lpips[0],
    )
    nets = Networks(*(copy.deepcopy(part).double() for part in parts))
    before = [[p.detach().double() for p in player.network.parameters()] for player in (fake, student)]
    turns = watch_turns([fake, student], loaded.frozen)
    trainer.run_step()
    assert turns == [name for name in ("fake", "student") for _ in range(4 // (micro_batch or 4))]
    for network in loaded.frozen:
        assert all(parameter.grad is None for parameter in network.parameters())

    source, size, raw = trainer.batches(0), micro_batch or 4, []
    while len(raw) * size < 8:
        raw.append(next(source))
    lr, hr = (torch.cat([part[i] for part in raw]) for i in range(2))
    timesteps, schedule = student_timesteps(T, 4), MODEL.schedule.build()

    def batch(number: int) -> tuple[Data, Draws]:
        own = slice(4 * number, 4 * number + 4)
        with torch.no_grad():
            one = data_of(nets.autoencoder, lr[own], hr[own])
        return one, doubled(rsd.draw(schedule, timesteps, Latents(*one), SampleNoise(5, range(own.start, own.stop))))

    wanted = reference_step(nets, (batch(i) for i in count()), 1, WEIGHTS)
    references = (player_networks(nets), nets.student)
    for player, old, other, gradient in zip((fake, student), before, references, wanted, strict=True):
        for (name, found), was, new, g in zip(
            player.network.named_parameters(), old, other.parameters(), gradient, strict=True
        ):
            assert found.grad is not None
            assert g is not None
            assert_same(found.grad.double(), g, 1e-4)
            moved, expected = (found.detach().double() - was) / LR_RATE, (new.detach() - was) / LR_RATE
            clear = g.abs() > 1e-3 * g.abs().max()  # AdamW's first step is the sign: rounding decides it near 0
            assert clear.any(), name
            assert (moved - expected)[clear].abs().max() < 0.01, name
            assert moved.abs().max() < 1.01, name
