"""The store keeps what it was given, once, and moves it whole."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, contribution_id, encode_contribution, encode_weights, sha256
from fedfree.errors import StorageError
from fedfree.statement import PrivacyStatement
from server.events import Event, ignore
from server.storage.damage import set_damaged_aside
from server.storage.store import ACCEPTED, MANIFEST, QUARANTINED, RECEIVED, WEIGHTS, Store
from server.verify.verify import verify_received

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


def test_a_contribution_that_arrives_in_pieces_is_the_one_that_arrives_whole(store: Store) -> None:
    manifest, weights = make_message()
    with closing(store.upload(manifest, organisation="org-1")) as upload:
        for start in range(0, len(weights), 1000):
            upload.write(weights[start : start + 1000])
        assert (upload.size, upload.sha256()) == (len(weights), sha256(weights))
        assert store.place_of(contribution_id(manifest)) is None
        upload.commit()
    assert store.read(contribution_id(manifest)) == (manifest, weights)
    assert store.organisation(contribution_id(manifest)) == "org-1"
    verify(store)
    assert store.organisation(contribution_id(manifest)) == "org-1"
    assert store.organisation(store.receive(*make_message(1))) is None


def test_an_upload_that_is_not_committed_leaves_nothing(store: Store) -> None:
    manifest, weights = make_message()
    with closing(store.upload(manifest)) as upload:
        upload.write(weights)
    assert store.ids(RECEIVED) == []
    assert list(store.path.glob(".*")) == []


def test_an_upload_under_way_is_no_leftover(store: Store) -> None:
    manifest, weights = make_message()
    with closing(store.upload(manifest)) as upload:
        upload.write(weights[:100])
        Store(store.path).discard_leftovers()
        verify(store)
        upload.write(weights[100:])
        upload.commit()
    assert store.read(contribution_id(manifest)) == (manifest, weights)


def test_of_two_uploads_of_one_contribution_the_first_stays(store: Store) -> None:
    manifest, weights = make_message()
    with closing(store.upload(manifest)) as first, closing(store.upload(manifest)) as second:
        for upload in (first, second):
            upload.write(weights)
        first.commit()
        verify(store)
        second.commit()
    assert store.place_of(contribution_id(manifest)) == ACCEPTED
    assert store.ids(RECEIVED) == []
    assert list(store.path.glob(".*")) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_flipped_bit_in_what_was_accepted_is_named_when_it_is_read(store: Store, name: str) -> None:
    identity = store.receive(*make_message())
    verify(store)
    flip(store.path / ACCEPTED / identity / name)
    with pytest.raises(StorageError, match=f"{identity}/{name} is damaged: .*handed over again"):
        store.network(identity)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_what_the_disk_changed_is_set_aside_by_name_and_may_come_again(store: Store, name: str) -> None:
    damaged, whole = store.receive(*make_message()), store.receive(*make_message(1))
    verify(store)
    for turn in range(2):
        flip(store.path / ACCEPTED / damaged / name)
        events: list[Event] = []
        set_damaged_aside(store, events.append)
        (event,) = events
        assert (event.kind, event.values["contribution"]) == ("damaged", damaged)
        assert f"{name} is no longer what arrived" in str(event.values["reason"])
        assert store.ids(ACCEPTED) == [whole], turn
        store.receive(*make_message())
        verify(store)
        assert store.network(damaged) and store.ids(ACCEPTED) == sorted((damaged, whole))


def test_a_file_that_went_missing_is_damage_too(store: Store) -> None:
    identity = store.receive(*make_message())
    verify(store)
    (store.path / ACCEPTED / identity / WEIGHTS).unlink()
    set_damaged_aside(store, ignore)
    assert store.place_of(identity) is None
