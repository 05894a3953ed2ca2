"""Ctrl-C in a run: it ends soon, and says how it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedfree.host.cli import INTERRUPTED, StoppedError
from fedfree.host.supervise import ends_soon
from simulations.command_line import typed_command
from simulations.reporting.runs import how_far, read_events


@contextmanager
def goes_on_later(run: Path) -> Iterator[None]:
    """Turn Ctrl-C into one line that says how to go on, and exit status 130, within two seconds.

    Args:
        run: its directory; what it holds by then counts when the same command is given again.
    """

    def line() -> str:
        return (
            f"stopped ({how_far(read_events(run))}); what is done is kept, and the same command goes on: "
            f"{typed_command()}"
        )

    with ends_soon(line):
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as stop:
            if getattr(stop, "code", INTERRUPTED) != INTERRUPTED:
                raise
            raise StoppedError(line()) from stop
