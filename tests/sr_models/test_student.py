"""A student starts out as its teacher, with a noise input that it learns to use."""

from __future__ import annotations

import pytest
import torch

from sr_models import SwinUNet, make_fake, make_student
from sr_models.student import NOISE_CHANNELS


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 16, generator=generator), torch.tensor([14, 3]), torch.rand(2, 3, 8, 16)


@pytest.mark.parametrize("noise_channels", [1, 4])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@torch.no_grad()
def test_equals_the_teacher(
    unet: SwinUNet, pictures: tuple[torch.Tensor, ...], noise_channels: int, size: float
) -> None:
    student = make_student(unet, noise_channels).eval()
    epsilon = size * torch.randn(2, noise_channels, 8, 16, generator=torch.Generator().manual_seed(1))
    expected = unet(*pictures)
    assert expected.std() > 0.1
    assert torch.equal(student(*pictures, epsilon), expected)
    assert torch.equal(student.bottleneck(*pictures, epsilon), unet.bottleneck(*pictures))


def test_one_noise_channel_by_default(unet: SwinUNet) -> None:
    student = make_student(unet)
    assert student.config == unet.config.model_copy(update={"noise_channels": NOISE_CHANNELS})
    assert student.noise_stem is not None
    assert student.noise_stem.weight.shape == (16, 1, 3, 3)
    assert student.noise_stem.bias is None


def test_gradients_reach_every_parameter(unet: SwinUNet, pictures: tuple[torch.Tensor, ...]) -> None:
    student = make_student(unet.requires_grad_(False))
    student(*pictures, torch.randn(2, 1, 8, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in unet.parameters())


def test_copies_are_independent(unet: SwinUNet) -> None:
    unet.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    for copy in (make_student(unet), make_student(unet, 0), make_fake(unet)):
        assert all(parameter.requires_grad for parameter in copy.parameters())
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in unet.parameters())


@torch.no_grad()
def test_fake_equals_the_teacher(unet: SwinUNet, pictures: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(make_fake(unet)(*pictures), unet(*pictures))
    assert torch.equal(make_student(unet, 0).eval()(*pictures), unet(*pictures))


def test_student_of_a_student_is_refused(unet: SwinUNet) -> None:
    with pytest.raises(ValueError, match="expected a teacher without noise channels, got a student"):
        make_student(make_student(unet))


def test_student_keeps_the_teachers_precision_and_device(unet: SwinUNet) -> None:
    assert {parameter.dtype for parameter in make_student(unet.double()).parameters()} == {torch.float64}
    meta = make_student(SwinUNet(unet.config).to("meta"))
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
