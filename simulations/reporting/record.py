"""What a measurement is kept as: typed rows, and what they were measured with."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from fedfree.errors import ConfigError
from fedfree.host.files import read_file
from fedfree.settings import Settings
from simulations.reporting.words import ABSENT

Number = int | float
Cell = str | Number | None | dict[str, Number] | list[Number]
"""Text, a number, parts of one value (``{"mean": 48.1, "ci95": 0.8}``), a list; None where there is none."""
Row = Mapping[str, Cell]

ACCURACY = "{mean:.1f} ± {ci95:.1f}"
GAIN = "{mean:+.1f} ± {ci95:.1f}"


class Column(Settings):
    """One column of a table."""

    key: str
    """Of its cells in the rows."""
    title: str
    """Above it, for people."""
    format: str = "{}"
    """How Python's ``format`` shows a number, for instance ``{:.1f}``, or the parts of a cell."""

    def shown(self, row: Row) -> str:
        """The cell for people; empty where the row has none. Raises ConfigError where it does not fit."""
        cell = row.get(self.key, "")
        if cell is None:
            return ABSENT
        if isinstance(cell, str):
            return cell
        return ", ".join(self._number(each) for each in (cell if isinstance(cell, list) else [cell]))

    def _number(self, cell: Number | dict[str, Number]) -> str:
        try:
            text = self.format.format(cell, **(cell if isinstance(cell, dict) else {}))
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"column {self.key}: {cell!r} does not fit {self.format!r}") from error
        return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


@dataclass(frozen=True)
class Table:
    """What was measured; the first column names the row."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """Sentences beneath it: what a row was measured with, and what it shows."""

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(column.title for column in self.columns)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Every cell for people."""
        return tuple(tuple(column.shown(row) for column in self.columns) for row in self.rows)


class Machine(Settings):
    """Where something was measured."""

    cpu: str
    cores: int | None
    threads: int | None
    """That the measurement was allowed."""
    gpu: str | None
    driver: str | None
    """Of the GPU."""
    conditions: str = ""
    """What else bears on times, such as other runs beside it."""


class Record(Settings):
    """One measurement: what a benchmark leaves, and what a table of the documentation is made from."""

    name: str
    """Of its file, and of the marker in the documents."""
    title: str
    command: str
    config: str | None
    """Configuration file given to the command, from the root of the repository; None without one."""
    config_sha256: str | None
    """Of that file's bytes when it was measured; None where the file was written later."""
    commit: str | None
    """Of the sources that ran; several where rows differ."""
    date: str
    machine: Machine
    seeds: tuple[int, ...]
    seconds: float | None
    """That it took in all."""
    versions: dict[str, str] = Field(default_factory=dict)
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Cell], ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    """Every further number that was measured."""
    origin: str | None = None
    """Where the numbers come from if no command wrote them here."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSON file; raises StorageError or ConfigError."""
        try:
            values = json.loads(read_file(path))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        return cls.parse(values, origin=str(path))

    def to_json(self) -> str:
        """What :meth:`load` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @property
    def table(self) -> Table:
        return Table(self.title, self.columns, self.rows, self.notes)
