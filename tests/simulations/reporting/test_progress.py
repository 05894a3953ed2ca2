"""The live display, and its plain lines."""

import io

import pytest
from rich.console import Console

from server.events import Event
from simulations.reporting.progress import Progress


class FakeRun:
    """A run that sends events to a Progress at times of our choosing."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.time = 0.0
        self.output = io.StringIO()
        console = Console(file=self.output, force_terminal=terminal, width=100, _environ={})
        self.progress = Progress(console, clock=lambda: self.time)

    def event(self, at: float, stage: str, kind: str, **values: int | float | str) -> None:
        self.time = at
        self.progress(Event(stage, kind, values))

    @property
    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


def test_a_stage_lasts_from_its_first_event_to_the_first_event_of_the_next() -> None:
    run = FakeRun()
    with run.progress:
        run.event(10, "prepare", "started")
        run.event(11, "prepare", "finished")
        run.event(13, "collect", "progress", done=1, of=2)
        run.event(20, "collect", "progress", done=2, of=2)
        run.event(22, "verify", "accepted", contribution="ab")
        run.time = 23
    run.time = 99
    assert run.progress.seconds == {"prepare": 3, "collect": 9, "verify": 1}


def test_the_running_stage_counts_up_to_now() -> None:
    run = FakeRun()
    run.event(5, "learn", "started")
    run.time = 12
    assert run.progress.seconds == {"learn": 7}


def test_a_stage_that_is_returned_to_adds_up() -> None:
    run = FakeRun()
    run.event(0, "collect", "started")
    run.event(4, "verify", "accepted", contribution="ab")
    run.event(5, "collect", "failed", reason="late")
    run.event(7, "verify", "accepted", contribution="cd")
    run.time = 10
    assert run.progress.seconds == {"collect": 6, "verify": 4}


def test_without_a_terminal_a_stage_says_when_it_starts_and_ends() -> None:
    run = FakeRun()
    with run.progress:
        run.event(0, "prepare", "started")
        run.event(2.5, "prepare", "finished")
        run.event(3, "broadcast", "finished", bytes=462144)
    assert run.lines == [
        "prepare: started",
        "prepare: finished after 2.5 s",
        "broadcast: finished after 0.0 s, bytes 462,144",
    ]


def test_a_stage_without_a_word_of_its_end_ends_with_the_next() -> None:
    run = FakeRun()
    run.event(0, "verify", "accepted", contribution="ab")
    run.event(2, "learn", "started")
    assert run.lines == ["verify: started", "verify: finished after 2.0 s, 1 accepted", "learn: started"]


def test_without_a_terminal_progress_is_told_about_ten_times_with_losses_and_time_left() -> None:
    run = FakeRun()
    for iteration in range(1, 201):
        run.event(iteration, "learn", "progress", iteration=iteration, of=200, inversion_loss=1 / iteration)
    assert len(run.lines) == 10
    assert "learn: 100 of 200, inversion loss 0.01, about 1 min 40 s left" in run.lines


def test_the_pace_of_a_continued_stage_ignores_what_was_there_before() -> None:
    run = FakeRun()
    run.event(0, "collect", "started", done=10, of=20)
    run.event(30, "collect", "progress", done=12, of=20)
    assert run.lines[-1] == "collect: 12 of 20, about 2 min 00 s left"


@pytest.mark.parametrize("terminal", [False, True])
def test_refused_and_failed_contributions_are_always_shown(terminal: bool) -> None:
    run = FakeRun(terminal=terminal)
    with run.progress:
        run.event(0, "collect", "failed", organisation=3, reason="one class [bold]only[/bold]")
        run.event(1, "verify", "quarantined", contribution="3f9c12ab" * 8, reason="a copy")
    text = run.output.getvalue()
    assert "collect: organisation 3 failed: one class [bold]only[/bold]" in text
    assert "verify: contribution 3f9c12ab3f9c quarantined: a copy" in text


def test_a_reason_cannot_steer_the_terminal() -> None:
    run = FakeRun()
    run.event(0, "verify", "quarantined", contribution="ab", reason="\x1b[2J\rall is well")
    assert not {"\x1b", "\r"} & set(run.output.getvalue())


def test_on_a_terminal_each_stage_has_a_row_with_its_count() -> None:
    run = FakeRun(terminal=True)
    with run.progress:
        run.event(0, "collect", "started", done=0, of=12)
        run.event(30, "collect", "progress", done=3, of=12)
    text = run.output.getvalue()
    assert "3 of 12" in text
    assert all(stage in text for stage in ("prepare", "verify", "learn", "broadcast", "adapt", "evaluate"))
    assert "started" not in text


def test_unknown_stages_and_kinds_are_welcome() -> None:
    run = FakeRun()
    with run.progress:
        run.event(0, "audit", "surprised", mood="curious")
        run.event(1, "audit", "surprised")
    assert run.lines == ["audit: started", "audit: finished after 1.0 s, 2 surprised"]


def test_a_run_that_breaks_off_says_where() -> None:
    run = FakeRun()
    with pytest.raises(KeyboardInterrupt), run.progress:
        run.event(0, "learn", "started")
        run.time = 12
        raise KeyboardInterrupt
    assert run.lines[-1] == "learn: stopped after 12 s"


def test_what_settings_of_a_baseline_reach_on_meta_val_is_a_line() -> None:
    run = FakeRun()
    run.event(0, "evaluate", "tuned", baseline="dense", on_meta_val=47.25, temperature=4.0)
    assert run.lines[-1] == "evaluate: dense reaches 47.25 % on meta_val, temperature 4"
