"""The organisation's Flower app: what it replies, and what it never says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.metadata import Metadata

from client.adapting import adapt as adaptation
from client.adapting.adapt import FewShotAccuracy
from client.config import ClientConfig, DataConfig, TrainingConfig
from client.doors.flower_app import RAISE_BUGS, app
from client.limits import LimitsConfig
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import MetaLearner, Provenance, encode_meta_learner, encode_weights
from fedfree.episodes import Accuracy, EpisodeSpec
from fedfree.errors import DataError, OutOfTimeError
from fedfree.flower_records import (
    ADAPT,
    CONTRIBUTE,
    ORGANISATION_FAILED,
    accuracies_from_records,
    from_records,
    question,
    question_with_start,
    to_records,
    wants_start,
)
from fedfree.host.starts import WEIGHTS, load_start, write_start
from fedfree.release import this_release
from fedfree.signing import make_key, public_key, sign
from fedfree.start import LoadedStart, encode_start

RESULT = FewShotAccuracy(EpisodeSpec(5, 1, 15), Accuracy(41.5, 0.8, 600))
KEY = make_key()
SECRET = "/hospital/patient-jane-doe.png"


@pytest.fixture
def config(tmp_path: Path) -> ClientConfig:
    return ClientConfig(data=DataConfig(source=tmp_path / "images"), cache=tmp_path / "cache")


def _context(node_config: dict[str, str | int | bool], run: Path | None = None) -> Context:
    return Context(1, 7, dict(node_config), RecordDict(), {"run": str(run)} if run else {})


def _own(config: ClientConfig, **more: bool) -> Context:
    """The context of a deployed node, whose configuration is its own file."""
    path = config.cache.parent / "organisation.toml"
    path.write_text(config.to_toml())
    return _context({"config": str(path), **more})


def _message(message_type: str, content: RecordDict) -> Message:
    metadata = Metadata(1, "question", 1, 7, "", "", 0.0, 1e12, message_type)
    return Message(content, metadata=metadata)  # type: ignore[call-overload]


def _meta_learner(
    key: str = KEY, number: int = 1, *, recipe: Recipe | None = None, side: int = 16
) -> RecordDict:
    spec = InputSpec(channels=1, height=side, width=side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(Architecture(), num_classes=5, input=spec)
    meta_learner = MetaLearner(
        architecture=Architecture(),
        num_classes=5,
        input=spec,
        recipe=recipe or Recipe(),
        provenance=Provenance((), "00" * 32, 0, "fedfree"),
        weights=encode_weights(network),
    )
    manifest = encode_meta_learner(meta_learner)
    return to_records(manifest, meta_learner.weights, sign("meta-learner", manifest, key, number))


def _sent(begun: LoadedStart, key: str = KEY) -> RecordDict:
    return question_with_start(begun, sign("start", encode_start(begun.start), key, 0))


def _fail(_: ClientConfig) -> tuple[bytes, bytes]:
    raise DataError(f"cannot read {SECRET}")


def test_contribute_replies_with_the_model(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "client.doors.flower_app.pretrain", lambda given: (given.to_toml().encode(), b"weights")
    )
    reply = app(_message(CONTRIBUTE, question()), _own(config))
    assert from_records(reply.content) == (config.to_toml().encode(), b"weights")
    assert reply.metadata.reply_to_message_id == "question"


def test_a_simulated_organisation_reads_its_configuration_from_the_run_directory(
    config: ClientConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda given: (str(given.seed).encode(), b""))
    (tmp_path / "organisations").mkdir()
    toml = config.model_copy(update={"seed": 42}).to_toml()
    (tmp_path / "organisations" / "3.toml").write_text(toml)
    reply = app(_message(CONTRIBUTE, question()), _context({"partition-id": 3}, tmp_path))
    assert from_records(reply.content)[0] == b"42"


def test_accuracies_are_sent_where_the_organisation_allows_it(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: [RESULT])
    sharing = config.model_copy(update={"share_metrics": True})
    reply = app(_message(ADAPT, _meta_learner()), _own(sharing))
    assert accuracies_from_records(reply.content) == [(RESULT.spec, RESULT.accuracy)]


def test_accuracies_stay_at_home_by_default(config: ClientConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: [replace(RESULT)])
    reply = app(_message(ADAPT, _meta_learner()), _own(config))
    assert reply.has_content()
    assert len(reply.content) == 0


@pytest.mark.parametrize("raise_bugs", [False, True])
def test_a_failure_is_named_by_its_class_alone(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raise_bugs: bool
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", _fail)
    reply = app(_message(CONTRIBUTE, question()), _own(config, **{RAISE_BUGS: raise_bugs}))
    assert reply.error.code == ORGANISATION_FAILED
    assert reply.error.reason == "the organisation could not train: DataError"
    assert SECRET in caplog.text and "Traceback" not in caplog.text


def test_a_bug_is_redacted_too(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: {}[SECRET])
    reply = app(_message(CONTRIBUTE, question()), _own(config))
    assert reply.error.reason == "the organisation could not train: KeyError"
    assert "Traceback" in caplog.text


def test_a_bug_propagates_where_server_and_clients_share_a_process(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: {}[SECRET])
    with pytest.raises(KeyError):
        app(_message(CONTRIBUTE, question()), _own(config, **{RAISE_BUGS: True}))


@pytest.mark.parametrize(
    "content",
    [
        question(),
        to_records(b"no manifest", b"no weights", sign("meta-learner", b"no manifest", KEY, 1)),
    ],
    ids=["empty", "garbage"],
)
def test_a_broken_meta_learner_is_answered_with_an_error(config: ClientConfig, content: RecordDict) -> None:
    reply = app(_message(ADAPT, content), _own(config))
    assert reply.error.reason == "the organisation could not adapt the meta-learner: ContributionError"


def test_a_node_without_configuration_answers_with_an_error() -> None:
    reply = app(_message(CONTRIBUTE, question()), _context({}))
    assert reply.error.reason == "the organisation could not train: ConfigError"


@pytest.mark.parametrize("message_type", [CONTRIBUTE, ADAPT])
@pytest.mark.parametrize(
    ("theirs", "shown"),
    [
        (RecordDict(), "that does not say which"),
        (RecordDict({"release": ConfigRecord({"release": "9.9.9 (protocol 2, contract 00)"})}), "9.9.9"),
        (RecordDict({"release": ConfigRecord({"release": 3})}), "that does not say which"),
    ],
    ids=["silent", "other", "garbage"],
)
def test_a_coordinator_of_another_release_is_refused_before_anything_else_with_both_named(
    config: ClientConfig,
    monkeypatch: pytest.MonkeyPatch,
    message_type: str,
    theirs: RecordDict,
    shown: str,
) -> None:
    monkeypatch.setattr("client.doors.flower_app.read_config", lambda _: pytest.fail("went on"))
    reply = app(_message(message_type, theirs), _own(config, **{RAISE_BUGS: True}))
    assert reply.error.code == ORGANISATION_FAILED
    assert f"the organisation has FedFREE {this_release()}" in reply.error.reason
    assert f"the coordinator a FedFREE {shown}" in reply.error.reason
    assert len(reply.error.reason) < 200


def _train(config: ClientConfig) -> tuple[bytes, bytes]:
    """What is trained: nothing, but it is told where it began."""
    return str(config.training.start).encode(), b"weights"


def _begins_at(config: ClientConfig, begun: LoadedStart) -> ClientConfig:
    """With a start of one's own."""
    folder = config.cache.parent / "own-start"
    write_start(folder, begun.start, begun.weights)
    return config.model_copy(update={"training": config.training.model_copy(update={"start": folder})})


def test_an_organisation_without_the_start_asks_for_it_keeps_it_and_trains_from_it(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", _train)
    begun, context = make_start(), _own(config)
    asked = app(_message(CONTRIBUTE, question(begun.start.sha256)), context)
    assert wants_start(asked.content)
    reply = app(_message(CONTRIBUTE, _sent(begun)), context)
    folder = Path(from_records(reply.content)[0].decode())
    assert folder == config.cache.parent / "starts" / begun.start.sha256
    assert load_start(folder) == begun
    again = app(_message(CONTRIBUTE, question(begun.start.sha256)), context)
    assert from_records(again.content) == from_records(reply.content)


def test_of_a_start_that_was_sent_come_the_architecture_and_the_size_and_all_else_stays(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    trained: list[ClientConfig] = []
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda given: trained.append(given) or (b"", b""))
    training = TrainingConfig.checked({"architecture": "conv4-64", "image_size": 48, "epochs": 7})
    own = config.model_copy(update={"training": training, "seed": 5})
    app(_message(CONTRIBUTE, _sent(make_start())), _own(own))
    (found,) = trained
    assert (found.seed, found.training.epochs, found.cache) == (5, 7, config.cache)
    assert (found.training.architecture, found.training.image_size) != (training.architecture, 48)


def test_an_organisation_with_a_start_of_its_own_only_compares_hashes(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", _train)
    own = _begins_at(config, make_start())
    reply = app(_message(CONTRIBUTE, question(make_start().start.sha256)), _own(own))
    assert from_records(reply.content)[0] == str(own.training.start).encode()


@pytest.mark.parametrize("theirs", [1, None])
def test_another_start_is_refused_before_training_and_both_are_named(
    config: ClientConfig,
    monkeypatch: pytest.MonkeyPatch,
    make_start: Callable[..., LoadedStart],
    theirs: int | None,
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("trained"))
    own = _begins_at(config, make_start(0))
    named = "" if theirs is None else make_start(theirs).start.sha256
    reply = app(_message(CONTRIBUTE, question(named)), _own(own))
    federation = f"the start {named[:12]}…" if named else "no public start"
    assert f"the start {make_start(0).start.sha256[:12]}…, this federation from {federation}" in (
        reply.error.reason
    )
    assert len(reply.error.reason) < 200


def test_a_start_that_is_not_the_one_named_is_not_kept(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("trained"))
    named, sent = make_start(0), make_start(1)
    swapped, cut = _sent(sent), _sent(replace(named, weights=named.weights[:-1]))
    swapped["start"] = question(named.start.sha256)["start"]
    forbidden = make_start(2, licence="CC-BY-NC-4.0")
    for content, words in (
        (swapped, "was sent in the place of"),
        (cut, "could not train: ContributionError"),
        (_sent(forbidden), "licence is CC-BY-NC-4.0"),
    ):
        reply = app(_message(CONTRIBUTE, content), _own(config))
        assert words in reply.error.reason
    assert not (config.cache.parent / "starts").exists()


def test_a_start_of_ones_own_that_is_cut_off_is_refused_before_training(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("trained"))
    own = _begins_at(config, make_start())
    assert own.training.start is not None
    (own.training.start / WEIGHTS).write_bytes(b"")
    reply = app(_message(CONTRIBUTE, question(make_start().start.sha256)), _own(own))
    assert reply.error.reason == "the organisation could not train: ContributionError"


def test_a_meta_learner_by_another_key_unsigned_or_older_is_refused_before_it_is_used(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: [])
    assert app(_message(ADAPT, _meta_learner(number=5)), _own(config)).has_content()
    assert f"signs with the key {public_key(KEY)}, seen for the first time" in caplog.text
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: pytest.fail("used"))
    other, unsigned = make_key(), to_records(*from_records(_meta_learner()))
    for content, words in (
        (_meta_learner(other), f"by the key {public_key(other)}, known here is {public_key(KEY)}"),
        (unsigned, "is not signed"),
        (_meta_learner(number=4), "is number 4 of this coordinator, and number 5 was here before"),
    ):
        caplog.clear()
        reply = app(_message(ADAPT, content), _own(config))
        assert reply.error.reason == "the organisation could not adapt the meta-learner: SignatureError"
        assert words in caplog.text


def test_a_key_that_the_node_pins_is_asked_of_the_first_start_and_meta_learner_too(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: [])
    monkeypatch.setattr("client.doors.flower_app.pretrain", _train)
    own = config.model_copy(update={"coordinator_key": public_key(KEY)})
    for content, message_type in (
        (_sent(make_start(), make_key()), CONTRIBUTE),
        (_meta_learner(make_key()), ADAPT),
    ):
        reply = app(_message(message_type, content), _own(own))
        assert "SignatureError" in reply.error.reason
    assert not (config.cache.parent / "starts").exists()
    assert app(_message(CONTRIBUTE, _sent(make_start())), _own(own)).has_content()
    assert app(_message(ADAPT, _meta_learner()), _own(own)).has_content()


def _limited(config: ClientConfig, **limits: object) -> ClientConfig:
    return config.model_copy(update={"limits": LimitsConfig.checked(limits)})


def test_a_start_of_larger_images_than_the_limit_is_refused_and_named_before_it_is_kept_or_built(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("trained"))
    monkeypatch.setattr("client.doors.beginning.decode_start", lambda *_: pytest.fail("built"))
    small = make_start()
    larger = LoadedStart(replace(small.start, input=replace(small.start.input, height=17)), small.weights)
    reply = app(_message(CONTRIBUTE, _sent(larger)), _own(_limited(config, image_size=16)))
    assert reply.error.reason == (
        "the start asks for 17 pixels a side, and 16 is the most here: ask the coordinator for less, or "
        "raise limits.image_size"
    )
    assert not (config.cache.parent / "starts").exists()


def test_a_start_as_large_as_the_limit_is_kept_and_trained_from(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., LoadedStart]
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", _train)
    reply = app(_message(CONTRIBUTE, _sent(make_start())), _own(_limited(config, image_size=16)))
    assert from_records(reply.content)[1] == b"weights"


@pytest.mark.parametrize(
    ("limit", "recipe", "setting"),
    [
        ({"recipe_steps": 4}, Recipe("gradient", steps=5), "recipe_steps"),
        ({"image_size": 16}, Recipe(), "image_size"),
    ],
)
def test_a_meta_learner_that_asks_for_too_much_is_refused_and_named_before_it_is_built(
    config: ClientConfig,
    monkeypatch: pytest.MonkeyPatch,
    limit: dict[str, int],
    recipe: Recipe,
    setting: str,
) -> None:
    monkeypatch.setattr("client.doors.flower_app.decode_meta_learner", lambda *_: pytest.fail("built"))
    side = 17 if setting == "image_size" else 16
    sent = _meta_learner(recipe=recipe, side=side)
    reply = app(_message(ADAPT, sent), _own(_limited(config, **limit)))
    assert reply.error.reason.endswith(f"or raise limits.{setting}")


def test_a_recipe_of_exactly_the_limit_is_adapted(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "evaluate", lambda *_: [])
    sent = _meta_learner(recipe=Recipe("gradient", steps=5))
    assert app(_message(ADAPT, sent), _own(_limited(config, recipe_steps=5))).has_content()


def test_of_starts_that_begin_alike_none_is_taken_and_the_candidates_are_named(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.doors.flower_app.pretrain", lambda _: pytest.fail("trained"))
    alike = ["ab" * 31 + last for last in ("01", "02")]
    chosen = config.model_copy(update={"start_sha256": "abab"})
    reply = app(_message(CONTRIBUTE, question("00" * 32, *alike)), _own(chosen))
    assert reply.error.reason.startswith("2 of the federation's starts begin with abab: name one of abab")


def test_training_that_took_too_long_is_answered_without_its_words(
    config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_long(_: ClientConfig) -> tuple[bytes, bytes]:
        raise OutOfTimeError("(train: 3 of 4)")

    monkeypatch.setattr("client.doors.flower_app.pretrain", take_long)
    reply = app(_message(CONTRIBUTE, question()), _own(config))
    assert reply.error.reason == "the organisation could not train: OutOfTimeError"
