"""Options that change how a run computes, and not what: the same weights come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from distill.config import DataConfig, RSDRun, StreamConfig, TeacherRun, ValidationConfig
from distill.run import train
from distill.tasks import build_task
from sr_data.images import write_image


@pytest.fixture
def config(rsd_run: RSDRun) -> RSDRun:
    terms = {"distillation": 1.0, "gan": 0.1, "pixel_mse": 0.1}
    return rsd_run.model_copy(update={"terms": terms, "tracker": "none", "batch_size": 4})


def weights(config: RSDRun, steps: int = 2) -> Tensor:
    """All weights of student and fake after some steps, without the biases of keys, which have no effect."""
    trainer = build_task(config).trainer
    for _ in range(steps):
        trainer.run_step()
    named = [item for player in trainer.players for item in player.network.named_parameters()]
    return torch.cat([p.detach().flatten() for name, p in named if not name.endswith("qkv.bias")])


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 1},
        {"checkpointing": True},
        {"compile": "eager", "checkpointing": True},
    ],
    ids=str,
)
def test_the_same_up_to_rounding(config: RSDRun, change: dict[str, object]) -> None:
    assert torch.allclose(weights(config), weights(config.model_copy(update=change)), rtol=1e-4, atol=2e-6)


def test_degradation_on_the_device_is_the_same_to_the_bit(config: RSDRun) -> None:
    data = config.data.model_copy(update={"degrade_on": "device"})
    assert torch.equal(weights(config), weights(config.model_copy(update={"data": data})))


def test_workers_are_the_same_to_the_bit(config: RSDRun) -> None:
    data = config.data.model_copy(update={"workers": 2})
    assert torch.equal(weights(config), weights(config.model_copy(update={"data": data})))


def test_another_autoencoder_dtype_trains_and_saves_the_given_autoencoder(config: RSDRun, tmp_path: Path) -> None:
    from sr_models.store import load_model

    half = config.model_copy(update={"autoencoder_dtype": "bfloat16"})
    assert not torch.equal(weights(config), weights(half))
    result = train(half, out=tmp_path / "run", quiet=True)
    saved, given = load_model(result.model).autoencoder, load_model(config.teacher).autoencoder
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), given.parameters(), strict=True))


def test_an_unknown_compiler_is_one_clear_line(config: RSDRun) -> None:
    with pytest.raises(ValueError, match=r"expected a torch\.compile backend such as inductor, got 'indutor'"):
        build_task(config.model_copy(update={"compile": "indutor"}))


def test_bf16_is_another_precision(config: RSDRun) -> None:
    assert not torch.equal(weights(config), weights(config.model_copy(update={"precision": "bf16"})))


def test_no_tracker_leaves_no_trace(config: RSDRun, tmp_path: Path) -> None:
    result = train(config, out=tmp_path / "run", quiet=True)
    assert not (result.folder / "tensorboard").exists()


def test_validation_on_the_way_goes_to_the_tracker(config: RSDRun, tmp_path: Path) -> None:
    validation = config.validation.model_copy(update={"every": 2})
    config = config.model_copy(update={"steps": 5, "tracker": "tensorboard", "validation": validation})
    board = EventAccumulator(str(train(config, out=tmp_path / "run", quiet=True).folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("validation/student 1 step/PSNR-Y")] == [2, 4, 5]
    pictures = {name: [event.step for event in board.Images(name)] for name in board.Tags()["images"]}
    assert pictures["validation/student 1 step"] == [2, 4, 5]


def test_a_run_logs_what_the_documentation_promises(config: RSDRun, tmp_path: Path) -> None:
    folder = train(config, out=tmp_path / "run", quiet=True).folder
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for record in records for name in record}
    wanted = {"fake/loss", "fake/term/z_0", "fake/term/gan", "fake/gan_accuracy", "fake/grad_norm", "seconds/data"}
    wanted |= {f"student/{name}" for name in ("loss", "grad_norm", "teacher_gap", "fake_gap", "fake_lag")}
    wanted |= {f"student/term/{name}" for name in ("distillation", "gan", "pixel_mse")}
    assert wanted <= names
    by_time = [name for name in names if name.startswith("student/loss_t/")]
    assert by_time
    assert {int(name.rpartition("/")[2]) for name in by_time} <= {1, 2, 3, 4}


def test_the_mean_by_t_is_the_mean_over_its_samples(config: RSDRun) -> None:
    """Weighted by how often each t was met, the means give the mean of the term."""
    trainer = build_task(config.model_copy(update={"micro_batch": 1})).trainer
    metrics = trainer.run_step()
    sums, counts = metrics._by_time["student"]
    assert counts.sum() == 4
    assert (sums.sum() / 4).item() == pytest.approx(metrics.means()["student/term/distillation"], rel=1e-5)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(5):
        write_image(tmp_path / "photos" / f"{index}.png", rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return tmp_path / "photos"


def streamed(config: RSDRun | TeacherRun, photos: Path) -> RSDRun:
    stream = StreamConfig(path="imagefolder", data_files=str(photos / "*.png"), shuffle_buffer=4)
    data = DataConfig(source="stream", stream=stream, hr_size=32, workers=0)
    return config.model_copy(update={"data": data, "validation": ValidationConfig(images=2, hr_size=32)})  # type: ignore[return-value]


def test_a_stream_trains_and_goes_on_where_it_was(config: RSDRun, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    run = streamed(config, photos)
    whole, later = build_task(run), build_task(run)
    batches = whole.trainer.batches(0)
    for _ in range(3):
        next(batches)
    assert torch.equal(next(batches), next(later.trainer.batches(12)))
    metrics = whole.trainer.run_step().means()
    assert np.isfinite(metrics["student/loss"])
    hr = whole.evaluate().pictures["HR"]
    assert hr.shape == (2, 3, 32, 32)
    card = (train(run, out=tmp_path / "run", quiet=True).model / "README.md").read_text()
    assert "stream images" in card


def test_a_stream_that_is_not_there_is_one_clear_line(config: RSDRun, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"expected (a dataset that can be streamed|images of at least)") as caught:
        build_task(streamed(config, tmp_path / "none"))
    assert "\n" not in str(caught.value)


def test_photographs_below_the_validation_crop_name_it(config: RSDRun, photos: Path) -> None:
    data = DataConfig(source="folder", hr_folder=photos, hr_size=32, workers=0)
    run = config.model_copy(update={"data": data, "validation": ValidationConfig(images=2, hr_size=64)})
    with pytest.raises(ValueError, match=r"at least 64x64 pixels, got .*smaller validation crop"):
        build_task(run)
    assert Image.open(photos / "0.png").size == (48, 40)
