"""Learning curves: which values they are of, and that drawing and numbers say the same."""

import math

from server.doors.curves import HEIGHT, MAX_POINTS, ROWS, WIDTH, drawn, in_numbers, series
from server.events import Event


def progress(iteration: int, **values: float) -> Event:
    return Event("learn", "progress", {"iteration": iteration, "of": 9, **values})


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]


def test_a_curve_rises_with_its_values_within_its_drawing() -> None:
    (curve,) = drawn(series([progress(at, replay_loss=at**2) for at in range(1, 6)]))
    across, down = zip(*places(curve.points), strict=True)
    assert list(across) == sorted(across) and list(down) == sorted(down, reverse=True)
    assert 0 <= across[0] < across[-1] <= WIDTH and 0 <= down[-1] < down[0] <= HEIGHT
    assert (curve.title, curve.low, curve.high, curve.first, curve.last) == ("Replay loss", "1", "25", 1, 5)
    assert "from 1 at iteration 1 to 25 at iteration 5" in curve.summary


def test_a_single_value_and_a_flat_curve_are_in_the_middle() -> None:
    (single,) = drawn(series([progress(1, replay_loss=3)]))
    assert places(single.points) == [(WIDTH / 2, HEIGHT / 2)]


def test_a_long_run_is_thinned_with_its_ends_kept() -> None:
    found = series([progress(at, replay_loss=float(at)) for at in range(1, 5001)])
    (curve,) = drawn(found)
    rows = in_numbers(found)
    assert len(places(curve.points)) == MAX_POINTS and len(rows) == ROWS
    assert rows[0] == ["1", "1"] and rows[-1] == ["5,000", "5000"]


def test_what_an_attempt_lost_is_not_shown_again() -> None:
    events = [progress(at, replay_loss=1) for at in (1, 2, 3)] + [progress(2, replay_loss=5)]
    assert series(events) == {"replay_loss": {1: 1.0, 2: 5.0}}


def test_what_is_no_finite_number_and_memory_are_left_out() -> None:
    events = [progress(1, replay_loss=math.nan, gpu_bytes=5, own=2), Event("learn", "progress", {"own": 1})]
    assert series(events) == {"own": {1: 2.0}}
    assert drawn(series(events))[0].title == "Own"


def test_an_iteration_without_a_value_has_an_empty_place_in_the_table() -> None:
    assert in_numbers({"a": {1: 1.0, 2: 2.0}, "b": {2: 3.0}}) == [["1", "1", ""], ["2", "2", "3"]]
