"""The second-order degradation: from HR crops to LR images as real photographs look.

Every sample draws its own degradation. (The published training applies one degradation to a whole batch and
mixes batches through a pool of past pairs; independent draws give the same mixture without the pool.)

All randomness is drawn on the CPU: one 32-bit seed a sample from the caller's generator, and from a fresh
generator with that seed first the sample's parameters (see ``draw_parameters``), then its noise fields in the
order in which they are added. Sample i therefore depends on its pixels and its seed only, neither on the
rest of the batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sr_data.degradation.blur import filter2d
from sr_data.degradation.config import DegradationConfig
from sr_data.degradation.jpeg import jpeg
from sr_data.degradation.noise import add_gaussian_noise, add_poisson_noise
from sr_data.degradation.parameters import (
    DegradationParameters,
    Kernel,
    Noise,
    Stage,
    draw_parameters,
)
from sr_data.degradation.resize import resize

# Pixels may leave [0, 1] by the rounding of earlier float operations, not by a wrong domain.
_TOLERANCE = 1e-3


def sample_seeds(generator: torch.Generator, batch: int) -> list[int]:
    """The seeds of a batch's samples, in order; ``degrade_one`` with seed i repeats sample i of ``degrade``.

    Args:
        generator: CPU generator; one number is drawn for each sample.
        batch: number of samples.

    Returns:
        Seeds in [0, 2^32), one a sample.
    """
    seeds: list[int] = torch.randint(2**32, (batch,), generator=generator).tolist()
    return seeds


def degrade(hr: Tensor, config: DegradationConfig, generator: torch.Generator, scale: int = 4) -> Tensor:
    """Degrade a batch of HR images, each with its own random degradation.

    Args:
        hr: ``(B, 3, H, W)``, pixels [0, 1], floating; H and W multiples of ``scale``.
        config: probabilities and ranges, for example ``DegradationConfig.real_esrgan()``.
        generator: CPU generator; one seed for each sample is drawn from it.
        scale: how many times smaller the LR image is.

    Returns:
        LR images ``(B, 3, H / scale, W / scale)``, pixels [0, 1] on the 256 levels of 8 bit, float32, on the
        device of ``hr``.

    Raises:
        ValueError: if ``hr`` has a wrong shape, dtype or domain, or the generator is not on the CPU.
    """
    if hr.ndim != 4:
        raise ValueError(f"expected HR images (B, 3, H, W), got {tuple(hr.shape)}; add the batch axis")
    _check_generator(generator)
    return degrade_seeded(hr, config, sample_seeds(generator, hr.shape[0]), scale)


def degrade_seeded(hr: Tensor, config: DegradationConfig, seeds: Sequence[int], scale: int = 4) -> Tensor:
    """Degrade a batch of HR images whose seeds the caller chose; ``degrade`` with its seeds drawn already.

    Args:
        hr: ``(B, 3, H, W)``, pixels [0, 1], floating; H and W multiples of ``scale``.
        config: probabilities and ranges, for example ``DegradationConfig.real_esrgan()``.
        seeds: one of ``sample_seeds`` for each sample.
        scale: how many times smaller the LR image is.

    Returns:
        LR images ``(B, 3, H / scale, W / scale)``, pixels [0, 1] on the 256 levels of 8 bit, float32, on the
        device of ``hr``.

    Raises:
        ValueError: if ``hr`` has a wrong shape, dtype or domain, or there is not one seed for each sample.
    """
    if hr.ndim != 4 or len(seeds) != hr.shape[0]:
        raise ValueError(
            f"expected HR images (B, 3, H, W) and B seeds, got {tuple(hr.shape)} and {len(seeds)}; pass one each"
        )
    _check(hr, scale)
    lr = [
        _degrade(image[None], config, torch.Generator().manual_seed(seed), scale)
        for image, seed in zip(hr, seeds, strict=True)
    ]
    return torch.cat(lr) if lr else hr.new_zeros((0, 3, hr.shape[2] // scale, hr.shape[3] // scale)).float()


def degrade_one(hr: Tensor, config: DegradationConfig, generator: torch.Generator, scale: int = 4) -> Tensor:
    """Degrade one HR image; parameters and noise come straight from the generator.

    Args:
        hr: ``(3, H, W)``, pixels [0, 1], floating; H and W multiples of ``scale``.
        config: probabilities and ranges, for example ``DegradationConfig.real_esrgan()``.
        generator: CPU generator.
        scale: how many times smaller the LR image is.

    Returns:
        The LR image ``(3, H / scale, W / scale)``, pixels [0, 1] on the 256 levels of 8 bit, float32, on the
        device of ``hr``.

    Raises:
        ValueError: if ``hr`` has a wrong shape, dtype or domain, or the generator is not on the CPU.
    """
    if hr.ndim != 3:
        raise ValueError(f"expected one HR image (3, H, W), got {tuple(hr.shape)}; call degrade for a batch")
    _check_generator(generator)
    _check(hr[None], scale)
    return _degrade(hr[None], config, generator, scale)[0]


@torch.no_grad()
def _degrade(hr: Tensor, config: DegradationConfig, generator: torch.Generator, scale: int) -> Tensor:
    """Degrade a batch of one, ``(1, 3, H, W)``."""
    parameters = draw_parameters(config, generator)
    hr_size = (hr.shape[-2], hr.shape[-1])
    lr_size = (hr_size[0] // scale, hr_size[1] // scale)
    image = _apply_stage(hr.float(), parameters.first, hr_size, generator)
    image = jpeg(image, parameters.first_quality)
    if parameters.second is not None:
        image = _apply_stage(image, parameters.second, lr_size, generator)
    image = _apply_final(image, parameters, lr_size)
    return (image.clamp(0.0, 1.0) * 255.0).round() / 255.0


def _apply_stage(image: Tensor, stage: Stage, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Blur, resize to a multiple of ``size``, add noise, clamp."""
    image = _blur(image, stage.kernel)
    height, width = (max(1, round(length * stage.resize.scale)) for length in size)
    image = resize(image, (height, width), stage.resize.mode)
    return _add_noise(image, stage.noise, generator).clamp(0.0, 1.0)


def _apply_final(image: Tensor, parameters: DegradationParameters, size: tuple[int, int]) -> Tensor:
    """Resize to the LR size with the last sinc, and compress, in the order that was drawn."""
    if not parameters.jpeg_last:
        image = jpeg(image, parameters.final_quality)
    image = _blur(resize(image, size, parameters.final_mode), parameters.final_kernel)
    if parameters.jpeg_last:
        image = jpeg(image.clamp(0.0, 1.0), parameters.final_quality)
    return image


def _blur(image: Tensor, kernel: Kernel | None) -> Tensor:
    return image if kernel is None else filter2d(image, kernel.weights())


def _add_noise(image: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    add = add_gaussian_noise if noise.kind == "gaussian" else add_poisson_noise
    return add(image, torch.tensor([noise.strength]), torch.tensor([noise.grey]), generator)


def _check_generator(generator: torch.Generator) -> None:
    if generator.device.type != "cpu":
        raise ValueError(f"expected a CPU generator, got one on {generator.device}; use torch.Generator()")


def _check(hr: Tensor, scale: int) -> None:
    if hr.shape[1] != 3 or not hr.is_floating_point():
        raise ValueError(
            f"expected floating RGB images, got {hr.dtype} {tuple(hr.shape)}; convert to float pixels [0, 1]"
        )
    height, width = hr.shape[-2:]
    if scale < 1 or min(height, width) < 1 or height % scale or width % scale:
        raise ValueError(
            f"expected sides that are multiples of the scale {scale}, got {height}x{width}; crop the image"
        )
    if hr.numel() == 0:
        return
    low, high = (float(extreme) for extreme in hr.detach().aminmax())
    # Written so that NaN fails too.
    if not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):
        raise ValueError(f"expected pixels [0, 1], got values in [{low:g}, {high:g}]; rescale the image")
