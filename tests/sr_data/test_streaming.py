"""Streams: every image once an epoch over all ranks, resumable at any sample, and bad images are left out."""

from __future__ import annotations

import io
import itertools
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_data.datasets import batch_indexes
from sr_data.images import to_tensor, to_uint8
from sr_data.sources import random_crop
from sr_data.streaming import StreamedBatches, StreamedImages, streaming_loader

datasets = pytest.importorskip("datasets", reason="needs the extra sr-data[stream]")

IMAGES, SHARDS, SIZE = 30, 6, 16


def picture(number: int) -> np.ndarray:
    """A picture whose pixels tell its number, the row and the column."""
    rows, columns = np.mgrid[:24, :20]
    return np.stack((np.full_like(rows, number), rows, columns), axis=-1).astype(np.uint8)


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def write_shards(folder: Path, contents: list[bytes], shards: int) -> str:
    """Write tar files; shard s holds the contents s, s + shards, ...; return their pattern."""
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(shard, len(contents), shards):
                entry = tarfile.TarInfo(f"{number:03d}.png")
                entry.size = len(contents[number])
                archive.addfile(entry, io.BytesIO(contents[number]))
    return str(folder / "*.tar")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        # After every epoch of parquet files datasets waits this long for Arrow's threads.
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> StreamedImages:
    contents = [encoded(picture(number)) for number in range(IMAGES)]
    files = write_shards(tmp_path_factory.mktemp("shards"), contents, SHARDS)
    return StreamedImages("webdataset", data_files=files, shuffle_buffer=4, seed=2)


def take(loader: StreamedBatches, batches: int) -> torch.Tensor:
    return torch.cat(list(itertools.islice(loader, batches)))


def numbers(images: torch.Tensor) -> list[int]:
    return [int(to_uint8(image)[0, 0, 0]) for image in images]


def test_an_epoch_shows_every_image_once_in_a_new_order(stream: StreamedImages) -> None:
    images = take(streaming_loader(stream, SIZE, batch_size=5), 3 * IMAGES // 5)
    assert images.shape == (3 * IMAGES, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    shown = numbers(images)
    epochs = [tuple(shown[start : start + IMAGES]) for start in range(0, 3 * IMAGES, IMAGES)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len(set(epochs)) == 3
    other = StreamedImages(stream.path, stream.data_files, shuffle_buffer=4, seed=3)
    assert numbers(take(streaming_loader(other, SIZE, batch_size=5), 6)) != shown[:IMAGES]


def test_the_buffer_mixes_beyond_the_shards(stream: StreamedImages) -> None:
    """With all images in the buffer an image may follow any other; without it shards are read in turn."""
    whole = StreamedImages(stream.path, stream.data_files, shuffle_buffer=100)
    ordered = StreamedImages(stream.path, stream.data_files, shuffle_buffer=1)
    turns = []
    for images in (whole, ordered):
        shown = numbers(take(streaming_loader(images, SIZE, batch_size=IMAGES), 1))
        turns.append([len({number % SHARDS for number in shown[place : place + SHARDS]}) for place in range(0, 30, 6)])
    assert turns[1] == [SHARDS] * 5
    assert turns[0] != turns[1]


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_ranks_share_an_epoch_without_loss_or_repetition(stream: StreamedImages, world: int) -> None:
    """2 and 3 divide the 6 shards, 4 and 7 do not."""
    epochs: list[list[int]] = [[], []]
    for rank in range(world):
        length = len(range(rank, IMAGES, world))
        shown = numbers(take(streaming_loader(stream, SIZE, batch_size=1, rank=rank, world=world), 2 * length))
        assert len(set(shown[:length])) == length
        epochs[0] += shown[:length]
        epochs[1] += shown[length:]
        if SHARDS % world == 0:
            # Whole shards, and in every epoch the same.
            assert {number % SHARDS for number in shown[:length]} == set(range(rank, SHARDS, world))
            assert sorted(shown[length:]) == sorted(shown[:length])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(IMAGES))


def test_many_shards_are_dealt_out_whole_even_where_they_do_not_divide(
    stream: StreamedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_data.streaming._MANY_SHARDS", 1)
    shown = []
    for rank, shards in enumerate((2, 2, 1, 1)):
        loader = streaming_loader(stream, SIZE, batch_size=1, rank=rank, world=4)
        mine = numbers(take(loader, 5 * shards))
        assert {number % SHARDS for number in mine} == set(range(rank, SHARDS, 4))
        shown += mine
    assert sorted(shown) == list(range(IMAGES))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_resumed_stream_goes_on_where_the_other_stopped(stream: StreamedImages, world: int) -> None:
    """In the first epoch, at its end, and two epochs later."""
    rank, batch_size = world - 1, 3
    step = world * batch_size
    whole = list(itertools.islice(streaming_loader(stream, SIZE, batch_size, rank=rank, world=world), 32))
    for skipped in (1, 30 // step, 10, 11, 29):
        loader = streaming_loader(stream, SIZE, batch_size, start=skipped * step, rank=rank, world=world)
        for batch in whole[skipped : skipped + 3]:
            assert torch.equal(next(loader), batch)


def test_batches_are_the_same_for_any_number_of_workers(stream: StreamedImages) -> None:
    before = torch.random.get_rng_state()
    alone = take(streaming_loader(stream, SIZE, batch_size=4, start=8), 12)
    helped = take(streaming_loader(stream, SIZE, batch_size=4, start=8, workers=2), 12)
    assert torch.equal(alone, helped)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_crops_belong_to_the_seed_and_the_number_of_the_sample(stream: StreamedImages) -> None:
    loader = streaming_loader(stream, SIZE, batch_size=3, start=12, rank=1, world=2)
    for indexes in itertools.islice(batch_indexes(3, 12, rank=1, world=2), 5):
        for index, image in zip(indexes, next(loader), strict=True):
            shown = picture(numbers(image[None])[0])
            assert torch.equal(image, to_tensor(random_crop(shown, SIZE, 2, index)))


def test_reading_over_samples_decodes_none(stream: StreamedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    from sr_data import streaming

    decoded: list[str] = []

    def counted(name: str, content: bytes) -> np.ndarray:
        decoded.append(name)
        return original(name, content)

    original = streaming.read_image
    monkeypatch.setattr(streaming, "read_image", counted)
    next(streaming_loader(stream, SIZE, batch_size=4, start=80))
    assert len(decoded) == 4


# --- bad images ---


@pytest.fixture
def faulty(tmp_path: Path) -> StreamedImages:
    """24 good images, 2 too small, 2 that are no picture, 2 that end early; in 4 shards."""
    contents = [encoded(picture(number)) for number in range(24)]
    small, text = encoded(picture(0)[:15]), b"text"
    broken = encoded(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))[:-400]
    for place, content in ((1, small), (2, text), (7, broken), (11, text), (19, broken), (26, small)):
        contents.insert(place, content)
    return StreamedImages("webdataset", write_shards(tmp_path, contents, 4), shuffle_buffer=4)


def test_bad_images_are_left_out_counted_and_named_once(faulty: StreamedImages) -> None:
    loader = streaming_loader(faulty, SIZE, batch_size=1)
    with pytest.warns(UserWarning, match=r"left out 0\d\d\.png: .*; more may follow") as caught:
        shown = numbers(take(loader, 2 * 26 + 1))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    # What ends early is seen too late to shorten the epoch: another image is shown twice.
    assert set(shown[:26]) == set(shown[26:52]) == set(range(24))
    assert 2 * 6 <= loader.skipped < 3 * 6


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:left out")
def test_bad_images_leave_resuming_exact(faulty: StreamedImages, world: int) -> None:
    whole = [list(itertools.islice(streaming_loader(faulty, SIZE, 2, rank=r, world=world), 30)) for r in range(world)]
    for rank, batches in enumerate(whole):
        for skipped in (1, 4, 5, 14, 27):
            loader = streaming_loader(faulty, SIZE, 2, start=skipped * 2 * world, rank=rank, world=world)
            for batch in batches[skipped : skipped + 3]:
                assert torch.equal(next(loader), batch)
    if world == 1:
        helped = take(streaming_loader(faulty, SIZE, 2, workers=2), 30)
        assert torch.equal(helped, torch.cat(whole[0]))


@pytest.mark.filterwarnings("ignore:left out")
def test_a_batch_of_broken_images_alone_keeps_its_number(faulty: StreamedImages) -> None:
    """It shows the next batch, which keeps its own number too."""
    images = take(streaming_loader(faulty, SIZE, batch_size=1), 29)
    assert sum(torch.equal(*pair) for pair in itertools.pairwise(images)) >= 2
    for start in range(1, 29):
        assert torch.equal(next(streaming_loader(faulty, SIZE, batch_size=1, start=start))[0], images[start])


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_is_left(faulty: StreamedImages, world: int) -> None:
    """26 images pass the look at the header, 24 of them good."""
    shown: list[int] = []
    for rank in range(world):
        loader = streaming_loader(faulty, SIZE, batch_size=26, rank=rank, world=world)
        next(loader)
        epoch = loader._reader.length
        assert epoch is not None
        shown += set(numbers(next(streaming_loader(faulty, SIZE, batch_size=epoch, rank=rank, world=world))))
    assert sorted(shown) == list(range(24))


def test_a_broken_image_is_replaced_by_the_next_of_its_batch(tmp_path: Path) -> None:
    from sr_data.stream_source import EncodedImage
    from sr_data.streaming import _Crops, _Numbered

    good = {number: EncodedImage(f"{number}", encoded(picture(number))) for number in range(2)}
    broken = EncodedImage("broken", encoded(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))[:-400])
    batch = [broken, broken, broken, good[0], broken, good[1], broken, broken]
    cut = _Crops(SIZE, seed=4)[[_Numbered(index, image) for index, image in enumerate(batch, 10)]]
    assert cut.images is not None
    assert numbers(cut.images) == [0, 0, 0, 0, 1, 1, 0, 0]
    assert torch.equal(cut.images[0], to_tensor(random_crop(picture(0), SIZE, 4, 10)))
    assert len(cut.problems) == 6
    assert "broken" in cut.problems[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_without_a_usable_image_is_an_error_not_an_endless_loop(stream: StreamedImages, workers: int) -> None:
    with pytest.raises(ValueError, match=r"at least 21x21 pixels, got an epoch without any \(0\d\d\.png: 20x24 pixels"):
        next(streaming_loader(stream, 21, batch_size=2, workers=workers))


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_broken_images_is_an_error_not_an_endless_loop(tmp_path: Path, workers: int) -> None:
    broken = encoded(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))[:-400]
    broken_stream = StreamedImages("webdataset", write_shards(tmp_path, [broken] * 6, 2))
    with pytest.raises(
        ValueError, match=r"expected images that can be decoded, got none in an epoch \(expected a complete"
    ):
        next(streaming_loader(broken_stream, SIZE, batch_size=2, workers=workers))


def test_more_ranks_than_images_are_an_error(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [encoded(picture(0))] * 2, 1)
    with pytest.raises(ValueError, match=r"got an epoch without any \(no image for rank 2 of 3\)"):
        next(streaming_loader(StreamedImages("webdataset", files), SIZE, batch_size=1, rank=2, world=3))


# --- formats ---


def parquet(folder: Path) -> StreamedImages:
    features = datasets.Features({"label": datasets.Value("int64"), "photo": datasets.Image()})
    for part in range(3):
        members = range(part, 9, 3)
        rows = {
            "label": list(members),
            "photo": [{"bytes": encoded(picture(number)), "path": None} for number in members],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}.parquet")
    return StreamedImages("parquet", (str(folder / "0.parquet"), str(folder / "[12].parquet")), shuffle_buffer=4)


def bytes_alone(folder: Path) -> StreamedImages:
    rows = {"data": [encoded(picture(number)) for number in range(9)], "label": list(range(9))}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "a.parquet")
    return StreamedImages("parquet", str(folder / "a.parquet"), column="data")


def folder_of_images(folder: Path) -> StreamedImages:
    for number in range(9):
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    return StreamedImages(str(folder))


@pytest.mark.parametrize("make", [parquet, bytes_alone, folder_of_images])
def test_other_formats_stream_alike(make: Callable[[Path], StreamedImages], tmp_path: Path) -> None:
    images = make(tmp_path)
    images.validate(SIZE)
    shown = take(streaming_loader(images, SIZE, batch_size=3), 6)
    for epoch in (shown[:9], shown[9:]):
        assert sorted(numbers(epoch)) == list(range(9))
    resumed = streaming_loader(images, SIZE, batch_size=3, start=12)
    assert torch.equal(next(resumed), shown[12:15])
    ranks = [numbers(take(streaming_loader(images, SIZE, 1, rank=rank, world=3), 3)) for rank in range(3)]
    assert sorted(itertools.chain(*ranks)) == list(range(9))


# --- errors up front ---


def test_the_column_is_found_or_asked_for(tmp_path: Path, stream: StreamedImages) -> None:
    image = {"bytes": encoded(picture(0)), "path": None}
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    datasets.Dataset.from_dict({"a": [image], "b": [image]}, features=features).to_parquet(tmp_path / "two.parquet")
    files = str(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"expected one column of images in .*, got a, b of a, b; name it with column"):
        StreamedImages("parquet", files).open()
    assert numbers(next(streaming_loader(StreamedImages("parquet", files, column="b"), SIZE, 1))) == [0]
    with pytest.raises(ValueError, match="expected column 'jpg', got png, __key__, __url__; name one"):
        StreamedImages(stream.path, stream.data_files, column="jpg").open()


def test_streams_that_do_not_open_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a dataset that can be streamed, got 'webdataset'") as caught:
        streaming_loader(StreamedImages("webdataset", str(tmp_path / "*.tar")), SIZE, 1)
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"install the extra sr-data\[stream\]$"):
        streaming_loader(StreamedImages("webdataset", "a.tar"), SIZE, 1)


def test_the_first_images_are_looked_at_before_a_run(stream: StreamedImages) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream.validate(20)
    with pytest.raises(ValueError, match=r"at least 21x21 pixels, got none .*20x24.*; .* smaller validation crop"):
        stream.validate(21, "validation crop")


def test_impossible_numbers_are_refused(stream: StreamedImages) -> None:
    for wrong in ({"shuffle_buffer": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="expected shuffle_buffer >= 1 and seed >= 0"):
            StreamedImages("webdataset", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers >= 0 and hr_size >= 1, got -1"):
        streaming_loader(stream, SIZE, 1, workers=-1)
    with pytest.raises(ValueError, match="rank 2 and world 2"):
        streaming_loader(stream, SIZE, 1, rank=2, world=2)
