from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from distill import memory
from distill.config import AnyRun, RSDRun, TeacherRun
from distill.memory import Forecast, PeakBytes, forecast, forecast_trainer, library_bytes
from distill.ranks import make_accelerator
from distill.tasks import build_task
from sr_models.swin_unet import shift_mask

BATCH, WIDTH, LAYERS = 64, 128, 5
ACTIVATION = 4 * BATCH * WIDTH
PARAMETERS = 4 * LAYERS * WIDTH * WIDTH
MOMENTS = 2 * PARAMETERS + 4 * LAYERS  # and one step counter per parameter

FAKE = pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])


def chain() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.SiLU()) for _ in range(LAYERS)))


def turns(net: nn.Sequential, count: int = 2, checkpointing: bool = False) -> None:
    optimizer = torch.optim.AdamW(net.parameters())
    x = torch.randn(BATCH, WIDTH)
    for _ in range(count):
        h = x
        for block in net:
            h = checkpoint(block, h, use_reentrant=False) if checkpointing else block(h)
        optimizer.zero_grad()
        h.sum().backward()
        del h
        optimizer.step()


@contextmanager
def meter(fake: bool) -> Iterator[PeakBytes]:
    with FakeTensorMode() if fake else nullcontext(), PeakBytes() as peak:
        yield peak


@FAKE
@pytest.mark.parametrize(
    ("checkpointing", "activations"),
    # Kept: the input, and of every block what SiLU and the next layer need. Checkpointed: the inputs of all blocks,
    # and while the last one runs its two results.
    [(False, 1 + 2 * LAYERS), (True, LAYERS + 2)],
)
def test_the_peak_of_a_chain_of_layers_is_what_paper_says(fake: bool, checkpointing: bool, activations: int) -> None:
    with meter(fake) as peak:
        turns(chain(), checkpointing=checkpointing)
    expected = {
        "optimizer": MOMENTS,
        "parameters": PARAMETERS,
        "gradients": PARAMETERS,
        "activations": activations * ACTIVATION,
    }
    assert peak.by_part() == expected
    assert list(peak.by_part()) == sorted(expected, key=lambda part: -expected[part])
    assert peak.peak() == sum(expected.values())


@FAKE
def test_one_turn_does_not_meet_the_moments_of_its_own_step(fake: bool) -> None:
    with meter(fake) as peak:
        turns(chain(), count=1)
    assert peak.peak() < PARAMETERS + MOMENTS + PARAMETERS + 11 * ACTIVATION
    assert peak.by_part().get("optimizer", 0) in (0, MOMENTS)


@FAKE
def test_what_dies_is_taken_off_and_views_cost_nothing(fake: bool) -> None:
    with meter(fake) as peak:
        x = torch.zeros(1000)
        view = x.view(10, 100)[2:].t()
        assert peak.live() == 4000
        y = x.double()
        assert peak.live() == 12000
        del x
        assert peak.live() == 12000  # the view keeps it
        del y, view
        assert peak.live() == 0
    assert peak.peak() == 12000


def test_tensors_from_before_count_from_when_they_are_given() -> None:
    net, extra = nn.BatchNorm1d(100), torch.zeros(100, dtype=torch.int64)
    with PeakBytes() as peak:
        net.weight + 1
        assert peak.peak() == 400
        peak.track({"network": net, "others": [extra, extra[:5]]}, "before")
    # Weight, bias, mean and variance, and a counter of 8 bytes.
    assert peak.by_part() == {"before": 4 * 400 + 8 + 800}


def test_devices_are_counted_apart_and_cuda_blocks_are_rounded_up() -> None:
    with meter(fake=True) as peak:
        y = torch.zeros(129, device="cuda")
        x = torch.zeros(3)
        del x, y
    assert peak.by_part("cpu") == {"activations": 12}
    assert (peak.peak("cpu"), peak.peak("cuda"), peak.peak("mps")) == (12, 1024, 0)


def test_nothing_is_counted_and_no_hook_stays_after_the_end() -> None:
    with PeakBytes() as peak:
        pass
    turns(chain(), count=1)
    assert peak.peak() == 0
    assert peak.by_part() == {}


def test_a_forecast_is_the_peak_of_the_real_thing() -> None:
    net = chain()  # real, from before

    def simulate() -> None:
        turns(net)

    found = forecast(simulate, "cpu", baseline_bytes=1000)
    with PeakBytes() as peak:
        peak.track(real := chain())
        turns(real)
    assert found.tensor_bytes == peak.peak()
    assert dict(found.by_part) == peak.by_part()
    activations = 11 * ACTIVATION
    assert found.baseline_bytes == 1000
    assert found.total_bytes == 1000 + peak.peak() + 50 * 2**20 + int(0.2 * activations)


def test_a_forecast_computes_nothing_and_leaves_networks_as_they_are() -> None:
    net = chain()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    seen: list[Tensor] = []

    def simulate() -> None:
        turns(net)
        seen.append(torch.randn(1 << 20, 1 << 20))  # 4 TiB

    found = forecast(simulate, "cpu", baseline_bytes=0)
    assert isinstance(seen[0], FakeTensor)
    assert found.tensor_bytes > 4 * 2**40
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_on_a_gpu_the_forecast_is_the_tensors_alone() -> None:
    found = forecast(lambda: torch.zeros(256, device="cuda") + 1, "cuda:0")
    assert (found.device, found.baseline_bytes, found.total_bytes, found.tensor_bytes) == ("cuda", 0, 2048, 2048)


def test_frozen_networks_count_as_parameters() -> None:
    frozen = nn.Linear(10, 10, bias=False).requires_grad_(False)
    found = forecast(lambda: frozen(torch.zeros(1, 10)), "cpu", baseline_bytes=0)
    assert found.by_part == {"parameters": 400, "activations": 80}


def test_what_the_simulation_returns_names_parts() -> None:
    average = nn.Linear(10, 10, bias=False)

    def simulate() -> dict[str, object]:
        average(torch.zeros(1, 10))
        return {"averages": [average]}

    assert forecast(simulate, "cpu", baseline_bytes=0).by_part == {"averages": 400, "activations": 80}


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: torch.randn(()).item(), 0.5),
        (lambda: float(torch.randn(())), 0.5),
        (lambda: int(torch.randint(5, (1,))), 1),
        (lambda: list(range(5))[torch.randint(5, ())], 1),
        (lambda: bool(torch.isfinite(torch.randn(()))) and bool(torch.isfinite(torch.randn(3)).all()), True),
        (lambda: bool(torch.isnan(torch.randn(3)).any()), False),
        (lambda: torch.any(torch.randn(3) > 9).item(), False),
        (lambda: torch.randint(5, (2, 2)).tolist(), [[1, 1], [1, 1]]),
        (lambda: np.asarray(torch.randint(1, 5, (3,))).tolist(), [1, 1, 1]),
        (lambda: torch.randn(2).numpy().dtype, np.float32),
    ],
)
def test_code_that_asks_for_values_is_answered(read: Callable[[], object], expected: object) -> None:
    answers: list[object] = []
    forecast(lambda: answers.append(read()), "cpu", baseline_bytes=0)
    assert answers == [expected]


def test_fake_masks_do_not_stay_in_the_cache() -> None:
    arguments = (24, 24, 8, 4, "swin")
    forecast(lambda: shift_mask(*arguments), "cpu", baseline_bytes=0)
    mask = shift_mask(*arguments)
    assert not isinstance(mask, FakeTensor)
    assert mask.min() == -100


def forecast_of(run: AnyRun) -> Forecast:
    return forecast_trainer(build_task(run, make_accelerator("cpu")).trainer, library_bytes())


def test_the_forecast_of_a_run_is_what_its_real_steps_need(rsd_run: RSDRun) -> None:
    run = rsd_run.model_copy(update={"batch_size": 2, "micro_batch": 1, "fake_updates": 1})
    found = forecast_of(run)
    trainer = build_task(run, make_accelerator("cpu")).trainer
    with PeakBytes() as peak:
        for _ in range(2):
            trainer.run_step()
        for player in trainer.players:
            peak.track(player.ema, "averages")
    assert found.tensor_bytes == pytest.approx(peak.peak(), rel=0.05)
    for part in ("gradients", "optimizer", "averages"):
        assert found.by_part[part] == pytest.approx(peak.by_part()[part], rel=0.01)
    assert found.baseline_bytes > 100 * 2**20
    assert found.total_bytes > found.baseline_bytes + found.tensor_bytes


def test_the_forecast_of_a_teacher_grows_with_its_batch(teacher_run: TeacherRun) -> None:
    small, large = (forecast_of(teacher_run.model_copy(update={"batch_size": size})) for size in (1, 4))
    assert large.by_part["activations"] == pytest.approx(4 * small.by_part["activations"], rel=0.1)
    assert large.by_part["optimizer"] == small.by_part["optimizer"]


def test_the_process_holds_its_libraries() -> None:
    found = library_bytes()
    assert found > 100 * 2**20
    assert memory.library_bytes() == pytest.approx(found, rel=0.1)
