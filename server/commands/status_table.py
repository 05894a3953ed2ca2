"""A run's status as an operator reads it at a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from server.doors.status import LearningStatus, RunStatus, contribution_lines
from server.storage.store import PLACES, Store

_ID_DIGITS = 12
ABSENT = "—"


def status_table(status: RunStatus) -> Table:
    """How far the run is, one row a fact."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    if status.start_sha256:
        table.add_row("start", status.start_sha256[:_ID_DIGITS])
    for further in status.further_starts:
        table.add_row("further start", further[:_ID_DIGITS])
    for place in PLACES:
        table.add_row(place, str(status.contributions[place]))
    table.add_section()
    for name, value in _learning_rows(status.learning):
        table.add_row(Text(name), value)
    table.add_section()
    table.add_row("meta-learner", status.meta_learner_sha256.hex()[:_ID_DIGITS] or "not published yet")
    if status.failure:
        table.add_row("failed", Text(status.failure))
    return table


def _learning_rows(learning: LearningStatus | None) -> list[tuple[str, str]]:
    if learning is None:
        return [("iteration", "learning has not begun")]
    rows = [("iteration", f"{learning.iteration} of {learning.of}")]
    if learning.seconds_left:
        rows.append(("time left", f"{learning.seconds_left / 60:.1f} min"))
    if learning.images_a_second:
        rows.append(("images recovered", f"{learning.images:,} ({learning.images_a_second:.1f} a second)"))
    rows += [(name.replace("_", " "), f"{value:.4g}") for name, value in learning.losses.items()]
    return rows


def contributions_table(store: Store, doubts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every contribution: where it is, who handed it over, what it is, why it was refused or counts less.

    Args:
        doubts: as of :func:`server.events.doubted`.
    """
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("contribution", "state", "organisation", "architecture", "ε claimed", "reason"):
        table.add_column(column, overflow="fold")
    for line in contribution_lines(store, doubts):
        words = line.organisation or ABSENT, line.architecture or ABSENT, line.epsilon or ABSENT, line.reason
        table.add_row(line.id[:_ID_DIGITS], line.place, *map(Text, words))
    return table
