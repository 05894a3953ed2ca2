"""VERIFY recomputes what a privacy statement claims, and lets in who began where the federation does."""

import dataclasses
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedfree.accounting import FINER_MESH, run_epsilon
from fedfree.architectures import Architecture, Classifier, InputSpec, build
from fedfree.architectures.conv4 import Conv4
from fedfree.codec import Contribution, decode_contribution, encode_contribution, encode_weights
from fedfree.errors import ContributionError, StorageError
from fedfree.rule import RULES, sentence_of
from fedfree.start import LoadedStart, fill_body
from fedfree.statement import Composition, DifferentialPrivacy, DpSgd, PrivacyStatement, PrivacyStatus
from server.events import Event
from server.storage.store import ACCEPTED, QUARANTINED, RECEIVED, Store
from server.verify import rules, verify
from server.verify.rules import Known, check_privacy_claim, name_of
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


def receive_network(store: Store, change: Callable[[Classifier], object], seed: int = 0) -> str:
    """A conv4 of which something was changed by hand."""
    torch.manual_seed(seed)
    spec = InputSpec(channels=1, height=16, width=16)
    network = build(Architecture(), num_classes=3, input=spec).requires_grad_(False)
    change(network)
    contribution = Contribution(Architecture(), 3, spec, PrivacyStatement(), encode_weights(network))
    return store.receive(encode_contribution(contribution), contribution.weights)


def small_variances(network: Classifier) -> None:
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1e-12)


def shifted(by: float) -> Callable[[Classifier], object]:
    """Features on an image of one colour are the bias of the last norm."""
    return lambda network: network.get_parameter("blocks.3.1.bias").fill_(by)


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (small_variances, "activations", "the network's features on noise reach"),
        (shifted(20_000), "activations", "reach 2e+04, above 10000"),
        (lambda network: network.head.weight.zero_(), "outputs-differ", "do not depend on the image"),
        (lambda network: network.get_parameter("blocks.0.1.weight").fill_(3e38), "activations", "not finite"),
    ],
    ids=["variances that 1e-5 hides", "features beyond half precision", "one answer", "infinite features"],
)
def test_a_network_that_would_spoil_the_pool_is_refused_by_the_rule_that_it_broke(
    store: Store, change: Callable[[Classifier], object], rule: str, words: str
) -> None:
    identity = receive_network(store, change)
    verify_received(store, lambda _: None)
    assert store.ids(QUARANTINED) == [identity]
    assert words in store.reason(identity)
    assert store.reason(identity).endswith(f"(rule {rule})")


def test_large_features_within_the_limit_are_accepted(store: Store) -> None:
    identity = receive_network(store, shifted(5_000))
    verify_received(store, lambda _: None)
    assert store.ids(ACCEPTED) == [identity]


def test_gradients_that_are_not_finite_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def root(self: Conv4, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(images).flatten(1) + (images.sum() * 0).sqrt()  # its slope at 0 is infinite

    identity = receive_network(store, lambda network: None)
    monkeypatch.setattr(Conv4, "features", root)
    verify_received(store, lambda _: None)
    assert store.reason(identity).endswith("is not finite (rule gradients)")


def test_the_same_weights_under_another_statement_are_a_copy(store: Store) -> None:
    first = receive_network(store, lambda network: None)
    verify_received(store, lambda _: None)
    manifest, weights = store.read(first)
    sent = dataclasses.replace(
        decode_contribution(manifest, weights), privacy=PrivacyStatement(PrivacyStatus.EMPIRICAL_ONLY)
    )
    second = store.receive(encode_contribution(sent), weights)
    verify_received(store, lambda _: None)
    assert store.reason(second) == f"the same weights as contribution {first[:12]}… (rule not-a-copy)"


@pytest.mark.parametrize("times", [0.97, 0.99])
def test_a_small_epsilon_too_may_lie_below_its_own_noise_by_two_percent_at_most(times: float) -> None:
    run = DpSgd(200.0, 0.1, 200)
    own = run_epsilon(run, CLAIM.delta, finest_mesh=FINER_MESH)
    with nullcontext() if times > 0.98 else pytest.raises(ContributionError, match="claims epsilon"):
        check_privacy_claim(claiming(run, times * own), Known({}))


def test_the_accountant_of_the_client_is_believed_over_thousands_of_steps_with_little_noise_each() -> None:
    run, by_opacus = DpSgd(20.0, 0.001, 50_000), 0.04096
    assert by_opacus < run_epsilon(run, CLAIM.delta) - 0.02
    check_privacy_claim(claiming(run, by_opacus), Known({}))


def claiming(run: DpSgd, epsilon: float) -> Contribution:
    claim = dataclasses.replace(CLAIM, run=run, epsilon=epsilon)
    privacy = PrivacyStatement(PrivacyStatus.DP, claim)
    return Contribution(Architecture(norm="group"), 3, InputSpec(1, 16, 16), privacy, b"")


def test_a_fault_while_one_contribution_is_looked_at_refuses_it_alone_and_is_logged_where_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identities = sorted(receive_network(store, lambda network: None, seed) for seed in range(3))

    def check_parity(contribution: Contribution, known: Known) -> dict[str, float]:
        if len(known.pool) == 1 and not store.ids(QUARANTINED):
            raise TypeError("a fault with /a/path")
        return {}

    monkeypatch.setattr(rules, "RULES", [*rules.RULES, check_parity])
    monkeypatch.setattr(verify, "RULES", rules.RULES)
    verify_received(store, lambda _: None)
    assert len(store.ids(ACCEPTED)) == 2 and not store.ids(RECEIVED)
    (refused,) = store.ids(QUARANTINED)
    assert refused in identities
    assert "TypeError" in store.reason(refused) and store.reason(refused).endswith("(rule parity)")
    assert "/a/path" not in store.reason(refused)
    assert "check_parity" in caplog.text and "a fault with /a/path" in caplog.text


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")


@pytest.mark.parametrize(
    ("error", "met"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
        (NO_MEMORY, MemoryError),
        (StorageError("the disk is full"), StorageError),
    ],
    ids=["Ctrl-C", "memory", "torch's memory", "disk"],
)
def test_what_says_nothing_of_the_contribution_refuses_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException, met: type[BaseException]
) -> None:
    def check_nothing(contribution: Contribution, known: Known) -> dict[str, float]:
        raise error

    identity = receive_network(store, lambda network: None)
    monkeypatch.setattr(verify, "RULES", [check_nothing])
    with pytest.raises(met):
        verify_received(store, lambda _: None)
    assert store.ids(RECEIVED) == [identity]


def test_the_documents_list_every_rule_with_its_own_words() -> None:
    listed = dict(RULES) | {name_of(rule): sentence_of(rule) for rule in rules.RULES}
    document = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", document, re.M))
    assert rows == listed


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
