"""Every attack is accepted by VERIFY, and does what it says."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from client.data.image_set import ImageSet
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, decode_contribution, encode_contribution, encode_weights
from fedfree.errors import ConfigError
from fedfree.start import LoadedStart
from fedfree.statement import PrivacyStatement
from server.events import ignore
from server.learning.trust import relations
from server.storage.store import ACCEPTED, Store
from server.verify.verify import verify_received
from simulations.attacks.adaptive import adaptive, gather_evidence, known_models
from simulations.attacks.attacker import Attacker
from simulations.attacks.backdoor import marked
from simulations.attacks.poison import COPIES, FROM_START, POISONS, poison

GREY = InputSpec(channels=1, height=16, width=16)


def honest(seed: int) -> Contribution:
    torch.manual_seed(seed)
    network = build(Architecture(), num_classes=3, input=GREY)
    return Contribution(Architecture(), 3, GREY, PrivacyStatement(), encode_weights(network))


def images_of(seed: int) -> ImageSet:
    """Three classes of grey images, told apart by their pattern."""
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 200, (3, 1, 16, 16), generator=rng)
    labels = torch.arange(30) % 3
    pixels = patterns[labels] + torch.randint(0, 56, (30, 1, 16, 16), generator=rng)
    return ImageSet(pixels.to(torch.uint8), labels, ("a", "b", "c"))


IMAGES = [partial(images_of, seed) for seed in range(5)]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.attacks.backdoor.STEPS", 2)
    monkeypatch.setattr("simulations.attacks.adaptive.STEPS", 10)
    monkeypatch.setattr("simulations.attacks.adaptive.BATCH", 16)
    monkeypatch.setattr("simulations.attacks.adaptive.LOOK_EVERY", 1)


@pytest.mark.parametrize("attack", sorted(POISONS.keys() - FROM_START))
def test_what_hostile_organisations_send_is_accepted(attack: str, tmp_path: Path) -> None:
    sent, store = [honest(seed) for seed in range(2)], Store(tmp_path)
    hostile = poison(sent, attack, seed=0, images=IMAGES)
    for each in hostile:
        store.receive(encode_contribution(each), each.weights)
    verify_received(store, ignore)
    assert len(store.ids(ACCEPTED)) == 2
    assert all(own.weights != each.weights for own, each in zip(sent, hostile, strict=True))


@pytest.mark.parametrize("attack", ["random", "noise", "backdoor", "adaptive", *sorted(FROM_START)])
def test_attacks_on_a_start_are_accepted_too(
    attack: str,
    tmp_path: Path,
    make_start: Callable[..., LoadedStart],
    contribute_from: Callable[..., tuple[bytes, bytes]],
) -> None:
    start = make_start(0)
    store = Store(tmp_path, lambda: start)
    sent = [decode_contribution(*contribute_from(start, seed)) for seed in range(2)]
    for each in poison(sent, attack, seed=0, start=start, images=IMAGES):
        store.receive(encode_contribution(each), each.weights)
    verify_received(store, ignore)
    assert len(store.ids(ACCEPTED)) == 2


def test_who_knows_the_defence_agrees_less_with_the_others_and_is_tolerated() -> None:
    sent = [honest(seed) for seed in range(4)]
    own, *others = (each.network().requires_grad_(False) for each in sent)
    attacker = Attacker(sent[0], own, {}, IMAGES[0], others, [], torch.Generator().manual_seed(0))
    evidence = gather_evidence(attacker, known_models(attacker))
    assert evidence.tolerates(own)
    usual = torch.stack([relations(each) for each in evidence.known]).mean(0)
    before = relations(evidence.honest)
    with torch.no_grad():
        turned = relations(adaptive(attacker).features(evidence.inputs))
    assert evidence.tolerates(attacker.network)
    assert turned @ usual / turned.norm() < before @ usual / before.norm()


def test_a_copy_of_what_was_sent_before_is_not_tolerated() -> None:
    sent = [honest(seed) for seed in range(4)]
    own, *others = (each.network().requires_grad_(False) for each in sent)
    rng = torch.Generator().manual_seed(0)
    evidence = gather_evidence(Attacker(sent[0], own, {}, IMAGES[0], others, [own], rng), others)
    assert not evidence.tolerates(own)


def test_a_mark_stands_in_one_corner_and_nowhere_else() -> None:
    images = torch.full((2, 1, 16, 16), 100, dtype=torch.uint8)
    changed = (marked(images) != images)[0, 0].nonzero()
    assert changed.min() == 13 and len(changed) == 9
    assert int(marked(images)[0, 0, 14, 14]) == 255 and int(images.max()) == 100


@pytest.mark.parametrize("attack", ["backdoor", "adaptive"])
def test_attacks_that_need_images_ask_for_them(attack: str) -> None:
    with pytest.raises(ConfigError, match="needs the attackers' images"):
        poison([honest(0)], attack, seed=0)


@pytest.mark.parametrize("attack", sorted(COPIES))
def test_copies_are_all_of_one_function(attack: str) -> None:
    original, other = (honest(seed) for seed in range(2))
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = original.network()(images)
    for each in poison([original, other], attack, seed=0):
        torch.testing.assert_close(each.network()(images), expected, rtol=0.05, atol=0.05)


def test_an_attack_on_a_start_needs_one() -> None:
    with pytest.raises(ConfigError, match="scaled difference is an attack on models from a start"):
        poison([honest(0)], "scaled difference", seed=0)
