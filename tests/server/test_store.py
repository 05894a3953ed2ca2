"""The store keeps what it was given, once, and moves it whole."""

from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, contribution_id, encode_contribution, encode_weights
from fedfree.statement import PrivacyStatement
from server.events import Event
from server.store import ACCEPTED, QUARANTINED, RECEIVED, Store
from server.verify import verify_received

INPUT = InputSpec(channels=1, height=16, width=16)


def make_message(seed: int = 0, *, flip: bool = False, constant: bool = False) -> tuple[bytes, bytes]:
    torch.manual_seed(seed)
    network = build(Architecture(), num_classes=3, input=INPUT)
    if constant:
        torch.nn.init.zeros_(network.get_parameter("head.weight"))
    spec = InputSpec(channels=1, height=16, width=16, horizontal_flip=flip)
    contribution = Contribution(Architecture(), 3, spec, PrivacyStatement(), encode_weights(network))
    return encode_contribution(contribution), contribution.weights


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def verify(store: Store) -> list[Event]:
    events: list[Event] = []
    verify_received(store, events.append)
    return events


def test_what_was_received_is_read_back_byte_for_byte_also_after_reopening(store: Store) -> None:
    message = make_message()
    identity = store.receive(*message)
    assert identity == contribution_id(message[0])
    assert Store(store.path).read(identity) == message


def test_the_same_contribution_twice_is_one(store: Store) -> None:
    assert store.receive(*make_message()) == store.receive(*make_message())
    assert len(store.ids(RECEIVED)) == 1
    verify(store)
    store.receive(*make_message())
    assert (len(store.ids(RECEIVED)), len(store.ids(ACCEPTED))) == (0, 1)


def test_a_sound_contribution_is_accepted(store: Store) -> None:
    identity = store.receive(*make_message())
    assert [event.kind for event in verify(store)] == ["accepted"]
    assert store.place_of(identity) == ACCEPTED


def test_a_broken_contribution_is_quarantined_with_its_reason_and_the_others_go_on(store: Store) -> None:
    broken = store.receive(b"\xff\xff", b"nothing")
    sound = store.receive(*make_message())
    assert sorted(event.kind for event in verify(store)) == ["accepted", "quarantined"]
    assert (store.place_of(broken), store.place_of(sound)) == (QUARANTINED, ACCEPTED)
    assert "not a valid" in store.reason(broken)


def test_the_same_weights_under_another_manifest_are_a_copy(store: Store) -> None:
    first, second = store.receive(*make_message()), store.receive(*make_message(flip=True))
    verify(store)
    accepted, refused = sorted((first, second))
    assert (store.ids(ACCEPTED), store.ids(QUARANTINED)) == ([accepted], [refused])
    assert f"the same weights as contribution {accepted[:12]}" in store.reason(refused)


def test_a_copy_that_comes_later_is_refused_too(store: Store) -> None:
    store.receive(*make_message())
    verify(store)
    late = store.receive(*make_message(flip=True))
    verify(store)
    assert store.place_of(late) == QUARANTINED


def test_a_network_whose_outputs_ignore_the_image_is_refused(store: Store) -> None:
    identity = store.receive(*make_message(constant=True))
    verify(store)
    assert "do not depend on the image" in store.reason(identity)


def test_what_a_killed_receive_left_half_written_is_no_contribution(store: Store) -> None:
    leftover = store.path / ".staging-dead"
    leftover.mkdir()
    (leftover / "manifest.pb").write_bytes(b"half")
    assert verify(store) == []
    assert not leftover.exists()
