"""Run directories as somebody finds them afterwards: which there are, how far each is, what came out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfree.errors import ConfigError, StorageError
from fedfree.host.files import read_file
from fedfree.host.lock import holder
from fedfree.settings import Values, parse_toml, value_at
from server.events import Event
from server.storage.run_directory import events_from_lines
from simulations.federation.prepare import CONFIG
from simulations.reporting import shape
from simulations.reporting.words import printable

RESULT, COMMAND = "result.json", "command.txt"
FINISHED, RUNNING, FAILED, INTERRUPTED, PREPARED, DAMAGED, CLOSED = (
    *("finished", "running", "failed", "interrupted", "prepared", "damaged", "closed to you"),
)
UNREADABLE = (DAMAGED, CLOSED)
_MADE_BY_RUNS = frozenset((CONFIG, RESULT, "events.jsonl"))


@dataclass(frozen=True)
class FoundRun:
    """A run directory, whatever state it is in."""

    folder: Path
    state: str
    """One of ``finished``, ``running``, ``failed``, ``interrupted``, ``prepared``, ``damaged``, or closed."""
    remark: str = ""
    """How far it is, why it failed, or why it cannot be read."""
    settings: Values = field(default_factory=dict)
    """What ``config.toml`` holds; empty where it cannot be read."""
    result: Mapping[str, Any] | None = None
    """What ``result.json`` holds, of a finished run."""

    @property
    def date(self) -> str:
        """The day on which it ended, or on which something last happened in it."""
        if self.result:
            return str(self.result.get("finished", ""))[:10]
        try:
            times = [path.stat().st_mtime for path in _files(self.folder)]
            return datetime.fromtimestamp(max(times), UTC).date().isoformat()
        except (ValueError, OverflowError, OSError):  # no file, or a time that is on no calendar
            return ""

    @property
    def command(self) -> str:
        """The command that makes it, or goes on with it; empty where it is not known."""
        return command_of(self.folder)

    @property
    def state_words(self) -> str:
        """For instance ``interrupted: learning, iteration 3 of 12``."""
        return f"{self.state}: {self.remark}" if self.remark else self.state

    def setting(self, path: str) -> Any:
        """A value of ``config.toml``; None where it holds none."""
        return value_at(self.settings, path)


def find_runs(folder: Path) -> tuple[list[FoundRun], list[Path]]:
    """The runs in a folder, at any depth, in the order of their paths; and its folders that hold none.

    A folder that cannot be opened may be one: it is among the runs, with the reason.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder: name one that holds runs, or begin one with fedfree-sim run --out"
        )
    if _looks_like_run(folder):
        return [look_at(folder)], []
    found, foreign = [], []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if folder.resolve().is_relative_to(child.resolve()):  # a link that leads back
            continue
        runs = [look_at(each) for each in _walk(child)]
        found += runs
        foreign += [] if runs else [child]
    return found, foreign


def _walk(folder: Path) -> Iterator[Path]:
    """Run directories below a folder, itself included; what a run keeps inside is not looked into."""
    closed: list[Path] = []
    for path, folders, files in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        if _MADE_BY_RUNS & {*folders, *files}:
            folders.clear()
            yield Path(path)
        folders.sort()
    yield from closed


def _looks_like_run(folder: Path) -> bool:
    return any(_may_be_there(folder / name) for name in _MADE_BY_RUNS)


def _may_be_there(path: Path) -> bool:
    """Whether something is there, of whatever kind, or cannot be looked for."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def open_run(folder: Path) -> FoundRun:
    """A run that a person named; raises ConfigError where there is none, or it cannot be read."""
    if not _looks_like_run(folder):
        raise ConfigError(f"{folder} is no run: it has no {CONFIG}; see fedfree-sim list")
    run = look_at(folder)
    if run.state in UNREADABLE:
        raise ConfigError(f"{folder} is {run.state_words}")
    return run


def open_finished(folder: Path) -> FoundRun:
    """As :func:`open_run`; raises ConfigError also where the run has no result yet."""
    run = open_run(folder)
    if run.result is None:
        raise ConfigError(
            f"{folder} has no result yet, it is {run.state_words}; see fedfree-sim show {folder}"
        )
    return run


def look_at(folder: Path) -> FoundRun:
    """What a folder that looks like a run is; whatever is wrong with it is said, not raised."""
    try:
        settings = read_settings(folder)
        result = read_result(folder)
        state, remark = _state(folder, result)
    except (ConfigError, StorageError, OSError) as error:
        is_closed = isinstance(error.__cause__ or error, PermissionError)
        return FoundRun(folder, CLOSED if is_closed else DAMAGED, printable(" ".join(str(error).split())))
    return FoundRun(folder, state, printable(remark), settings, result if state == FINISHED else None)


def _state(folder: Path, result: Mapping[str, Any] | None) -> tuple[str, str]:
    if held := holder(folder / ".flwr") or holder(folder):
        return RUNNING, f"{how_far(read_events(folder))} ({held.partition(' on ')[0]})"
    if result is not None:
        return FINISHED, ""
    error = folder / "error.txt"
    if error.exists():
        return FAILED, read_file(error).decode(errors="replace").strip()
    events = read_events(folder)
    return (INTERRUPTED, how_far(events)) if events else (PREPARED, "")


def read_settings(folder: Path) -> Values:
    """The settings of a run, as tables; raises ConfigError where they are none of a simulation."""
    path = folder / CONFIG
    try:
        values = parse_toml(read_file(path).decode())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if not isinstance(values.get("dataset"), str) or not isinstance(values.get("server"), dict):
        raise ConfigError(f"{path} holds no settings of a simulation")
    return values


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run found; None where it is not over. Raises ConfigError where the file is damaged."""
    path = folder / RESULT
    return shape.read_result(path) if path.exists() else None


def read_events(folder: Path) -> list[Event]:
    """What happened in a run so far, in all its starts; empty before anything did."""
    path = folder / "events.jsonl"
    if not path.exists():
        return []
    return list(events_from_lines(read_file(path).decode(errors="replace").splitlines()))


def command_of(folder: Path) -> str:
    """The command line that a run was made with; empty where it is not known."""
    path = folder / COMMAND
    return read_file(path).decode(errors="replace").strip() if path.exists() else ""


def how_far(events: Sequence[Event]) -> str:
    """The last thing that was done, in words, for instance ``learning, iteration 3 of 12``."""
    for event in reversed(events):
        if (event.stage, event.kind) == ("learn", "progress"):
            return f"learning, iteration {event.values.get('iteration')} of {event.values.get('of')}"
        if event.stage == "learn" and event.kind == "started":
            done, of = event.values.get("done", 0), event.values.get("of")
            return f"learning, iteration {done} of {of}"
        if (event.stage, event.kind) == ("adapt", "finished"):
            return "evaluating"
        if event.stage == "collect" and {"done", "of"} <= event.values.keys():
            return f"training, {event.values['done']} of {event.values['of']} organisations"
        if event.stage in _DOING and event.kind in ("started", "progress", "finished"):
            return _DOING[event.stage]
    return "preparing"


_DOING = {
    "collect": "training",
    "verify": "verifying",
    "learn": "learning",
    "broadcast": "broadcasting",
    "adapt": "adapting",
}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]
