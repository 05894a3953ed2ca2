"""How far long work is, as the command lines show it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from client.training.observer import Observer
from fedfree.host.cli import StoppedError

INTERRUPTED = 130


class Stopwatch:
    """An observer that hands on what it is told, and knows how long each thing has taken."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._starts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        """Of this start; what an earlier one left behind took none."""

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        self.seconds[what] = now - self._starts.setdefault(what, now)
        self._observe(what, done, of)


@contextmanager
def shown_progress(console: Console, *, lines: int = 100) -> Iterator[Stopwatch]:
    """Draw a bar for each thing being done; about so many plain lines for it where there is no terminal."""
    if not console.is_terminal:
        yield Stopwatch(_in_lines(console, lines))
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        yield Stopwatch(draw)


def _in_lines(console: Console, lines: int) -> Observer:
    shown: dict[str, int] = {}

    def show(what: str, done: int, of: int) -> None:
        if shown.get(what) != (part := done * lines // max(of, 1)):
            shown[what] = part
            console.print(f"{what}: {done} of {of}", highlight=False)

    return show


@contextmanager
def ends_on_ctrl_c(consequence: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that says what is left behind, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StoppedError(f"stopped: {consequence}") from stop
