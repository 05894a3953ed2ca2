"""VERIFY recomputes what a privacy statement claims, and lets in who began where the federation does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
from fedfree.start import LoadedStart, fill_body
from fedfree.statement import Composition, DifferentialPrivacy, DpSgd, PrivacyStatement, PrivacyStatus
from server.events import Event
from server.storage.store import ACCEPTED, QUARANTINED, Store
from server.verify.verify import verify_received

CLAIM = DifferentialPrivacy(
    epsilon=7.99,
    delta=1e-5,
    run=DpSgd(1.1309814453125, 0.1, 200),
    max_grad_norm=1.0,
    images=2400,
    images_rounded_to=100,
    accountant="prv",
    software="test",
    composition=Composition(8.0, 1),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def receive(store: Store, claim: DifferentialPrivacy) -> None:
    torch.manual_seed(0)
    spec = InputSpec(channels=1, height=16, width=16)
    architecture = Architecture(norm="group")
    privacy = PrivacyStatement(PrivacyStatus.DP, claim)
    contribution = Contribution(
        architecture, 3, spec, privacy, encode_weights(build(architecture, num_classes=3, input=spec))
    )
    store.receive(encode_contribution(contribution), contribution.weights)


def test_an_accepted_epsilon_is_recorded_as_the_clients_claim(store: Store) -> None:
    events: list[Event] = []
    receive(store, CLAIM)
    verify_received(store, events.append)
    assert len(store.ids(ACCEPTED)) == 1
    values = events[-1].values
    assert values["epsilon_claimed_by_the_client"] == 7.99
    assert values["epsilon_recomputed_from_the_claim"] == pytest.approx(7.985, abs=0.002)


def test_an_epsilon_below_what_its_noise_gives_is_quarantined(store: Store) -> None:
    receive(store, dataclasses.replace(CLAIM, epsilon=5.0))
    verify_received(store, lambda _: None)
    (identity,) = store.ids(QUARANTINED)
    assert "claims epsilon 5.000" in store.reason(identity)
    assert "give 7.985" in store.reason(identity)


def test_who_began_from_the_start_is_let_in_and_the_start_gives_what_did_not_travel(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    store = Store(tmp_path / "store", make_start)
    identity = store.receive(*contribute_from(make_start()))
    verify_received(store, lambda _: None)
    assert store.ids(ACCEPTED) == [identity]
    contribution, network = store.network(identity)
    sent = safetensors.torch.load(store.contribution(identity).weights)
    assert sent.keys() == {"blocks.3.0.weight", "head.weight", "head.bias"}
    expected = build(contribution.architecture, num_classes=3, input=contribution.input)
    fill_body(expected, make_start().body, "the start")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, sent.get(name, expected.state_dict()[name]))


@pytest.mark.parametrize(
    ("federation", "seed", "changes", "words"),
    [
        (0, 1, {}, "begins from the start {began}…, this federation from the start {own}…: bring that one"),
        (0, 0, {"start": ""}, "missing"),
        (None, 0, {}, "begins from the start {began}…, this federation from no public start: train without"),
        (0, 0, {"input": InputSpec(1, 16, 16, mean=(0.1,))}, "its start InputSpec(channels=1, height=16"),
        (0, 0, {"privacy": PrivacyStatement()}, "names other initial weights than the start's"),
    ],
    ids=["another start", "says none", "run has none", "other images", "another statement"],
)
def test_who_began_elsewhere_is_quarantined_and_told_both_starts(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
    federation: int | None,
    seed: int,
    changes: dict[str, object],
    words: str,
) -> None:
    own = None if federation is None else make_start(federation)
    store = Store(tmp_path / "store", lambda: own)
    identity = store.receive(*contribute_from(make_start(seed), **changes))
    verify_received(store, lambda _: None)
    assert store.ids(QUARANTINED) == [identity]
    named = {"began": make_start(seed).start.sha256[:12], "own": own.start.sha256[:12] if own else ""}
    assert words.format(**named) in store.reason(identity)


def test_a_whole_model_that_began_from_random_weights_is_refused_where_there_is_a_start(
    tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    store = Store(tmp_path / "store", make_start)
    receive(store, CLAIM)
    verify_received(store, lambda _: None)
    (identity,) = store.ids(QUARANTINED)
    assert "begins from no public start, this federation from the start" in store.reason(identity)


def test_of_several_starts_each_is_let_in_and_another_is_refused_with_all_of_them_named(
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    first, second, other = make_start(0), make_start(1, architecture="conv4-32-group"), make_start(2)
    store = Store(tmp_path / "store", lambda: first, lambda: [second])
    accepted = {store.receive(*contribute_from(each, n)): each for n, each in enumerate((first, second))}
    refused = store.receive(*contribute_from(other))
    verify_received(store, lambda _: None)
    assert store.ids(ACCEPTED) == sorted(accepted) and store.ids(QUARANTINED) == [refused]
    names = " or ".join(f"{each.start.sha256[:12]}…" for each in (first, second))
    assert f"this federation from the start {names}: bring one of them" in store.reason(refused)
    for identity, begun in accepted.items():
        network = store.network(identity)[1]
        assert network.get_parameter("blocks.0.0.weight").equal(begun.body["blocks.0.0.weight"])
