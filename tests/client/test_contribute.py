"""Training and contributing: learned, cached, and without a trace of the class names."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from client.config import ClientConfig, DataConfig, PretrainConfig
from client.contribute import HELD_OUT, MANIFEST, cache_key, contribute, shuffle_classes
from client.data import load_images
from client.pretrain import augment
from fedfree.architectures import Architecture
from fedfree.codec import decode_contribution


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    """Three classes told apart by their shade."""
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(("melanoma", "nevus", "wart")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(20):
            shade = torch.randint(0, 60, (16, 16), generator=generator) + 80 * label
            path = tmp_path / "images" / name / f"{index}.png"
            Image.fromarray(shade.to(torch.uint8).numpy()).save(path)
    pretrain = PretrainConfig(image_size=16, epochs=2, min_steps=30, batch_size=16, threads=1)
    return ClientConfig(
        data=DataConfig(source=tmp_path / "images"), pretrain=pretrain, cache=tmp_path / "cache"
    )


def test_the_contributed_model_has_learned_its_classes(config: ClientConfig) -> None:
    contribution = decode_contribution(*contribute(config))
    assert contribution.num_classes == 3
    (cached,) = config.cache.iterdir()
    assert float((cached / HELD_OUT).read_text()) == 1.0


def test_asking_again_costs_no_training_and_gives_the_same_bytes(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = contribute(config)
    monkeypatch.setattr("client.contribute.pretrain", lambda *_, **__: pytest.fail("trained again"))
    assert contribute(config) == first


def test_a_cached_model_that_cannot_be_decoded_is_trained_again(config: ClientConfig) -> None:
    first = contribute(config)
    (cached,) = config.cache.iterdir()
    (cached / MANIFEST).write_bytes(b"of another release")
    assert contribute(config) == first
    assert [path.name for path in config.cache.iterdir()] == [cached.name]


def test_the_same_seed_trains_the_same_model_and_another_does_not(config: ClientConfig) -> None:
    first = contribute(config)
    elsewhere = config.model_copy(update={"cache": config.cache.with_name("elsewhere")})
    assert contribute(elsewhere) == first
    assert contribute(config.model_copy(update={"seed": 1})) != first


def test_other_data_or_another_configuration_is_another_model(config: ClientConfig) -> None:
    images = load_images(config.data.source, size=16)
    fewer = load_images(config.data.source, images_per_class=19, size=16)
    longer = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"epochs": 3})})
    assert len({cache_key(config, images), cache_key(config, fewer), cache_key(longer, images)}) == 3


def test_no_class_name_leaves(config: ClientConfig) -> None:
    sent = b"".join(contribute(config))
    assert not any(name in sent for name in (b"melanoma", b"nevus", b"wart"))


def test_the_order_of_the_classes_does_not_follow_their_names(config: ClientConfig) -> None:
    images = load_images(config.data.source, size=16)
    orders = {shuffle_classes(images, seed).class_names for seed in range(40)}
    assert len(orders) == 6
    shuffled = shuffle_classes(images, 0)
    for name in images.class_names:
        before, after = images.class_names.index(name), shuffled.class_names.index(name)
        assert torch.equal(shuffled.labels == after, images.labels == before)


def test_group_norm_models_hold_no_running_statistics(config: ClientConfig) -> None:
    group = config.pretrain.model_copy(update={"architecture": Architecture(norm="group")})
    contribution = decode_contribution(*contribute(config.model_copy(update={"pretrain": group})))
    assert not any("running" in name for name in contribution.network().state_dict())


def test_augmentation_crops_and_mirrors_each_image_by_itself() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    plain = augment(images, padding=0, horizontal_flip=False, generator=generator)
    assert torch.equal(plain, images)
    mirrored = augment(images, padding=0, horizontal_flip=True, generator=generator)
    flipped = (mirrored == images.flip(3)).flatten(1).all(1)
    assert 70 < flipped.sum() < 130
    assert torch.equal(mirrored[~flipped], images[~flipped])
    shifted = augment(images, padding=1, horizontal_flip=False, generator=generator)
    assert len(shifted.flatten(1).unique(dim=0)) == 9
