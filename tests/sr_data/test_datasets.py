"""Crops and pairs by number: pure, aligned, resumable, the same for any number of workers."""

from __future__ import annotations

import itertools
import pickle
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sr_data.datasets import (
    CropSource,
    GeneratedImages,
    HRFolder,
    PairedFolder,
    TrainingImages,
    TrainingPairs,
    batch_indexes,
    degrade_batch,
    make_generator,
    training_loader,
)
from sr_data.degradation import DegradationConfig, draw_parameters, sample_seeds
from sr_data.images import ImageFiles, to_tensor, write_image
from sr_data.sources import CHECKED_FILES, checked_positions


def _coordinates(name: int, height: int, width: int) -> np.ndarray:
    """A picture whose pixels tell the picture, the row and the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((np.full_like(rows, name), rows, columns), axis=-1).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in range(5):
        write_image(folder / f"{name}.png", _coordinates(name, 40 + name, 50))
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    for name in range(3):
        small = _coordinates(name, 20, 24)
        write_image(tmp_path / "lr" / f"{name}.png", small)
        write_image(tmp_path / "hr" / f"{name}.png", small.repeat(4, axis=0).repeat(4, axis=1))
    return tmp_path / "hr", tmp_path / "lr"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A degradation that subsamples and adds one random number, in place of the real one."""
    module = types.ModuleType("sr_data.degradation")

    def degrade_seeded(hr: torch.Tensor, config: object, seeds: list[int], scale: int) -> torch.Tensor:
        assert hr.ndim == 4
        assert float(hr.min()) >= 0.0
        assert float(hr.max()) <= 1.0
        levels = torch.tensor([seed % 47 for seed in seeds]).reshape(-1, 1, 1, 1)
        return ((hr[..., ::scale, ::scale] * 205).round() + levels).div(255.0)

    module.degrade_seeded = degrade_seeded  # type: ignore[attr-defined]
    module.sample_seeds = sample_seeds  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sr_data.degradation", module)
    return module


class _Plain:
    """A cheap crop source: the index is written into the pixels."""

    def crop(self, index: int, size: int) -> np.ndarray:
        return np.full((size, size, 3), index % 256, np.uint8)


# --- generated ---


def test_a_generated_crop_is_pure_whatever_was_asked_before() -> None:
    first = GeneratedImages(3, image_size=48, crops_per_image=3, pool=4)
    second = GeneratedImages(3, image_size=48, crops_per_image=3, pool=4)
    order = list(range(30))
    forward = {index: first.crop(index, 32) for index in order}
    for index in [29, 0, 28, 5, *reversed(order)]:
        np.testing.assert_array_equal(second.crop(index, 32), forward[index])
    assert isinstance(first, CropSource)
    assert forward[0].shape == (32, 32, 3)
    assert forward[0].dtype == np.uint8
    other = GeneratedImages(4, image_size=48, crops_per_image=3, pool=4)
    assert not np.array_equal(other.crop(0, 32), forward[0])


def test_consecutive_crops_show_different_pictures_and_each_is_used_evenly() -> None:
    source = GeneratedImages(0, crops_per_image=6, pool=10)
    rounds = 40
    numbers = [source.image_index(index) for index in range(10 * rounds)]
    for start in range(len(numbers) - 9):
        assert len(set(numbers[start : start + 10])) >= 9  # a change of slot may fall into the window
    uses = Counter(numbers)
    # The first and the last picture of a slot are shown for fewer rounds.
    assert {uses[number] for number in range(10, 60)} == {6}
    assert max(uses.values()) == 6


def test_the_cost_of_generating_is_spread_over_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(seed: int, index: int, size: int) -> np.ndarray:
        made.append(index)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr("sr_data.sources.generate_image", counted)
    source = GeneratedImages(0, image_size=16, crops_per_image=16, pool=64)
    per_round = []
    for turn in range(40):
        before = len(made)
        for index in range(turn * 64, turn * 64 + 64):
            source.crop(index, 8)
        per_round.append(len(made) - before)
    assert per_round[0] == 64
    assert set(per_round[1:]) == {4}
    assert len(set(made)) == len(made)


def test_crops_of_one_picture_differ_in_place_and_mirroring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_data.sources.generate_image", lambda seed, index, size: _coordinates(0, size, size))
    source = GeneratedImages(0, image_size=32, pool=1)
    crops = [source.crop(index, 16) for index in range(200)]
    mirrored = [int(crop[0, 0, 2]) > int(crop[0, 1, 2]) for crop in crops]
    assert 60 < sum(mirrored) < 140
    places = [tuple(crop.min(axis=(0, 1)).tolist()) for crop in crops]
    assert sum(first == second for first, second in itertools.pairwise(places)) < 10
    assert {int(crop[0, 0, 1]) for crop in crops} == set(range(17))
    assert {int(crop[..., 2].min()) for crop in crops} == set(range(17))


def test_a_generated_source_travels_without_its_cache() -> None:
    source = GeneratedImages(1, image_size=64, pool=2)
    crop = source.crop(3, 64)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).crop(3, 64), crop)


def test_generated_refuses_large_crops_and_negative_indexes() -> None:
    with pytest.raises(ValueError, match="at most 64 pixels, got 65; set image_size to 65"):
        GeneratedImages(0, image_size=64).crop(0, 65)
    with pytest.raises(ValueError, match="index >= 0"):
        GeneratedImages(0, image_size=64).crop(-1, 32)
    with pytest.raises(ValueError, match="pool >= 1"):
        GeneratedImages(0, pool=0)


# --- folders ---


def test_an_epoch_shows_every_file_once_in_a_new_order(photos: Path) -> None:
    source = HRFolder(photos, seed=1)
    epochs = [[int(source.crop(5 * epoch + place, 8)[0, 0, 0]) for place in range(5)] for epoch in range(6)]
    shown = [name for epoch in epochs for name in epoch]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2
    again = HRFolder(photos, seed=1)
    assert [int(again.crop(index, 8)[0, 0, 0]) for index in reversed(range(30))] == shown[::-1]
    other = HRFolder(photos, seed=2)
    assert [int(other.crop(index, 8)[0, 0, 0]) for index in range(30)] != shown


def test_folder_crops_reach_every_place_and_are_mirrored(photos: Path) -> None:
    crops = [HRFolder(photos, seed=0).crop(index, 36) for index in range(300)]
    assert {int(crop[..., 1].min()) for crop in crops} == set(range(9))  # the tallest has 44 rows
    assert {int(crop[..., 2].min()) for crop in crops} == set(range(15))
    mirrored = sum(int(crop[0, 0, 2]) > int(crop[0, 1, 2]) for crop in crops)
    assert 100 < mirrored < 200
    for crop in crops:
        np.testing.assert_array_equal(np.diff(crop[:, 0, 1]), 1)  # never turned upside down


def test_small_and_false_pictures_are_found_from_the_headers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HRFolder(photos, seed=0)
    monkeypatch.setattr("sr_data.sources.read_image", lambda path: pytest.fail("validate decoded a picture"))
    source.validate(40)
    with pytest.raises(ValueError, match=r"at least 41x41 pixels, got .*0\.png: 50x40; remove it, enlarge it"):
        source.validate(41)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"at least 60x60 pixels, got"):
        source.crop(0, 60)
    (photos / "z.png").write_text("text")
    with pytest.raises(ValueError, match=r"z\.png: not a picture Pillow can read"):
        HRFolder(photos, seed=0).validate(8)


def test_of_a_large_folder_a_spread_sample_is_looked_at(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def looked_at(path: Path) -> tuple[int, int]:
        seen.append(path.name)
        return 10, 10

    monkeypatch.setattr("sr_data.sources.image_size", looked_at)
    HRFolder(photos, seed=0).validate(8)
    assert seen == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    seen.clear()
    monkeypatch.setattr("sr_data.sources.CHECKED_FILES", 3)
    HRFolder(photos, seed=0).validate(8)
    assert seen == ["0.png", "2.png", "4.png"]
    seen.clear()
    PairedFolder(photos, photos, scale=1, seed=0).validate(8)
    assert seen == ["0.png", "0.png", "2.png", "2.png", "4.png", "4.png"]
    monkeypatch.undo()
    # A file that was not looked at is named when a crop meets it.
    (photos / "1.png").write_text("text")
    monkeypatch.setattr("sr_data.sources.CHECKED_FILES", 3)
    source = HRFolder(photos, seed=0)
    source.validate(8)
    met = next(index for index in range(5) if source.position(index) == 1)
    with pytest.raises(ValueError, match=r"1\.png: not a picture Pillow can read"):
        source.crop(met, 8)


def test_a_million_files_are_looked_at_in_thousands() -> None:
    positions = checked_positions(1_000_003)
    assert len(positions) == len(set(positions)) == CHECKED_FILES
    assert (positions[0], positions[-1]) == (0, 1_000_002)
    steps = np.diff(positions)
    assert steps.max() - steps.min() <= 1
    assert checked_positions(CHECKED_FILES) == list(range(CHECKED_FILES))


def test_the_error_names_the_crop_that_is_too_large(photos: Path) -> None:
    with pytest.raises(ValueError, match="or use a smaller validation crop"):
        HRFolder(photos, seed=0).validate(60, "validation crop")
    with pytest.raises(ValueError, match="or use a smaller validation crop"):
        PairedFolder(photos, photos, scale=1, seed=0).validate(60, "validation crop")


def test_pairs_whose_suffixes_differ_stay_together(tmp_path: Path) -> None:
    """With other suffixes the sorted names have another order: a.c.png < a.tif, but a.bmp < a.c.png."""
    for number, (hr_name, lr_name) in enumerate((("a.tif", "a.bmp"), ("a.c.png", "a.c.png"), ("b.png", "b.png"))):
        small = _coordinates(number, 8, 8)
        write_image(tmp_path / "lr" / lr_name, small)
        write_image(tmp_path / "hr" / hr_name, small.repeat(2, 0).repeat(2, 1))
    assert ImageFiles(tmp_path / "hr").name(0) == "a.c.png"
    assert ImageFiles(tmp_path / "lr").name(0) == "a.bmp"
    source = PairedFolder(tmp_path / "hr", tmp_path / "lr", scale=2, seed=0)
    source.validate(8)
    for index in range(12):
        hr, lr = source.pair(index, 8)
        np.testing.assert_array_equal(hr, lr.repeat(2, axis=0).repeat(2, axis=1))


def test_pairs_are_aligned_and_cover_the_pictures(pairs: tuple[Path, Path]) -> None:
    source = PairedFolder(*pairs, scale=4, seed=3)
    source.validate(32)
    names, places = set(), set()
    for index in range(150):
        hr, lr = source.pair(index, 32)
        assert hr.shape == (32, 32, 3)
        np.testing.assert_array_equal(hr, lr.repeat(4, axis=0).repeat(4, axis=1))
        names.add(int(lr[0, 0, 0]))
        places.add((int(lr[..., 1].min()), int(lr[..., 2].min())))
    assert names == {0, 1, 2}
    assert {row for row, _ in places} == set(range(13))
    assert {column for _, column in places} == set(range(17))
    hr, lr = PairedFolder(*pairs, scale=4, seed=3).pair(7, 32)
    np.testing.assert_array_equal(lr, source.pair(7, 32)[1])


def test_pairs_that_do_not_match_are_named(pairs: tuple[Path, Path]) -> None:
    hr, lr = pairs
    source = PairedFolder(hr, lr, scale=2, seed=0)
    for check in (lambda: source.validate(8), lambda: source.pair(0, 8)):
        with pytest.raises(ValueError, match=r"exactly 2 times .*, got 96x80 and 24x20; crop the larger one to 48x40"):
            check()
    with pytest.raises(ValueError, match="divisible by the scale, got 30 and 4"):
        PairedFolder(hr, lr, scale=4, seed=0).pair(0, 30)
    with pytest.raises(ValueError, match="at least 84x84"):
        PairedFolder(hr, lr, scale=4, seed=0).validate(84)
    (lr / "1.png").rename(lr / "one.png")
    with pytest.raises(ValueError, match=r"got 1, one in only one of them; rename or remove"):
        PairedFolder(hr, lr, scale=4, seed=0)


def test_two_files_of_one_name_are_refused(pairs: tuple[Path, Path]) -> None:
    hr, lr = pairs
    write_image(lr / "1.jpg", _coordinates(1, 20, 24))
    with pytest.raises(ValueError, match=r"one file per name in .*lr.*1\.jpg and .*1\.png"):
        PairedFolder(hr, lr, scale=4, seed=0)


# --- samples ---


def test_generators_belong_to_seed_and_index() -> None:
    def draw(seed: int, index: int) -> float:
        return float(torch.rand(1, generator=make_generator(seed, index)))

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(seed, index) for seed in range(8) for index in range(8)}) == 64
    with pytest.raises(ValueError, match="seed and index >= 0"):
        make_generator(0, -1)


def test_a_pair_is_the_crop_and_its_degradation(stub: types.ModuleType) -> None:
    dataset = TrainingPairs(GeneratedImages(0, 48), 32, 4, object(), seed=5)  # type: ignore[arg-type]
    lr, hr = dataset[11]
    assert (lr.shape, hr.shape) == ((3, 8, 8), (3, 32, 32))
    assert lr.dtype == hr.dtype == torch.float32
    torch.testing.assert_close(hr, to_tensor(GeneratedImages(0, 48).crop(11, 32)), rtol=0, atol=0)
    seeds = sample_seeds(make_generator(5, 11), 1)
    expected = stub.degrade_seeded((hr[None] + 1) / 2, None, seeds, 4)[0] * 2 - 1
    torch.testing.assert_close(lr, expected)
    levels = (lr + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(dataset[11][0], lr, rtol=0, atol=0)
    other = TrainingPairs(GeneratedImages(0, 48), 32, 4, object(), seed=6)  # type: ignore[arg-type]
    assert not torch.equal(other[11][0], lr)


def test_the_real_degradation_gives_8_bit_levels_that_resemble_the_crop() -> None:
    dataset = TrainingPairs(GeneratedImages(0, 128), 128, 4, DegradationConfig.real_esrgan(), seed=0)
    for index in (0, 70):
        lr, hr = dataset[index]
        assert lr.shape == (3, 32, 32)
        levels = (lr + 1) * 127.5
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
        small = torch.nn.functional.avg_pool2d(hr[None], 16)[0]
        assert torch.nn.functional.avg_pool2d(lr[None], 4)[0].sub(small).abs().mean() < 0.25
        torch.testing.assert_close(dataset[index][0], lr, rtol=0, atol=0)


def test_paired_folders_bring_their_own_low_resolution(pairs: tuple[Path, Path]) -> None:
    source = PairedFolder(*pairs, scale=4, seed=0)
    lr, hr = TrainingPairs(source, 32, 4, None, seed=0)[4]
    hr_pixels, lr_pixels = source.pair(4, 32)
    assert torch.equal(lr, to_tensor(lr_pixels))
    assert torch.equal(hr, to_tensor(hr_pixels))


def test_sources_and_degradations_that_do_not_fit_are_refused(pairs: tuple[Path, Path]) -> None:
    paired = PairedFolder(*pairs, scale=4, seed=0)
    with pytest.raises(ValueError, match="expected no degradation for pairs"):
        TrainingPairs(paired, 32, 4, object(), seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected pairs of scale 2, got 4"):
        TrainingPairs(paired, 32, 2, None, seed=0)
    with pytest.raises(ValueError, match=r"expected a DegradationConfig, got None; .*TrainingImages"):
        TrainingPairs(_Plain(), 32, 4, None, seed=0)
    with pytest.raises(ValueError, match="divisible by the scale, got 33 and 4"):
        TrainingPairs(paired, 33, 4, None, seed=0)


def _first(batches: Iterator[object], count: int) -> list[object]:
    return list(itertools.islice(batches, count))


def test_batches_are_the_same_for_any_number_of_workers(stub: types.ModuleType) -> None:
    def batches(workers: int) -> list[object]:
        source = GeneratedImages(0, 48, crops_per_image=2, pool=4)
        dataset = TrainingPairs(source, 32, 4, object(), seed=0)  # type: ignore[arg-type]
        return _first(training_loader(dataset, batch_size=3, start=5, workers=workers), 5)

    alone, helped = batches(0), batches(2)
    for (lr, hr), (other_lr, other_hr) in zip(alone, helped, strict=True):  # type: ignore[misc]
        assert (lr.shape, hr.shape) == ((3, 3, 8, 8), (3, 3, 32, 32))
        assert torch.equal(lr, other_lr)
        assert torch.equal(hr, other_hr)


def test_a_resumed_loader_goes_on_where_the_other_stopped() -> None:
    dataset = TrainingImages(_Plain(), 4)
    whole = _first(training_loader(dataset, batch_size=4), 5)
    resumed = _first(training_loader(dataset, batch_size=4, start=8), 3)
    for batch, other in zip(whole[2:], resumed, strict=True):
        assert torch.equal(batch, other)  # type: ignore[arg-type]
    shown = torch.cat(whole)[:, 0, 0, 0].add(1).mul(127.5).round()  # type: ignore[arg-type]
    assert shown.tolist() == list(range(20))


class _Threads:
    """A source that writes the number of threads of its process into the pixels."""

    def crop(self, index: int, size: int) -> np.ndarray:
        return np.full((size, size, 3), torch.get_num_threads(), np.uint8)


def test_workers_have_one_thread_and_the_global_generator_rests() -> None:
    before = torch.random.get_rng_state()
    batch = next(training_loader(TrainingImages(_Threads(), 2), batch_size=1, workers=1))
    assert float(batch[0, 0, 0, 0]) == pytest.approx(1 / 127.5 - 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": 1, "start": -1},
        {"batch_size": 1, "rank": -1},
        {"batch_size": 1, "rank": 2, "world": 2},
        {"batch_size": 1, "world": 0},
    ],
)
def test_the_loader_refuses_impossible_numbers(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected batch_size >= 1, start >= 0 and 0 <= rank < world, got"):
        training_loader(TrainingImages(_Plain(), 4), **arguments)


def test_the_loader_refuses_a_negative_number_of_workers() -> None:
    with pytest.raises(ValueError, match="expected workers >= 0, got -1"):
        training_loader(TrainingImages(_Plain(), 4), batch_size=1, workers=-1)


# --- ranks ---


def _shown(batches: list[object]) -> list[list[int]]:
    return [batch[:, 0, 0, 0].add(1).mul(127.5).round().int().tolist() for batch in batches]  # type: ignore[index]


def test_the_batches_of_the_ranks_together_are_those_of_one_process() -> None:
    dataset = TrainingImages(_Plain(), 2)
    ranks = [_shown(_first(training_loader(dataset, 3, start=7, rank=rank, world=4), 5)) for rank in range(4)]
    together = [list(itertools.chain(*batches)) for batches in zip(*ranks, strict=True)]
    assert together == _shown(_first(training_loader(dataset, 12, start=7), 5))
    assert ranks[2] == [list(batch) for batch in itertools.islice(batch_indexes(3, 7, rank=2, world=4), 5)]
    helped = _first(training_loader(dataset, 3, start=7, rank=2, world=4, workers=2), 5)
    assert _shown(helped) == ranks[2]


def test_no_picture_is_generated_twice_when_the_pool_fits_ranks_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(seed: int, index: int, size: int) -> np.ndarray:
        made.append(index)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr("sr_data.sources.generate_image", counted)
    batch_size, world, workers = 2, 3, 2
    # A worker of a rank prepares every second batch of that rank, with a cache of its own.
    for rank, worker in itertools.product(range(world), range(workers)):
        source = GeneratedImages(0, image_size=16, crops_per_image=4, pool=batch_size * world * workers)
        batches = itertools.islice(batch_indexes(batch_size, 5, rank, world), worker, 60, workers)
        for index in itertools.chain.from_iterable(batches):
            source.crop(index, 8)
    assert len(made) > 50
    assert len(set(made)) == len(made)


# --- degradation of a batch ---


def test_degrading_a_batch_gives_the_pairs_bit_for_bit() -> None:
    config = DegradationConfig.real_esrgan()
    source = GeneratedImages(0, 64)
    pairs = TrainingPairs(source, 48, 4, config, seed=3)
    indexes = [9, 2, 2**40]
    hr = torch.stack([pairs[index][1] for index in indexes])
    lr = degrade_batch(hr, indexes, config, 3, 4)
    assert torch.equal(lr, torch.stack([pairs[index][0] for index in indexes]))
    assert torch.equal(hr, torch.stack([TrainingImages(source, 48)[index] for index in indexes]))
    assert not torch.equal(degrade_batch(hr, indexes, config, 4, 4), lr)


def test_a_loader_of_crops_with_degradation_afterwards_is_a_loader_of_pairs() -> None:
    config = DegradationConfig.real_esrgan()
    source = GeneratedImages(0, 64)
    where = {"batch_size": 3, "start": 4, "rank": 1, "world": 2}
    pairs = training_loader(TrainingPairs(source, 32, 4, config, seed=1), **where)
    crops = zip(training_loader(TrainingImages(source, 32), **where), batch_indexes(**where), strict=True)
    for (lr, hr), (images, indexes) in itertools.islice(zip(pairs, crops, strict=True), 2):
        assert torch.equal(hr, images)
        assert torch.equal(lr, degrade_batch(images, indexes, config, 1, 4))


def test_a_batch_holds_as_many_degradations_as_samples() -> None:
    """One photograph throughout: what differs is the degradation, so no pool is needed to mix a batch."""
    config = DegradationConfig.real_esrgan()
    hr = TrainingImages(GeneratedImages(0, 64), 64)[0].expand(64, -1, -1, -1)
    lr = degrade_batch(hr, range(64), config, 0, 4)
    assert len({image.numpy().tobytes() for image in lr}) == 64

    def parameters(index: int) -> object:
        seed = sample_seeds(make_generator(0, index), 1)[0]
        return draw_parameters(config, torch.Generator().manual_seed(seed))

    drawn = [parameters(index) for index in range(64)]
    # Not only the noise: blur, factor and compression are drawn for every sample.
    for choose in (
        lambda one: one.first.kernel,
        lambda one: one.first.resize.scale,
        lambda one: one.first_quality,
        lambda one: one.final_quality,
    ):
        assert len({choose(one) for one in drawn}) > 55


def test_degrading_a_batch_needs_an_index_for_each_crop() -> None:
    with pytest.raises(ValueError, match="one index for each of 2 crops, got 3; use batch_indexes"):
        degrade_batch(torch.zeros(2, 3, 8, 8), range(3), DegradationConfig.real_esrgan(), 0, 4)
