"""The pipeline on pools of every kind: deterministic, heterogeneous, and better than it began."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import (
    Contribution,
    decode_meta_learner,
    encode_contribution,
    encode_meta_learner,
    encode_weights,
)
from fedfree.errors import ConfigError, FederationError
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server import pipeline
from server.config import CollectConfig, ServerConfig
from server.events import Event
from server.learning.outcome import Outcome
from server.storage.store import ACCEPTED, WEIGHTS, Store

POOL = (
    ("conv4", 3, InputSpec(channels=1, height=16, width=16, horizontal_flip=False)),
    ("conv4-32-group", 2, InputSpec(channels=3, height=20, width=20)),
    ("resnet10", 4, InputSpec(channels=3, height=16, width=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))),
)


def make_store(path: Path, pool: Sequence[tuple[str, int, InputSpec]] = POOL) -> Store:
    store = Store(path)
    for seed, (name, classes, spec) in enumerate(pool):
        torch.manual_seed(seed)
        architecture = Architecture.parse(name)
        network = build(architecture, num_classes=classes, input=spec)
        contribution = Contribution(architecture, classes, spec, PrivacyStatement(), encode_weights(network))
        store.receive(encode_contribution(contribution), contribution.weights)
    return store


def tiny(name: str, **changes: object) -> ServerConfig:
    config = ServerConfig.parse({"preset": name}, origin="test")
    invert = config.invert.model_copy(
        update={"models_per_iteration": 3, "images_per_model": 12, "steps": 2, "generator_width": 4}
    )
    learn = config.learn.model_copy(
        update={"batch_size": 16, "replay_ways": 2, "replay_queries": 2}
        | ({"compositions": 12, "relational_tasks": 3} if name != "paper" else {"replay_episodes": 2})
    )
    recipe = config.recipe
    update = {"invert": invert, "learn": learn, "recipe": recipe, "iterations": 3, "warmup_iterations": 0}
    return config.model_copy(update=update | {"threads": 1} | changes)


@pytest.mark.parametrize("name", ["default", "paper"])
def test_one_pipeline_learns_from_a_mixed_pool_with_either_preset(tmp_path: Path, name: str) -> None:
    events: list[Event] = []
    outcome = pipeline.run(make_store(tmp_path), tiny(name), on_event=events.append)
    sent = outcome.meta_learner
    assert decode_meta_learner(encode_meta_learner(sent), sent.weights) == sent
    size = (sent.input.channels, sent.input.height, sent.input.horizontal_flip)
    assert size == (3, 16, False), "most channels, the middle size, no mirror unless all allow it"
    assert sent.num_classes == 4
    assert sent.recipe == replace(tiny(name).recipe, mirror=False), "one model allows no mirror"
    assert list(sent.provenance.contributions) == sorted(sent.provenance.contributions)
    assert sorted(len(images) for images in outcome.gallery.values()) == [2, 3, 4]
    progress = [event.values for event in events if (event.stage, event.kind) == ("learn", "progress")]
    assert [values["iteration"] for values in progress] == [1, 2, 3]
    assert ("replay_loss" in progress[0]) == (name == "paper")


def test_the_meta_learner_names_the_start_that_its_contributions_began_from(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    begun = Store(tmp_path / "begun", make_start)
    for seed in range(2):
        begun.receive(*contribute_from(make_start(), seed))
    runs = (begun, "start"), (make_store(tmp_path / "random"), "default")
    names = [
        pipeline.run(store, tiny(preset, iterations=1)).meta_learner.provenance.start
        for store, preset in runs
    ]
    assert names == [make_start().start.sha256, ""]


@pytest.mark.parametrize(("begins", "preset"), [(True, "default"), (False, "start")])
def test_a_preset_that_is_not_for_where_the_models_began_is_refused(
    tmp_path: Path, make_start: Callable[..., LoadedStart], begins: bool, preset: str
) -> None:
    store = Store(tmp_path / "begun", make_start) if begins else make_store(tmp_path)
    with pytest.raises(ConfigError, match=f"configured with preset {preset}: use "):
        pipeline.run(store, tiny(preset, iterations=1))


def test_a_run_from_a_start_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    store, config = Store(tmp_path / "begun", make_start), tiny("start", checkpoint_iterations=1)
    for seed in range(2):
        store.receive(*contribute_from(make_start(), seed))
    whole = pipeline.run(store, config)

    def kill(event: Event) -> None:
        if event.kind == "progress" and event.values["iteration"] == 2:
            raise KilledError

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        pipeline.run(store, config, checkpoint=checkpoint, on_event=kill)
    assert pipeline.run(store, config, checkpoint=checkpoint).meta_learner == whole.meta_learner


def test_images_are_mirrored_at_the_end_where_every_model_allows_it(tmp_path: Path) -> None:
    outcome = pipeline.run(make_store(tmp_path, POOL[1:]), tiny("default", iterations=1))
    assert outcome.meta_learner.recipe.mirror


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    results = [
        pipeline.run(make_store(tmp_path / str(turn)), tiny("default", seed=seed)).meta_learner
        for turn, seed in enumerate((7, 7, 8))
    ]
    assert results[0] == results[1]
    assert results[0].weights != results[2].weights


class KilledError(Exception):
    """Stands for a kill between two events."""


@pytest.mark.parametrize("name", ["default", "paper"])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    config = tiny(name, checkpoint_iterations=2)
    undisturbed = pipeline.run(make_store(tmp_path / "undisturbed"), config)
    for at in (1, 2, 3):
        (tmp_path / str(at)).mkdir()
        kill_and_go_on(tmp_path / str(at), config, undisturbed, at)


def kill_and_go_on(folder: Path, config: ServerConfig, undisturbed: Outcome, at: int) -> None:
    store, checkpoint = make_store(folder / "killed"), folder / "checkpoint.safetensors"

    def kill(event: Event) -> None:
        if event.kind == "progress" and event.values["iteration"] == at:
            raise KilledError

    with pytest.raises(KilledError):
        pipeline.run(store, config, checkpoint=checkpoint, on_event=kill)
    events: list[Event] = []
    resumed = pipeline.run(store, config, checkpoint=checkpoint, on_event=events.append)
    started = next(event for event in events if (event.stage, event.kind) == ("learn", "started"))
    assert started.values["done"] == (2 if at == 3 else 0)
    assert resumed.meta_learner == undisturbed.meta_learner
    assert resumed.images_recovered == undisturbed.images_recovered
    assert resumed.gallery.keys() == undisturbed.gallery.keys()
    for identity, images in resumed.gallery.items():
        assert torch.equal(images, undisturbed.gallery[identity])


def test_a_checkpoint_of_another_configuration_is_passed_over(tmp_path: Path) -> None:
    store, checkpoint = make_store(tmp_path), tmp_path / "checkpoint.safetensors"
    pipeline.run(store, tiny("default", seed=1), checkpoint=checkpoint)
    other = pipeline.run(store, tiny("default", seed=2), checkpoint=checkpoint)
    assert other.meta_learner == pipeline.run(store, tiny("default", seed=2)).meta_learner


@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[: len(data) // 2], lambda _: b"foreign"])
def test_learning_begins_again_where_the_checkpoint_is_empty_cut_or_foreign(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    store, checkpoint = make_store(tmp_path), tmp_path / "checkpoint.safetensors"
    config = tiny("default", iterations=1)
    undisturbed = pipeline.run(store, config, checkpoint=checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    events: list[Event] = []
    again = pipeline.run(store, config, checkpoint=checkpoint, on_event=events.append)
    assert events[0].values["done"] == 0
    assert again.meta_learner == undisturbed.meta_learner
    assert "learning begins again from the contributions" in caplog.text


def test_warm_up_teaches_the_generator_alone(tmp_path: Path) -> None:
    events: list[Event] = []
    pipeline.run(make_store(tmp_path), tiny("paper", warmup_iterations=2), on_event=events.append)
    progress = [event.values for event in events if event.kind == "progress"]
    assert ["distillation_loss" in values for values in progress] == [False, False, True]


def test_fewer_contributions_than_the_quorum_end_the_run(tmp_path: Path) -> None:
    config = tiny("default", collect=CollectConfig(quorum=4))
    with pytest.raises(FederationError, match="3 accepted contributions, the quorum is 4"):
        pipeline.run(make_store(tmp_path), config)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset: Input should be 'default', 'large', 'paper' or 'start'"):
        ServerConfig.parse({"preset": "magic"}, origin="server.toml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU here: use auto or cpu"):
        pipeline.run(make_store(tmp_path), tiny("default", device="cuda"))


def test_a_flipped_bit_in_a_model_gives_the_meta_learner_of_those_without_it(tmp_path: Path) -> None:
    store, events = make_store(tmp_path / "damaged"), list[Event]()
    config = tiny("default", iterations=1)
    pipeline.run(store, config)
    damaged = store.ids(ACCEPTED)[0]
    weights = store.path / ACCEPTED / damaged / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = pipeline.run(store, config, on_event=events.append)
    assert [event.values["contribution"] for event in events if event.kind == "damaged"] == [damaged]
    assert damaged not in outcome.meta_learner.provenance.contributions
    others = Store(tmp_path / "others")
    for identity in store.ids(ACCEPTED):
        others.receive(*store.read(identity))
    assert pipeline.run(others, config).meta_learner == outcome.meta_learner


def make_several(
    path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
    counts: tuple[int, int],
) -> Store:
    """Contributions from a first and a further start of another architecture, in colour, so many of each."""
    starts = make_start(0), make_start(1, architecture="conv4-64-group", channels=3)
    store = Store(path, lambda: starts[0], lambda: starts[1:])
    for begun, count in zip(starts, counts, strict=True):
        for seed in range(count):
            store.receive(*contribute_from(begun, seed))
    return store


def test_from_several_starts_a_meta_learner_of_the_first_is_learned_that_a_killed_run_goes_on_to(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    store = make_several(tmp_path / "store", make_start, contribute_from, (2, 2))
    config, checkpoint = tiny("start", checkpoint_iterations=1), tmp_path / "checkpoint.safetensors"
    whole = pipeline.run(store, config).meta_learner
    assert (whole.architecture, whole.provenance.start) == (Architecture(), make_start().start.sha256)
    assert len(whole.provenance.contributions) == 4

    def kill(event: Event) -> None:
        if event.kind == "progress" and event.values["iteration"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        pipeline.run(store, config, checkpoint=checkpoint, on_event=kill)
    assert pipeline.run(store, config, checkpoint=checkpoint).meta_learner == whole


def test_a_further_start_that_nobody_began_from_changes_no_byte(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    several = make_several(tmp_path / "several", make_start, contribute_from, (2, 0))
    one = Store(tmp_path / "one", make_start)
    for seed in range(2):
        one.receive(*contribute_from(make_start(), seed))
    first, second = (pipeline.run(store, tiny("start")).meta_learner for store in (one, several))
    assert first == second


def test_where_nobody_began_from_the_first_start_the_run_says_so(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    store = make_several(tmp_path / "store", make_start, contribute_from, (0, 2))
    named = f"no accepted contribution began from {make_start().start.sha256[:12]}…"
    with pytest.raises(FederationError, match=f"{named} .*conv4-32-batch.*, the first start of this run"):
        pipeline.run(store, tiny("start"))
