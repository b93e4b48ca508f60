"""Terms of the losses by their closed forms, what they are added up to, their random numbers, and saved memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distill.tasks.common as common
import distill.tasks.students as students
from distill.config import LPIPSConfig, RSDRun
from distill.noise import SampleNoise
from distill.objectives import rsd, terms
from distill.objectives.output import Latents, TermValue, WeightedTerm, combine, weighted_sum, widen
from distill.tasks import build_task
from resshift_core import ResShiftSchedule
from sr_models import AutoencoderConfig, Denoiser, SwinUNet, SwinUNetConfig, VQAutoencoder
from sr_models.discriminator import DiscriminatorHead, make_head

UNET = SwinUNetConfig(
    image_size=8,
    latent_channels=2,
    out_channels=2,
    base_channels=8,
    channel_multipliers=(1, 2),
    res_blocks=(2, 1),
    attention_levels=(0, 1),
    swin_embed_channels=8,
    head_channels=4,
    window_size=4,
    norm_groups=2,
    dropout=0.2,
)


def shaken(network: Any) -> Any:
    """Random everywhere: fresh networks have zero layers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# GAN


@dataclass
class Features:
    """Bottleneck: gain * z, where ``calls`` records what was asked for."""

    gain: Tensor = field(default_factory=lambda: torch.ones((), requires_grad=True))
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def bottleneck(self, z_t: Tensor, lr: Tensor, t: Tensor) -> Tensor:
        self.calls.append((z_t, lr, t))
        return self.gain * z_t


class Head(nn.Module):
    """Logit: slope * mean of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.slope * features.mean((1, 2, 3))


def constant(values: list[float]) -> Tensor:
    """A latent for each value, filled with it: its logit is the value."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 2, 4, 4).clone()


def gan_pass(real: list[float], generated: list[float]) -> Any:
    lr, z_0 = torch.zeros(len(real), 3, 4, 4), constant(real).requires_grad_()
    z_0_hat = constant(generated).requires_grad_()
    return SimpleNamespace(latents=Latents(lr, lr, z_0, z_0), sample=SimpleNamespace(z_0_hat=z_0_hat))


REAL, GENERATED = [0.0, 3.0, -2.0, 1.0], [-1.0, 2.0, 0.0, -30.0]


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_generator_gan_is_minus_log_of_the_probability_of_real() -> None:
    term = terms.GeneratorGAN(terms.Discriminator(Features(), Head()))
    value = term(gan_pass(REAL, GENERATED))
    assert value.values.tolist() == pytest.approx([softplus(-logit) for logit in GENERATED], rel=1e-6)
    assert value.values[2].item() == pytest.approx(math.log(2))
    assert value.times is None


def test_discriminator_gan_tells_real_from_generated() -> None:
    value = terms.DiscriminatorGAN(terms.Discriminator(Features(), Head()))(gan_pass(REAL, GENERATED))
    wanted = [softplus(-real) + softplus(generated) for real, generated in zip(REAL, GENERATED, strict=True)]
    assert value.values.tolist() == pytest.approx(wanted, rel=1e-6)
    # Real above 0: 2 of 4; generated below 0: 2 of 4; undecided is not right.
    assert value.metrics["gan_accuracy"].item() == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("real", "generated", "accuracy"), [([5.0], [-5.0], 1), ([-5.0], [5.0], 0), ([5.0], [5.0], 0.5)]
)
def test_gan_accuracy(real: list[float], generated: list[float], accuracy: float) -> None:
    value = terms.DiscriminatorGAN(terms.Discriminator(Features(), Head()))(gan_pass(real, generated))
    assert value.metrics["gan_accuracy"].item() == accuracy
    assert not value.metrics["gan_accuracy"].requires_grad


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    for real, generated in (([1e4], [-1e4]), ([-1e4], [1e4])):
        step = gan_pass(real, generated)
        discriminator = terms.Discriminator(Features(), Head())
        loss = terms.GeneratorGAN(discriminator)(step).values + terms.DiscriminatorGAN(discriminator)(step).values
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss).all()
        assert torch.isfinite(step.sample.z_0_hat.grad).all()
        assert torch.isfinite(discriminator.head.slope.grad)  # type: ignore[arg-type]


def test_generator_gan_gradient_pushes_the_sample_towards_real() -> None:
    step = gan_pass(REAL, GENERATED)
    terms.GeneratorGAN(terms.Discriminator(Features(), Head()))(step).values.sum().backward()  # type: ignore[no-untyped-call]
    assert step.latents.z_0.grad is None
    # d softplus(-l) / d l = -sigmoid(-l), and the logit is the mean of 32 elements.
    wanted = [-1 / (1 + math.exp(logit)) / 32 for logit in GENERATED]
    assert step.sample.z_0_hat.grad[:, 0, 0, 0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_discriminator_gan_trains_head_and_features_and_not_the_sample() -> None:
    step, features, head = gan_pass(REAL, GENERATED), Features(), Head()
    terms.DiscriminatorGAN(terms.Discriminator(features, head))(step).values.sum().backward()  # type: ignore[no-untyped-call]
    assert step.sample.z_0_hat.grad is None
    # At gain = slope = 1 both scale the logit: -real sigmoid(-real) + generated sigmoid(generated).
    wanted = sum(-r / (1 + math.exp(r)) for r in REAL) + sum(g / (1 + math.exp(-g)) for g in GENERATED)
    for gradient in (features.gain.grad, head.slope.grad):
        assert gradient is not None
        assert gradient.item() == pytest.approx(wanted, rel=1e-5)


def test_discriminator_asks_for_clean_latents_at_t_1_each_with_its_lr() -> None:
    step, features = gan_pass(REAL, GENERATED), Features()
    discriminator = terms.Discriminator(features, Head())
    terms.DiscriminatorGAN(discriminator)(step)
    terms.GeneratorGAN(discriminator)(step)
    assert [z[:, 0, 0, 0].tolist() for z, _, _ in features.calls] == [REAL, GENERATED, GENERATED]
    for _, lr, t in features.calls:
        assert lr is step.latents.lr
        assert t.dtype == torch.int64
        assert t.tolist() == [1, 1, 1, 1]


def test_the_network_sees_time_index_0_the_least_scale_and_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = ResShiftSchedule.exponential()
    network = shaken(SwinUNet(UNET)).eval()
    seen: list[Any] = []
    plain = network._encode

    def spy(x: Tensor, time_index: Tensor, lr: Tensor, noise: Tensor | None) -> Any:
        seen.append((x, time_index, lr, noise))
        return plain(x, time_index, lr, noise)

    monkeypatch.setattr(network, "_encode", spy)
    head = make_head(UNET, torch.Generator().manual_seed(0))
    z_0, lr = normal(3, 2, 8, 8), normal(3, 3, 8, 8, seed=1)
    logits = terms.Discriminator(Denoiser(network, schedule), head)(z_0, lr)
    (x, time_index, given_lr, noise), *others = seen
    assert not others
    assert time_index.tolist() == [0, 0, 0]
    assert noise is None
    assert given_lr is lr
    assert torch.allclose(x, z_0 / math.sqrt(2.0**2 * 0.02**2 + 1), rtol=1e-6)  # kappa = 2, sqrt(eta_1) = 0.02
    assert torch.equal(logits, head(network.bottleneck(x, time_index, lr)))


# Supervised terms


def one_step_pass() -> Any:
    lr, hr = normal(3, 3, 4, 4), normal(3, 3, 16, 16, seed=1)
    latents = Latents(lr, hr, normal(3, 2, 4, 4, seed=2), normal(3, 2, 4, 4, seed=3))
    one_step = normal(3, 2, 4, 4, seed=4).requires_grad_()
    pixels = one_step.mean(1, keepdim=True).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    return SimpleNamespace(latents=latents, one_step=one_step, pixels=pixels)


@pytest.mark.parametrize("name", ["latent_mse", "pixel_mse"])
def test_squared_errors_are_means_over_the_elements_of_a_sample(name: str) -> None:
    step = one_step_pass()
    found, target = {
        "latent_mse": (step.one_step, step.latents.z_0),
        "pixel_mse": (step.pixels, step.latents.hr),
    }[name]
    value = getattr(terms, name)(step)
    wanted = [sum((a - b) ** 2 for a, b in zip(f.flatten().tolist(), t.flatten().tolist(), strict=True)) / f.numel()
              for f, t in zip(found, target, strict=True)]  # fmt: skip
    assert value.values.tolist() == pytest.approx(wanted, rel=1e-5)
    value.values.sum().backward()
    assert step.one_step.grad.abs().min() > 0


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1, 1)])
def test_lpips_is_the_distance_of_pixels_to_hr_in_full_precision(shape: tuple[int, ...]) -> None:
    def distance(pixels: Tensor, hr: Tensor) -> Tensor:
        assert hr is step.latents.hr
        product = pixels.flatten(1) @ torch.eye(768)  # autocast would do this in bfloat16
        assert product.dtype == torch.float32
        return (product - 2 * hr.flatten(1)).abs().mean(1).view(shape)

    step = one_step_pass()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = terms.LPIPS(distance)(step).values
    assert torch.equal(value, (step.pixels - 2 * step.latents.hr).flatten(1).abs().mean(1))
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert step.one_step.grad.abs().sum() > 0


# Sums


def test_weighted_sum_adds_weights_times_means() -> None:
    a, b = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([10.0, 30.0], requires_grad=True)
    times = torch.tensor([4, 2])
    some: list[WeightedTerm[str]] = [
        WeightedTerm("a", 0.5, lambda step: TermValue(a, {"seen": a.sum()}, times)),
        WeightedTerm("b", 2.0, lambda step: TermValue(b, {step: b.sum()}, times + 1)),
    ]
    output = weighted_sum("of the pass", some)
    assert output.loss.item() == 0.5 * 2 + 2 * 20
    assert list(output.terms) == ["a", "b"]
    assert output.terms["a"] is a
    assert output.weights == {"a": 0.5, "b": 2.0}
    assert output.per_sample.tolist() == [0.5 + 20, 1.5 + 60]
    assert not output.per_sample.requires_grad
    assert {name: value.item() for name, value in output.metrics.items()} == {"seen": 4, "of the pass": 40}
    assert not any(value.requires_grad for value in output.metrics.values())
    assert output.times is times  # of the first term that has any
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad.tolist(), b.grad.tolist()) == ([0.25, 0.25], [1.0, 1.0])


def test_the_mean_of_per_sample_is_the_loss_and_times_may_come_from_a_later_term() -> None:
    output = combine({"a": normal(5), "b": normal(5, seed=1)}, {"a": 0.3, "b": 7.0, "unused": 9.0})
    assert output.per_sample.mean().item() == pytest.approx(output.loss.item(), rel=1e-6)
    assert output.times is None
    times = torch.tensor([1])
    some: list[WeightedTerm[None]] = [
        WeightedTerm("none", 1.0, lambda step: TermValue(torch.ones(1))),
        WeightedTerm("some", 1.0, lambda step: TermValue(torch.ones(1), times=times)),
    ]
    assert weighted_sum(None, some).times is times


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_widen_is_float32_at_least(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert widen(torch.ones(2, dtype=dtype)).dtype == wide


# Which terms a run has


NAMES = ("distillation", "lpips", "latent_mse", "pixel_mse", "gan")


@pytest.mark.parametrize(
    "weights",
    [
        {"distillation": 1.0},
        {"pixel_mse": 0.1, "gan": 3e-3, "lpips": 2.0, "distillation": 1.0, "latent_mse": 0.2},
        {"gan": 0.5},
        {"distillation": 1.0, "lpips": None, "gan": None, "latent_mse": 0.25},
    ],
)
def test_a_run_has_the_terms_of_its_configuration(
    rsd_run: RSDRun, weights: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not weights.get("lpips"):
        monkeypatch.setattr(common, "load_lpips", lambda *_: pytest.fail("LPIPS loaded though it is left out"))
    given = {**rsd_run.model_dump(), "terms": weights, "lpips": LPIPSConfig(net="alex", backbone="random")}
    task = build_task(RSDRun.model_validate(given))
    fake, student = task.trainer.players
    batch = Latents(normal(2, 3, 8, 8), normal(2, 3, 32, 32), normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1))
    output = student.loss(batch, SampleNoise(0, range(2)))
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    assert list(output.terms) == [name for name in NAMES if name in kept]  # in this order, distillation first
    assert output.weights == kept
    output = fake.loss(batch, SampleNoise(0, range(2)))
    wanted = {"z_0": 1.0, "gan": kept["gan"]} if "gan" in kept else {"z_0": 1.0}
    assert output.weights == wanted
    assert list(output.terms) == list(wanted)
    assert isinstance(fake.network, nn.ModuleDict)
    assert set(fake.network) == ({"unet", "head"} if "gan" in kept else {"unet"})
    in_optimizer = {id(p) for group in fake.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in fake.network.parameters()}
    assert ("RANDOM" in task.notes["lpips"]) if "lpips" in kept else ("lpips" not in task.notes)


def test_parts_of_a_pass_are_computed_once_and_only_if_asked_for() -> None:
    calls: list[str] = []

    @dataclass
    class Spy:
        name: str
        schedule: ResShiftSchedule = field(default_factory=ResShiftSchedule.exponential)

        def __call__(self, z_t: Tensor, lr: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
            calls.append(f"{self.name} at {t.tolist()}")
            return z_t + 1

        def bottleneck(self, z_t: Tensor, lr: Tensor, t: Tensor) -> Tensor:
            return z_t

    def decode(z: Tensor) -> Tensor:
        calls.append("decode")
        return z

    def step() -> rsd.StudentPass:
        calls.clear()
        return rsd.StudentPass(Spy("student"), Spy("fake"), Spy("teacher"), latents, draws, decode)

    z = normal(1, 2, 4, 4)
    latents, t = Latents(normal(1, 3, 4, 4), normal(1, 2, 4, 4), z, z), torch.tensor([9])
    draws = rsd.RSDDraws(torch.tensor([4]), z, normal(1, 1, 4, 4), t, z, z)
    distance: Callable[[Tensor, Tensor], Tensor] = lambda a, b: (a - b).mean((1, 2, 3))  # noqa: E731
    gan = terms.GeneratorGAN(terms.Discriminator(Spy("fake"), Head()))

    rsd.Distillation()(step())
    assert calls == ["student at [4]", "teacher at [9]", "fake at [9]"]
    gan(step())
    assert calls == ["student at [4]"]
    terms.latent_mse(step())
    assert calls == ["student at [15]"]
    every = step()
    for term in (rsd.Distillation(), gan, terms.LPIPS(distance), terms.latent_mse, terms.pixel_mse):
        term(every)  # type: ignore[operator]
    assert sorted(calls) == ["decode", "fake at [9]", "student at [15]", "student at [4]", "teacher at [9]"]


# Random numbers


def test_numbers_of_a_sample_do_not_depend_on_its_batch() -> None:
    def drawn(indexes: range | list[int], seed: int = 3) -> tuple[Tensor, ...]:
        noise = SampleNoise(seed, indexes)
        assert len(noise) == len(indexes)
        return noise.normal((2, 3)), noise.integers(0, 10**9), noise.normal((4,))

    whole = drawn(range(10, 16))
    for part, where in (((14, 15), slice(4, 6)), ((10,), slice(0, 1)), ((12, 13, 14), slice(2, 5))):
        for found, wanted in zip(drawn(list(part)), whole, strict=True):
            assert torch.equal(found, wanted[where])
    for found, wanted in zip(drawn([13, 11]), whole, strict=True):
        assert torch.equal(found, wanted[[3, 1]])
    assert whole[0].shape == (6, 2, 3)
    assert whole[0].dtype == torch.float32
    assert (whole[1].shape, whole[1].dtype) == ((6,), torch.int64)
    assert len({tuple(row.flatten().tolist()) for row in whole[0]}) == 6  # indexes differ
    for found, other in zip(drawn(range(10, 16), seed=4), whole, strict=True):  # and so do seeds
        assert not (found == other).flatten(1 if found.ndim > 1 else 0).any()
    assert not torch.equal(SampleNoise(3, [10]).normal((4,)), SampleNoise(3, [10]).normal((5,))[:, 1:])


def test_integers_include_both_ends_evenly() -> None:
    numbers, counts = SampleNoise(0, range(3000)).integers(3, 5).unique(return_counts=True)
    assert numbers.tolist() == [3, 4, 5]
    assert (counts / 3000 - 1 / 3).abs().max() < 0.045  # 5 standard deviations
    assert SampleNoise(0, range(5)).integers(7, 7).tolist() == [7] * 5


def test_normal_numbers_are_standard_and_unrelated_to_each_other_and_to_the_data() -> None:
    values = SampleNoise(0, range(30)).normal((4000,))
    assert values.mean().abs() < 5 / math.sqrt(30 * 4000)
    assert values.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < 0.1  # 6 standard deviations
    data = torch.randn(4000, generator=common.make_generator(0, 0))
    assert not torch.equal(values[0], data)


def test_layer_seed_belongs_to_the_first_sample_and_not_to_its_noise() -> None:
    one, same, next_one, other = (
        SampleNoise(seed, range(first, first + count)).layer_seed
        for seed, first, count in ((0, 8, 4), (0, 8, 2), (0, 9, 4), (1, 8, 4))
    )
    assert one == same
    assert len({one, next_one, other}) == 3
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(one))
    assert not torch.equal(drawn, SampleNoise(0, [8]).normal((4,))[0])


# GAN head


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 5), (8, 8), (16, 24)])
def test_head_takes_any_size_and_gives_one_logit_a_sample(size: tuple[int, int]) -> None:
    head = make_head(UNET, torch.Generator().manual_seed(0))
    features = normal(3, 16, *size).requires_grad_()
    logits = head(features)
    assert logits.shape == (3,)
    logits[1].backward()
    assert features.grad is not None
    assert torch.equal(features.grad[[0, 2]], torch.zeros(2, 16, *size))  # samples do not mix
    assert features.grad[1].abs().sum() > 0
    assert torch.allclose(head(features[1:2]), logits[1:2], atol=1e-6)


def test_head_is_two_strided_convolutions_and_the_mean_over_positions() -> None:
    head, features = shaken(make_head(UNET, torch.Generator().manual_seed(0))), normal(2, 16, 5, 8)
    weights = head.state_dict()
    h = features
    for name in ("in", "out"):
        h = nn.functional.conv2d(h, weights[f"conv_{name}.weight"], weights[f"conv_{name}.bias"], stride=2, padding=1)
        groups = h.view(2, 2, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        scale, shift = (weights[f"norm_{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        h = groups.view_as(h) * scale + shift
        h = h * torch.sigmoid(h)
    assert h.shape[2:] == (2, 2)
    wanted = h.flatten(2).mean(2) @ weights["logit.weight"][0] + weights["logit.bias"]
    assert torch.allclose(head(features), wanted, atol=1e-5)


def test_head_belongs_to_its_generator_alone() -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # the global generator must not matter
        head = make_head(UNET, torch.Generator().manual_seed(seed))
        assert isinstance(head, DiscriminatorHead)
        return torch.cat([parameter.flatten() for parameter in head.parameters()])

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))


# Memory: blocks that are computed again


@dataclass
class Kept:
    """Bytes of the tensors that autograd keeps, without parameters."""

    module: nn.Module
    storages: dict[int, int] = field(default_factory=dict)

    def __enter__(self) -> Kept:
        known = {p.untyped_storage().data_ptr() for p in self.module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                self.storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


@pytest.mark.parametrize("noise_channels", [0, 1])
def test_checkpointing_the_unet_changes_memory_only(noise_channels: int) -> None:
    network = shaken(SwinUNet(UNET.model_copy(update={"noise_channels": noise_channels}))).train()
    lr, t = normal(2, 3, 8, 8), torch.tensor([0, 7])
    epsilon = normal(2, 1, 8, 8) if noise_channels else None

    def run(checkpointing: bool) -> tuple[list[Tensor], int]:
        network.checkpointing = checkpointing
        network.zero_grad()
        z = normal(2, 2, 8, 8, seed=5).requires_grad_()
        torch.manual_seed(0)  # dropout draws the same when it is computed again
        with Kept(network) as kept:
            out = network(z, t, lr, epsilon)
        features = network.bottleneck(z, t, lr, epsilon)
        (out.square().sum() + features.square().sum()).backward()
        assert z.grad is not None
        gradients = [parameter.grad.clone() for parameter in network.parameters()]
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        return [out.detach(), features.detach(), z.grad, *gradients], kept.bytes

    (plain, much), (again, little) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert little < much / 3


def test_checkpointing_the_decoder_changes_memory_only_and_its_parameters_stay_frozen() -> None:
    config = AutoencoderConfig(latent_channels=2, z_channels=2, base_channels=4, norm_groups=2, num_codes=5)
    network = shaken(VQAutoencoder(config)).requires_grad_(False).eval()

    def run(checkpointing: bool) -> tuple[Tensor, Tensor, int]:
        network.decoder.checkpointing = checkpointing
        z = normal(2, 2, 8, 8).requires_grad_()
        with Kept(network) as kept:
            out = network.decode(z)
        out.square().sum().backward()
        assert all(parameter.grad is None for parameter in network.parameters())
        assert z.grad is not None
        assert z.grad.abs().sum() > 0
        return out.detach(), z.grad, kept.bytes

    (out, gradient, much), (out_again, gradient_again, little) = run(False), run(True)
    assert torch.equal(out, out_again)
    assert torch.equal(gradient, gradient_again)
    assert little < much / 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_runs_decoder_is_checkpointed_frozen_and_in_its_dtype(
    rsd_run: RSDRun, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load, decode = students.load_model, VQAutoencoder.decode
    monkeypatch.setattr(students, "load_model", lambda name: loaded.append(load(name)) or loaded[-1])
    trained_with: list[VQAutoencoder] = []

    def spy(self: VQAutoencoder, z: Tensor, **options: Any) -> Tensor:
        trained_with.append(self)
        return decode(self, z, **options)

    run = rsd_run.model_copy(update={"terms": {"pixel_mse": 1.0}, "autoencoder_dtype": dtype})
    trainer = build_task(run).trainer
    monkeypatch.setattr(VQAutoencoder, "decode", spy)
    trainer.run_step()
    (working,) = trained_with
    assert working.decoder.checkpointing
    for autoencoder, wanted in ((working, getattr(torch, dtype)), (loaded[0].autoencoder, torch.float32)):
        for parameter in autoencoder.parameters():
            assert parameter.dtype == wanted
            assert parameter.grad is None
            assert not parameter.requires_grad
    gradients = [parameter.grad for parameter in trainer.players[1].network.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
