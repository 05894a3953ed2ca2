"""What a person at the terminal sees of a federation while it runs: a live display."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from server import events
from server.events import Event
from simulations.baselines.table import TUNED
from simulations.reporting.words import duration, number, printable

STAGES = ("prepare", *events.STAGES, "evaluate")
"""Rows of the display; a stage it does not know gets a row when it first reports."""
REFUSALS = ("quarantined", "failed")
"""Kinds of events that are always shown, each on a line of its own."""

_NOT_DETAILS = ("iteration", "done", "of", "node", "contribution", "images")
_ID_DIGITS = 12
"""Of a contribution's id, in a line about it."""
_PLAIN_KINDS = ("started", "progress", "recovered", "finished")
_LINES_PER_STAGE = 10
"""At most this many lines a stage, its end included, where there is no terminal."""


@dataclass
class _Stage:
    """What is known of one stage."""

    name: str
    state: str = "pending"
    """``pending``, ``running``, ``finished`` or ``stopped``."""
    done: int = 0
    of: int = 0
    """0 where a stage does not count."""
    tally: Counter[str] = field(default_factory=Counter)
    """How often each of the stage's own words was reported."""
    details: str = ""
    lines: int = 0
    """Tenths of the way that were already told on plain lines."""
    _past: float = 0.0
    _since: float | None = None
    _base: tuple[int, float] | None = None
    """Count and time from which the pace is measured."""

    def enter(self, now: float) -> None:
        self._since, self.state = now, "running"

    def leave(self, now: float) -> None:
        self._past, self._since = self.seconds(now), None

    def seconds(self, now: float) -> float:
        return self._past + (0.0 if self._since is None else now - self._since)

    def update(self, event: Event, now: float) -> None:
        values = event.values
        if event.kind not in _PLAIN_KINDS:
            self.tally[event.kind] += 1
        else:
            self.details = _details({key: value for key, value in values.items() if key not in self.tally})
        self.done = int(values.get("iteration", values.get("done", self.done)))
        self.of = int(values.get("of", self.of))
        if self._base is None or event.kind == "started":
            self._base = (self.done, now)
        self.state = "finished" if event.kind == "finished" else "running"

    def remaining(self, now: float) -> float | None:
        """Seconds to go at the pace so far, where that can be said."""
        if self._base is None or self.state != "running" or not self._base[0] < self.done < self.of:
            return None
        count, since = self._base
        return (now - since) / (self.done - count) * (self.of - self.done)

    def count(self) -> str:
        """For instance ``3 of 12`` or ``11 accepted, 1 quarantined``."""
        parts = [f"{self.done} of {self.of}"] if self.of else []
        return ", ".join(parts + [f"{count} {printable(word)}" for word, count in self.tally.items()])


class Progress:
    """The live display of a run, to be used as context manager and as observer of its events.

    On a terminal one row a stage; elsewhere plain lines, few enough for a log.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(markup=False)
        self._clock = clock
        self._stages = {name: _Stage(name) for name in STAGES}
        self._current: _Stage | None = None
        self._ended_at: float | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=5)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage: from the stage's first event to the first event of the next stage, or to now."""
        now = self._now()
        return {stage.name: stage.seconds(now) for stage in self._stages.values() if stage.state != "pending"}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended_at = self._clock()
        if self._current is not None and self._current.state == "running":
            self._end_stage(self._current, self._ended_at, "finished" if kind is None else "stopped")
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        now = self._clock()
        stage = self._stages.setdefault(event.stage, _Stage(event.stage))
        if stage is not self._current:
            self._switch(stage, event, now)
        was_running = stage.state == "running"
        stage.update(event, now)
        if event.kind in REFUSALS:
            self._say(_refusal(event), style="yellow")
        elif event.kind == TUNED:
            self._say(_tried(event))
        elif event.kind == "progress":
            self._tell_progress(stage, now)
        elif event.kind == "finished" and was_running:
            self._end_stage(stage, now, "finished")

    def _now(self) -> float:
        return self._clock() if self._ended_at is None else self._ended_at

    def _switch(self, stage: _Stage, event: Event, now: float) -> None:
        previous = self._current
        if previous is not None:
            if previous.state == "running":
                self._end_stage(previous, now, "finished")
            previous.leave(now)
        is_new = stage.state == "pending"
        stage.enter(now)
        self._current = stage
        if is_new and event.kind != "finished":
            self._tell(f"{printable(stage.name)}: started")

    def _end_stage(self, stage: _Stage, now: float, state: str) -> None:
        stage.state = state
        outcome = [f"{state} after {duration(stage.seconds(now))}", stage.count(), stage.details]
        self._tell(f"{printable(stage.name)}: {', '.join(part for part in outcome if part)}")

    def _tell_progress(self, stage: _Stage, now: float) -> None:
        tenths = _LINES_PER_STAGE * stage.done // stage.of if stage.of else 0
        if stage.lines < tenths < _LINES_PER_STAGE:
            stage.lines = tenths
            parts = [stage.count(), stage.details, _eta(stage, now)]
            self._tell(f"{printable(stage.name)}: {', '.join(part for part in parts if part)}")

    def _tell(self, line: str) -> None:
        """Say what the live display shows anyway, where there is none."""
        if self._live is None:
            self._say(line)

    def _say(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        now = self._now()
        table = Table.grid(padding=(0, 2))
        for stage in list(self._stages.values()):
            table.add_row(*self._row(stage, now), style="dim" if stage.state == "pending" else None)
        details = self._current.details if self._current is not None else ""
        return Group(table, Text(details, style="dim"))

    def _row(self, stage: _Stage, now: float) -> tuple[RenderableType, ...]:
        bar = _bar(stage) if stage.of else ""
        elapsed = duration(stage.seconds(now)) if stage.state != "pending" else ""
        times = ", ".join(part for part in (elapsed, _eta(stage, now)) if part)
        return self._mark(stage), Text(printable(stage.name)), bar, Text(stage.count()), Text(times)

    def _mark(self, stage: _Stage) -> RenderableType:
        if stage.state == "running":
            return self._spinner
        marks = {"pending": ("·", "dim"), "finished": ("✓", "green"), "stopped": ("✗", "red")}
        return Text(*marks[stage.state])


def _bar(stage: _Stage) -> ProgressBar:
    return ProgressBar(stage.of, stage.done, width=20, complete_style="cyan", finished_style="green")


def _eta(stage: _Stage, now: float) -> str:
    remaining = stage.remaining(now)
    if remaining is None:
        return ""
    return f"about {duration(remaining) if remaining > 10 else f'{math.ceil(remaining)} s'} left"


def _details(values: Mapping[str, int | float | str]) -> str:
    """Losses and the like: every number that is neither zero nor a count of the stage's own progress."""
    numbers = {key: value for key, value in values.items() if key not in _NOT_DETAILS and value != 0}
    return ", ".join(
        f"{printable(key).replace('_', ' ')} {number(value)}"
        for key, value in numbers.items()
        if not isinstance(value, str)
    )


def _tried(event: Event) -> str:
    """For instance ``evaluate: dense reaches 47.2 % on meta_val, batch norm weight 1, temperature 4``."""
    settings = {name: each for name, each in event.values.items() if name not in ("baseline", "on_meta_val")}
    reached = f"{event.values['baseline']} reaches {event.values['on_meta_val']} % on meta_val"
    return printable(f"{event.stage}: {reached}, {_details(settings)}")


def _refusal(event: Event) -> str:
    """For instance ``verify: contribution 3f9c12ab quarantined: the same weights as …``."""
    values = event.values
    who = "".join(f"{key} {values[key]} " for key in ("organisation", "node") if key in values)
    if "contribution" in values:
        who += f"contribution {str(values['contribution'])[:_ID_DIGITS]} "
    reason = f": {values['reason']}" if values.get("reason") else ""
    return printable(f"{event.stage}: {who}{event.kind}{reason}")
