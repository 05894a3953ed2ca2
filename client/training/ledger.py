"""The organisation's own record of what it has contributed, and of what that spends together.

One SQLite file, one row a contribution. A row is written, and is on disk, before training takes its first
step on a private image; it is never taken out, also where that training was killed. What images cost
together is composed over all rows that share at least one image file with them: byte for byte, so a file
that was encoded again counts as another image. A packed model whose images nobody named counts for all
images, because nobody can say which are not in it.
"""

import fcntl
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from client.config import LEDGER
from client.training.privacy import composed_epsilon
from fedfree.errors import ConfigError, PrivacyError, StorageError
from fedfree.host.files import PRIVATE, is_there, named, replacing
from fedfree.host.places import cache_folder, state_folder
from fedfree.statement import Composition, DpSgd

log = logging.getLogger(__name__)

RESERVED, SPENT = "reserved", "spent"
UNKNOWN = "unknown"
"""Stands in the place of the fingerprint where nobody said which images a model was trained on."""
SILENT_SECONDS, LOCK_SECONDS = 1.0, 60.0
"""After how long a wait for another process is spoken of, and given up."""

_KEEP = "Do not delete it, or what was spent is forgotten: restore it from a backup, or ask for help"
_VERSION = 2
_UNSEALED = 1
"""The version before, which had no seal."""
_SEAL = "CREATE TABLE seal (digest TEXT NOT NULL)"
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
    _SEAL,
    f"PRAGMA user_version = {_VERSION}",
)
_SEALED = ("contributions ORDER BY number", "images ORDER BY hash, fingerprint")
_COLUMNS = (
    "reservation, time, fingerprint, state, noise_multiplier, sampling_rate, steps, delta, contribution"
)
_MARKS = ", ".join("?" * 9)
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
    """Hash of the set of image files, or UNKNOWN."""
    images: int
    """Different files; 0 where they are unknown."""
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

    def pack(self, model: str, images: frozenset[str], contribution: str) -> None:
        """Write down a model that was trained elsewhere, without differential privacy.

        Args:
            model: what stays the same when it is packed again, which adds no row, only what is known.
            images: hashes of the files it was trained on; empty where they are unknown.
        """
        reservation = f"packed {model}"
        with self._transaction() as connection:
            if not _is_known(connection, reservation):
                _insert(connection, reservation, (), None, None)
            known = connection.execute(
                "SELECT hash FROM images JOIN contributions USING (fingerprint) WHERE reservation = ?",
                (reservation,),
            )
            fingerprint = _remember(connection, images | {each for (each,) in known})
            connection.execute(
                "UPDATE contributions SET fingerprint = ?, state = ?, contribution = ? WHERE reservation = ?",
                (fingerprint, SPENT, contribution, reservation),
            )

    def take_in(self, other: Path) -> int:
        """Copy the rows of another ledger that are not here yet; returns how many there were."""
        with Ledger(other)._transaction() as connection:
            images = connection.execute("SELECT * FROM images").fetchall()
            rows = connection.execute(f"SELECT {_COLUMNS} FROM contributions ORDER BY number").fetchall()
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(
                f"INSERT OR IGNORE INTO contributions ({_COLUMNS}) VALUES ({_MARKS})", rows
            )
            taken = connection.total_changes - before
            connection.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", images)
        return taken

    def entries(self) -> list[Entry]:
        """Every row, oldest first."""
        with self._transaction() as connection:
            return _entries(connection.execute(f"{_ROWS} ORDER BY number"))

    def sharing(self, fingerprint: str) -> list[Entry]:
        """The rows that share, or may share, an image with those of this fingerprint, themselves included."""
        with self._transaction() as connection:
            found = connection.execute("SELECT hash FROM images WHERE fingerprint = ?", (fingerprint,))
            return _sharing(connection, [image for (image,) in found])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The ledger, locked against every other process; on disk at the end, or as it was before."""
        with named(f"cannot use the ledger {self.path}"):
            _make(self.path)
        try:
            with closing(
                sqlite3.connect(self.path, timeout=SILENT_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                _lock(connection, self.path)
                connection.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS:.0f}")
                _check_intact(connection, self.path)
                before = connection.total_changes
                yield connection
                if connection.total_changes > before:
                    _seal(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _refusal(self.path, error) from error


def _make(path: Path) -> None:
    """Make an empty ledger where there is no file; one that is there, whatever it holds, is left alone.

    It takes its place with its tables, so that a file without them is a damaged one and never a new one.
    """
    if is_there(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not is_there(path):
            with replacing(path, mode=PRIVATE) as partial, closing(sqlite3.connect(partial)) as connection:
                for statement in _SCHEMA:
                    connection.execute(statement)
                _seal(connection)
                connection.commit()
    except sqlite3.Error as error:
        raise _refusal(path, error) from error
    finally:
        os.close(descriptor)


def _lock(connection: sqlite3.Connection, path: Path) -> None:
    """Begin a transaction as the only writer; says for whom it waits, and gives up in the end."""
    end = time.monotonic() + LOCK_SECONDS
    told = False
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() > end:
                raise StorageError(
                    f"the ledger {path} was locked by {_holder(path)} for {LOCK_SECONDS:g} s: end that "
                    "process, or try again; nothing was trained or written"
                ) from error
        if not told:
            log.warning("waiting up to %g s for the ledger %s, held by %s", LOCK_SECONDS, path, _holder(path))
            told = True


def _holder(path: Path) -> str:
    """The process that holds a lock on a file, where the system tells."""
    try:
        inode, locks = path.stat().st_ino, Path("/proc/locks").read_text().splitlines()
    except OSError:
        return "another process"
    holders = [line.split() for line in locks if f":{inode} " in line and "->" not in line]
    return f"process {holders[0][4]}" if holders else "another process"


def _check_intact(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        raise StorageError(f"{path} is no ledger, or has lost its content. {_KEEP}")
    if version not in (_UNSEALED, _VERSION):
        raise ConfigError(f"{path} is no ledger that this release of fedfree can read")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StorageError(f"the ledger {path} is damaged ({found}). {_KEEP}")
    if version == _UNSEALED:
        connection.execute(_SEAL)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        _seal(connection)
    elif connection.execute("SELECT digest FROM seal").fetchall() != [(_digest(connection),)]:
        raise StorageError(
            f"the ledger {path} is damaged, or was changed by something else than fedfree: its rows are not "
            f"those that were written. {_KEEP}"
        )


def _seal(connection: sqlite3.Connection) -> None:
    """Write down what the rows are, by which a bit that flips on the disk is seen."""
    connection.execute("DELETE FROM seal")
    connection.execute("INSERT INTO seal VALUES (?)", (_digest(connection),))


def _digest(connection: sqlite3.Connection) -> str:
    """Hash of every row, whatever its texts have become."""
    hashed = hashlib.sha256()
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    for rows in _SEALED:
        for row in connection.execute(f"SELECT * FROM {rows}"):
            hashed.update(repr(row).encode())
    connection.text_factory = str
    return hashed.hexdigest()


def _code(error: sqlite3.Error) -> int | None:
    """Of SQLite; an error of Python's own module about it has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code


def _refusal(path: Path, error: sqlite3.Error) -> StorageError:
    """What is wrong with the file, and what to do."""
    damaged = _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    remedy = f". {_KEEP}" if damaged else ": see that the disk has room and the folder can be written"
    return StorageError(f"cannot use the ledger {path}: {error}{remedy}")


def open_ledger(path: Path | None) -> Ledger:
    """The ledger that is named, or else this user's own, the same from every working directory.

    Earlier releases kept one in each working directory. Where there is one, it is taken into this user's own,
    so that nothing that was spent is forgotten.
    """
    if path is not None:
        return Ledger(path)
    ledger = Ledger(state_folder() / LEDGER)
    for before in (Path(".cache/fedfree", LEDGER), cache_folder() / LEDGER):
        rows = ledger.take_in(before) if before.is_file() else 0
        if rows:
            log.warning("took %d contributions of %s into the ledger %s", rows, before.resolve(), ledger.path)
    return ledger


def compose(entries: Sequence[Entry], delta: float, epsilon_budget: float | None = None) -> Composition:
    """What contributions cost the images that they share; at least one is under differential privacy."""
    runs = [entry.run for entry in entries if entry.run]
    without = len(entries) - len(runs)
    return Composition(composed_epsilon(runs, delta), len(runs), without, epsilon_budget)


def _check_budget(composition: Composition, delta: float) -> None:
    budget = composition.epsilon_budget
    if budget is None:
        return
    if composition.without_differential_privacy:
        raise PrivacyError(
            f"some of these images were contributed without differential privacy before, or may be in a "
            f"packed model whose images the ledger does not know, so no epsilon budget ({budget:g}) can hold "
            "for them; see `fedfree-client ledger`, and pack such a model again with --data"
        )
    if composition.epsilon > budget:
        raise PrivacyError(
            f"with this contribution the {composition.contributions} that share images with it would spend "
            f"epsilon {composition.epsilon:.2f} at delta {delta:g}, more than the budget of {budget:g}; "
            "use a smaller epsilon, other images, or contribute the model you have"
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
    fingerprint = _remember(connection, images)
    numbers = (run.noise_multiplier, run.sampling_rate, run.steps) if run else (None, None, None)
    connection.execute(
        "INSERT INTO contributions (reservation, fingerprint, state, noise_multiplier, sampling_rate, steps,"
        " delta) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (reservation, fingerprint, RESERVED, *numbers, delta),
    )


def _remember(connection: sqlite3.Connection, images: Iterable[str]) -> str:
    """Write a set of images down; returns its fingerprint."""
    hashes = sorted(images)
    if not hashes:
        return UNKNOWN
    fingerprint = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    connection.executemany(
        "INSERT OR IGNORE INTO images VALUES (?, ?)", ((each, fingerprint) for each in hashes)
    )
    return fingerprint


def _sharing(connection: sqlite3.Connection, images: Iterable[str]) -> list[Entry]:
    return _entries(
        connection.execute(
            f"{_ROWS} WHERE fingerprint = '{UNKNOWN}' OR fingerprint IN (SELECT fingerprint FROM images"
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
