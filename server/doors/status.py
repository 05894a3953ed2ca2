"""How far a run is, read from its directory: what `status`, the page, metrics and the gRPC door tell."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from google.protobuf.message import DecodeError

from fedfree.errors import FedFreeError, StorageError
from fedfree.host.files import open_file, read_file
from fedfree.v1.meta_learner_pb2 import MetaLearner
from server.events import Event
from server.storage.run_directory import RunDirectory, events_from_lines
from server.storage.store import ACCEPTED, PLACES, QUARANTINED, Store

_TAIL_BYTES = 1 << 16
"""Of the events, in which learning is looked for: some hundred iterations."""
NOT_LOSSES = ("iteration", "of", "gpu_bytes")


@dataclass(frozen=True)
class LearningStatus:
    """Since the server last started to learn, or as far back as the end of the events goes."""

    iteration: int
    of: int
    images: int = 0
    """Recovered in all."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Of the latest iteration, by name."""
    gpu_bytes: int | None = None
    """Most that torch held on the GPU; None without one."""
    seconds_an_iteration: float | None = None
    """Median; None before two iterations."""
    images_a_second: float | None = None
    """Recovered, in a second of the whole loop."""

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far."""
        pace = self.seconds_an_iteration
        return None if pace is None else pace * max(0, self.of - self.iteration)


@dataclass(frozen=True)
class RunStatus:
    """What lies in a run directory."""

    contributions: Mapping[str, int]
    """Place in the store to how many are there; those ``received`` wait to be verified."""
    learning: LearningStatus | None
    """None before the first iteration."""
    meta_learner_sha256: bytes
    """Of what is handed out; empty before."""
    failure: str
    """Why the run failed, one line; empty otherwise."""
    start_sha256: str = ""
    """Of the public start, hexadecimal; empty without one."""
    further_starts: Sequence[str] = ()
    """Of those that organisations may begin from instead."""

    @classmethod
    def read(cls, run: RunDirectory) -> Self:
        """Look at the store, the end of the events, and what is handed out."""
        store, starts = run.store(), list(run.start_folders())
        return cls(
            contributions={place: len(store.ids(place)) for place in PLACES},
            learning=read_learning(run),
            meta_learner_sha256=_broadcast_sha256(run),
            failure=run.failure(),
            start_sha256=starts[0] if starts else "",
            further_starts=tuple(starts[1:]),
        )


@dataclass(frozen=True)
class ContributionLine:
    """One contribution in words, some of which are another party's."""

    id: str
    place: str
    """Of the store."""
    organisation: str = ""
    """Who handed it over; empty where the door does not know."""
    architecture: str = ""
    """Only what was accepted is known to be a contribution at all."""
    epsilon: str = ""
    """Claimed; empty without differential privacy."""
    reason: str = ""
    """Why it was refused, or counts less."""


def contribution_lines(store: Store, doubts: Mapping[str, Mapping[str, Any]]) -> Iterator[ContributionLine]:
    """Every contribution, by its place.

    One that cannot be read, since it is damaged or was just moved, says so as its reason.

    Args:
        doubts: as of :func:`server.events.doubted`.
    """
    for place in PLACES:
        for identity in store.ids(place):
            try:
                yield _line(store, place, identity, doubts.get(identity))
            except FedFreeError as error:
                yield ContributionLine(identity, place, reason=str(error))


def _line(store: Store, place: str, identity: str, doubt: Mapping[str, Any] | None) -> ContributionLine:
    organisation = store.organisation(identity) or ""
    if place != ACCEPTED:
        reason = store.reason(identity) if place == QUARANTINED else ""
        return ContributionLine(identity, place, organisation, reason=reason)
    contribution = store.describe(identity)
    privacy = contribution.privacy.differential_privacy
    claimed = f"{privacy.epsilon:.2f}" if privacy else ""
    reason = f"counts {doubt['counts']:.2f}: {doubt['evidence']}" if doubt else ""
    return ContributionLine(identity, place, organisation, str(contribution.architecture), claimed, reason)


def _broadcast_sha256(run: RunDirectory) -> bytes:
    if not run.manifest.exists():
        return b""
    try:
        return MetaLearner.FromString(read_file(run.manifest)).weights_sha256
    except DecodeError as error:
        raise StorageError(
            f"{run.manifest} is damaged: learn again (`fedfree-server resume {run.path}`)"
        ) from error


def read_learning(run: RunDirectory) -> LearningStatus | None:
    """Learning by the end of the events; None before the first iteration."""
    iterations: list[Event] = []
    recovered: list[Event] = []
    for event in reversed(latest_events(run.events, _TAIL_BYTES)):
        if (event.stage, event.kind) == ("learn", "started"):
            break
        if event.stage == "learn" and event.kind in ("progress", "recovered"):
            (iterations if event.kind == "progress" else recovered).append(event)
    if not iterations:
        return None
    values = iterations[0].values
    return LearningStatus(
        iteration=int(values["iteration"]),
        of=int(values["of"]),
        images=int(recovered[0].values["images"]) if recovered else 0,
        losses={name: float(value) for name, value in values.items() if name not in NOT_LOSSES},
        gpu_bytes=int(values["gpu_bytes"]) if "gpu_bytes" in values else None,
        seconds_an_iteration=_inverse(_rate(iterations, "iteration")),
        images_a_second=_rate(recovered, "images"),
    )


def _rate(newest_first: list[Event], name: str) -> float | None:
    """By how much a value grew in a second: the median, on which a clock that is set has no effect."""
    rates = [
        (float(later.values[name]) - float(earlier.values[name])) / (later.time - earlier.time)
        for later, earlier in itertools.pairwise(newest_first)
        if later.time > earlier.time
    ]
    return statistics.median(rates) if rates else None


def _inverse(rate: float | None) -> float | None:
    return 1 / rate if rate else None


def latest_events(path: Path, at_most: int) -> list[Event]:
    """What the last ``at_most`` bytes of a file of events hold, oldest first."""
    if not path.exists():
        return []
    with open_file(path) as file:
        file.seek(max(0, path.stat().st_size - at_most))
        lines = file.read(at_most).decode(errors="replace").splitlines()
    return list(events_from_lines(lines))
