"""LPIPS with its weights accounted for: which backbone, from which file, with which sha256.

The lpips package ships its linear heads; the convolutional backbone (VGG-16 or AlexNet, ImageNet) is torchvision's and
is downloaded where there is a network. Offline it is a file that the user names or puts where torch looks for it.
"""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sr_models.store import sha256

Net = Literal["vgg", "alex"]
RANDOM = "random"


@dataclass(frozen=True)
class Backbone:
    """A file of torchvision: its name, its sha256 and its size."""

    file: str
    sha256: str
    megabytes: int

    def path(self) -> Path:
        """Where torch looks for it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


BACKBONES: dict[Net, Backbone] = {
    "vgg": Backbone("vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 553),
    "alex": Backbone(
        "alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", 244
    ),
}


@dataclass(frozen=True)
class Perceptual:
    """An LPIPS network and what it is.

    Args:
        network: frozen; from two images, pixels [-1, 1], to distances (B, 1, 1, 1).
        description: for the record, such as "LPIPS v0.1, vgg, vgg16-397923af.pth".
    """

    network: nn.Module
    description: str


def load_lpips(net: Net, backbone: str | None, generator: torch.Generator) -> Perceptual:
    """Build LPIPS v0.1 with the linear heads of the lpips package.

    Args:
        net: backbone architecture.
        backbone: None: torchvision's ImageNet weights, from torch's cache or the network; ``"random"``: a random
            backbone, asked for by name, never a fallback; otherwise a file, .pth or .safetensors, with the names of
            torchvision.
        generator: draws a random backbone.

    Raises:
        FileNotFoundError: no such file, or no network; names the file, its sha256 and where it belongs.
        ValueError: the file holds other tensors.
    """
    network = _empty(net)
    trunk = network.get_submodule("net")
    if backbone == RANDOM:
        _randomize_(trunk, generator)
        return Perceptual(network, f"LPIPS v0.1 heads on a RANDOM {net} backbone (asked for by name)")
    path = Path(backbone) if backbone is not None else _fetched(net)
    _load_backbone(trunk, path)
    known = "" if sha256(path) == BACKBONES[net].sha256 else f" (not torchvision's file: sha256 {sha256(path)})"
    return Perceptual(network, f"LPIPS v0.1, {net}, {path.name}{known}")


def _empty(net: Net) -> nn.Module:
    """LPIPS with its heads loaded and the backbone's memory not yet filled."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips asks torchvision in its old way
        with torch.device("meta"):  # else it would fill the 123 million weights of VGG's classifier and drop them
            network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
    network.to_empty(device="cpu")
    network.scaling_layer = lpips.ScalingLayer()  # its constants were made on "meta" as well
    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True
    )
    missing, unexpected = network.load_state_dict(heads, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("net.", "scaling_layer.", "lins.")) for name in missing), missing
    return network.requires_grad_(False).eval()


def _randomize_(trunk: nn.Module, generator: torch.Generator) -> None:
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def _load_backbone(trunk: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"expected LPIPS backbone weights, got no file {path}; check lpips.backbone")
    found = _read_tensors(path)
    # lpips cuts torchvision's `features` into slices and keeps the numbers of the layers.
    wanted = {name: f"features.{name.partition('.')[2]}" for name in trunk.state_dict()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in trunk.state_dict().items():
        source = found.get(wanted[name]) if isinstance(found, dict) else None
        got = tuple(source.shape) if isinstance(source, Tensor) else "none"
        if not isinstance(source, Tensor) or source.shape != tensor.shape:
            raise ValueError(
                f"expected tensor {wanted[name]} of shape {tuple(tensor.shape)} in {path}, got {got}; "
                "give torchvision's file for lpips.net"
            )
        tensors[name] = source
    trunk.load_state_dict(tensors)


def _read_tensors(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # Not torch's own words: they run over several lines and advise weights_only=False.
        raise ValueError(
            f"expected torchvision weights in {path}, got a file that does not hold tensors alone, whole "
            f"({type(error).__name__}); give torchvision's file"
        ) from error


def _fetched(net: Net) -> Path:
    """Torchvision's file in torch's cache, downloaded if there is a network."""
    from urllib.error import URLError

    from torchvision.models import AlexNet_Weights, VGG16_Weights

    weights = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}[net]
    known = BACKBONES[net]
    path = known.path()
    if not path.is_file():
        try:
            if os.environ.get("HF_HUB_OFFLINE"):
                raise OSError("offline, as asked for")
            weights.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"expected the LPIPS backbone {known.file} ({known.megabytes} MB, sha256 {known.sha256}) at {path}, "
                f"got no such file and no download ({error}); put it there, or give --set lpips.backbone=FILE, "
                "or leave LPIPS out with --set terms.lpips=null"
            ) from error
    return path
