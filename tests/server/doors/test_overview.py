"""What the page says of a run: in one sentence, and of everyone who is expected."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.doors import overview
from server.doors.overview import read_overview, said, time_left
from server.doors.status import LearningStatus, RunStatus
from server.doors.tokens import Tokens
from server.events import Event, ignore
from server.storage.run_directory import RunDirectory

HandOver = Callable[..., str]
PLACES = {"received": 1, "accepted": 2, "quarantined": 0}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0, ""),
        (44, "less than a minute left"),
        (46, "about a minute left"),
        (240, "about 4 minutes left"),
        (2 * 3600, "about 2 hours left"),
        (3 * 86_400, "about 3 days left"),
    ],
)
def test_the_time_left_is_told_in_words(seconds: float | None, words: str) -> None:
    assert time_left(seconds) == words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (RunStatus(PLACES, None, b"", ""), "Contributions arrive: 1 received, 2 accepted."),
        (RunStatus(PLACES, LearningStatus(3, 9), b"", ""), "Learning."),
        (
            RunStatus(PLACES, LearningStatus(3, 9, seconds_an_iteration=20), b"x", ""),
            "Learning, about 2 minutes left.",
        ),
        (RunStatus(PLACES, LearningStatus(9, 9), b"", ""), "Learned; the meta-learner is not published yet."),
        (RunStatus(PLACES, LearningStatus(9, 9), b"x", ""), "The meta-learner is published."),
        (RunStatus(PLACES, LearningStatus(9, 9), b"x", "no quorum"), "The run failed."),
    ],
)
def test_how_a_run_stands_is_one_sentence(status: RunStatus, words: str) -> None:
    assert said(status) == words


def test_those_with_a_token_that_holds_or_an_enrolled_key_are_expected(begun: RunDirectory) -> None:
    tokens = Tokens(begun.tokens)
    tokens.add("gone", expires_days=1)
    tokens.add("both")
    tokens.add("later", expires_days=9)
    (begun.path / "deployment.toml").touch()
    (begun.path / "enrolled").mkdir()
    for name in ("both", "flower"):
        (begun.path / "enrolled" / f"{name}.pub").touch()
    in_two_days = datetime.now(UTC) + timedelta(days=2)
    expected = {each.name: each for each in read_overview(begun.path, now=lambda: in_two_days).expected}
    assert list(expected) == ["both", "flower", "later"]
    assert (expected["both"].door, expected["flower"].door) == ("token, Flower key", "Flower key")
    assert expected["later"].door.startswith("token until 20")
    assert expected["both"].handed_over == "nothing yet"
    assert expected["flower"].handed_over == "Flower does not say whose contribution is whose"


def test_who_is_waited_for_is_said_only_where_somebody_waits(begun: RunDirectory) -> None:
    assert read_overview(begun.path).waits_for == "Learning needs 2 accepted contributions or more."
    begun.recorded(ignore)(Event("collect", "started", {"done": 0, "of": 7}))
    assert read_overview(begun.path).waits_for.startswith("Flower waits for 7 organisations.")
    begun.recorded(ignore)(Event("collect", "finished", {"done": 7, "of": 7}))
    assert read_overview(begun.path).waits_for == "Learning needs 2 accepted contributions or more."


def test_the_last_errors_come_first_and_are_few(begun: RunDirectory) -> None:
    for number in range(overview.MAX_ERRORS + 5):
        begun.recorded(ignore)(Event("adapt", "failed", {"node": number, "reason": f"reason {number}"}))
    errors = read_overview(begun.path).errors
    assert [each.reason for each in errors] == [f"reason {number}" for number in range(14, 4, -1)]
    assert errors[0].what == "adapt failed 14"


def test_more_contributions_than_are_listed_are_counted(
    begun: RunDirectory, hand_over: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MAX_ROWS", 2)
    for seed in range(3):
        hand_over(begun, seed=seed)
    shown = read_overview(begun.path)
    assert (len(shown.contributions), shown.not_listed) == (2, 1)


def test_a_contribution_that_is_damaged_is_listed_with_that_as_its_reason(
    begun: RunDirectory, hand_over: HandOver
) -> None:
    identity = hand_over(begun)
    begun.store().accept(identity)
    (begun.store().path / "accepted" / identity / "manifest.pb").write_bytes(b"no")
    (line,) = read_overview(begun.path).contributions
    assert line.id == identity and "is damaged" in line.reason


def test_events_of_another_form_leave_the_rest_standing(begun: RunDirectory) -> None:
    begun.recorded(ignore)(Event("learn", "doubted", {"counts": 1}))
    begun.recorded(ignore)(Event("collect", "started", {"of": "many"}))
    shown = read_overview(begun.path)
    assert shown.is_readable and len(shown.unread) == 2


def test_the_digest_changes_when_anything_does(begun: RunDirectory, tmp_path: Path) -> None:
    before = read_overview(begun.path)
    assert read_overview(begun.path).digest == before.digest
    begun.recorded(ignore)(Event("collect", "started", {"of": 7}))
    assert read_overview(begun.path).digest != before.digest
