"""SuperResolver: any size and kind of picture, exactly scale times larger, reproducible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from sr_models import SRModel, SuperResolver, store
from sr_models.geometry import pad_to_multiple

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
    image = Image.fromarray(picture(6, 9))
    for mode in ("L", "RGBA", "P"):
        converted = image.convert(mode)
        expected = student.upscale(np.asarray(converted.convert("RGB")))
        assert np.array_equal(np.asarray(student.upscale(converted)), expected)
    for deep in (Image.new("I;16", (4, 4)), Image.new("I", (4, 4)), Image.new("F", (4, 4))):
        with pytest.raises(ValueError, match=f"expected a picture of 8 bits a channel, got mode {deep.mode!r}"):
            student.upscale(deep)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(student: SuperResolver, image: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image \(H, W, 3\) of uint8, got .*; convert it first"):
        student.upscale(image)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3), (1, 3, 0, 8)])
def test_other_tensors_are_refused(student: SuperResolver, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected LR images \(B, 3, h, w\), got \("):
        student.restore(torch.zeros(shape), torch.Generator())


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


def test_images_of_a_batch_draw_their_own_noise(student: SuperResolver) -> None:
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sr = student.restore(lr.expand(2, -1, -1, -1), torch.Generator().manual_seed(0))
    assert sr.shape == (2, 3, 32, 32)
    assert not torch.equal(sr[0], sr[1])
    assert sr.abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize(("kind", "steps"), [("student", 1), ("teacher", 1), ("teacher", 3)])
def test_what_happens_to_a_picture(build_model: Build, kind: str, steps: int) -> None:
    """The whole way written out: pad, encode the bicubic image, predict at T (or run the chain), decode, crop."""
    model = build_model(kind)
    image = picture(13, 22)
    lr = torch.from_numpy(np.pad(image, ((0, 3), (0, 2), (0, 0)), mode="reflect")).movedim(-1, 0)[None] / 127.5 - 1
    z_y = model.autoencoder.encode(F.interpolate(lr, (64, 96), mode="bicubic", align_corners=False).clamp(-1, 1))
    generator = torch.Generator().manual_seed(5)
    schedule, latent = model.config.schedule.build(), (1, 3, 16, 24)
    if steps == 1:
        channels = 4 if kind == "student" else 3  # the student's second noise comes after the latent's channels
        noise = torch.randn((1, channels, 16, 24), generator=generator)
        z_t, epsilon = z_y + 2.0 * 0.99 * noise[:, :3], noise[:, 3:] if kind == "student" else None
        z_0 = model.unet(z_t / (4 * 0.99**2 + 1) ** 0.5, torch.tensor([2]), lr, epsilon)
    else:
        noises = torch.randn((4, *latent), generator=generator)
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


def test_restoring_does_not_disturb_training(build_model: Build) -> None:
    """Masks that inference caches serve training too, and gradients are not switched off."""
    model = build_model("student")
    SuperResolver(model).upscale(picture(40, 48))
    latents, epsilon = torch.randn(1, 3, 40, 48), torch.randn(1, 1, 40, 48)
    model.unet.train()(latents, torch.tensor([2]), torch.zeros(1, 3, 40, 48), epsilon).sum().backward()
    assert all(parameter.grad is not None for parameter in model.unet.parameters())


def test_saved_model_restores_alike(student: SuperResolver, tmp_path: Path) -> None:
    store.save_model(student.model, tmp_path / "model")
    loaded = SuperResolver.from_pretrained(tmp_path / "model")
    assert np.array_equal(loaded.upscale(picture(8, 8)), student.upscale(picture(8, 8)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 9), (9, 16), (8, 4)])
def test_pad_to_multiple(height: int, width: int) -> None:
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    padded = pad_to_multiple(image, 8)
    bottom, right = -height % 8, -width % 8
    assert padded.shape == (1, 1, height + bottom, width + right)
    mode = "reflect" if bottom < height and right < width else "edge"
    expected = np.pad(image[0, 0].numpy(), ((0, bottom), (0, right)), mode=mode)
    assert np.array_equal(padded[0, 0].numpy(), expected)


def test_shipped_student() -> None:
    resolver = SuperResolver.from_pretrained()
    assert resolver.model.kind == "student"
    gradient = np.broadcast_to(np.linspace(40, 210, 32).astype(np.uint8)[:, None, None], (32, 24, 3))
    sr = resolver.upscale(Image.fromarray(gradient.copy()))
    assert sr.size == (96, 128)
    # It restores what it sees: averaged over the enlargement the picture comes back.
    back = np.asarray(sr, dtype=np.float64).reshape(32, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(back - gradient).mean() < 8
