"""Every architecture builds, keeps features and head apart, and says what it cannot take."""

import pytest
import torch
from torch import Tensor, nn

from fedfree.architectures import ARCHITECTURES, Architecture, Classifier, Family, InputSpec, build
from fedfree.errors import ContributionError, ExtensionError

NAMES = ["conv4", "conv4-64", "conv4-32-group", "resnet10", "resnet18-group", "torchvision/mobilenet_v2",
         "torchvision/squeezenet1_1", "torchvision/resnet18"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_the_head_of_the_features(name: str, channels: int) -> None:
    spec = InputSpec(channels=channels, height=40, width=40)
    network = build(Architecture.parse(name), num_classes=6, input=spec)
    images = torch.rand(2, channels, 40, 40)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, network.feature_size)
        assert torch.equal(network(images), network.head(features))
        assert network(images).shape == (2, 6)


@pytest.mark.parametrize("side", [16, 28, 33, 84])
def test_conv4_takes_any_side_from_16_pixels(side: int) -> None:
    spec = InputSpec(channels=1, height=side, width=side)
    network = build(Architecture(), num_classes=2, input=spec)
    assert network(torch.rand(1, 1, side, side)).shape == (1, 2)
    assert network.feature_size == 32 * (side // 16) ** 2


def test_no_network_of_ours_works_in_place() -> None:
    for name in ("conv4", "resnet10", "resnet18"):
        network = build(Architecture(name), num_classes=2, input=InputSpec())
        assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_group_norm_has_eight_groups_and_no_buffers() -> None:
    network = build(Architecture(norm="group"), num_classes=2, input=InputSpec())
    groups = {module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert groups == {8}
    assert not list(network.buffers())


@pytest.mark.parametrize("name", ["conv4", "conv4-64-group", "resnet18", "torchvision/vgg11"])
def test_a_name_is_read_as_it_is_written(name: str) -> None:
    architecture = Architecture.parse(name)
    assert Architecture.parse(str(architecture)) == architecture


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("conv5", "unknown architecture"),
        ("conv4-48", "width 32 and 64"),
        ("resnet10-32", "no width option"),
        ("conv4-layer", "norm 'layer'"),
        ("torchvision/os", "unknown architecture"),
        ("torchvision/resnet18-group", "norm 'group'"),
        ("conv4-32-64", "expected <id>"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name: str, word: str) -> None:
    with pytest.raises(ContributionError, match=word):
        Architecture.parse(name)


@pytest.mark.parametrize(
    "values",
    [
        {"channels": 2},
        {"height": 8},
        {"width": 4096},
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (float("nan"), 0.0, 0.0)},
    ],
)
def test_an_impossible_input_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ContributionError):
        InputSpec(**values)  # type: ignore[arg-type]


def test_an_image_a_torchvision_network_cannot_take_is_refused_by_name() -> None:
    with pytest.raises(ContributionError, match="torchvision/inception_v3 cannot take 3x32x32"):
        build(Architecture("torchvision/inception_v3"), num_classes=2, input=InputSpec())


def test_images_are_brought_to_the_networks_channels_and_size() -> None:
    colour, grey = InputSpec(channels=3, height=24, width=24), InputSpec(channels=1, height=16, width=16)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(grey.resize(images), images)
    enlarged = colour.resize(images)
    assert enlarged.shape == (2, 3, 24, 24)
    assert torch.equal(enlarged[:, 0], enlarged[:, 2])
    assert grey.resize(enlarged).shape == (2, 1, 16, 16)


class Means(Classifier):
    """What somebody added, with a fault of each kind."""

    def __init__(self, fault: str, num_classes: int) -> None:
        super().__init__()
        self.fault, self.feature_size = fault, 3
        self.head = nn.Linear(4 if fault == "head" else 3, num_classes + (fault == "classes"))
        if fault == "built":
            raise KeyError("no such option")

    def features(self, images: Tensor) -> Tensor:
        if self.fault == "features":
            raise IndexError("no such layer")
        means = images.mean((2, 3))
        return means[:, :2] if self.fault == "shape" else means


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("built", "the architecture 'means' failed at .*: KeyError: 'no such option'"),
        ("features", "the architecture 'means' failed at .*: IndexError: no such layer"),
        ("shape", r"features of the architecture 'means' gave \[2, 2\] for 2 images, where \[2, 3\]"),
        ("head", "the architecture 'means' failed.*: RuntimeError: .*mat1 and mat2"),
        ("classes", r"the architecture 'means' gave \[2, 6\] for 2 images, where \[2, 5\] is expected"),
        ("nothing", "the architecture 'means' gave NoneType, where a Classifier is expected"),
    ],
)
def test_an_architecture_of_ones_own_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    def means(architecture: Architecture, num_classes: int, input: InputSpec) -> Classifier:
        return None if fault == "nothing" else Means(fault, num_classes)  # type: ignore[return-value]

    monkeypatch.setitem(ARCHITECTURES, "means", Family(means))
    with pytest.raises(ExtensionError, match=said):
        build(Architecture("means"), num_classes=5, input=InputSpec())


def test_trying_out_an_architecture_of_ones_own_draws_no_random_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "drawn", Family(lambda a, classes, b: Means("", classes)))
    torch.manual_seed(0)
    first = build(Architecture("drawn"), num_classes=7, input=InputSpec()).head.weight
    torch.manual_seed(0)
    again = build(Architecture("drawn"), num_classes=7, input=InputSpec()).head.weight
    assert torch.equal(first, again)
