"""What every benchmark leaves: a table for the terminal, the same as Markdown and JSON, and plots."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fedfree.host.files import write_file
from simulations.commands.options import typed_command
from simulations.reporting import facts

PLAIN_WIDTH = 200
"""Columns of a table where there is no terminal."""
PLOT_FORMATS = ("png", "svg")


@dataclass(frozen=True)
class Table:
    """What was measured, as words; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences beneath it: what a row was measured with, and what it shows."""


def make_console() -> Console:
    """A console on which a table keeps its columns, also where the output is a file."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=PLAIN_WIDTH)


def show(table: Table, console: Console) -> None:
    """Print a table and its notes."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


def to_markdown(table: Table) -> str:
    """A Markdown table with its notes as a list."""
    rules = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [_markdown_row(cells) for cells in (table.columns, rules, *table.rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip() + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write(
    out: Path,
    name: str,
    *,
    values: Mapping[str, object],
    table: Table,
    plots: Mapping[str, Figure],
) -> list[Path]:
    """Write ``<name>.json``, ``<name>.md`` and each plot as PNG and SVG, and return their paths.

    Args:
        values: what the JSON holds, the numbers behind the table.
        plots: by file name without suffix.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.json", out / f"{name}.md"]
    write_file(paths[0], (json.dumps(values, indent=2) + "\n").encode())
    write_file(paths[1], to_markdown(table).encode())
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
    """Print a line as it is."""
    make_console().print(line, markup=False, highlight=False)


def leave(
    out: Path,
    name: str,
    *,
    values: Mapping[str, object],
    table: Table,
    plots: Mapping[str, Figure],
    written: Sequence[Path] = (),
) -> None:
    """Print the table; write it with its plots, its numbers and what they were measured with; say where.

    Args:
        written: further files that were written already.
    """
    made_with = {
        "command": typed_command(),
        "commit": facts.commit(),
        "hardware": facts.hardware(),
        "versions": facts.versions(),
    }
    show(table, make_console())
    for path in (*written, *write(out, name, values=made_with | dict(values), table=table, plots=plots)):
        tell(f"wrote {path}")
