"""SuperResolver: any size and kind of picture, exactly scale times larger, reproducible."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sr_models import Options, SRModel, SuperResolver, store
from sr_models.geometry import padded_part
from sr_models.restoration.noise import NoiseField

Build = Callable[..., SRModel]
SIZES = [(1, 1), (3, 5), (16, 16), (33, 50)]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def student(build_model: Build) -> SuperResolver:
    return SuperResolver(build_model("student"))


@pytest.fixture(scope="module")
def teacher(build_model: Build) -> SuperResolver:
    return SuperResolver(build_model("teacher"))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_size(student: SuperResolver, height: int, width: int) -> None:
    sr = student.upscale(picture(height, width))
    assert (sr.shape, sr.dtype) == ((4 * height, 4 * width, 3), np.uint8)


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_other_scales(build_model: Build, scale: int) -> None:
    resolver = SuperResolver(build_model("student", scale=scale))
    assert resolver.scale == scale
    for height, width in ((1, 1), (5, 9)):
        assert resolver.upscale(picture(height, width)).shape == (scale * height, scale * width, 3)


def test_lr_multiple_makes_whole_latents(build_model: Build) -> None:
    """Latents fit the windows at every level, also where the scale does not divide the pixels of a window."""
    model = build_model("student")
    for scale, multiple in ((1, 32), (2, 16), (5, 32), (6, 16), (4, 8), (8, 4), (32, 1), (64, 1)):
        config = model.config.model_copy(update={"scale": scale})
        assert SuperResolver(replace(model, config=config)).lr_multiple == multiple, scale


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_seed(build_model: Build, kind: str) -> None:
    resolver, image = SuperResolver(build_model(kind)), picture(8, 8)
    first = resolver.upscale(image, seed=1)
    assert np.array_equal(first, resolver.upscale(image, seed=1))
    assert not np.array_equal(first, resolver.upscale(image, seed=2))
    assert np.array_equal(resolver.upscale(image), resolver.upscale(image, seed=0))


def test_global_generator_is_neither_read_nor_moved(student: SuperResolver) -> None:
    torch.manual_seed(0)
    first = student.upscale(picture(8, 8))
    state = torch.get_rng_state()
    assert np.array_equal(first, student.upscale(picture(8, 8)))
    assert torch.equal(state, torch.get_rng_state())


def test_pil_in_pil_out(student: SuperResolver) -> None:
    array = picture(6, 9)
    sr = student.upscale(Image.fromarray(array))
    assert isinstance(sr, Image.Image)
    assert (sr.mode, sr.size) == ("RGB", (36, 24))
    assert np.array_equal(np.asarray(sr), student.upscale(array))


def test_pil_modes(student: SuperResolver) -> None:
    """Grey stays grey, alpha stays alpha, a palette becomes what it shows."""
    image = Image.fromarray(picture(6, 9))
    clear = image.convert("P")
    clear.info["transparency"] = 3
    deep = Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200)
    modes = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGBA": "RGBA", "YCbCr": "RGB", "HSV": "RGB"}
    for shown, mode in [
        *((image.convert(name), mode) for name, mode in modes.items()),
        (clear, "RGBA"),
        (deep, "I;16"),
    ]:
        sr = student.upscale(shown)
        assert (sr.mode, sr.size) == (mode, (36, 24))
        array = np.asarray(shown if mode == "I;16" else shown.convert(mode))
        assert np.array_equal(np.asarray(sr), student.upscale(array))
    see_through = image.convert("L")
    see_through.info["transparency"] = 40
    assert student.upscale(see_through).mode == "LA"
    assert student.upscale(image.convert("LA").convert("PA")).mode == "RGBA"
    image.info["xmp"] = b"<x/>"
    assert student.upscale(image).info["xmp"] == b"<x/>"
    for mode in ("I", "F", "CMYK", "LAB"):
        with pytest.raises(ValueError, match=f"expected a picture of grey or RGB in 8 or 16 bits, got mode {mode!r}"):
            student.upscale(Image.new(mode, (4, 4)))


def test_pil_orientation_and_profile(student: SuperResolver) -> None:
    """As through a file: upright, with its colour profile."""
    image = Image.fromarray(picture(6, 9))
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif, icc_profile=b"profile", dpi=(300, 150))
    sr = student.upscale(Image.open(file))
    assert sr.size == (24, 36)
    assert np.array_equal(np.asarray(sr), student.upscale(np.rot90(np.asarray(image), -1)))
    assert sr.info["icc_profile"] == b"profile"
    assert sr.info["dpi"] == pytest.approx((150, 300), abs=0.1)
    kept = Image.Exif()
    kept.load(sr.info["exif"])
    assert (kept.get(0x0112, 1), kept[0x010E]) == (1, "a description")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_alpha(student: SuperResolver, dtype: type) -> None:
    step = 257 if dtype == np.uint16 else 1
    rgb = (picture(7, 10) * np.array(step, dtype)).astype(dtype)
    grey, alpha = rgb[..., :1], rgb[..., 1:2]
    whole = student.upscale(rgb)
    assert (whole.shape, whole.dtype) == ((28, 40, 3), dtype)
    both = student.upscale(np.concatenate([rgb, alpha], 2))
    assert np.array_equal(both[..., :3], whole)
    wanted = Image.fromarray(alpha[..., 0].astype(np.float32)).resize((40, 28), Image.Resampling.BICUBIC)
    assert np.abs(both[..., 3] - np.asarray(wanted).clip(0, np.iinfo(dtype).max)).max() <= 0.51
    one = student.upscale(grey)
    assert one.shape == (28, 40, 1)
    three = student.upscale(np.repeat(grey, 3, 2)) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(one[..., 0] - three).max() <= 1.01 * (1 if dtype == np.uint8 else 1.5)
    assert np.array_equal(student.upscale(grey[..., 0]), one[..., 0])
    two = student.upscale(np.concatenate([grey, alpha], 2))
    assert np.array_equal(two, np.concatenate([one, both[..., 3:]], 2))


def test_sixteen_bits_are_not_eight(student: SuperResolver) -> None:
    """The same picture in 16 bits gives the same picture, between the levels of 8 bits too."""
    image = picture(8, 8)
    fine, coarse = student.upscale(image.astype(np.uint16) * 257), student.upscale(image)
    assert np.abs(fine / 257 - coarse).max() <= 0.51
    assert len(np.unique(fine % 257)) > 100


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(student: SuperResolver, image: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a picture \(H, W, 1 to 4\) of uint8 or uint16, got .*; convert it"):
        student.upscale(image)


@pytest.mark.parametrize("image", ["photo.jpg", [[1, 2], [3, 4]], None])
def test_other_things_are_refused(student: SuperResolver, image: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a PIL image, an array or a tensor, got .*; open files by"):
        student.upscale(image)


def test_empty_pictures_are_refused(student: SuperResolver) -> None:
    with pytest.raises(ValueError, match=r"expected a picture of at least 1x1, got 0x8"):
        student.upscale(np.zeros((8, 0, 3), np.uint8))


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8), (1, 8, 8, 3), (1, 3, 0, 8)])
def test_other_tensors_are_refused(student: SuperResolver, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected pixels \[-1, 1\], \(3, h, w\) or \(B, 3, h, w\) floating point"):
        student.upscale(torch.zeros(shape))


def test_tensors(student: SuperResolver) -> None:
    """Pixels [-1, 1], one or a batch; the place in the batch changes nothing."""
    image = picture(8, 11)
    lr = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
    other = torch.zeros_like(lr)
    sr = student.upscale(lr, seed=3)
    assert (sr.shape, sr.dtype, sr.device.type) == ((3, 32, 44), torch.float32, "cpu")
    assert np.abs(((sr + 1) * 127.5).permute(1, 2, 0).numpy() - student.upscale(image, seed=3)).max() < 0.51
    assert torch.equal(student.upscale(lr.clone().requires_grad_(), seed=3), sr)
    batch = student.upscale(torch.stack([other, lr, lr]), seed=3)
    assert batch.shape == (3, 3, 32, 44)
    assert torch.equal(batch[1], sr)
    assert torch.equal(batch[2], sr)
    with pytest.raises(ValueError, match=r"expected pixels \[-1, 1\], got .* bring 0..255 there by"):
        student.upscale(lr * 100 + 100)
    with pytest.raises(ValueError, match=r"expected finite pixels, got NaN or infinity in the tensor"):
        student.upscale(lr * torch.nan)
    with pytest.raises(ValueError, match=r"floating point, got .* of torch.uint8"):
        student.upscale(torch.zeros(3, 4, 4, dtype=torch.uint8))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 9))
def test_any_scale(student: SuperResolver, height: int, width: int, scale: float) -> None:
    sr = student.upscale(picture(height, width), scale=scale)
    assert sr.shape == (max(round(height * scale), 1), max(round(width * scale), 1), 3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60), st.integers(1, 60))
def test_any_size(student: SuperResolver, height: int, width: int, rows: int, columns: int) -> None:
    image = np.dstack([picture(height, width), picture(height, width)[..., :1]])
    sr = student.upscale(image, size=(columns, rows))
    assert sr.shape == (rows, columns, 4)


def test_other_sizes_are_the_models_own_resampled(student: SuperResolver) -> None:
    """By Pillow's bicubic filter, before anything is rounded."""
    image = picture(10, 16)
    own = student.upscale(torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1).numpy()
    for size in ((31, 25), (100, 70), (64, 25)):
        planes = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in own]
        wanted = ((np.stack(planes, -1) + 1) * 127.5).clip(0, 255)
        assert np.abs(student.upscale(image, size=size) - wanted).max() <= 0.51
    assert np.array_equal(student.upscale(image, scale=4.0), student.upscale(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "expected a positive scale, got 0"),
        ({"scale": float("nan")}, "expected a positive scale, got nan"),
        ({"scale": float("inf")}, "expected a positive scale, got inf"),
        ({"fidelity": -0.1}, "expected fidelity from 0 to 1, got -0.1"),
        ({"fidelity": float("nan")}, "expected fidelity from 0 to 1, got nan"),
        ({"scale": 2, "size": (4, 4)}, "expected scale or size, got scale=2 and size="),
        ({"size": (0, 4)}, "expected a size of at least 1x1, got"),
        ({"seed": -1}, "expected a seed of 0 or more, got -1"),
        ({"tile": -1}, "expected the side of a tile, or 0 for no tiles, got -1"),
        ({"color": "sepia"}, "expected color none, adain, wavelet, lab, got 'sepia'"),
        ({"fidelity": 1.5}, "expected fidelity from 0 to 1, got 1.5"),
        ({"batch": 0}, "expected a batch of at least 1, got 0"),
        ({"seed": 1.5}, "expected a whole number for seed, got 1.5"),
        ({"tile": "64"}, "expected a whole number for tile, got '64'"),
        ({"scale": "2"}, "expected a number for scale, got '2'"),
        ({"size": (100,)}, "expected a size of two whole numbers, got (100,)"),
        ({"size": (100, 50.5)}, "expected a size of two whole numbers, got (100, 50.5)"),
    ],
)
def test_options_that_cannot_be(student: SuperResolver, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        student.upscale(picture(4, 4), **options)


def test_bands(student: SuperResolver) -> None:
    """A stream gives the same picture in bands, tells about tiles, and reports at the end."""
    image, told = picture(100, 40), list[tuple[int, int]]()
    stream = student.stream(image, Options(tile=48, seed=2), lambda done, total: told.append((done, total)))
    assert (stream.height, stream.width, stream.channels, stream.dtype) == (400, 160, 3, np.uint8)
    bands = list(stream)
    assert len(bands) > 2
    assert np.array_equal(np.concatenate(bands), student.upscale(image, tile=48, seed=2))
    assert told == [(done, stream.report.tiles) for done in range(1, stream.report.tiles + 1)]
    assert stream.report.tile == 48


def test_lr_consistency_is_reported(student: SuperResolver) -> None:
    """RMSE in levels between the LR image and the average of the restored one; fidelity brings it down."""
    image = (picture(24, 20) // 4 + 90).astype(np.uint8)
    errors = []
    for fidelity in (0.0, 0.5, 1.0):
        stream = student.stream(image, Options(fidelity=fidelity))
        back = stream.array().reshape(24, 4, 20, 4, 3).mean((1, 3))
        assert stream.report.lr_consistency == pytest.approx(np.sqrt(np.square(back - image).mean()), abs=0.05)
        errors.append(stream.report.lr_consistency)
    assert errors[0] > 5
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.3 * errors[0]
    tiled = student.stream(image, Options(tile=32, size=(7, 9)))
    tiled.array()
    assert tiled.report.lr_consistency == pytest.approx(errors[0], rel=0.5)


@pytest.mark.parametrize("name", ["adain", "wavelet", "lab"])
def test_color(student: SuperResolver, name: str) -> None:
    image = np.full((16, 16, 3), (200, 120, 60), np.uint8) + picture(16, 16) // 16
    plain, corrected = student.upscale(image), student.upscale(image, color=name)
    assert np.array_equal(student.upscale(image, color="none"), plain)  # what ResShift's models do by themselves
    away, near = (np.abs(sr.mean((0, 1)) - image.mean((0, 1))) for sr in (plain, corrected))
    assert away.max() > 10
    assert (near[1:].max() if name != "lab" else near.max()) < 0.6 * away.max()


def test_views_are_accepted(student: SuperResolver) -> None:
    image = picture(6, 9)
    flipped = student.upscale(image[:, ::-1])
    assert np.array_equal(flipped, student.upscale(np.ascontiguousarray(image[:, ::-1])))


def test_steps(student: SuperResolver, teacher: SuperResolver) -> None:
    image = picture(8, 8)
    for steps in (0, 2, 3):
        with pytest.raises(ValueError, match=f"expected steps=1 for this student, got {steps}"):
            student.upscale(image, steps=steps)
    for steps in (0, 2, 4):
        with pytest.raises(ValueError, match=f"expected steps=1 or 3 for this teacher, got {steps}"):
            teacher.upscale(image, steps=steps)
    assert np.array_equal(student.upscale(image), student.upscale(image, steps=1))
    assert np.array_equal(teacher.upscale(image), teacher.upscale(image, steps=3))
    assert not np.array_equal(teacher.upscale(image), teacher.upscale(image, steps=1))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "steps"), [("student", 1), ("teacher", 1), ("teacher", 3)])
def test_what_happens_to_a_picture(build_model: Build, kind: str, steps: int) -> None:
    """The whole way written out: pad, encode the bicubic image, predict at T (or run the chain), decode, crop."""
    model = build_model(kind)
    image = picture(13, 22)
    lr = torch.from_numpy(np.pad(image, ((0, 3), (0, 2), (0, 0)), mode="reflect")).movedim(-1, 0)[None] / 127.5 - 1
    z_y = model.autoencoder.encode(F.interpolate(lr, (64, 96), mode="bicubic", align_corners=False).clamp(-1, 1))
    schedule = model.config.schedule.build()
    if steps == 1:
        channels = 4 if kind == "student" else 3  # the student's second noise comes after the latent's channels
        noise = NoiseField(5, 1, channels).crop(slice(0, 16), slice(0, 24))[0]
        z_t, epsilon = z_y + 2.0 * 0.99 * noise[:, :3], noise[:, 3:] if kind == "student" else None
        z_0 = model.unet(z_t / (4 * 0.99**2 + 1) ** 0.5, torch.tensor([2]), lr, epsilon)
    else:
        noises = NoiseField(5, 4, 3).crop(slice(0, 16), slice(0, 24))
        z_0 = z_y + 2.0 * 0.99 * noises[3]
        for t in (3, 2, 1):
            z_t, eta = z_0, schedule.etas
            prediction = model.unet(z_t / (4 * eta[t] + 1) ** 0.5, torch.tensor([t - 1]), lr)
            alpha = eta[t] - eta[t - 1]
            noise = 2 * (eta[t - 1] * alpha / eta[t]) ** 0.5 * noises[t - 1]
            z_0 = eta[t - 1] / eta[t] * z_t + alpha / eta[t] * prediction + noise
    sr = model.autoencoder.decode(z_0.float()).clamp(-1, 1)[0, :, :52, :88]
    expected = ((sr + 1) * 127.5).movedim(0, -1).numpy()
    out = SuperResolver(model).upscale(image, seed=5, steps=steps)
    assert expected.std() > 20
    assert np.abs(out - expected).max() < 0.51


@torch.no_grad()
def test_a_student_of_several_times(build_model: Build) -> None:
    """Predict z_0 at T, draw z_t around it at the next lower time, predict again; decode the last prediction."""
    plain = build_model("student")
    model = replace(plain, config=plain.config.model_copy(update={"student_timesteps": (1, 3)}))
    resolver, image = SuperResolver(model), picture(16, 24)
    assert model.steps == (1, 2)
    assert np.array_equal(resolver.upscale(image), SuperResolver(plain).upscale(image))
    lr = torch.from_numpy(image).movedim(-1, 0)[None] / 127.5 - 1
    z_y = model.autoencoder.encode(F.interpolate(lr, (64, 96), mode="bicubic", align_corners=False).clamp(-1, 1))
    first, second = NoiseField(5, 2, 4).crop(slice(0, 16), slice(0, 24))
    z_0, etas = z_y, model.config.schedule.build().etas
    for t, noise in ((3, first), (1, second)):
        mean = z_y if t == 3 else z_0 + etas[1] * (z_y - z_0)
        z_t = mean + 2 * etas[t] ** 0.5 * noise[:, :3]
        z_0 = model.unet((z_t / (4 * etas[t] + 1) ** 0.5).float(), torch.tensor([t - 1]), lr, noise[:, 3:])
    expected = (model.autoencoder.decode(z_0.float()).clamp(-1, 1)[0] + 1) * 127.5
    out = resolver.upscale(image, seed=5, steps=2)
    assert np.abs(out - expected.movedim(0, -1).numpy()).max() < 0.51
    assert not np.array_equal(out, resolver.upscale(image, seed=5))


@torch.no_grad()
def test_a_student_takes_its_times_from_the_noisiest_down(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, seen = build_model("student").denoiser, list[int]()

    def watched(self: object, z_t: torch.Tensor, lr: object, t: torch.Tensor, noise: object = None) -> torch.Tensor:
        seen.append(int(t[0]))
        return z_t

    monkeypatch.setattr(type(denoiser), "__call__", watched)
    z = torch.zeros(1, 3, 8, 8)
    denoiser.few_steps(z, z, (1, 2, 3), [z] * 3, [None] * 3)
    assert seen == [3, 2, 1]


def test_what_a_model_says_of_its_tiles(build_model: Build) -> None:
    model = build_model("student")
    assert {id(network) for network in model.tiled_networks} == {id(model.unet), id(model.autoencoder)}
    assert model.bytes_per_pixel == 6 * 4 * model.config.autoencoder.base_channels * 4**2


@pytest.mark.parametrize("times", [(1, 2), (3, 1), (1, 1, 3), (0, 3), ()])
def test_times_of_a_student_that_cannot_be(build_model: Build, times: tuple[int, ...]) -> None:
    fields = build_model("student").config.model_dump()
    with pytest.raises(ValueError, match="student_timesteps"):
        type(build_model("student").config).model_validate({**fields, "student_timesteps": times})


def test_restoring_does_not_disturb_training(build_model: Build) -> None:
    """Masks that inference caches serve training too, and gradients are not switched off."""
    model = build_model("student")
    SuperResolver(model).upscale(picture(40, 48))
    latents, epsilon = torch.randn(1, 3, 40, 48), torch.randn(1, 1, 40, 48)
    model.unet.train()(latents, torch.tensor([2]), torch.zeros(1, 3, 40, 48), epsilon).sum().backward()
    assert all(parameter.grad is not None for parameter in model.unet.parameters())


def test_saved_model_restores_alike(student: SuperResolver, tmp_path: Path) -> None:
    store.save_model(student.model, tmp_path / "model")
    loaded = SuperResolver.from_pretrained(tmp_path / "model", dtype="fp32")
    assert np.array_equal(loaded.upscale(picture(8, 8)), student.upscale(picture(8, 8)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 9), (9, 16), (8, 4), (13, 21)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_padded_part(height: int, width: int, dtype: type) -> None:
    image = np.arange(height * width).reshape(height, width, 1).astype(dtype)
    bottom, right = -height % 8, -width % 8
    mode = "reflect" if bottom < height and right < width else "edge"  # too small to reflect
    padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode=mode)
    for rows in (slice(0, height + bottom), slice(height // 2, height + bottom), slice(0, height)):
        for columns in (slice(0, width + right), slice(0, max(width - 1, 1)), slice(width // 2, width + right)):
            part = padded_part(image, rows, columns, 8)
            assert part.dtype == dtype
            assert np.array_equal(part, padded[rows, columns])


def test_shipped_student() -> None:
    resolver = SuperResolver.from_pretrained(dtype="fp32")
    assert resolver.model.kind == "student"
    gradient = np.broadcast_to(np.linspace(40, 210, 32).astype(np.uint8)[:, None, None], (32, 24, 3))
    sr = resolver.upscale(Image.fromarray(gradient.copy()))
    assert sr.size == (96, 128)
    # It restores what it sees: averaged over the enlargement the picture comes back.
    back = np.asarray(sr, dtype=np.float64).reshape(32, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(back - gradient).mean() < 8
