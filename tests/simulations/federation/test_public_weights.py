"""Initial weights from glyphs: a network of any channels, that another training can begin from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.config import TrainingConfig
from client.data.image_set import ImageSet
from client.training.fit import initialise
from fedfree.architectures import Architecture
from fedfree.codec import read_tensors
from simulations.federation import public_weights
from simulations.federation.public_weights import GLYPHS, in_both_polarities, make_public_weights

ARCHITECTURE = Architecture(norm="group")


@pytest.fixture(autouse=True)
def few_glyphs(make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree("glyphs")
    monkeypatch.setattr(public_weights, "resolve", lambda *_, **__: tree)


def make() -> bytes:
    values = {**GLYPHS, "image_size": 16, "batch_size": 4, "epochs": 1, "threads": 1, "device": "cpu"}
    config = TrainingConfig.parse(values, origin="test")
    return make_public_weights(config, channels=3, seed=0, cache=Path("unused"))


def test_training_on_colour_images_of_other_classes_begins_from_them(tmp_path: Path) -> None:
    weights = make()
    (tmp_path / "public.safetensors").write_bytes(weights)
    images = ImageSet(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    config = TrainingConfig(
        architecture=ARCHITECTURE, image_size=16, initial_weights=tmp_path / "public.safetensors"
    )
    network = initialise(images, config, seed=1).network
    tensors = read_tensors(weights, "the weights")
    assert torch.equal(network.get_parameter("blocks.0.0.weight"), tensors["blocks.0.0.weight"])
    assert len(network.get_parameter("head.weight")) == 2 and len(tensors["head.weight"]) == 5


def test_half_of_the_glyphs_are_inverted_and_all_channels_are_equal() -> None:
    glyphs = ImageSet(torch.full((4, 1, 16, 16), 10, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    both = in_both_polarities(glyphs, 3)
    assert both.images[:, :, 0, 0].tolist() == [[245] * 3, [10] * 3, [245] * 3, [10] * 3]
    assert int(glyphs.images.max()) == 10
