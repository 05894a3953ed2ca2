"""What is foreseen of a training is what the training says and does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import ClientConfig
from client.data.look import look
from client.training import foresee as foreseeing
from client.training.foresee import Foresight, foresee
from client.training.pretrain import pretrain_measured
from fedfree.errors import DataError, PrivacyError

WriteImages = Callable[[Path, dict[str, int]], Path]

TRAINING = {"image_size": 16, "epochs": 1, "min_steps": 4, "threads": 1}
PRIVATE = {"epsilon": 8.0, "delta": 1e-3}


def configure(source: Path, tmp_path: Path, **privacy: float) -> ClientConfig:
    training = {name: value for name, value in TRAINING.items() if not privacy or name != "min_steps"}
    values = {"data": {"source": source}, "training": training, "privacy": privacy}
    if privacy:
        values["training"] = {**training, "architecture": "conv4-group"}
    return ClientConfig.parse(values, origin="test")


def foresee_in(config: ClientConfig) -> Foresight:
    return foresee(look(config.data, size=16), config)


@pytest.mark.parametrize("privacy", [{}, PRIVATE])
def test_the_plan_is_what_the_training_says_of_itself(
    tmp_path: Path, write_images: WriteImages, privacy: dict[str, float]
) -> None:
    config = configure(write_images(tmp_path / "images", {"ant": 12, "owl": 30}), tmp_path, **privacy)
    foreseen, said, steps = foresee_in(config), list[str](), list[int]()
    pretrain_measured(
        config,
        tell=said.append,
        observe=lambda what, done, of: steps.append(of) if what == "train" else None,
    )
    assert any(line.startswith(foreseen.plan) for line in said), said
    assert foreseen.steps == steps[-1]
    assert foreseen.held_out == (0 if privacy else 4)


def test_time_and_memory_are_estimated_and_nothing_is_written(
    tmp_path: Path, write_images: WriteImages
) -> None:
    config = configure(write_images(tmp_path / "images", {"ant": 12, "owl": 12}), tmp_path)
    foreseen = foresee_in(config)
    assert foreseen.seconds > 0 and foreseen.memory > 10_000_000 and foreseen.disk == 0
    assert not Path(os.environ["FEDFREE_HOME"]).exists()


def test_pixels_beyond_the_memory_that_training_takes_count_as_files(
    tmp_path: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(write_images(tmp_path / "images", {"ant": 20, "owl": 20}), tmp_path)
    monkeypatch.setattr(foreseeing, "IN_MEMORY", 30 * 3 * 16 * 16)
    foreseen = foresee_in(config)
    assert foreseen.disk == (40 + 36) * 3 * 16 * 16 and foreseen.disk_free > 0


def test_what_training_refuses_is_refused(tmp_path: Path, write_images: WriteImages) -> None:
    single = configure(write_images(tmp_path / "single", {"ant": 1, "owl": 1}), tmp_path)
    with pytest.raises(DataError, match="no class has two images"):
        foresee_in(single)
    many = write_images(tmp_path / "images", {"ant": 50, "owl": 50})
    loose = configure(many, tmp_path, epsilon=8.0, delta=0.01)
    with pytest.raises(PrivacyError, match="not below 1/100"):
        foresee_in(loose)
