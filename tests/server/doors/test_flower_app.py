"""The server's Flower app, phase by phase, against organisations that answer anything."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedfree.codec import contribution_id
from fedfree.episodes import Accuracy, EpisodeSpec
from fedfree.errors import ConfigError, FederationError
from fedfree.flower_records import (
    ADAPT,
    CONTRIBUTE,
    ORGANISATION_FAILED,
    accuracies_to_records,
    brings_start,
    from_records,
    start_named,
    start_wanted,
    to_records,
)
from fedfree.release import this_release
from fedfree.start import LoadedStart, encode_start
from server import pipeline
from server.config import CollectConfig, ServerConfig
from server.doors import flower_app as server_app
from server.doors.flower_app import MAX_ASKS, adapt, app, collect, serve
from server.events import Event
from server.storage.run_directory import RunDirectory
from server.storage.store import RECEIVED, Store
from simulations.federation.grid import FIRST_NODE_ID, InProcessGrid

Answer = Callable[[Message, int], Message]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_app, "POLL_SECONDS", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _grid(
    answer: Answer, organisations: int = 3, goes_offline: dict[int, int] | None = None
) -> InProcessGrid:
    """Organisations that answer either question with ``answer(message, index)``."""
    client_app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        return answer(message, int(context.node_config["partition-id"]))

    client_app.train("contribute")(reply)
    client_app.evaluate("adapt")(reply)
    return InProcessGrid(client_app, {}, organisations=organisations, goes_offline=goes_offline)


def _model(message: Message, index: int) -> Message:
    return Message(to_records(b"manifest %d" % index, b"weights %d" % index), reply_to=message)


def _except(index: int, instead: Callable[[Message], Message]) -> Answer:
    """Everyone contributes, but one answers otherwise."""
    return lambda message, organisation: (
        instead(message) if organisation == index else _model(message, organisation)
    )


def _collect(
    grid: InProcessGrid, store: Store, *, organisations: int = 3, timeout: float = 60
) -> list[Event]:
    events: list[Event] = []
    config = CollectConfig(organisations=organisations, deadline_hours=timeout / 3600)
    collect(grid, store, config, events.append, lambda manifest: b"a signature")
    return events


def _kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_contributions_are_stored_as_they_arrive(store: Store) -> None:
    stored: list[int] = []

    def answer(message: Message, index: int) -> Message:
        stored.append(len(store.ids(RECEIVED)))
        return _model(message, index)

    events = _collect(_grid(answer), store)
    assert stored == [0, 1, 2]
    assert store.ids(RECEIVED) == sorted(contribution_id(b"manifest %d" % index) for index in range(3))
    assert _kinds(events) == ["started", "progress", "progress", "progress", "finished"]
    assert events[-1].values == {"done": 3, "failed": 0, "missing": 0, "of": 3}


class _Counting(InProcessGrid):
    most = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = super().push_messages(messages)
        self.most = max(self.most, len(self._waiting))
        return pushed


@pytest.mark.parametrize(("at_once", "most"), [(0, 5), (2, 2), (9, 5)])
def test_no_more_nodes_are_asked_at_once_than_may_be(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int, most: int
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "InProcessGrid", _Counting)
    events: list[Event] = []
    grid = _grid(_model, organisations=5, goes_offline={1: 1})
    assert isinstance(grid, _Counting)
    config = CollectConfig(organisations=5)
    collect(grid, store, config, events.append, lambda manifest: b"a signature", at_once=at_once)
    assert grid.most == most
    assert events[-1].values == {"done": 5, "failed": 0, "missing": 0, "of": 5}
    grid = _grid(
        lambda message, _: Message(RecordDict(), reply_to=message), organisations=5, goes_offline={1: 1}
    )
    assert isinstance(grid, _Counting)
    answers = adapt(grid, RecordDict(), events.append, at_once=at_once)
    assert grid.most == most
    assert len(answers) == 5 and not any("error" in answer for answer in answers)
    assert [event.values for event in events[-6:]] == [{"done": done, "of": 5} for done in (1, 2, 3, 4, 5, 5)]


def test_a_node_that_goes_offline_is_asked_again(store: Store) -> None:
    events = _collect(_grid(_model, goes_offline={1: MAX_ASKS - 1}), store)
    assert events[-1].values["done"] == 3


def test_a_node_that_always_goes_offline_is_given_up(store: Store) -> None:
    events = _collect(_grid(_model, goes_offline={1: MAX_ASKS}), store)
    failed = next(event for event in events if event.kind == "failed")
    assert failed.values == {"node": FIRST_NODE_ID + 1, "reason": "the organisation went offline"}
    assert len(store.ids(RECEIVED)) == 2


def test_a_failing_organisation_is_skipped_and_named(store: Store) -> None:
    reason = "the organisation could not train: DataError"
    grid = _grid(_except(2, lambda message: Message(Error(ORGANISATION_FAILED, reason), reply_to=message)))
    failed = next(event for event in _collect(grid, store) if event.kind == "failed")
    assert failed.values == {"node": FIRST_NODE_ID + 2, "reason": reason}


def test_a_model_of_another_release_is_not_taken_and_both_are_named(store: Store) -> None:
    def foreign(message: Message) -> Message:
        content = to_records(b"manifest", b"weights")
        content["release"] = ConfigRecord({"release": "0.0.1 (protocol 1, contract 00)"})
        return Message(content, reply_to=message)

    failed = next(event for event in _collect(_grid(_except(0, foreign)), store) if event.kind == "failed")
    for named in (f"the coordinator has FedFREE {this_release()}", "the organisation a FedFREE 0.0.1"):
        assert named in str(failed.values["reason"])
    assert len(store.ids(RECEIVED)) == 2


def test_the_question_says_which_release_asks(store: Store) -> None:
    asked: list[object] = []

    def answer(message: Message, index: int) -> Message:
        asked.append(message.content.config_records["release"]["release"])
        return _model(message, index)

    _collect(_grid(answer), store)
    assert asked == [this_release()] * 3


def test_the_question_names_the_start_and_brings_it_to_whoever_lacks_it(
    tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    begun, asked = make_start(), list[tuple[int, str, bool]]()

    def answer(message: Message, index: int) -> Message:
        asked.append((index, start_named(message.content), brings_start(message.content)))
        if index == 1 and not asked[-1][-1]:
            return Message(start_wanted(), reply_to=message)
        if index == 1:
            assert from_records(message.content) == (encode_start(begun.start), begun.weights)
        return _model(message, index)

    events = _collect(_grid(answer), Store(tmp_path / "store", make_start))
    named = begun.start.sha256
    assert sorted(asked) == [(0, named, False), (1, named, False), (1, named, True), (2, named, False)]
    assert events[-1].values == {"done": 3, "failed": 0, "missing": 0, "of": 3}


@pytest.mark.parametrize("has_start", [True, False])
def test_who_keeps_asking_for_the_start_is_given_up(
    tmp_path: Path, make_start: Callable[..., LoadedStart], has_start: bool
) -> None:
    store = Store(tmp_path / "store", lambda: make_start() if has_start else None)
    grid = _grid(_except(1, lambda message: Message(start_wanted(), reply_to=message)))
    events = _collect(grid, store)
    (failed,) = [event for event in events if event.kind == "failed"]
    words = f"asked {MAX_ASKS} times, and sends no model" if has_start else "expected a config record"
    assert words in str(failed.values["reason"])
    assert events[-1].values["done"] == 2


def test_a_run_in_which_another_process_learns_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(ServerConfig().to_toml())
    run = RunDirectory(tmp_path)
    with run.held(), pytest.raises(ConfigError, match="another process runs in"):
        serve(_grid(_model), tmp_path)
    assert not run.error.exists()
    assert run.read_events() == []


def test_what_flower_says_of_an_exception_is_not_repeated(store: Store) -> None:
    grid = _grid(
        _except(0, lambda message: Message(Error(2, "KeyError: /hospital/jane-doe"), reply_to=message))
    )
    failed = next(event for event in _collect(grid, store) if event.kind == "failed")
    assert failed.values["reason"] == "the organisation's ClientApp raised an exception"


def test_an_organisations_own_words_are_cut_to_one_short_line(store: Store) -> None:
    text = "\x1b[2J\n" + "x" * 1000
    grid = _grid(_except(0, lambda message: Message(Error(ORGANISATION_FAILED, text), reply_to=message)))
    failed = next(event for event in _collect(grid, store) if event.kind == "failed")
    reason = str(failed.values["reason"])
    assert len(reason) <= 200
    assert reason.isprintable()


@pytest.mark.parametrize(
    "records", [RecordDict(), RecordDict({"weights": ConfigRecord({"safetensors": b"?"})})]
)
def test_a_garbage_reply_is_an_event(store: Store, records: RecordDict) -> None:
    events = _collect(_grid(_except(1, lambda message: Message(records, reply_to=message))), store)
    assert _kinds(events).count("failed") == 1
    assert events[-1].values == {"done": 2, "failed": 1, "missing": 0, "of": 3}


def test_collecting_ends_when_time_is_up(store: Store) -> None:
    events = _collect(_grid(_model), store, organisations=4, timeout=1.0)
    assert events[-1].values == {"done": 3, "failed": 0, "missing": 1, "of": 4}


def test_nobody_is_asked_when_the_store_is_full(store: Store) -> None:
    for index in range(3):
        store.receive(b"manifest %d" % index, b"weights")
    events = _collect(_grid(lambda message, index: pytest.fail("asked")), store)
    assert events[0].values == {"done": 3, "of": 3}


def test_an_organisation_that_sent_several_models_counts_once(store: Store) -> None:
    for index in (7, 8, 9):
        store.receive(b"manifest %d" % index, b"weights", organisation="one that sent enough for everybody")
    events = _collect(_grid(_model), store)
    assert events[0].values["done"] == 1 and _kinds(events).count("progress") == 2
    handed_over = sorted(str(store.organisation(each)) for each in store.ids(RECEIVED))
    assert handed_over == ["node 100", "node 101", *["one that sent enough for everybody"] * 3]


def test_contributions_already_in_the_store_count(store: Store) -> None:
    store.receive(b"manifest 0", b"weights 0")
    events = _collect(_grid(_model), store)
    assert events[0].values["done"] == 1
    assert len(store.ids(RECEIVED)) == 3


def test_a_continued_run_does_not_wait_for_those_who_contributed_before(store: Store) -> None:
    for index in (1, 2):
        store.receive(b"manifest %d" % index, b"weights")
    alone = _grid(lambda message, index: Message(RecordDict(), reply_to=message), organisations=1)
    assert _collect(alone, store)[-1].values == {"done": 2, "failed": 1, "missing": 0, "of": 3}


def test_the_same_model_from_two_organisations_does_not_keep_the_server_waiting(store: Store) -> None:
    events = _collect(_grid(lambda message, index: _model(message, 0)), store)
    assert events[-1].values["done"] == 1


def _adapt(answer: Answer) -> tuple[list[dict[str, object]], list[Event]]:
    events: list[Event] = []
    return adapt(_grid(answer), to_records(b"manifest", b"weights"), events.append), events


def test_answers_to_the_meta_learner_are_collected() -> None:
    shared = accuracies_to_records([(EpisodeSpec(5, 1, 15), Accuracy(41.5, 0.8, 600))])

    def answer(message: Message, index: int) -> Message:
        assert message.metadata.message_type == ADAPT
        if index == 0:
            return Message(shared, reply_to=message)
        if index == 1:
            return Message(RecordDict(), reply_to=message)
        return Message(Error(ORGANISATION_FAILED, "could not adapt: DataError"), reply_to=message)

    answers, events = _adapt(answer)
    numbers = {"n_way": 5, "n_shot": 1, "mean": 41.5, "ci95": 0.8, "episodes": 600}
    assert answers == [
        {"node": 0, "results": [numbers]},
        {"node": 1, "results": []},
        {"node": 2, "error": "could not adapt: DataError"},
    ]
    assert _kinds(events) == ["started", "progress", "progress", "failed", "progress", "finished"]


def test_implausible_accuracies_are_an_error() -> None:
    answers, _ = _adapt(
        lambda message, index: Message(RecordDict({"x": MetricRecord({"mean": 1e9})}), reply_to=message)
    )
    assert all("error" in answer for answer in answers)


def test_who_does_not_answer_to_the_meta_learner_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_app, "ADAPT_TIMEOUT_SECONDS", 0.05)
    grid = _grid(_model, organisations=1)
    monkeypatch.setattr(grid, "pull_messages", lambda _: [])
    answers = adapt(grid, to_records(b"manifest", b"weights"), lambda _: None)
    assert answers == [{"node": 0, "error": "no answer within 0 s"}]


def _prepare(run: Path) -> Path:
    run.mkdir(exist_ok=True)
    (run / "server.toml").write_text(ServerConfig(collect=CollectConfig(organisations=3)).to_toml())
    return run


def test_a_run_without_configuration_says_how_to_prepare_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedfree-sim prepare"):
        serve(_grid(_model), tmp_path)


@pytest.mark.parametrize("run_config", [{}, {"run": ""}])
def test_a_run_that_is_not_named_says_how_to_prepare_one(run_config: dict[str, str]) -> None:
    context = Context(1, 1, {}, RecordDict(), dict(run_config))
    with pytest.raises(ConfigError, match="fedfree-sim prepare"):
        app(_grid(_model), context)


@pytest.mark.parametrize("at_once", [-1, "many"])
def test_a_wrong_number_of_nodes_at_once_is_refused(tmp_path: Path, at_once: int | str) -> None:
    context = Context(1, 1, {}, RecordDict(), {"run": str(tmp_path), "at-once": at_once})
    with pytest.raises(ConfigError, match=r"at-once is .*: use a whole number"):
        app(_grid(_model), context)


def test_a_failing_run_leaves_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FederationError("too few\naccepted")

    monkeypatch.setattr(pipeline, "run", refuse)
    run = _prepare(tmp_path)
    with pytest.raises(FederationError):
        app(_grid(_model), Context(1, 1, {}, RecordDict(), {"run": str(run)}))
    assert RunDirectory(run).error.read_text() == "too few accepted\n"


def test_events_are_written_as_they_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise FederationError("enough seen")

    monkeypatch.setattr(pipeline, "run", stop)
    run, events = _prepare(tmp_path), list[Event]()
    with pytest.raises(FederationError):
        serve(_grid(_model), run, on_event=events.append)
    assert RunDirectory(run).read_events() == events
    lines = RunDirectory(run).events.read_text().splitlines()
    assert all("time" in json.loads(line) for line in lines)


def test_the_question_is_asked_once_of_each_organisation(store: Store) -> None:
    asked: list[tuple[str, int]] = []

    def answer(message: Message, index: int) -> Message:
        asked.append((message.metadata.message_type, index))
        return _model(message, index)

    _collect(_grid(answer), store)
    assert asked == [(CONTRIBUTE, 0), (CONTRIBUTE, 1), (CONTRIBUTE, 2)]


def test_a_start_that_the_run_does_not_have_is_sent_to_nobody(
    tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    store = Store(tmp_path / "store", make_start, lambda: [make_start(1)])
    grid = _grid(_except(1, lambda message: Message(start_wanted("12" * 32), reply_to=message)))
    events = _collect(grid, store)
    (failed,) = [event for event in events if event.kind == "failed"]
    names = " or ".join(f"{make_start(seed).start.sha256[:12]}…" for seed in range(2))
    assert f"from the start 121212121212…, this federation from the start {names}" in failed.values["reason"]
    assert events[-1].values["done"] == 2
