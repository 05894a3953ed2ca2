"""Each family of timm's networks trains, inverts, travels and exports; another family is refused by name."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from client.adapting.classifier import Calibration, Description, FewShotClassifier
from client.adapting.export import export_onnx
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.architectures.timm import FAMILIES
from fedfree.codec import Provenance, encode_weights, load_network
from fedfree.errors import ContributionError

SMALLEST = {family: f"timm/{known.names[0]}" for family, known in FAMILIES.items()}
each_family = pytest.mark.parametrize("id", SMALLEST.values(), ids=SMALLEST.keys())
SPEC = InputSpec(height=64, width=64)
NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "BatchNorm": (nn.BatchNorm2d,),
    "GroupNorm": (nn.GroupNorm,),
    "LayerNorm": (nn.LayerNorm,),
}


def make(id: str, spec: InputSpec = SPEC) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(Architecture(id), num_classes=3, input=spec)


def draw_images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@each_family
@torch.no_grad()
def test_logits_are_a_head_of_ours_on_pooled_features(id: str) -> None:
    network, images = make(id), draw_images(2)
    features = network.features(images)
    assert features.shape == (2, network.feature_size)
    assert torch.equal(network(images), network.head(features))
    outside = [name for name in network.state_dict() if not name.startswith("network.")]
    assert outside == ["head.weight", "head.bias"]


@each_family
@torch.no_grad()
def test_levels_are_the_features_with_means_of_the_stages_that_the_family_names(id: str) -> None:
    network, images = make(id).eval(), draw_images(2)
    levels, features = network.levels(images), network.features(images)
    assert levels.shape == (2, Recipe(levels=True).feature_size(network))
    stages = {stage: [] for stage in network.lengths}
    for stage, outputs in stages.items():
        network.network.blocks[stage].register_forward_hook(
            lambda _, __, output, to=outputs: to.append(output)
        )
    network.features(images)
    if not stages:
        assert torch.equal(levels, features)
        return
    parts = [
        length * F.normalize(stages[stage][0].mean((2, 3)), dim=1)
        for stage, length in network.lengths.items()
    ]
    torch.testing.assert_close(levels, torch.cat([F.normalize(features, dim=1), *parts], dim=1))


@each_family
def test_a_network_trains(id: str) -> None:
    network, images, labels = make(id), draw_images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-4)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(images), labels)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


@each_family
def test_images_can_be_optimised_for_a_class_so_that_a_network_can_be_inverted(id: str) -> None:
    network, images, label = make(id), draw_images(1).requires_grad_(), torch.tensor([1])
    optimiser = torch.optim.Adam([images], 0.1)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(images), label)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()
        optimiser.step()
    assert losses[-1] < losses[0]


@each_family
@torch.no_grad()
def test_weights_travel_and_what_does_not_fit_is_refused(id: str) -> None:
    network, images = make(id), draw_images(2)
    weights = encode_weights(network)
    arrived = load_network(Architecture(id), 3, SPEC, weights)
    assert torch.equal(arrived(images), network(images))
    with pytest.raises(ContributionError, match=r"tensor 'head\."):
        load_network(Architecture(id), 4, SPEC, weights)
    other = next(each for each in SMALLEST.values() if each != id)
    with pytest.raises(ContributionError, match="expects other tensors"):
        load_network(Architecture(other), 3, SPEC, weights)


@each_family
def test_a_network_has_the_norm_of_its_family(id: str) -> None:
    known = next(family for family in FAMILIES.values() if id.partition("/")[2] in family.names)
    found = [module for module in make(id).modules() if isinstance(module, NORMS[known.norm])]
    others = [kind for norm, kinds in NORMS.items() if norm != known.norm for kind in kinds]
    assert found and not any(isinstance(module, tuple(others)) for module in make(id).modules())


def test_only_a_family_of_patches_has_tensors_that_depend_on_the_size() -> None:
    for family, id in SMALLEST.items():
        shapes = [
            {
                name: tensor.shape
                for name, tensor in make(id, InputSpec(height=side, width=side)).state_dict().items()
            }
            for side in (64, 96)
        ]
        assert (shapes[0] != shapes[1]) == (FAMILIES[family].patch_size > 0), id


def test_grey_images_are_taken_too() -> None:
    network = make(SMALLEST["mobilenetv3"], InputSpec(channels=1, height=64, width=64))
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("id", "side"), [("timm/vit_tiny_patch16_224", 40), ("timm/convnext_atto", 16)], ids=str
)
def test_a_size_that_a_network_cannot_take_is_refused_by_name(id: str, side: int) -> None:
    with pytest.raises(ContributionError, match=rf"{id} cannot take 3x{side}x{side} images"):
        make(id, InputSpec(height=side, width=side))


def test_another_family_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ContributionError, match="unknown architecture 'timm/swin_tiny'") as refused:
        Architecture("timm/swin_tiny")
    assert all(family in str(refused.value) for family in FAMILIES)


def test_every_name_is_one_of_timms() -> None:
    import timm

    assert {name for family in FAMILIES.values() for name in family.names} <= set(timm.list_models())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["efficientnet-lite", "convnext", "vit"])
def test_a_network_exports_to_the_same_probabilities(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    classifier = FewShotClassifier(
        Description(
            architecture=Architecture(SMALLEST[family]),
            input=SPEC,
            recipe=Recipe(mirror=True, levels=True),
            support={"owl": 2, "cat": 1},
            calibration=Calibration(temperature=2.5, images=5, accuracy=0.8),
            meta_learner="ef" * 32,
            provenance=Provenance((), "cd" * 32, 7, "fedfree"),
        )
    )
    classifier.means.copy_(F.normalize(torch.randn(classifier.means.shape), dim=1))
    assert export_onnx(classifier, tmp_path / "classifier.onnx") < 1e-4
