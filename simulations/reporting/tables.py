"""What every benchmark leaves: a table for the terminal and as Markdown, a :class:`Record` as JSON, plots."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fedfree.codec import sha256
from fedfree.host.compute import count_threads
from fedfree.host.files import read_file, write_file
from simulations.command_line import typed_command
from simulations.reporting import facts
from simulations.reporting.record import Machine, Record, Table
from simulations.reporting.words import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN_WIDTH = 200
"""Columns of a table where there is no terminal."""
PLOT_FORMATS = ("png", "svg")

_STARTED = time.monotonic()


def make_console() -> Console:
    """A console on which a table keeps its columns, also where the output is a file."""
    console = Console(soft_wrap=True, markup=False)
    return console if console.is_terminal else Console(soft_wrap=True, width=PLAIN_WIDTH, markup=False)


def show(table: Table, console: Console) -> None:
    """Print a table and its notes."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, title in enumerate(table.titles):
        drawn.add_column(printable(title), justify="right" if index else "left")
    for row in table.texts:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.print(drawn)
    for note in table.notes:
        console.print(printable(note), highlight=False)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column names the row."""
    rules = ["---", *["---:"] * (len(titles) - 1)]
    return "".join(f"{_markdown_row(cells)}\n" for cells in (titles, rules, *rows))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write(out: Path, name: str, record: Record, plots: Mapping[str, Figure]) -> list[Path]:
    """Write ``<name>.json``, ``<name>.md`` and each plot as PNG and SVG, and return their paths.

    Args:
        plots: by file name without suffix.
    """
    paths = [out / f"{name}.json", out / f"{name}.md"]
    write_file(paths[0], record.to_json().encode())
    notes = "".join(f"- {note}\n" for note in record.notes)
    write_file(paths[1], f"{markdown_table(record.table.titles, record.table.texts)}\n{notes}".encode())
    for stem, figure in plots.items():
        for suffix in PLOT_FORMATS:
            paths.append(out / f"{stem}.{suffix}")
            write_figure(paths[-1], figure, bbox_inches="tight")
    return paths


def write_figure(path: Path, figure: Figure, *, bbox_inches: Literal["tight"] | None = None) -> None:
    """Write a figure in the format of the file's suffix."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150, bbox_inches=bbox_inches)
    write_file(path, buffer.getvalue())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same keys, which become the header; None becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def tell(line: str) -> None:
    """Print a line, without control characters."""
    make_console().print(printable(line), highlight=False)


class Setup(Protocol):
    """What any configuration of a measurement says of its machine."""

    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def leave(
    out: Path,
    name: str,
    *,
    table: Table,
    setup: Setup,
    seeds: Sequence[int],
    details: Mapping[str, Any],
    plots: Mapping[str, Figure],
    config: Path | None = None,
    seconds: float | None = None,
    written: Sequence[Path] = (),
) -> None:
    """Print the table; write it with its plots, its numbers and what they were measured with; say where.

    Args:
        config: the file that was given, which names the record; without one the benchmark's name does.
        seconds: that everything took, where some of it was done before this process; by default its age.
        written: further files that were written already.
    """
    given = read_file(config) if config else None
    record = Record(
        name=config.stem if config else name,
        title=table.title,
        command=typed_command(),
        config=_from_root(config) if config else None,
        config_sha256=sha256(given) if given is not None else None,
        commit=facts.commit(),
        date=datetime.now(UTC).date().isoformat(),
        machine=_machine(setup),
        seeds=tuple(seeds),
        seconds=round(time.monotonic() - _STARTED if seconds is None else seconds, 1),
        versions=facts.versions(),
        columns=table.columns,
        rows=tuple(dict(row) for row in table.rows),
        notes=table.notes,
        details=dict(details),
    )
    show(table, make_console())
    for path in (*written, *write(out, name, record, plots)):
        tell(f"wrote {path}")


def _from_root(path: Path) -> str:
    """As seen from the root of the repository, where it is in it."""
    inside = path.resolve().is_relative_to(facts.ROOT)
    return (path.resolve().relative_to(facts.ROOT) if inside else path).as_posix()


def _machine(setup: Setup) -> Machine:
    hardware = facts.hardware()
    if setup.device == "cpu":
        hardware |= {"gpu": None, "driver": None}
    return Machine.parse(hardware | {"threads": count_threads(setup.threads)}, origin="this machine")
