"""What a run took, also where it was killed and started again."""

import pytest

from client.training.statement import page
from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_weights
from fedfree.statement import Composition, DifferentialPrivacy, DpSgd, PrivacyStatement, PrivacyStatus
from server.events import Event, doubted
from simulations.reporting.result import judged, manifest_facts, spent_learning

SPENT = DifferentialPrivacy(
    epsilon=2.5,
    delta=1e-6,
    run=DpSgd(1.25, 0.125, 80),
    max_grad_norm=0.5,
    images=2400,
    images_rounded_to=100,
    accountant="prv",
    software="opacus",
    composition=Composition(2.5, 1, 0, 12.0),
)


def iteration(number: int, *, start: float, images: int) -> list[Event]:
    """Two seconds of inversion and three of learning."""
    return [
        Event("learn", "recovered", {"images": images}, start + 2),
        Event("learn", "progress", {"iteration": number, "of": 3}, start + 5),
    ]


def test_learning_counts_inversion_and_whole_iterations() -> None:
    spent = spent_learning(
        [
            Event("verify", "accepted", {}, 90),
            Event("learn", "started", {}, 100),
            *iteration(1, start=100, images=40),
            *iteration(2, start=105, images=80),
            Event("learn", "finished", {}, 111),
        ]
    )
    assert spent.images == 80
    assert sum(spent.recovery.values()) == pytest.approx(4)
    assert sum(spent.iterations.values()) == pytest.approx(10)


def test_no_time_is_spent_below_zero_where_the_clock_was_set_back() -> None:
    spent = spent_learning([*iteration(1, start=5000, images=40), *iteration(2, start=100, images=80)])
    assert min(*spent.recovery.values(), *spent.iterations.values()) == 0


def test_an_iteration_that_was_done_twice_counts_once_and_the_time_between_starts_not_at_all() -> None:
    spent = spent_learning(
        [
            Event("learn", "started", {}, 100),
            *iteration(1, start=100, images=40),
            *iteration(2, start=105, images=80),
            Event("learn", "started", {}, 5000),
            *iteration(2, start=5000, images=80),
            *iteration(3, start=5005, images=120),
        ]
    )
    assert spent.images == 120
    assert sum(spent.recovery.values()) == pytest.approx(6)
    assert sum(spent.iterations.values()) == pytest.approx(15)


def test_the_judgement_is_that_of_the_last_end_of_learning() -> None:
    ends = [Event("learn", "finished", {"broadcast": each}) for each in ("average", "learned")]
    assert judged([Event("learn", "started", {}), *ends, Event("adapt", "finished", {})]) == {
        "broadcast": "learned"
    }
    assert judged([]) == {}


def test_what_is_doubted_is_told_by_contribution_as_learning_last_ended() -> None:
    why, started = {"counts": 0.0, "evidence": "dull"}, Event("learn", "started", {})
    of_a, of_b = (Event("learn", "doubted", {"contribution": each, **why}) for each in "ab")
    assert doubted([started, of_a, started, of_b]) == {"b": why}


@pytest.mark.parametrize(
    "privacy", [PrivacyStatement(), PrivacyStatement(PrivacyStatus.DP, SPENT)], ids=["none", "dp"]
)
def test_a_contribution_under_differential_privacy_comes_with_its_statement_in_words(
    privacy: PrivacyStatement,
) -> None:
    architecture, spec = Architecture(norm="group"), InputSpec(1, 16, 16)
    weights = encode_weights(build(architecture, num_classes=3, input=spec))
    contribution = Contribution(architecture, 3, spec, privacy, weights)
    manifest = encode_contribution(contribution)
    facts = manifest_facts(manifest, weights)
    assert facts["privacy"] == privacy.status.value and facts["classes"] == 3
    expected = page(manifest, contribution) if privacy.differential_privacy else None
    assert facts.get("statement") == expected
