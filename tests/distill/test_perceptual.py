"""LPIPS against the lpips package given the same weights file, and every file that will not do. No network is used."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import lpips
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

import distill.perceptual as perceptual
from distill.perceptual import BACKBONES, Backbone, Net, load_lpips

MODELS = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features_of(net: Net) -> torch.nn.Module:
    """Torchvision's convolutional layers, random, without the cost of its classifier."""
    with torch.device("meta"):
        features: torch.nn.Module = MODELS[net]().features
    features.to_empty(device="cpu")
    for seed, tensor in enumerate(features.state_dict().values()):
        tensor.normal_(0, 1.5 * tensor[0].numel() ** -0.5, generator=generator(seed))
    return features


def torchvision_state(net: Net) -> dict[str, Tensor]:
    """A state dict as torchvision writes it; the classifier is there in name."""
    state = {f"features.{name}": tensor for name, tensor in features_of(net).state_dict().items()}
    return {**state, "classifier.6.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return torchvision_state("alex")


@pytest.fixture(scope="module")
def alex(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "alex.pth"
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch, and no network."""

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def images() -> tuple[Tensor, Tensor]:
    return tuple(torch.rand(2, 3, 48, 40, generator=generator(seed)) * 2 - 1 for seed in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize(("net", "suffix"), [("alex", ".pth"), ("alex", ".safetensors"), ("vgg", ".safetensors")])
def test_equals_the_lpips_package_given_the_same_file(
    net: Net, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = torchvision_state(net)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = load_lpips(net, str(path), generator())

    class Pretrained:
        """What lpips asks torchvision for, without its classifier."""

        def __init__(self, pretrained: bool) -> None:
            assert pretrained
            self.features = features_of(net)

    monkeypatch.setattr(lpips.pretrained_networks.tv, MODELS[net].__name__, Pretrained)
    wanted = lpips.LPIPS(net=net, verbose=False)
    a, b = images()
    distances = found.network(a, b)
    assert distances.shape == (2, 1, 1, 1)
    assert torch.allclose(distances, wanted(a, b), rtol=1e-5)
    assert distances.min() > 1e-3
    assert torch.equal(found.network(a, a), torch.zeros(2, 1, 1, 1))
    assert {name: tuple(p.shape) for name, p in found.network.named_parameters()} == {
        name: tuple(p.shape) for name, p in wanted.named_parameters()
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.description == f"LPIPS v0.1, {net}, weights{suffix} (not torchvision's file: sha256 {digest})"


def test_it_is_frozen_and_differentiable_in_the_image(alex: Path) -> None:
    network = load_lpips("alex", str(alex), generator()).network
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())  # its heads have dropout
    a, b = images()
    a.requires_grad_()
    network(a, b).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_a_random_backbone_says_so_and_belongs_to_its_generator(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_fetched", lambda _: pytest.fail("torchvision's weights were asked for"))
    torch.manual_seed(1)
    first = load_lpips(net, "random", generator(5))
    torch.manual_seed(2)  # the global generator must not matter
    again, other = load_lpips(net, "random", generator(5)), load_lpips(net, "random", generator(6))
    assert "RANDOM" in first.description
    assert net in first.description
    states = [loaded.network.state_dict() for loaded in (first, again, other)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    weights = [name for name in states[0] if name.startswith("net.") and name.endswith("weight")]
    assert len(weights) == {"alex": 5, "vgg": 13}[net]
    assert not any(torch.equal(states[0][name], states[2][name]) for name in weights)
    heads = [name for name in states[0] if name.startswith("lin")]
    assert len(heads) == 10
    assert all(torch.equal(states[0][name], states[2][name]) for name in heads)
    a, b = images()
    values = first.network(a, b)
    assert torch.isfinite(values).all()
    assert values.min() > 0


def test_torchvisions_file_is_taken_from_torchs_cache(alex: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / BACKBONES["alex"].file).write_bytes(alex.read_bytes())
    assert "not torchvision's file" in load_lpips("alex", None, generator()).description
    digest = hashlib.sha256(alex.read_bytes()).hexdigest()
    monkeypatch.setitem(BACKBONES, "alex", Backbone(BACKBONES["alex"].file, digest, 244))
    found = load_lpips("alex", None, generator())
    assert found.description == f"LPIPS v0.1, alex, {BACKBONES['alex'].file}"
    named = load_lpips("alex", str(alex), generator())
    a, b = images()
    assert torch.equal(found.network(a, b), named.network(a, b))
    assert "RANDOM" not in found.description + named.description


def test_it_is_downloaded_with_its_hash_checked_where_there_is_a_network(
    alex: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(url: str, target: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url.rpartition("/")[2], hash_prefix or ""))
        Path(target).write_bytes(alex.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load_lpips("alex", None, generator())
    assert asked == [("alexnet-owt-7be5be79.pth", "7be5be79")]
    assert (cache / "alexnet-owt-7be5be79.pth").is_file()


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("invalid hash value"), TimeoutError("late"), OSError("disk full")]
)
def test_offline_says_which_file_its_sha256_and_where_it_belongs(
    net: Net, error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", failing)
    with pytest.raises(FileNotFoundError) as caught:
        load_lpips(net, None, generator())
    message = str(caught.value)
    for part in (
        BACKBONES[net].file,
        f"sha256 {BACKBONES[net].sha256}",
        f"{BACKBONES[net].megabytes} MB",
        str(cache / BACKBONES[net].file),
        str(error),
        "lpips.backbone=FILE",
        "terms.lpips=null",
    ):
        assert part in message
    assert "\n" not in message


def test_the_names_of_torchvisions_files_carry_the_start_of_their_sha256() -> None:
    for known in BACKBONES.values():
        assert len(known.sha256) == 64
        assert Path(known.file).stem.rpartition("-")[2] == known.sha256[:8]


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def write_bad(kind: str, path: Path, state: dict[str, Tensor]) -> None:
    save = save_file if path.suffix == ".safetensors" else torch.save
    match kind:
        case "truncated":
            save(state, path)
            path.write_bytes(path.read_bytes()[:-1000])
        case "cut short":
            save(state, path)
            path.write_bytes(path.read_bytes()[:100])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>404</html>\n" * 20)
        case "another shape":
            save({**state, "features.3.weight": torch.zeros(192, 64, 3, 3)}, path)
        case "missing":
            save({name: tensor for name, tensor in state.items() if name != "features.8.bias"}, path)
        case "of the other network":
            save({**state, "features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        case "no names":
            torch.save(list(state.values()), path)
        case "no tensors":
            torch.save(dict.fromkeys(state, "text"), path)
        case "code":
            torch.save({**state, "more": Malicious(path.with_name("touched"))}, path)
        case "code in a plain pickle":
            path.write_bytes(pickle.dumps(Malicious(path.with_name("touched"))))
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "suffix", "says"),
    [
        ("truncated", ".pth", "expected torchvision weights"),
        ("truncated", ".safetensors", "expected torchvision weights"),
        ("cut short", ".pth", "expected torchvision weights"),
        ("cut short", ".safetensors", "expected torchvision weights"),
        ("empty", ".pth", "expected torchvision weights"),
        ("empty", ".safetensors", "expected torchvision weights"),
        ("text", ".pth", "expected torchvision weights"),
        ("text", ".safetensors", "expected torchvision weights"),
        ("another shape", ".pth", r"features.3.weight of shape (192, 64, 5, 5)"),
        ("another shape", ".safetensors", r"got (192, 64, 3, 3)"),
        ("missing", ".pth", "features.8.bias of shape (256,)"),
        ("missing", ".safetensors", "got none"),
        ("of the other network", ".safetensors", "lpips.net"),
        ("no names", ".pth", "got none"),
        ("no tensors", ".pth", "features.0.weight"),
        ("code", ".pth", "expected torchvision weights"),
        ("code in a plain pickle", ".pth", "expected torchvision weights"),
    ],
)
def test_a_file_that_will_not_do(kind: str, suffix: str, says: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / f"bad{suffix}"
    write_bad(kind, path, state)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is checked below
        load_lpips("alex", str(path), generator())
    message = str(caught.value)
    assert says in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    assert not path.with_name("touched").exists()


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", ".", "Random", "RANDOM"])
def test_no_such_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got no file .*lpips\.backbone"):
        load_lpips("alex", name, generator())
