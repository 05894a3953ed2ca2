"""What the coordinator's page shows of a run, as plain words and whole numbers.

Each part is read by itself: where a file is damaged or half there, the others are shown, and the page says in
one line what could not be read. Whatever may be another party's is one short printable line.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from fedfree.errors import ConfigError, printable
from server.doors import curves
from server.doors.curves import Curve
from server.doors.deployment import Deployment
from server.doors.status import (
    ContributionLine,
    LearningStatus,
    RunStatus,
    contribution_lines,
    latest_events,
)
from server.doors.tokens import Tokens
from server.events import Event, doubted
from server.storage.run_directory import RunDirectory
from server.storage.store import PLACES

log = logging.getLogger(__name__)

MAX_ROWS = 500
"""Contributions that are listed."""
MAX_ERRORS = 10
_EVENT_BYTES = 4 << 20
"""Of the end of the events: some ten thousand iterations."""
_ERRORS = ("failed", "damaged", "left out")
"""Kinds of events that tell of something that went wrong."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Expected:
    """An organisation that may contribute."""

    name: str
    door: str
    """Which it comes through, and until when."""
    handed_over: str


@dataclass(frozen=True)
class Failure:
    """Something that went wrong."""

    when: str
    """UTC, ISO 8601."""
    what: str
    reason: str


@dataclass(frozen=True)
class Learning:
    """How far learning is."""

    iteration: int
    of: int
    images: str
    """Recovered in all, in words."""
    left: str
    """Time, in words; empty where it is not known, or nothing is left."""
    losses: Sequence[tuple[str, str]]
    """Title and value, of the latest iteration."""


@dataclass(frozen=True)
class Overview:
    """A run as a person looks at it."""

    run: str
    said: str
    """How it stands, in one sentence that seldom changes."""
    unread: Sequence[str] = ()
    """What could not be read, and why."""
    is_readable: bool = True
    """False where nothing that matters could be read."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Contributions by place."""
    waits_for: str = ""
    expected: Sequence[Expected] = ()
    contributions: Sequence[ContributionLine] = ()
    not_listed: int = 0
    """Contributions beyond MAX_ROWS."""
    learning: Learning | None = None
    curves: Sequence[Curve] = ()
    curve_titles: Sequence[str] = ()
    curve_rows: Sequence[Sequence[str]] = ()
    """The curves in numbers: an iteration, then a value for each title."""
    last_event: str = ""
    """When something happened last; UTC, ISO 8601."""
    failure: str = ""
    errors: Sequence[Failure] = ()
    """Newest first."""
    starts: Sequence[str] = ()
    meta_learner_sha256: str = ""
    picture: str = ""
    """Which recovered images there are; another word for others, empty for none."""

    @property
    def digest(self) -> str:
        """Changes when anything here does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_overview(path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Overview:
    """Look at a run directory; never fails."""
    unread: list[str] = []

    def part(name: str, read: Callable[[], Part], otherwise: Part) -> Part:
        try:
            return read()
        except Exception as error:
            # Whatever a half-written file brings up, the rest of the page must stand.
            log.debug("cannot read %s", name, exc_info=True)
            unread.append(printable(f"{name}: {error or type(error).__name__}"))
            return otherwise

    try:
        run = RunDirectory(path)  # anew each time: a directory that is gone must not be made again
    except ConfigError as error:
        return _unreadable(path, str(error))
    status = part("the run", lambda: RunStatus.read(run), None)
    if status is None:
        return _unreadable(path, *unread)
    events = part("events", lambda: latest_events(run.events, _EVENT_BYTES), list[Event]())
    doubts = part("events", lambda: doubted(events), dict[str, dict[str, Any]]())
    lines = part("contributions", lambda: _lines(run, doubts), list[ContributionLine]())
    found = part("learning", lambda: curves.series(events), dict[str, dict[int, float]]())
    return Overview(
        run=_name(path),
        said=said(status),
        counts=status.contributions,
        waits_for=part("events", lambda: _waits_for(run, events), ""),
        expected=part("organisations", lambda: _expected(run, lines, now()), []),
        contributions=lines,
        not_listed=max(0, sum(status.contributions.values()) - len(lines)),
        learning=_learning(status.learning) if status.learning else None,
        curves=curves.drawn(found),
        curve_titles=[curves.titled(name)[0] for name in found],
        curve_rows=curves.in_numbers(found),
        last_event=_when(events[-1]) if events else "",
        failure=printable(status.failure),
        errors=part("events", lambda: _errors(events), []),
        starts=[each for each in (status.start_sha256, *status.further_starts) if each],
        meta_learner_sha256=status.meta_learner_sha256.hex(),
        picture=part("recovered images", lambda: version(run.recovered), ""),
        unread=unread,
    )


def _unreadable(path: Path, *why: str) -> Overview:
    return Overview(_name(path), "The run cannot be read just now.", unread=why, is_readable=False)


def _name(path: Path) -> str:
    return printable(path.absolute().name, 100)


def version(file: Path) -> str:
    """A word for the content of a file that is always replaced whole; empty where there is none."""
    if not file.is_file():
        return ""
    seen = file.stat()
    return f"{seen.st_mtime_ns:x}-{seen.st_size:x}"


def said(status: RunStatus) -> str:
    """How a run stands, in one sentence."""
    learning, counts = status.learning, status.contributions
    if status.failure:
        return "The run failed."
    if learning is not None and learning.iteration < learning.of:
        left = time_left(learning.seconds_left)
        return f"Learning, {left}." if left else "Learning."
    if status.meta_learner_sha256:
        return "The meta-learner is published."
    if learning is not None:
        return "Learned; the meta-learner is not published yet."
    return f"Contributions arrive: {counts['received']} received, {counts['accepted']} accepted."


def time_left(seconds: float | None) -> str:
    """For instance ``about 4 minutes left``: coarse, so that it seldom changes; empty where not known."""
    if not seconds:
        return ""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}s left"
    return "about a minute left" if seconds >= 45 else "less than a minute left"


def _learning(status: LearningStatus) -> Learning:
    pace = f" ({status.images_a_second:.1f} a second)" if status.images_a_second else ""
    losses = [(curves.titled(name)[0], f"{value:.4g}") for name, value in status.losses.items()]
    left = time_left(status.seconds_left)
    return Learning(status.iteration, status.of, f"{status.images:,}{pace}", left, losses)


def _lines(run: RunDirectory, doubts: Mapping[str, Mapping[str, object]]) -> list[ContributionLine]:
    return [
        ContributionLine(**{name: printable(value) for name, value in asdict(line).items()})
        for line in islice(contribution_lines(run.store(), doubts), MAX_ROWS)
    ]


def _waits_for(run: RunDirectory, events: Sequence[Event]) -> str:
    """Who is waited for, as far as anybody waits: through the gRPC door whoever has a token may come."""
    collecting = [each for each in events if each.stage == "collect" and "of" in each.values]
    waits = bool(collecting) and collecting[-1].kind != "finished"
    flower = f"Flower waits for {int(collecting[-1].values['of'])} organisations. " if waits else ""
    return f"{flower}Learning needs {run.config().collect.quorum} accepted contributions or more."


def _expected(run: RunDirectory, lines: Sequence[ContributionLine], now: datetime) -> list[Expected]:
    doors: dict[str, list[str]] = {}
    for name, expires in Tokens(run.tokens).expiries().items():
        if expires is None or expires > now:
            doors.setdefault(name, []).append(f"token until {expires:%Y-%m-%d}" if expires else "token")
    by_token = set(doors)
    for name in _enrolled(run):
        doors.setdefault(name, []).append("Flower key")
    handed_over = Counter((line.organisation, line.place) for line in lines)
    return [
        Expected(
            printable(name, 100), ", ".join(doors[name]), _handed_over(name, name in by_token, handed_over)
        )
        for name in sorted(doors)
    ]


def _enrolled(run: RunDirectory) -> list[str]:
    try:
        return list(Deployment(run.path).enrolled())
    except ConfigError:  # no coordinator's directory, so nobody comes by Flower
        return []


def _handed_over(name: str, by_token: bool, counts: Mapping[tuple[str, str], int]) -> str:
    found = [f"{counts[name, place]} {place}" for place in PLACES if counts[name, place]]
    nothing = "nothing yet" if by_token else "Flower does not say whose contribution is whose"
    return ", ".join(found) or nothing


def _errors(events: Sequence[Event]) -> list[Failure]:
    wrong = [each for each in events if each.kind in _ERRORS]
    return [_failure(each) for each in wrong[: -MAX_ERRORS - 1 : -1]]


def _failure(event: Event) -> Failure:
    about = str(event.values.get("contribution", ""))[:12] or str(event.values.get("node", ""))
    what = f"{event.stage} {event.kind} {about}"
    return Failure(_when(event), printable(what, 100), printable(str(event.values.get("reason", ""))))


def _when(event: Event) -> str:
    return datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
