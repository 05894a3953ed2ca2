"""What DP-SGD trains in the place of a public start's network: the same function, one gradient an image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from client.config import PrivacyConfig
from client.data.image_set import ImageSet
from client.training.layers import leave_what_no_layer_holds, separate_images
from client.training.privacy import check_private, dp_sgd, os_entropy_generator, take_step
from client.training.scope import train_only
from fedfree.architectures import Architecture, Classifier, InputSpec, build, freeze_statistics
from fedfree.statement import DpSgd

PRIVACY = PrivacyConfig(epsilon=8, batch_size=4, learning_rate=0.1)
RUN = DpSgd(noise_multiplier=2.0, sampling_rate=1.0, steps=4)
NETWORKS = [
    ("conv4", "all"),
    ("resnet10", "all"),
    ("conv4-group", "all"),
    ("torchvision/resnet18", "scales"),
    ("timm/tf_efficientnet_lite0", "scales"),
    ("timm/mobilenetv3_small_050", "all"),
    ("timm/resnet18", "scales"),
    ("timm/resnet50_gn", "scales"),
    ("timm/regnety_002", "scales"),
    ("timm/convnext_atto", "scales"),
    ("timm/vit_tiny_patch16_224", "scales"),
]


def network_of(name: str) -> Classifier:
    """With statistics of some images, which are not those of the batches below."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build(Architecture.parse(name), num_classes=3, input=InputSpec(3, 32, 32))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()


@pytest.fixture
def images() -> ImageSet:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.arange(4) % 3, ("a", "b", "c"))


@pytest.mark.parametrize(("name", "trained"), NETWORKS)
def test_a_step_without_noise_and_clipping_is_plain_sgd_with_frozen_statistics(
    name: str, trained: str, images: ImageSet
) -> None:
    network = network_of(name)
    train_only(network, trained)
    leave_what_no_layer_holds(network)
    plain = copy.deepcopy(network).train()
    freeze_statistics(plain)
    inputs = images.images.float() / 255
    outputs = network(inputs)
    with separate_images(network):
        check_private(network)
        torch.testing.assert_close(network(inputs), outputs)
        with dp_sgd(network, images, PRIVACY, RUN, os_entropy_generator) as (_, optimizer, _):
            optimizer.noise_multiplier, optimizer.max_grad_norm = 0.0, 1e9
            take_step(network, optimizer, inputs, images.labels)
    F.cross_entropy(plain(inputs), images.labels).backward()
    torch.optim.SGD([each for each in plain.parameters() if each.requires_grad], lr=0.1).step()
    after = network.state_dict()
    for each, expected in plain.state_dict().items():
        torch.testing.assert_close(after[each], expected, rtol=1e-4, atol=1e-5)
    assert not after["head.weight"].equal(network_of(name).state_dict()["head.weight"])


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/convnext_atto"])
def test_a_batch_without_images_is_a_step_of_noise_also_where_layers_are_not_opacus_own(
    name: str, images: ImageSet
) -> None:
    network = network_of(name)
    train_only(network, "scales")
    leave_what_no_layer_holds(network)
    before = copy.deepcopy(network.state_dict())
    with (
        separate_images(network),
        dp_sgd(network, images, PRIVACY, RUN, os_entropy_generator) as (engine, optimizer, _),
    ):
        take_step(network, optimizer, torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64))
        assert engine.accountant.history == [(RUN.noise_multiplier, RUN.sampling_rate, 1)]
    learned = [name for name, each in network.named_parameters() if each.requires_grad]
    noise = torch.cat([(network.state_dict()[each] - before[each]).flatten() for each in learned])
    assert float(noise.std()) == pytest.approx(0.1 * 2.0 / 4, rel=0.05)


def test_the_network_is_whole_again_also_when_training_is_stopped() -> None:
    network = network_of("timm/tf_efficientnet_lite0")
    before = {name: type(module) for name, module in network.named_modules()}
    inplace = [module.inplace for module in network.modules() if hasattr(module, "inplace")]
    with pytest.raises(KeyboardInterrupt), separate_images(network):
        assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
        raise KeyboardInterrupt
    assert {name: type(module) for name, module in network.named_modules()} == before
    assert [module.inplace for module in network.modules() if hasattr(module, "inplace")] == inplace


def test_tokens_and_layer_scales_are_left_as_they_are() -> None:
    for name, left in (("timm/vit_tiny_patch16_224", "cls_token"), ("timm/convnext_atto", "gamma")):
        network = network_of(name)
        leave_what_no_layer_holds(network)
        frozen = {each.rpartition(".")[2] for each, p in network.named_parameters() if not p.requires_grad}
        assert left in frozen
        assert frozen <= {"cls_token", "pos_embed", "gamma"}
