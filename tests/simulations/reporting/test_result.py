"""What a run took, also where it was killed and started again."""

import pytest

from server.events import Event, doubted
from simulations.reporting.result import judged, spent_learning


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
