"""What a person at the terminal sees of a federation: a live display while it runs, a table at its end."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from server import events
from server.events import Event

STAGES = ("prepare", *events.STAGES, "evaluate")
"""Rows of the display; a stage it does not know gets a row when it first reports."""
REFUSALS = ("quarantined", "failed")
"""Kinds of events that are always shown, each on a line of its own."""
BASELINES = {
    "random_init": "random initialisation",
    "parameter_average": "parameter average",
    "best_single_model": "best single model",
    "pool_concatenation": "all models side by side (reference: cannot be broadcast)",
}
"""Baselines of result.json, in the order in which they are shown."""
REFERENCE = "pool_concatenation"
"""The baseline that no federation could hand out."""
ABSENT = "—"

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
        return ", ".join(parts + [f"{number} {_clean(word)}" for word, number in self.tally.items()])


class Progress:
    """The live display of a run, to be used as context manager and as observer of its events.

    On a terminal one row a stage; elsewhere plain lines, few enough for a log.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
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
            self._tell(f"{_clean(stage.name)}: started")

    def _end_stage(self, stage: _Stage, now: float, state: str) -> None:
        stage.state = state
        outcome = [f"{state} after {duration(stage.seconds(now))}", stage.count(), stage.details]
        self._tell(f"{_clean(stage.name)}: {', '.join(part for part in outcome if part)}")

    def _tell_progress(self, stage: _Stage, now: float) -> None:
        tenths = _LINES_PER_STAGE * stage.done // stage.of if stage.of else 0
        if stage.lines < tenths < _LINES_PER_STAGE:
            stage.lines = tenths
            parts = [stage.count(), stage.details, _eta(stage, now)]
            self._tell(f"{_clean(stage.name)}: {', '.join(part for part in parts if part)}")

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
        return self._mark(stage), Text(_clean(stage.name)), bar, Text(stage.count()), Text(times)

    def _mark(self, stage: _Stage) -> RenderableType:
        if stage.state == "running":
            return self._spinner
        marks = {"pending": ("·", "dim"), "finished": ("✓", "green"), "stopped": ("✗", "red")}
        return Text(*marks[stage.state])


def _bar(stage: _Stage) -> ProgressBar:
    return ProgressBar(stage.of, stage.done, width=20, complete_style="cyan", finished_style="green")


def duration(seconds: float) -> str:
    """For instance ``4.2 s``, ``1 min 28 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _eta(stage: _Stage, now: float) -> str:
    remaining = stage.remaining(now)
    if remaining is None:
        return ""
    return f"about {duration(remaining) if remaining > 10 else f'{math.ceil(remaining)} s'} left"


def _details(values: Mapping[str, int | float | str]) -> str:
    """Losses and the like: every number that is neither zero nor a count of the stage's own progress."""
    numbers = {key: value for key, value in values.items() if key not in _NOT_DETAILS and value != 0}
    return ", ".join(
        f"{_clean(key).replace('_', ' ')} {_number(value)}"
        for key, value in numbers.items()
        if not isinstance(value, str)
    )


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _refusal(event: Event) -> str:
    """For instance ``verify: contribution 3f9c12ab quarantined: the same weights as …``."""
    values = event.values
    who = "".join(f"{key} {values[key]} " for key in ("organisation", "node") if key in values)
    if "contribution" in values:
        who += f"contribution {str(values['contribution'])[:_ID_DIGITS]} "
    reason = f": {values['reason']}" if values.get("reason") else ""
    return _clean(f"{event.stage}: {who}{event.kind}{reason}")


def _clean(text: str) -> str:
    """Without the control characters with which a foreign text could write over the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True)
class Score:
    """An accuracy, and what the meta-learner gains over it; all in percent or percentage points."""

    mean: float
    ci95: float
    gain: float | None = None
    gain_ci95: float | None = None

    @property
    def accuracy(self) -> str:
        """For instance ``41.2 ± 0.8``."""
        return f"{self.mean:.1f} ± {self.ci95:.1f}"

    @property
    def gained(self) -> str:
        """For instance ``+6.1 ± 0.9``; empty where nothing was compared."""
        if self.gain is None or self.gain_ci95 is None:
            return ""
        sign = "\N{MINUS SIGN}" if self.gain < 0 else "+"
        return f"{sign}{self.distance}"

    @property
    def distance(self) -> str:
        """The gain without its sign, for instance ``6.1 ± 0.9``; empty where nothing was compared."""
        if self.gain is None or self.gain_ci95 is None:
            return ""
        return f"{abs(self.gain):.1f} ± {self.gain_ci95:.1f}"

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the gain excludes zero, else ``unclear``."""
        if self.gain is None or self.gain_ci95 is None or abs(self.gain) <= self.gain_ci95:
            return "unclear"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One line of the comparison: the meta-learner, or a baseline."""

    key: str
    label: str
    scores: tuple[Score | None, ...]
    """One for each kind of episode; None where it was not measured."""


def comparison(result: Mapping[str, Any]) -> list[Row]:
    """The meta-learner and its baselines, over the kinds of episodes of ``few_shot``, in their order."""
    few_shot, baselines = result["few_shot"], result.get("baselines", {})
    labels = BASELINES | {key: key.replace("_", " ") for key in baselines if key not in BASELINES}
    rows = [Row("meta_learner", "meta-learner", tuple(_score(few_shot[name]) for name in few_shot))]
    for key, label in labels.items():
        measured = baselines.get(key) or {}
        rows.append(Row(key, label, tuple(_score(measured.get(name)) for name in few_shot)))
    return rows


def _score(values: Mapping[str, float] | None) -> Score | None:
    if values is None:
        return None
    return Score(values["mean"], values["ci95"], values.get("gain"), values.get("gain_ci95"))


def task_label(name: str) -> str:
    """``5way1shot`` as ``5-way 1-shot``."""
    parts = re.fullmatch(r"(\d+)way(\d+)shot", name)
    return f"{parts[1]}-way {parts[2]}-shot" if parts else name


def result_table(result: Mapping[str, Any]) -> Table:
    """The comparison of a run, as a table for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption="accuracy in %, gain of the meta-learner in points, ± 95 % interval",
        caption_justify="left",
    )
    table.add_column("")
    for name in result["few_shot"]:
        table.add_column(task_label(name), justify="right", no_wrap=True)
        table.add_column("gain", justify="right", no_wrap=True)
    domains = result.get("domains", {})
    for title, part in {"all data sets": result, **domains}.items() if domains else [("", result)]:
        _add_rows(table, title, comparison(part))
    return table


def _add_rows(table: Table, title: str, rows: Sequence[Row]) -> None:
    """The comparison on one data set, beneath its name where there are several."""
    if title:
        table.add_section()
        table.add_row(Text(_clean(title), style="italic cyan"))
    for row in rows:
        style = {"meta_learner": "bold", REFERENCE: "dim"}.get(row.key)
        cells = [cell for score in row.scores for cell in _cells(score)]
        table.add_row(Text(_clean(row.label)), *cells, style=style)


def _cells(score: Score | None) -> tuple[Text, Text]:
    if score is None:
        return Text(ABSENT), Text(ABSENT)
    style = {"better": "green", "worse": "red", "unclear": ""}[score.verdict]
    return Text(score.accuracy), Text(score.gained, style=style)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """The few lines beneath the table: how it was measured, from what, and in what time."""
    return [
        f"Measured over {_episodes(result)}, {_transductive(result)}.",
        f"Contributions: {contribution_counts(result)}.",
        _work(result),
    ]


def _episodes(result: Mapping[str, Any]) -> str:
    counts = {measured["episodes"] for measured in result["few_shot"].values()}
    mixed = ", an equal share of each data set" if result.get("domains") else ""
    return f"{' and '.join(f'{count:,}' for count in sorted(counts))} episodes each{mixed}"


def _transductive(result: Mapping[str, Any]) -> str:
    if any(measured["transductive"] for measured in result["few_shot"].values()):
        return "transductive: the queries of an episode were seen together"
    return "not transductive: every query was classified on its own"


def contribution_counts(result: Mapping[str, Any]) -> str:
    """For instance ``11 accepted, 1 quarantined, 0 failed``."""
    states = Counter(contribution["state"] for contribution in result.get("contributions", ()))
    return ", ".join(f"{states[state]} {state}" for state in ("accepted", "quarantined", "failed"))


def _work(result: Mapping[str, Any]) -> str:
    recovery, total = result.get("recovery"), sum(result.get("seconds", {}).values())
    whole = f"{duration(total)} in all."
    if not recovery:
        return whole
    return f"{recovery['images']:,} images recovered in {duration(recovery['seconds'])}; {whole}"
