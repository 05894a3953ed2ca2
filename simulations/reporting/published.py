"""The published numbers: ``simulations/results/*.json`` as tables between markers in the documents.

A marker ``<!-- table: NAME -->`` … ``<!-- end -->`` names a record, or several with columns alike, which
become one table with what each was measured with beneath; or a template ``NAME.md.j2``, which takes its
numbers from any record.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from fedfree.errors import ConfigError
from fedfree.host.files import read_file, write_file
from simulations.reporting.record import Cell, Column, Machine, Number, Record
from simulations.reporting.tables import markdown_table
from simulations.reporting.words import duration

RESULTS = Path("simulations/results")
DOCUMENTS = tuple(Path(name) for name in ("README.md", "docs/results.md", "docs/log.md"))
MARKED = re.compile(r"^<!-- table: (?P<names>[^>]+?) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
TEMPLATE = ".md.j2"
SHOTS = "shots"
"""Column that says how many labelled images of each class there are."""

Records = Mapping[str, Record]


def read_records(root: Path) -> dict[str, Record]:
    """Every published record by its name.

    Args:
        root: of the repository.

    Raises:
        ConfigError: no record there, one that is malformed, or one whose file has another name.
    """
    records = {path.stem: Record.load(path) for path in sorted((root / RESULTS).glob("*.json"))}
    if not records:
        raise ConfigError(f"no results in {root / RESULTS}: give --root, the folder of a clone")
    for stem, record in records.items():
        if record.name != stem:
            raise ConfigError(
                f"{root / RESULTS / stem}.json holds {record.name!r}: rename the file or the record"
            )
    return records


def find_rows(record: Record, where: Mapping[str, Cell]) -> list[dict[str, Cell]]:
    """The rows with these cells; raises ConfigError where there is none."""
    found = [row for row in record.rows if all(row.get(key) == cell for key, cell in where.items())]
    if not found:
        raise ConfigError(f"no row with {dict(where)} in {record.name}")
    return found


def find_row(record: Record, where: Mapping[str, Cell]) -> dict[str, Cell]:
    """The only row with these cells; raises ConfigError."""
    found = find_rows(record, where)
    if len(found) > 1:
        raise ConfigError(f"expected one row with {dict(where)} in {record.name}, got {len(found)}")
    return found[0]


def find_column(record: Record, key: str) -> Column:
    """The column with this key; raises ConfigError."""
    for column in record.columns:
        if column.key == key:
            return column
    raise ConfigError(
        f"no column {key!r} in {record.name}: use {', '.join(each.key for each in record.columns)}"
    )


def references(records: Records) -> dict[str, Callable[..., object]]:
    """What a template may call: ``cell`` for people, ``number`` to compute with, ``means`` of many rows, a
    ``detail`` as it was kept, and how long a measurement ``took``.
    """

    def named(name: str) -> Record:
        if name not in records:
            raise ConfigError(f"no record {name!r} in {RESULTS}: use {', '.join(records)}")
        return records[name]

    def cell(name: str, key: str, **where: Cell) -> str:
        record = named(name)
        return find_column(record, key).shown(find_row(record, where))

    def number(name: str, key: str, part: str = "mean", **where: Cell) -> Number:
        return as_number(find_row(named(name), where).get(key), part)

    def means(name: str, *keys: str, **where: Cell) -> str:
        """``48.1, 46.5 / 63.8, 61.7``: every row's mean, key by key, or one key's shot by shot."""
        rows = find_rows(named(name), where)
        shots = dict.fromkeys(row.get(SHOTS) for row in rows)
        parts = [
            [f"{as_number(row.get(key)):.1f}" for row in rows if row.get(SHOTS) == shot]
            for key in keys
            for shot in shots
        ]
        return " / ".join(", ".join(part) for part in parts)

    def detail(name: str, key: str) -> object:
        details = named(name).details
        if key not in details:
            raise ConfigError(f"{name} has no detail {key!r}: use {', '.join(details)}")
        return details[key]

    def took(name: str) -> str:
        """How long it took, and where."""
        record = named(name)
        return f"{duration(record.seconds or 0)} on {cores(record.machine)}"

    return {"cell": cell, "number": number, "means": means, "detail": detail, "took": took}


def as_number(cell: Cell, part: str = "mean") -> Number:
    """A number, or this part of several; raises ConfigError."""
    value = cell.get(part) if isinstance(cell, dict) else cell
    if not isinstance(value, int | float):
        raise ConfigError(f"expected a number, or several with a {part!r}, got {cell!r}")
    return value


def read_templates(root: Path, records: Records) -> dict[str, str]:
    """Markdown of every template by its name; raises ConfigError."""
    folder = root / RESULTS
    environment = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals.update(references(records))
    rendered = {}
    for path in folder.glob(f"*{TEMPLATE}"):
        try:
            rendered[path.name.removesuffix(TEMPLATE)] = environment.get_template(path.name).render()
        except TemplateError as error:
            raise ConfigError(f"{path}: {error}") from error
    return rendered


def block(records: Sequence[Record]) -> str:
    """One table of all records, and beneath it what each was measured with."""
    titles: dict[str, str] = {}
    for record in records:
        titles = _interleaved(titles, {column.key: column.title for column in record.columns})
    titles.pop(SHOTS, None)
    rows = [(record.title, row) for record in records for row in shot_by_shot(record)]
    cells = tuple(tuple(row.get(key, "") for key in titles) for _, row in rows)
    head = tuple(titles.values())
    if len(records) > 1:
        cells = tuple((title, *row) for (title, _), row in zip(rows, cells, strict=True))
        head = ("", *head)
    lines = "".join(f"- {provenance(record)}\n" for record in records)
    return f"{markdown_table(head, cells)}\n{lines}"


def _interleaved(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """Both, in an order in which what only the second has stands before what follows it there."""
    order = list(first)
    following = len(order)
    for key in reversed(second):
        if key in first:
            following = order.index(key)
        else:
            order.insert(following, key)
    return {key: (second | first)[key] for key in order}


def shot_by_shot(record: Record) -> list[dict[str, str]]:
    """Rows for people, by column; rows that differ in the number of shots alone are one, ``48.1 / 63.8``."""
    rows = [{column.key: column.shown(row) for column in record.columns} for row in record.rows]
    keys = [column.key for column in record.columns]
    if SHOTS not in keys:
        return rows
    names = keys[: keys.index(SHOTS)]
    groups = [list(alike) for _, alike in groupby(rows, key=lambda row: [row[name] for name in names])]
    return [
        {key: " / ".join(dict.fromkeys(row[key] for row in group if row[key])) for key in keys}
        for group in groups
    ]


def provenance(record: Record) -> str:
    """One line: command, seeds, commit, machine, date, time, configuration."""
    machine = record.machine
    threads = f"{machine.threads} thread{'s' if machine.threads != 1 else ''}" if machine.threads else None
    driver = f" (driver {machine.driver})" if machine.driver else ""
    seeds = ", ".join(map(str, record.seeds))
    parts = [
        f"`{record.command}`",
        f"seed{'s' if len(record.seeds) != 1 else ''} {seeds}" if seeds else None,
        f"commit {record.commit}",
        f"torch {record.versions['torch']}" if "torch" in record.versions else None,
        cores(machine),
        threads,
        f"{machine.gpu}{driver}" if machine.gpu else None,
        machine.conditions or None,
        record.date,
        f"{duration(record.seconds)} in all" if record.seconds is not None else None,
        f"[{Path(record.config).name}](../{record.config})" if record.config else None,
    ]
    return "; ".join(part for part in parts if part)


def cores(machine: Machine) -> str:
    """For instance ``2 cores of AMD EPYC``."""
    return f"{machine.cores} cores of {machine.cpu}" if machine.cores else machine.cpu


def marked(text: str) -> list[list[str]]:
    """What the markers of a document name, in order."""
    return [found["names"].split() for found in MARKED.finditer(text)]


def fill(text: str, records: Records, templates: Mapping[str, str], *, document: Path) -> str:
    """A document with its tables put anew between the markers.

    Raises:
        ConfigError: a marker that has no end, or names nothing.
    """
    if len(marked(text)) != text.count("<!-- table: "):
        raise ConfigError(f"{document}: a table has no <!-- end --> on a line of its own")
    if unknown := [name for names in marked(text) for name in names if name not in {*records, *templates}]:
        raise ConfigError(f"{document}: nothing in {RESULTS} is called {unknown[0]!r}")

    def filled(found: re.Match[str]) -> str:
        names = found["names"].split()
        table = templates.get(names[0]) or block([records[name] for name in names])
        return f"<!-- table: {' '.join(names)} -->\n{table}<!-- end -->"

    return MARKED.sub(filled, text)


def filled_documents(root: Path) -> dict[Path, tuple[str, str]]:
    """Every document as it is and as it should be."""
    records = read_records(root)
    templates = read_templates(root, records)
    before = {document: read_file(root / document).decode() for document in DOCUMENTS}
    return {
        document: (text, fill(text, records, templates, document=document))
        for document, text in before.items()
    }


def write_documents(root: Path) -> list[Path]:
    """Put every table anew into the documents, and return those that changed."""
    changed = []
    for document, (before, after) in filled_documents(root).items():
        if after != before:
            write_file(root / document, after.encode())
            changed.append(document)
    return changed


def publish(file: Path, root: Path) -> Path:
    """Take what a benchmark left among the published results, under its record's name."""
    record = Record.load(file)
    place = root / RESULTS / f"{record.name}.json"
    write_file(place, record.to_json().encode())
    return place
