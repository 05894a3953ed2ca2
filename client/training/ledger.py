"""The organisation's own record of what it has contributed, and of what that spends together.

One SQLite file, one row a contribution. A row is written, and is on disk, before training takes its first
step on a private image; it is never taken out, also where that training was killed. What images cost
together is composed over all rows that share at least one image file with them: byte for byte, so a file
that was encoded again counts as another image.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from client.training.privacy import composed_epsilon
from fedfree.errors import ConfigError, PrivacyError
from fedfree.statement import Composition, DpSgd

RESERVED, SPENT = "reserved", "spent"

_LOCK_SECONDS, _DIGITS = 60, 12
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE contributions (
        number INTEGER PRIMARY KEY,
        reservation TEXT NOT NULL UNIQUE,
        time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        fingerprint TEXT NOT NULL,
        state TEXT NOT NULL,
        noise_multiplier REAL,
        sampling_rate REAL,
        steps INTEGER,
        delta REAL,
        contribution TEXT
    )""",
    "CREATE TABLE images (hash TEXT, fingerprint TEXT, PRIMARY KEY (hash, fingerprint)) WITHOUT ROWID",
    f"PRAGMA user_version = {_VERSION}",
)
_ROWS = """SELECT reservation, time, fingerprint,
    (SELECT count(*) FROM images WHERE images.fingerprint = contributions.fingerprint),
    state, noise_multiplier, sampling_rate, steps, delta, contribution FROM contributions"""


@dataclass(frozen=True)
class Entry:
    """One contribution as the ledger remembers it."""

    reservation: str
    time: str
    """UTC, when it was begun."""
    fingerprint: str
    """Hash of the set of image files."""
    images: int
    """Different files."""
    state: str
    """``reserved`` before training, ``spent`` once the model is on disk; both count in full."""
    run: DpSgd | None
    """None for a contribution without differential privacy."""
    delta: float | None
    contribution: str | None
    """Its id, once the model is on disk."""


class Ledger:
    """A ledger file; it is made where it is missing. Several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def reserve(
        self,
        reservation: str,
        images: frozenset[str],
        run: DpSgd,
        *,
        delta: float,
        epsilon_budget: float | None,
    ) -> Composition:
        """Write a run down before its first step.

        Returns:
            What the images have cost with it.

        Raises:
            PrivacyError: they would cost more than the budget, and nothing was written down.
        """
        with self._transaction() as connection:
            _insert(connection, reservation, images, run, delta)
            composition = compose(_sharing(connection, images), delta, epsilon_budget)
            _check_budget(composition, delta)
        return composition

    def knows(self, reservation: str) -> bool:
        """Whether there is such a row."""
        with self._transaction() as connection:
            return _is_known(connection, reservation)

    def spend(self, reservation: str, images: frozenset[str], contribution: str) -> None:
        """Write down that a model is ready to be sent; where nothing was reserved it has no privacy."""
        with self._transaction() as connection:
            if not _is_known(connection, reservation):
                _insert(connection, reservation, images, None, None)
            connection.execute(
                "UPDATE contributions SET state = ?, contribution = ? WHERE reservation = ?",
                (SPENT, contribution, reservation),
            )

    def entries(self) -> list[Entry]:
        """Every row, oldest first."""
        with self._transaction() as connection:
            return _entries(connection.execute(f"{_ROWS} ORDER BY number"))

    def sharing(self, fingerprint: str) -> list[Entry]:
        """The rows that share an image with those of this fingerprint, themselves included."""
        with self._transaction() as connection:
            found = connection.execute("SELECT hash FROM images WHERE fingerprint = ?", (fingerprint,))
            return _sharing(connection, [image for (image,) in found])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The ledger, locked against every other process; on disk at the end, or as it was before."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(
                sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE")
                self._prepare(connection)
                yield connection
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot use the ledger {self.path}: {error}") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA:
                connection.execute(statement)
        elif version != _VERSION:
            raise ConfigError(f"{self.path} is no ledger that this release of fedfree can read")


def compose(entries: Sequence[Entry], delta: float, epsilon_budget: float | None = None) -> Composition:
    """What contributions cost the images that they share; at least one is under differential privacy."""
    runs = [entry.run for entry in entries if entry.run]
    without = len(entries) - len(runs)
    return Composition(composed_epsilon(runs, delta), len(runs), without, epsilon_budget)


def ledger_table(ledger: Ledger) -> Table:
    """Every row of a ledger."""
    table = Table(title=f"{ledger.path}", title_justify="left")
    for heading in ("begun (UTC)", "images of", "images", "state", "epsilon", "delta", "contribution"):
        table.add_column(heading)
    for entry in ledger.entries():
        epsilon = (
            f"{composed_epsilon([entry.run], entry.delta):.3f}" if entry.run and entry.delta else "no limit"
        )
        table.add_row(
            entry.time,
            entry.fingerprint[:_DIGITS],
            str(entry.images),
            entry.state,
            f"{epsilon:.3f}",
            f"{entry.delta:g}" if entry.delta else "",
            (entry.contribution or "")[:_DIGITS],
        )
    return table


def ledger_lines(ledger: Ledger) -> Iterator[str]:
    """What each set of images has cost, by every contribution that shares an image with it."""
    deltas = {entry.fingerprint: entry.delta for entry in ledger.entries() if entry.delta}
    for fingerprint, delta in deltas.items():
        total = compose(ledger.sharing(fingerprint), delta)
        line = f"images {fingerprint[:_DIGITS]}: epsilon {total.epsilon:.3f} at delta {delta:g} by "
        line += f"{total.contributions} contribution(s) under differential privacy"
        if total.without_differential_privacy:
            line += f", and {total.without_differential_privacy} without, which no epsilon covers"
        yield line


def _check_budget(composition: Composition, delta: float) -> None:
    budget = composition.epsilon_budget
    if budget is None:
        return
    if composition.without_differential_privacy:
        raise PrivacyError(
            f"some of these images were contributed without differential privacy before, so no epsilon "
            f"budget ({budget:g}) can hold for them; see `fedfree-client ledger`"
        )
    if composition.epsilon > budget:
        raise PrivacyError(
            f"with this contribution the {composition.contributions} that share images with it would spend "
            f"epsilon {composition.epsilon:.2f} at delta {delta:g}, more than the budget of {budget:g}; "
            "use a smaller --epsilon, other images, or contribute the model you have"
        )


def _is_known(connection: sqlite3.Connection, reservation: str) -> bool:
    found = connection.execute("SELECT 1 FROM contributions WHERE reservation = ?", (reservation,))
    return found.fetchone() is not None


def _insert(
    connection: sqlite3.Connection,
    reservation: str,
    images: Iterable[str],
    run: DpSgd | None,
    delta: float | None,
) -> None:
    hashes = sorted(images)
    fingerprint = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    connection.executemany(
        "INSERT OR IGNORE INTO images VALUES (?, ?)", ((each, fingerprint) for each in hashes)
    )
    numbers = (run.noise_multiplier, run.sampling_rate, run.steps) if run else (None, None, None)
    connection.execute(
        "INSERT INTO contributions (reservation, fingerprint, state, noise_multiplier, sampling_rate, steps,"
        " delta) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (reservation, fingerprint, RESERVED, *numbers, delta),
    )


def _sharing(connection: sqlite3.Connection, images: Iterable[str]) -> list[Entry]:
    return _entries(
        connection.execute(
            f"{_ROWS} WHERE fingerprint IN (SELECT DISTINCT fingerprint FROM images"
            " WHERE hash IN (SELECT value FROM json_each(?))) ORDER BY number",
            (json.dumps(list(images)),),
        )
    )


def _entries(rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
    return [_entry(*row) for row in rows]


def _entry(
    reservation: str,
    time: str,
    fingerprint: str,
    images: int,
    state: str,
    noise_multiplier: float | None,
    sampling_rate: float | None,
    steps: int | None,
    delta: float | None,
    contribution: str | None,
) -> Entry:
    run = (
        DpSgd(noise_multiplier, sampling_rate, steps)
        if noise_multiplier and sampling_rate and steps
        else None
    )
    return Entry(reservation, time, fingerprint, images, state, run, delta, contribution)
