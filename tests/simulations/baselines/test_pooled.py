"""One network on everybody's images: which images those are, and that it is trained once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.config import ClientConfig
from client.data.loading import load_images
from client.training.fit import course, fit
from simulations.baselines import pooled
from simulations.baselines.pooled import load_together, train_pooled
from simulations.config import SimulationConfig
from simulations.federation.prepare import prepare, read_organisations

SMALL: dict[str, object] = {
    "clients": 3,
    "classes_each": 3,
    "images_per_class": 6,
    "training": {"image_size": 16, "epochs": 1, "min_steps": 3, "threads": 1, "device": "cpu"},
    "n_way": 3,
    "n_query": 2,
}


def prepared(folder: Path, **changes: object) -> tuple[SimulationConfig, list[ClientConfig]]:
    values = SMALL | {"cache": str(folder / "cache")} | changes
    config = SimulationConfig.parse(values, origin="test")
    prepare(folder / "run", config)
    return config, read_organisations(folder / "run", config)


def test_a_class_that_several_organisations_hold_is_one_class_with_its_images_once(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    tree = make_tree("tree")
    _, organisations = prepared(tmp_path, dataset=str(tree))
    together = load_together(organisations)
    held = {name for each in organisations for name in each.data.classes or ()}
    assert set(together.class_names) == held and len(held) < 9
    alone = load_images(tree, split="meta_train", classes=sorted(held), images_per_class=6, size=16)
    assert torch.equal(together.images, alone.images) and torch.equal(together.labels, alone.labels)


def test_it_is_trained_once_as_the_organisations_train_and_without_their_privacy(
    make_tree: Callable[..., Path], tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def spy(images: object, training: object, **options: object) -> object:
        trained.append(training)
        return fit(images, training, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pooled, "fit", spy)
    config, organisations = prepared(tmp_path, dataset=str(make_tree("tree")), start=str(start))
    first, spec = train_pooled(organisations, config)
    again, _ = train_pooled(organisations, config)
    own = organisations[0].training
    (training,) = trained
    assert training.model_copy(update={"epochs": own.epochs}) == own and spec.channels == 3
    images = len(load_together(organisations)) // len(organisations)
    assert training.epochs == course(images, own).epochs > own.epochs
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
