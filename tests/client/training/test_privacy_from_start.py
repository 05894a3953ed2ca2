"""DP-SGD on a public start: what may change does, the rest is the start's, and the statement says so."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from client.config import ClientConfig, PrivacyConfig
from client.data.image_set import ImageSet
from client.training import privacy as training
from client.training.cache import _private_settings
from client.training.fit import Untrained, initialise
from client.training.ledger import SPENT, Ledger
from client.training.pretrain import pretrain, pretrain_measured
from client.training.privacy import dp_sgd, os_entropy_generator, take_step, train_privately
from client.training.statement import page
from fedfree.architectures import Classifier
from fedfree.codec import decode_contribution, is_body, read_tensors
from fedfree.errors import ConfigError, PrivacyError
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart
from fedfree.statement import DpSgd
from server.verify.rules import RULES, Known

MakeStart = Callable[..., LoadedStart]
WriteImages = Callable[[Path, dict[str, int]], Path]
PRIVACY = PrivacyConfig(epsilon=8, batch_size=16, averaging=0, learning_rate=0.1)
RUN = DpSgd(noise_multiplier=2.0, sampling_rate=0.5, steps=6)


@pytest.fixture(params=["conv4", "conv4-group"])
def start(request: pytest.FixtureRequest, tmp_path: Path, make_start: MakeStart) -> LoadedStart:
    """Written to ``tmp_path/start``."""
    made = make_start(architecture=request.param)
    write_start(tmp_path / "start", made.start, made.weights)
    return made


def config_of(tmp_path: Path, **privacy: object) -> ClientConfig:
    values = {
        "data": {"source": str(tmp_path / "images")},
        "training": {"start": str(tmp_path / "start"), "epochs": 4, "threads": 1},
        "privacy": {"epsilon": 8.0, "head_epochs": 2, **privacy},
        "cache": str(tmp_path / "cache"),
        "ledger": str(tmp_path / "ledger.sqlite"),
    }
    return ClientConfig.parse(values, origin="a test")


@pytest.fixture
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(32) % 2, ("a", "b"))


def untrained_of(tmp_path: Path, images: ImageSet, **changes: object) -> Untrained:
    config = config_of(tmp_path).training.model_copy(update=changes)
    return initialise(images, config, seed=0)


def test_a_private_contribution_changes_scales_only_and_is_accepted_with_its_start(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    config = config_of(tmp_path)
    manifest, weights = pretrain(config)
    contribution = decode_contribution(manifest, weights)
    sent = read_tensors(weights, "the weights")
    changed = {name for name in sent if is_body(name)}
    assert changed and all(sent[name].ndim == 1 for name in changed)
    assert not any("running" in name for name in changed)
    state = contribution.network(start.body).state_dict()
    assert all(state[name].equal(tensor) for name, tensor in start.body.items() if name not in changed)
    spent = contribution.privacy.differential_privacy
    assert spent is not None and 7.9 < spent.epsilon <= 8
    assert spent.run.steps == 4
    recorded = [rule(contribution, Known({}, [start])) for rule in RULES]
    assert recorded[-1]["epsilon_claimed_by_the_client"] == spent.epsilon
    assert [entry.state for entry in Ledger(config.ledger_path).entries()] == [SPENT]
    assert pretrain(config) == (manifest, weights)


def test_the_statement_names_the_start_as_public_and_not_covered(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    manifest, weights = pretrain(config_of(tmp_path))
    contribution = decode_contribution(manifest, weights)
    assert contribution.privacy.initial_weights == start.start.initial_weights
    text = " ".join(page(manifest, contribution).split())
    assert f"those of the federation's public start {contribution.start}" in text
    assert f"sha256 {start.start.weights_sha256}" in text
    assert "nothing said here covers the images that the start was learned from" in text
    assert "running statistics are the start's" in text


def test_it_is_said_beforehand_what_learns_when(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    told: list[str] = []
    pretrain_measured(config_of(tmp_path), tell=told.append)
    assert "4 steps, 4 epochs of 1, 2 of them the head alone, then scales, noise multiplier" in told[1]


def test_an_epsilon_out_of_reach_is_refused_before_anything_is_reserved(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    config = config_of(tmp_path, epsilon=0.001)
    with pytest.raises(PrivacyError, match="use epsilon"):
        pretrain(config)
    assert not config.ledger_path.exists()


@pytest.mark.parametrize("tampered", ["blocks.1.1.running_mean", "blocks.1.0.weight"])
def test_whatever_else_changes_of_the_start_is_noticed(
    tmp_path: Path,
    make_start: MakeStart,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    tampered: str,
) -> None:
    made = make_start()
    write_start(tmp_path / "start", made.start, made.weights)
    untrained = untrained_of(tmp_path, images)
    held = untrained.network.state_dict()[tampered]
    monkeypatch.setattr(training, "leave_what_no_layer_holds", lambda _: held.add_(1e-7))
    with pytest.raises(PrivacyError, match=f"training changed {tampered}, which is the start's"):
        train_privately(untrained, images, PRIVACY, RUN, crop_padding=2)


def test_everything_can_be_trained_with_a_batch_norms_own_scales(
    start: LoadedStart, tmp_path: Path, images: ImageSet
) -> None:
    untrained = untrained_of(tmp_path, images, trained="all")
    train_privately(untrained, images, PRIVACY, RUN, crop_padding=2)
    state = untrained.network.state_dict()
    same = {name for name, tensor in start.body.items() if state[name].equal(tensor)}
    assert same == {name for name, _ in untrained.network.named_buffers()}


def test_the_head_learns_alone_at_first_and_the_rest_from_then_on(
    start: LoadedStart, tmp_path: Path, images: ImageSet
) -> None:
    untrained = untrained_of(tmp_path, images)
    seen: list[dict[str, Tensor]] = []

    def look(*_: object) -> None:
        seen.append({name: each.detach().clone() for name, each in untrained.network.named_parameters()})

    privacy = PRIVACY.model_copy(update={"head_epochs": 2, "head_learning_rate": 1e-5})
    spent = train_privately(untrained, images, privacy, RUN, crop_padding=2, observe=look)
    assert spent == training.composed_epsilon([RUN], PRIVACY.delta)
    assert len(seen) == 6
    moved = [
        {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
        for before, after in itertools.pairwise(seen)
    ]
    assert moved == [{"head"}] * 3 + [{"blocks"}] * 2
    assert 1e-9 < seen[0]["head.weight"].abs().max() < 1e-4


def trained_by(
    tmp_path: Path, images: ImageSet, privacy: PrivacyConfig, monkeypatch: pytest.MonkeyPatch, **limits: int
) -> Tensor:
    """With noise, sampling and augmentation that repeat."""
    seeds = itertools.count()
    untrained = untrained_of(tmp_path, images)
    with monkeypatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(training, name, value)
        train_privately(
            untrained,
            images,
            privacy,
            RUN,
            crop_padding=0,
            entropy=lambda: torch.Generator().manual_seed(next(seeds)),
        )
    return torch.cat([each.detach().flatten() for each in untrained.network.parameters()])


@pytest.mark.parametrize(
    "limits", [{"GRADIENTS_AT_ONCE": 2000}, {"PIXELS_AT_ONCE": 3 * 256}, {"GRADIENTS_AT_ONCE": 1}]
)
def test_how_many_images_fit_into_memory_changes_nothing(
    start: LoadedStart,
    tmp_path: Path,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, int],
) -> None:
    whole = trained_by(tmp_path, images, PRIVACY, monkeypatch)
    parts = trained_by(tmp_path, images, PRIVACY, monkeypatch, **limits)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_of_several_views_the_mean_gradient_is_clipped(
    start: LoadedStart, tmp_path: Path, images: ImageSet
) -> None:
    views, labels = torch.rand(6, 1, 16, 16), torch.tensor([0, 1])
    privacy = PRIVACY.model_copy(update={"max_grad_norm": 0.01, "learning_rate": 1.0})
    untrained, by_hand = untrained_of(tmp_path, images), untrained_of(tmp_path, images)
    with (
        training.trainable(untrained),
        dp_sgd(untrained.network, images, privacy, RUN, os_entropy_generator) as (_, optimizer, _),
    ):
        optimizer.noise_multiplier = 0.0
        take_step(untrained.network, optimizer, images.images[:2], labels, 3, lambda _: views)
    step = _clipped_means(by_hand.network, views.unflatten(0, (2, 3)), labels, norm=0.01) / 16
    before, after = (
        torch.cat([each.detach().flatten() for each in which.network.parameters() if each.requires_grad])
        for which in (by_hand, untrained)
    )
    torch.testing.assert_close(before - after, step, rtol=1e-3, atol=1e-7)


def _clipped_means(network: Classifier, views: Tensor, labels: Tensor, *, norm: float) -> Tensor:
    """The sum over images of the mean gradient of the views of each [images, views, ...], clipped."""
    learned = [each for each in network.parameters() if each.requires_grad]
    total = torch.zeros(sum(each.numel() for each in learned))
    for image, label in zip(views, labels, strict=True):
        loss = F.cross_entropy(network(image), label.repeat(len(image)))
        gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, learned)])
        total += gradient * min(1.0, norm / float(gradient.norm()))
    return total


@pytest.mark.parametrize("epsilon, number", [(8.0, 32), (8.0, 16), (1.0, 32)])
def test_the_noise_of_all_steps_is_as_large_as_was_asked_for_whatever_epsilon_and_images(
    tmp_path: Path, make_start: MakeStart, images: ImageSet, epsilon: float, number: int
) -> None:
    made = make_start(architecture="conv4")
    write_start(tmp_path / "start", made.start, made.weights)
    some = ImageSet(images.images[:number], images.labels[:number], images.class_names)
    # Clipped to next to nothing, what is left beside the noise is nothing of the images.
    asked = PrivacyConfig(
        epsilon=epsilon, batch_size=16, averaging=0, max_grad_norm=1e-9, parameter_noise=0.05, head_epochs=1
    )
    untrained = untrained_of(tmp_path, some, trained="scales")
    before = scales_of(untrained)
    train_privately(untrained, some, asked, training.plan(number, asked, epochs=4), crop_padding=0)
    assert (scales_of(untrained) - before).std() == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize("batch_size, number", [(16, 32), (5, 32), (1, 49), (2, 98), (30, 100)])
def test_the_batch_that_is_expected_is_the_one_that_opacus_divides_by(
    tmp_path: Path, make_start: MakeStart, batch_size: int, number: int
) -> None:
    made = make_start(architecture="conv4")
    write_start(tmp_path / "start", made.start, made.weights)
    some = ImageSet(torch.zeros(number, 1, 16, 16, dtype=torch.uint8), torch.arange(number) % 2, ("a", "b"))
    privacy = PRIVACY.model_copy(update={"batch_size": batch_size})
    untrained = untrained_of(tmp_path, some)
    with (
        training.trainable(untrained),
        dp_sgd(untrained.network, some, privacy, RUN, os_entropy_generator) as (_, optimizer, _),
    ):
        rate = 1 / -(-number // batch_size)
        assert optimizer.expected_batch_size == training._expected_batch(number, rate)


def scales_of(untrained: Untrained) -> Tensor:
    named = untrained.network.named_parameters()
    return torch.cat(
        [each.detach().flatten().clone() for name, each in named if is_body(name) and each.requires_grad]
    )


def test_a_learning_rate_of_ones_own_is_taken_beside_a_start_and_refused_beside_a_noise(
    start: LoadedStart, tmp_path: Path
) -> None:
    assert config_of(tmp_path).privacy.parameter_noise > 0
    own = config_of(tmp_path, learning_rate=20.0)
    assert (own.privacy.learning_rate, own.privacy.parameter_noise) == (20.0, 0)
    assert ClientConfig.parse(config_of(tmp_path).plain(), origin="a file") == config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate has no effect where privacy\.parameter_noise"):
        config_of(tmp_path, learning_rate=20.0, parameter_noise=0.1)


def test_a_start_under_privacy_brings_settings_that_are_not_refused(
    start: LoadedStart, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    assert (config.training.trained, config.training.min_steps) == ("scales", 300)
    assert config.privacy.max_grad_norm < 1
    assert config_of(tmp_path, max_grad_norm=1.0).privacy.max_grad_norm == 1


def test_what_an_earlier_release_did_not_know_leaves_its_private_models_their_key(tmp_path: Path) -> None:
    values = {"data": {"source": str(tmp_path)}, "privacy": {"epsilon": 8.0}}
    before = _private_settings(ClientConfig.parse(values, origin="a test"))
    assert not any(name in before for name in ("trained", "augmentations", "head_epochs"))
    values["privacy"] = {"epsilon": 8.0, "augmentations": 4}
    assert '"augmentations": 4' in _private_settings(ClientConfig.parse(values, origin="a test"))
