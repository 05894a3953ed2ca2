"""Training and contributing: learned, cached, and without a trace of the class names."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from client.config import (
    WITHOUT_PRIVACY_ONLY,
    ClientConfig,
    DataConfig,
    PrivacyConfig,
    TrainingConfig,
)
from client.data.finding import hash_images
from client.data.loading import load_images
from client.training.cache import (
    HELD_OUT,
    MANIFEST,
    PRIVATE,
    PRIVATE_TRAINING,
    RESERVATION,
    WEIGHTS,
    cache_key,
)
from client.training.fit import augment, initialise, turn
from client.training.ledger import RESERVED, Ledger, open_ledger
from client.training.pretrain import pretrain, pretrain_measured, shuffle_classes
from fedfree.architectures import Architecture
from fedfree.codec import decode_contribution, sha256
from fedfree.errors import ConfigError, DataError, PrivacyError, StorageError
from fedfree.host.places import state_folder
from fedfree.statement import DpSgd, PrivacyStatus

RUN = DpSgd(2.0, 0.5, 10)


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
    training = TrainingConfig(image_size=16, epochs=2, min_steps=30, batch_size=16, threads=1)
    return ClientConfig(
        data=DataConfig(source=tmp_path / "images"), training=training, cache=tmp_path / "cache"
    )


def test_the_contributed_model_has_learned_its_classes(config: ClientConfig) -> None:
    contribution = decode_contribution(*pretrain(config))
    assert contribution.num_classes == 3
    (cached,) = config.cache.iterdir()
    assert float((cached / HELD_OUT).read_text()) == 1.0


def test_asking_again_costs_no_training_and_gives_the_same_bytes(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pretrain(config)
    monkeypatch.setattr("client.training.pretrain.fit", lambda *_, **__: pytest.fail("trained again"))
    assert pretrain(config) == first


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, RESERVATION])
@pytest.mark.parametrize("is_missing", [False, True])
def test_a_cached_model_that_cannot_be_read_is_trained_again(
    config: ClientConfig, name: str, is_missing: bool
) -> None:
    first = pretrain(config)
    (cached,) = config.cache.iterdir()
    damage(cached / name, is_missing=is_missing)
    assert pretrain(config) == first
    assert [path.name for path in config.cache.iterdir()] == [cached.name]


def damage(path: Path, *, is_missing: bool) -> None:
    path.unlink()
    if not is_missing:
        path.write_bytes(b"\xff of another release")


def test_the_same_seed_trains_the_same_model_and_another_does_not(config: ClientConfig) -> None:
    first = pretrain(config)
    elsewhere = config.model_copy(update={"cache": config.cache.with_name("elsewhere")})
    assert pretrain(elsewhere) == first
    assert pretrain(config.model_copy(update={"seed": 1})) != first


def test_other_data_or_another_configuration_is_another_model(config: ClientConfig) -> None:
    images = load_images(config.data.source, size=16)
    fewer = load_images(config.data.source, images_per_class=19, size=16)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})
    assert len({cache_key(config, images), cache_key(config, fewer), cache_key(longer, images)}) == 3


def test_no_class_name_leaves(config: ClientConfig) -> None:
    sent = b"".join(pretrain(config))
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
    group = config.training.model_copy(update={"architecture": Architecture(norm="group")})
    contribution = decode_contribution(*pretrain(config.model_copy(update={"training": group})))
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


def test_turned_copies_are_turned_as_they_are_labelled() -> None:
    images = torch.rand(40, 3, 5, 5)
    turned, quarters = turn(images, generator=torch.Generator().manual_seed(0))
    assert set(quarters.tolist()) == {0, 1, 2, 3}
    for image, quarter, result in zip(images, quarters.tolist(), turned, strict=True):
        assert torch.equal(result, torch.rot90(image, quarter, (1, 2)))


def test_the_rotation_task_changes_the_features_and_leaves_no_trace_but_them(config: ClientConfig) -> None:
    turning = config.model_copy(
        update={"training": config.training.model_copy(update={"rotation_task": True})}
    )
    network, other = (decode_contribution(*pretrain(each)).network() for each in (turning, config))
    assert network.state_dict().keys() == other.state_dict().keys()
    images = torch.rand(4, 1, 16, 16)
    assert not torch.allclose(network.features(images), other.features(images))


def under_privacy(config: ClientConfig, **privacy: float) -> ClientConfig:
    group = TrainingConfig(architecture=Architecture(norm="group"), image_size=16, epochs=4, threads=1)
    private = PrivacyConfig(**{"epsilon": 8.0, "batch_size": 30, **privacy})  # type: ignore[arg-type]
    return config.model_copy(update={"training": group, "privacy": private})


def test_a_contribution_under_privacy_says_what_was_spent_and_holds_parameters_only(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = under_privacy(config, images_rounded_to=50)
    sent = pretrain(private)
    contribution = decode_contribution(*sent)
    spent = contribution.privacy.differential_privacy
    assert contribution.privacy.status is PrivacyStatus.DP
    assert spent is not None
    assert 7.9 < spent.epsilon <= 8
    assert (spent.images, spent.run.sampling_rate, spent.run.steps) == (50, 0.5, 8)
    assert not list(contribution.network().buffers())
    monkeypatch.setattr("client.training.pretrain.train_privately", lambda *_: pytest.fail("trained again"))
    assert pretrain(private) == sent
    budget = under_privacy(config, images_rounded_to=50, epsilon_budget=9.0)
    assert pretrain(budget) == sent
    with pytest.raises(PrivacyError, match="more than the budget of 9"):
        pretrain(budget.model_copy(update={"seed": 1}))


def test_an_infinite_epsilon_is_status_none_and_no_budget_holds_it(config: ClientConfig) -> None:
    infinite = config.model_copy(update={"privacy": PrivacyConfig(epsilon=float("inf"))})
    contribution = decode_contribution(*pretrain(infinite))
    assert contribution.privacy.status is PrivacyStatus.NONE
    assert contribution.architecture.norm == "batch"
    with pytest.raises(ConfigError, match="no epsilon budget can hold"):
        PrivacyConfig.parse({"epsilon_budget": 8}, origin="option")
    with pytest.raises(ConfigError, match="promises nothing"):
        PrivacyConfig.parse({"epsilon": 1000}, origin="option")


def test_batch_norm_under_privacy_is_refused_before_anything_is_reserved(config: ClientConfig) -> None:
    private = under_privacy(config).model_copy(update={"training": config.training})
    with pytest.raises(PrivacyError, match="use conv4-group"):
        pretrain(private)
    assert not config.ledger_path.exists()


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_reserved(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    private = under_privacy(config)
    on_gpu = private.training.model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="finds no GPU here"):
        pretrain(private.model_copy(update={"training": on_gpu}))
    assert not config.ledger_path.exists()


def test_training_begins_from_the_weights_that_are_named(config: ClientConfig, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(pretrain(config)[1])
    named = {"initial_weights": weights, "initial_weights_public": True}
    begun = config.model_copy(update={"training": config.training.model_copy(update=named)})
    images = load_images(config.data.source, size=16)
    expected = decode_contribution(*pretrain(config)).network().state_dict()
    for name, tensor in initialise(images, begun.training, seed=5).network.state_dict().items():
        assert torch.equal(tensor, expected[name])
    fewer = load_images(config.data.source, size=16, classes=["nevus", "wart"])
    other = initialise(fewer, begun.training, seed=5).network
    assert other.head.get_parameter("bias").shape == (2,)
    assert torch.equal(other.state_dict()["blocks.0.0.weight"], expected["blocks.0.0.weight"])
    initial = decode_contribution(*pretrain(begun)).privacy.initial_weights
    assert initial is not None
    assert (initial.sha256, initial.public) == (sha256(weights.read_bytes()), True)


def under_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.training.cache.code_sha256", lambda *_: "other code")


def test_other_code_trains_another_model(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(config)
    under_other_code(monkeypatch)
    pretrain(config)
    assert len(list(config.cache.iterdir())) == 2


def test_other_code_sends_the_private_model_that_was_paid_for(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = under_privacy(config)
    sent = pretrain(private)
    under_other_code(monkeypatch)
    monkeypatch.setattr("torch.__version__", "9.0")
    elsewhere = private.training.model_copy(update={"threads": 2, "min_steps": 7})
    monkeypatch.setattr("client.training.pretrain.train_privately", lambda *_: pytest.fail("spent again"))
    assert pretrain(private) == pretrain(private.model_copy(update={"training": elsewhere})) == sent
    assert len(open_ledger(None).entries()) == 1


def test_how_photos_become_square_decides_which_private_model_it_is_but_for_the_default(
    config: ClientConfig,
) -> None:
    private = config.model_copy(update={"privacy": PrivacyConfig(epsilon=8)})
    images = load_images(config.data.source, size=16)
    keys = {
        fit: cache_key(
            private.model_copy(update={"data": DataConfig(source=config.data.source, fit=fit)}), images
        )
        for fit in ("crop", "letterbox", "squeeze")
    }
    assert len(set(keys.values())) == 3
    assert keys["crop"] == cache_key(private, images)


def test_images_to_evaluate_on_become_square_as_those_to_train_on_unless_it_is_said() -> None:
    data = {"source": "images", "fit": "letterbox"}
    values = {"data": data, "evaluate": {"data": {"source": "new"}}, "cache": "cache"}
    config = ClientConfig.parse(values, origin="test")
    assert config.evaluate is not None and config.evaluate.data.fit == "letterbox"
    values["evaluate"] = {"data": {"source": "new", "fit": "squeeze"}}
    config = ClientConfig.parse(values, origin="test")
    assert config.evaluate is not None and config.evaluate.data.fit == "squeeze"
    assert ClientConfig.parse({"data": data, "cache": "cache"}, origin="test").evaluate is None


def test_unequal_classes_are_said_and_each_keeps_an_image_to_train_on(config: ClientConfig) -> None:
    for name, count in (("melanoma", 1), ("nevus", 2)):
        for path in sorted((config.data.source / name).iterdir())[count:]:
            path.unlink()
    told: list[str] = []
    seen: list[tuple[str, int, int]] = []
    done = pretrain_measured(config, observe=lambda *each: seen.append(each), tell=told.append)
    assert seen[:23] == [("read", number, 23) for number in range(1, 24)] and seen[23][0] == "train"
    assert told[0].startswith(
        "training conv4-32-batch on 20 images of 3 classes (1 to 18 a class), 3 more held out:"
    )
    assert done.held_out_accuracy is not None


def test_one_image_a_class_is_refused_before_anything_is_written(config: ClientConfig) -> None:
    for path in config.data.source.rglob("*.png"):
        if path.name != "0.png":
            path.unlink()
    with pytest.raises(DataError, match=r"no class has two images, .* \(3 images of 3 classes\)"):
        pretrain(config)
    assert list(config.cache.iterdir()) == [] and Ledger(config.ledger_path).entries() == []


def test_an_image_that_changed_class_is_another_private_model(config: ClientConfig) -> None:
    private, source = under_privacy(config), config.data.source
    before = cache_key(private, load_images(source, size=16))
    (source / "wart" / "0.png").rename(source / "nevus" / "moved.png")
    assert cache_key(private, load_images(source, size=16)) != before


def test_every_privacy_setting_but_the_budget_decides_which_private_model_it_is() -> None:
    assert set(PRIVATE) == set(PrivacyConfig.model_fields) - {"epsilon_budget"}
    not_asked = {
        *WITHOUT_PRIVACY_ONLY,
        "device",
        "threads",
        "start",
        "initial_weights",
        "initial_weights_public",
    }
    assert set(PRIVATE_TRAINING) == set(TrainingConfig.model_fields) - not_asked


def test_relative_paths_in_a_configuration_file_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation, elsewhere = tmp_path / "organisation", tmp_path / "elsewhere"
    for folder in (organisation, elsewhere):
        folder.mkdir()
    text = 'cache = "models"\nledger = "/var/l.sqlite"\n[data]\nsource = "../images"\n'
    (organisation / "client.toml").write_text(
        text + '[training]\ninitial_weights = "w.safetensors"\n[evaluate.data]\nsource = "new.zip"\n'
    )
    monkeypatch.chdir(elsewhere)
    for path in (organisation / "client.toml", Path("../organisation/client.toml")):
        read = ClientConfig.read(path)
        assert read.evaluate is not None and read.training.initial_weights is not None
        assert read.data.source.resolve() == (tmp_path / "images")
        assert read.cache == organisation / "models" and read.ledger_path == Path("/var/l.sqlite")
        assert read.training.initial_weights == organisation / "w.safetensors"
        assert read.evaluate.data.source == organisation / "new.zip"


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_reserved(config: ClientConfig) -> None:
    config.cache.write_text("a file where the folder should be")
    for each in (config, under_privacy(config)):
        with pytest.raises(StorageError, match=f"cannot write the cache {config.cache}"):
            pretrain(each)
    assert not config.ledger_path.exists()


@pytest.mark.parametrize("private", [False, True])
def test_a_disk_without_room_for_the_model_is_named_before_it_is_trained_or_anything_is_spent(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    monkeypatch.setattr("client.training.pretrain.fit", lambda *_, **__: pytest.fail("trained in vain"))
    ledger = Ledger(config.ledger_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"cannot write the cache {config.cache}"):
            pretrain(under_privacy(config) if private else config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (ledger.entries(), list(config.cache.iterdir())) == ([], [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_while_training_is_named_and_the_row_stays(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    ledger = Ledger(config.ledger_path)
    ledger.reserve("before", hash_images(config.data.source), RUN, delta=1e-5, epsilon_budget=None)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match=f"{config.cache}.*{os.strerror(number)}"):
            pretrain(under_privacy(config))
    assert [entry.state for entry in ledger.entries()] == [RESERVED] * 2
    assert list(config.cache.iterdir()) == []


def test_a_file_that_names_no_ledger_goes_on_with_the_one_beside_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('cache = "models"\n[data]\nsource = "images"\n')
    assert ClientConfig.read(path).ledger_path == state_folder() / "ledger.sqlite"
    Ledger(tmp_path / "ledger.sqlite").entries()
    assert ClientConfig.read(path).ledger_path == tmp_path / "ledger.sqlite"
