"""The patch discriminator: its published size, its patches, and logits that are a sample's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sr_models.discriminator import PatchDiscriminator, make_patch_discriminator
from sr_models.layers import count_parameters


def small(seed: int = 0, layers: int = 2) -> PatchDiscriminator:
    return make_patch_discriminator(torch.Generator().manual_seed(seed), 4, layers, norm_groups=4)


def test_the_default_is_the_published_network() -> None:
    network = PatchDiscriminator()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert count_parameters(network) == weights + 64 + 1 + 2 * (128 + 256 + 512)
    assert {module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)} == {0.2}
    with torch.device("meta"):
        logits = PatchDiscriminator()(torch.empty(2, 3, 256, 256))
    assert logits.shape == (2, 1, 30, 30)


def test_channels_double_up_to_eight_times_the_first() -> None:
    network = PatchDiscriminator(4, 5, norm_groups=4)
    widths = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_a_logit_sees_its_patch_of_70_pixels_through_the_convolutions() -> None:
    network = PatchDiscriminator(2, 3, norm_groups=1)
    for name, module in list(network.blocks.named_children()):
        if isinstance(module, nn.GroupNorm):  # which sees the whole image
            network.blocks.set_submodule(name, nn.Identity())
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    network(image)[0, 0, 7, 7].backward()
    assert image.grad is not None
    touched = image.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert touched[-1] - touched[0] + 1 == 70


def test_the_logits_of_a_sample_do_not_depend_on_its_batch() -> None:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = small().train()
    together = network(images)
    assert torch.allclose(together[1:2], network(images[1:2]), atol=1e-6)
    network(10 * images)  # and there are no running statistics
    assert torch.equal(network(images), together)


def test_weights_belong_to_their_generator() -> None:
    torch.manual_seed(0)
    first = small(1).state_dict()
    torch.manual_seed(1)
    again, other = small(1).state_dict(), small(2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["logits.weight"], other["logits.weight"])
    large = make_patch_discriminator(torch.Generator().manual_seed(0))
    last = [module for module in large.blocks if isinstance(module, nn.Conv2d)][-1]
    assert last.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert large.logits.bias is not None
    assert large.logits.bias.item() == 0


def test_the_smallest_image_makes_one_logit() -> None:
    for layers in (1, 2, 3):
        network = small(layers=layers)
        size = network.smallest
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 1, 1, 1)
        with pytest.raises(ValueError, match=rf"expected images of at least {size}x{size} pixels, got \({size - 1}, "):
            network(torch.zeros(1, 3, size - 1, size))


@pytest.mark.parametrize("arguments", [{"layers": 0}, {"base_channels": 6, "norm_groups": 8}])
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected layers >= 1 and channels that divide into norm_groups"):
        PatchDiscriminator(**arguments)
