"""A transformer's linear layers learn changes of low rank: what is trained, what travels, what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from client.config import ClientConfig, PrivacyConfig
from client.data.image_set import ImageSet, to_input
from client.rehearsing.rehearse import trainer_of
from client.training import low_rank
from client.training.cache import _private_settings
from client.training.fit import fit, initialise
from client.training.layers import separate_images
from client.training.low_rank import LowRank
from client.training.pretrain import pretrain
from client.training.privacy import check_private, dp_sgd, os_entropy_generator, take_step
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.codec import decode_contribution, fill_network, is_body, read_tensors
from fedfree.errors import ConfigError
from fedfree.host.starts import write_start
from fedfree.low_rank import DOWN, UP
from fedfree.start import LoadedStart, fill_body, trained_tensors
from fedfree.statement import DpSgd
from server.learning.merge import merge_into
from server.learning.pool import Pool
from server.storage.store import Store
from server.verify.rules import RULES, Known

VIT = "timm/vit_tiny_patch16_224"
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
WEIGHTS = {f"network.blocks.{block}.{layer}.weight" for block in range(12) for layer in LAYERS}
SPEC = InputSpec(3, 16, 16)
NO_STEPS: dict[str, object] = {"min_steps": None, "batch_size": None}
"""What private training has no use for."""
MakeStart = Callable[..., LoadedStart]
WriteImages = Callable[[Path, dict[str, int]], Path]


@pytest.fixture
def start(tmp_path: Path, make_start: MakeStart) -> LoadedStart:
    """Written to ``tmp_path/start``."""
    made = make_start(architecture=VIT, channels=3)
    write_start(tmp_path / "start", made.start, made.weights)
    return made


def config_of(tmp_path: Path, values: dict[str, object] | None = None, **training: object) -> ClientConfig:
    few = {"epochs": 1, "min_steps": 2, "batch_size": 8, "threads": 1}
    given = {"start": str(tmp_path / "start"), "trained": "low-rank", **few, **training}
    given = {name: each for name, each in given.items() if each is not None}
    base = {"data": {"source": str(tmp_path / "images")}, "training": given, "cache": str(tmp_path / "cache")}
    return ClientConfig.parse(base | (values or {}), origin="a test")


def shades(count: int = 36) -> ImageSet:
    """Three classes, dark to light."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSet((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ("a", "b", "c"))


def vit(start: LoadedStart) -> Classifier:
    torch.manual_seed(0)
    network = build(Architecture(VIT), num_classes=3, input=SPEC)
    fill_body(network, start.body, VIT)
    return network


def test_the_loss_falls_while_the_factors_and_the_head_alone_learn(start: LoadedStart) -> None:
    network, images = vit(start), shades()
    inputs, losses = to_input(images.images, SPEC), []
    with LowRank(4, seed=1).learning(network):
        learning = {name: each for name, each in network.named_parameters() if each.requires_grad}
        assert len(learning) == 2 + 2 * len(WEIGHTS)
        assert all("lora_" in name or not is_body(name) for name in learning)
        network.head.requires_grad_(False)  # so that the loss falls by the factors
        optimizer = torch.optim.AdamW([each for each in learning.values() if each.requires_grad], lr=3e-3)
        for _ in range(8):
            loss = F.cross_entropy(network(inputs), images.labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    state = network.state_dict()
    assert {name for name, tensor in start.body.items() if not state[name].equal(tensor)} == WEIGHTS


def test_what_is_rebuilt_computes_what_was_trained(start: LoadedStart) -> None:
    network, changes = vit(start), LowRank(3, seed=2)
    inputs = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    names = list(network.state_dict())
    with torch.no_grad(), changes.learning(network):
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        trained = network(inputs)
    assert list(network.state_dict()) == names
    assert not any(type(module).__module__.startswith("peft") for module in network.modules())
    assert (trained - vit(start)(inputs)).abs().max() > 1e-2
    torch.testing.assert_close(network(inputs), trained, rtol=1e-4, atol=1e-5)


def test_only_the_factors_and_the_head_travel_and_are_accepted(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    config = config_of(tmp_path, low_rank=2)
    manifest, weights = pretrain(config)
    contribution, sent = decode_contribution(manifest, weights), read_tensors(weights, "the weights")
    factors = {name + each for name in WEIGHTS for each in (DOWN, UP)}
    assert sent.keys() == factors | {"head.weight", "head.bias"}
    assert all(min(sent[name].shape) == 2 for name in factors)
    assert len(weights) < len(start.weights) / 20
    assert pretrain(config) == (manifest, weights)
    for rule in RULES:
        rule(contribution, Known({}, [start]))


def test_a_receiver_has_the_trained_network_to_the_bit(start: LoadedStart, tmp_path: Path) -> None:
    training = config_of(tmp_path).training
    fitted, received = fit(shades(), training, seed=1), vit(start)
    sent = trained_tensors(fitted.network, start.body, fitted.low_rank.factors)
    fill_network(received, sent, "the contribution", start.body)
    expected = fitted.network.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in received.state_dict().items())
    shadow = trainer_of(training).train(shades(), 1)
    assert read_tensors(shadow.weights, "a shadow").keys() == expected.keys()  # whole: it stays at home


def test_a_seed_decides_the_factors(start: LoadedStart, tmp_path: Path) -> None:
    training = config_of(tmp_path).training
    first, second, other = (fit(shades(), training, seed=seed).low_rank.factors for seed in (1, 1, 2))
    assert all(first[name].equal(second[name]) for name in first)
    assert not any(first[name].equal(other[name]) for name in first)


def test_the_mean_of_contributions_is_the_mean_of_their_whole_networks(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    sent = [pretrain(config_of(tmp_path, {"seed": seed}, learning_rate=0.01)) for seed in (0, 1)]
    store = Store(tmp_path / "store", lambda: start)
    ids = [store.receive(*each) for each in sent]
    for identity in ids:
        store.accept(identity)
    merged = vit(start)
    merge_into(merged, Pool(store, ids, torch.device("cpu")))
    states = [decode_contribution(*each).network(start.body).state_dict() for each in sent]
    for name in WEIGHTS:
        mean = (states[0][name].double() + states[1][name].double()) / 2
        assert not states[0][name].equal(states[1][name])
        torch.testing.assert_close(merged.state_dict()[name], mean.float(), rtol=0, atol=1e-7)


def test_a_network_is_as_it_was_where_training_is_stopped(start: LoadedStart) -> None:
    network, changes = vit(start), LowRank(4)
    with pytest.raises(KeyboardInterrupt), changes.learning(network):
        torch.nn.init.ones_(network.get_parameter("network.blocks.0.attn.qkv.lora_B.default.weight"))
        raise KeyboardInterrupt
    state = network.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in start.body.items())
    assert not changes.factors


def test_layers_that_have_not_changed_do_not_travel(start: LoadedStart) -> None:
    network, changes = vit(start), LowRank(4)
    with changes.learning(network):
        torch.nn.init.ones_(network.get_parameter("network.blocks.0.attn.qkv.lora_B.default.weight"))
    assert changes.factors.keys() == {f"network.blocks.0.attn.qkv.weight{each}" for each in (DOWN, UP)}


def test_under_privacy_the_factors_are_all_that_changes_and_the_contribution_is_accepted(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    privacy = {"epsilon": 8.0, "batch_size": 12, "head_epochs": 1}
    config = config_of(tmp_path, {"privacy": privacy}, epochs=2, **NO_STEPS)
    contribution = decode_contribution(*pretrain(config))
    sent = read_tensors(contribution.weights, "the weights")
    assert {name.rpartition(".")[0] for name in sent if is_body(name)} == WEIGHTS
    assert contribution.privacy.differential_privacy is not None
    assert contribution.privacy.differential_privacy.epsilon <= 8
    recorded = [rule(contribution, Known({}, [start])) for rule in RULES]
    assert "epsilon_claimed_by_the_client" in recorded[-1]


def test_two_steps_without_noise_and_clipping_are_plain_sgd_on_the_factors(start: LoadedStart) -> None:
    images, private, plain = shades(6), vit(start), vit(start)
    inputs, changes = to_input(images.images, SPEC), (LowRank(2, seed=1), LowRank(2, seed=1))
    privacy, run = PrivacyConfig(epsilon=8, batch_size=6, learning_rate=0.1), DpSgd(2.0, 1.0, 2)
    with changes[0].learning(private), separate_images(private):
        check_private(private)
        with dp_sgd(private, images, privacy, run, os_entropy_generator) as (_, optimizer, _):
            optimizer.noise_multiplier, optimizer.max_grad_norm = 0.0, 1e9
            for _ in range(2):
                take_step(private, optimizer, inputs, images.labels)
    with changes[1].learning(plain):
        descent = torch.optim.SGD([each for each in plain.parameters() if each.requires_grad], lr=0.1)
        for _ in range(2):
            descent.zero_grad()
            F.cross_entropy(plain(inputs), images.labels).backward()
            descent.step()
    assert changes[0].factors.keys() == changes[1].factors.keys() != set()
    for name, factor in changes[1].factors.items():
        torch.testing.assert_close(changes[0].factors[name], factor, rtol=1e-4, atol=1e-5)


def test_the_rank_is_part_of_what_a_private_model_is_kept_by_and_without_it_nothing_is(
    start: LoadedStart, tmp_path: Path
) -> None:
    private = {"privacy": {"epsilon": 8.0}}
    keys = [
        _private_settings(config_of(tmp_path, private, **NO_STEPS, **each))
        for each in ({}, {"low_rank": 4}, {"trained": "scales"})
    ]
    assert len(set(keys)) == 3
    assert "low_rank" in keys[1] and "low_rank" not in keys[2]


@pytest.mark.parametrize("architecture", ["conv4", "timm/tf_efficientnet_lite0", "torchvision/resnet18"])
def test_a_network_of_convolutions_is_refused_before_an_image_is_read(
    tmp_path: Path, make_start: MakeStart, architecture: str
) -> None:
    made = make_start(architecture=architecture, channels=3)
    write_start(tmp_path / "start", made.start, made.weights)
    with pytest.raises(ConfigError, match=f'{architecture}.* has no linear layers .*"all", "last", "scales"'):
        pretrain(config_of(tmp_path))  # there are no images


def test_a_missing_library_is_named_with_its_extra_before_an_image_is_read(
    start: LoadedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "REQUIRED", "no_such_package")
    with pytest.raises(ConfigError, match=r"needs no_such_package, .* pip install 'fedfree\[adapters\]'"):
        pretrain(config_of(tmp_path))


def test_a_rank_without_effect_or_out_of_range_is_refused(start: LoadedStart, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.low_rank has no effect unless training.trained is"):
        config_of(tmp_path, trained="scales", low_rank=4)
    for rank in (0, 65):
        with pytest.raises(ConfigError, match="low_rank"):
            config_of(tmp_path, low_rank=rank)


def test_low_rank_needs_a_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained low-rank needs a start"):
        initialise(shades(), config_of(tmp_path, start=None).training, seed=0)


def test_layers_whose_weights_alone_are_read_are_left_as_they_are() -> None:
    network = build(Architecture("torchvision/vit_b_16"), num_classes=3, input=InputSpec(3, 16, 16))
    names = low_rank.layers_to_change(network, 8)
    assert len(names) == 24 and all(".mlp." in name for name in names)
