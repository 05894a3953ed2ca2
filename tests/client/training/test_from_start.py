"""Training from a public start: what is changed, what travels, and what is refused before it begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.config import ClientConfig, TrainingConfig
from client.data.image_set import ImageSet
from client.training.fit import fit, initialise, turn
from client.training.pretrain import pretrain
from client.training.scope import SCOPES
from fedfree.codec import decode_contribution, is_body, read_tensors
from fedfree.errors import ConfigError, ContributionError, FedFreeError
from fedfree.host.starts import WEIGHTS, write_start
from fedfree.start import LoadedStart, require_start

WriteImages = Callable[[Path, dict[str, int]], Path]
FEW = {"epochs": 1, "min_steps": 3, "batch_size": 8, "threads": 1}


@pytest.fixture
def start(tmp_path: Path, make_start: Callable[..., LoadedStart]) -> LoadedStart:
    """Written to ``tmp_path/start``."""
    made = make_start()
    write_start(tmp_path / "start", made.start, made.weights)
    return made


def training_of(tmp_path: Path, **changes: object) -> TrainingConfig:
    return config_of(tmp_path, **changes).training


def config_of(tmp_path: Path, **training: object) -> ClientConfig:
    values = {
        "data": {"source": str(tmp_path / "images")},
        "training": {"start": str(tmp_path / "start"), **FEW, **training},
        "cache": str(tmp_path / "cache"),
    }
    return ClientConfig.parse(values, origin="a test")


def grey_images(count: int = 24) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    shades = torch.randint(0, 60, (count, 1, 16, 16), generator=generator) + 80 * labels[:, None, None, None]
    return ImageSet(shades.to(torch.uint8), labels, ("a", "b", "c"))


def test_a_start_brings_its_architecture_its_size_and_a_schedule_of_its_own(
    start: LoadedStart, tmp_path: Path
) -> None:
    values = {"data": {"source": "x"}, "training": {"start": str(tmp_path / "start")}}
    training = ClientConfig.parse(values, origin="a test").training
    assert (training.architecture, training.image_size) == (start.start.architecture, 16)
    assert (training.optimizer, training.learning_rate) == ("adamw", 3e-4)


@pytest.mark.parametrize(
    ("trained", "changes"), [("all", True), ("last", True), ("scales", True), ("head", False)]
)
def test_what_is_trained_is_a_choice_and_nothing_else_changes(
    start: LoadedStart, tmp_path: Path, trained: str, changes: bool
) -> None:
    fitted = fit(grey_images(), training_of(tmp_path, trained=trained), seed=1)
    after = fitted.network.state_dict()
    moved = {name for name, tensor in start.body.items() if not after[name].equal(tensor)}
    assert moved <= SCOPES[trained](fitted.network)
    assert bool(moved) == changes
    vectors = {name for name in moved if after[name].ndim == 1}
    assert (moved == vectors) == (trained in ("scales", "head"))
    assert not any("running" in name for name in moved)


def test_only_what_was_trained_travels_and_the_receiver_has_the_whole_network(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    manifest, weights = pretrain(config_of(tmp_path, trained="scales"))
    contribution = decode_contribution(manifest, weights)
    sent = read_tensors(weights, "the weights")
    assert contribution.start == start.start.sha256
    assert all(tensor.ndim == 1 for name, tensor in sent.items() if is_body(name))
    state = contribution.network(start.body).state_dict()
    assert all(state[name].equal(sent.get(name, tensor)) for name, tensor in start.body.items())
    require_start(contribution, [start.start])


def test_a_start_elsewhere_on_the_disk_trains_nothing_anew(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    first = pretrain(config_of(tmp_path))
    write_start(tmp_path / "elsewhere", start.start, start.weights)
    assert pretrain(config_of(tmp_path, start=str(tmp_path / "elsewhere"))) == first
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_images_are_read_in_the_colours_of_the_start(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    assert decode_contribution(*pretrain(config_of(tmp_path))).input.channels == 1


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"architecture": "resnet10"}, "training.architecture is resnet10-batch, and the start's is conv4"),
        ({"image_size": 32}, "training.image_size is 32, and the start's is 16: leave it out"),
        ({"initial_weights": "w.safetensors"}, "set one of them"),
    ],
)
def test_what_contradicts_the_start_is_refused_before_training(
    start: LoadedStart, tmp_path: Path, training: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        initialise(grey_images(), training_of(tmp_path, **training), seed=0)


def test_what_contradicts_the_start_is_said_before_an_image_is_read(
    start: LoadedStart, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        pretrain(config_of(tmp_path, image_size=32))  # there are no images


def test_a_part_to_train_needs_a_start() -> None:
    with pytest.raises(ConfigError, match="needs a start"):
        initialise(grey_images(), TrainingConfig(image_size=16, trained="head"), seed=0)


def test_a_missing_or_cut_start_is_one_error_and_nothing_is_kept(
    start: LoadedStart, tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    config = config_of(tmp_path)
    (tmp_path / "start" / WEIGHTS).write_bytes(start.weights[:-10])
    with pytest.raises(ContributionError, match="no start in"):
        pretrain(config)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FedFreeError, match="nowhere"):
        config_of(tmp_path, start=str(tmp_path / "nowhere"))


def test_the_head_that_leaves_tells_images_that_are_not_turned(start: LoadedStart, tmp_path: Path) -> None:
    training = training_of(tmp_path, min_steps=150, learning_rate=3e-3)
    assert fit(grey_images(60), training, seed=1).held_out_accuracy > 0.8


def test_a_batch_in_parts_is_the_same_step_in_less_memory(
    start: LoadedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, weights = training_of(tmp_path), []
    sizes: list[list[int]] = []

    def recorded(images: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sizes[-1].append(len(images))
        return turn(images, generator=generator)

    monkeypatch.setattr("client.training.fit.turn", recorded)
    for at_once in (8, 3):
        sizes.append([])
        monkeypatch.setattr("client.training.fit.PIXELS_AT_ONCE", at_once * 16 * 16)
        weights.append(fit(grey_images(), training, seed=0).network.state_dict())
    assert (max(sizes[0]), max(sizes[1]), sum(sizes[0])) == (6, 3, sum(sizes[1]))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
