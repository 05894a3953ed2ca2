"""VERIFY recomputes what a privacy statement claims."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
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
