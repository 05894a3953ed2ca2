"""The one hook on which progress displays, logs and reports hang."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

STAGES = ("collect", "verify", "learn", "broadcast", "adapt")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""

    stage: str
    """One of STAGES."""
    kind: str
    """``started``, ``progress``, ``finished``, or a stage's own word such as ``quarantined``."""
    values: Mapping[str, int | float | str] = field(default_factory=dict)
    """Plain numbers and words; never anything from inside an organisation."""
    time: float = field(default_factory=time.time, compare=False)
    """Seconds since 1970."""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that observes nothing."""


def log_event(event: Event) -> None:
    """The observer that logs one line an event, its values in full where lines are JSON."""
    values = " ".join(f"{name}={_short(value)}" for name, value in event.values.items())
    fields = {"stage": event.stage, "event": event.kind, **event.values}
    log.info("%s %s %s", event.stage, event.kind, values, extra={"fields": fields})


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def doubted(events: Iterable[Event]) -> dict[str, dict[str, Any]]:
    """By contribution what does not count in full, how much it counts and why, as learning last ended."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if (event.stage, event.kind) == ("learn", "started"):
            found = {}
        elif (event.stage, event.kind) == ("learn", "doubted"):
            values = dict(event.values)
            found[str(values.pop("contribution"))] = values
    return found
