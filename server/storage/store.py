"""The content-addressed store: a run's contributions and what was decided about each.

One folder a contribution, named by its id (the hash of its manifest), in one of three places::

    received/<id>/     arrived, not yet looked at
    accepted/<id>/     verified; the pool
    quarantined/<id>/  refused, or removed from the pool; reason.txt says why
    damaged/<id>/      no longer what arrived, by its hashes; it may be handed over again

Every step is a rename on one file system, so a process that dies loses nothing and leaves no half.
What is still arriving lies in ``.staging-*``, locked by the process that writes it: the kernel lets go of
the lock when that process dies, however it dies, and then anyone may remove it.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedfree.architectures import Classifier, blueprint, build
from fedfree.codec import (
    Contribution,
    complete,
    contribution_id,
    decode_contribution,
    describe_contribution,
    sha256,
    stated_weights_sha256,
)
from fedfree.errors import StorageError, printable
from fedfree.host.files import named, open_stream, read_file, sync, write_file
from fedfree.start import LoadedStart, body_for

PLACES = RECEIVED, ACCEPTED, QUARANTINED = "received", "accepted", "quarantined"
MANIFEST, WEIGHTS, REASON = "manifest.pb", "weights.safetensors", "reason.txt"
DAMAGED = "damaged"
ORGANISATION = "organisation.txt"
"""Who handed it over; only where the door knows."""


class Store:
    """Contributions on disk; safe to reopen after a crash."""

    def __init__(
        self,
        path: Path,
        read_start: Callable[[], LoadedStart | None] = lambda: None,
        read_further: Callable[[], Sequence[LoadedStart]] = tuple,
    ) -> None:
        """Open a store, or make one.

        Args:
            read_start: the start that contributions begin from; None where there is none.
            read_further: others that they may begin from.
        """
        self.path = path
        self._read_start = read_start
        self._read_further = read_further
        with named(f"cannot write {path}"):
            for place in PLACES:
                (path / place).mkdir(parents=True, exist_ok=True)

    @cached_property
    def start(self) -> LoadedStart | None:
        """The start that contributions begin from, read when it is first needed."""
        return self._read_start()

    @cached_property
    def further_starts(self) -> Sequence[LoadedStart]:
        """Others that they may begin from, likewise."""
        return self._read_further()

    @property
    def starts(self) -> Sequence[LoadedStart]:
        """All of them, that of the meta-learner first; none for random weights."""
        return (self.start, *self.further_starts) if self.start else ()

    def receive(self, manifest: bytes, weights: bytes, *, organisation: str | None = None) -> str:
        """Persist a contribution unread and return its id; the same bytes twice are one contribution.

        Args:
            organisation: who handed it over, where the door knows.
        """
        identity = contribution_id(manifest)
        if self.place_of(identity) is None:
            receiving = self.upload(manifest, organisation=organisation)
            with named(f"cannot write {self.path}"), closing(receiving) as upload:
                upload.write(weights)
                upload.commit()
        return identity

    def upload(self, manifest: bytes, *, organisation: str | None = None) -> "Upload":
        """Begin to receive a contribution piece by piece; whoever asks must close what is returned."""
        with named(f"cannot write {self.path}"), self.locked():
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.path))
            lock = _lock(staging)
        try:
            write_file(staging / MANIFEST, manifest)
            if organisation is not None:
                write_file(staging / ORGANISATION, organisation.encode())
            return Upload(self, contribution_id(manifest), staging, lock)
        except StorageError:
            _discard(staging, lock)
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from beginning or committing an upload, and from discarding leftovers."""
        lock = _lock(self.path)
        try:
            yield
        finally:
            os.close(lock)

    def place_of(self, identity: str) -> str | None:
        """``received``, ``accepted``, ``quarantined``, or None for a contribution never seen."""
        return next((place for place in PLACES if (self.path / place / identity).is_dir()), None)

    def ids(self, place: str) -> list[str]:
        """Ids in one place, sorted: the order of arrival decides nothing."""
        return sorted(entry.name for entry in (self.path / place).iterdir())

    def all_ids(self) -> list[str]:
        """Ids wherever they are."""
        return [identity for place in PLACES for identity in self.ids(place)]

    def read(self, identity: str) -> tuple[bytes, bytes]:
        """Manifest and weights of a contribution as they were received."""
        place = self.place_of(identity)
        if place is None:
            raise KeyError(identity)
        folder = self.path / place / identity
        return read_file(folder / MANIFEST), read_file(folder / WEIGHTS)

    def describe(self, identity: str) -> Contribution:
        """What an accepted contribution says of itself; its weights are left on disk."""
        return describe_contribution(self._accepted_manifest(identity))

    def weights_hash(self, identity: str) -> str:
        """SHA-256 of an accepted contribution's weights, hexadecimal; they are left on disk."""
        return stated_weights_sha256(self._accepted_manifest(identity))

    def _accepted_manifest(self, identity: str) -> bytes:
        manifest = read_file(self.path / ACCEPTED / identity / MANIFEST)
        if contribution_id(manifest) != identity:
            raise _damaged(self.path / ACCEPTED / identity, MANIFEST)
        return manifest

    def _accepted_weights(self, identity: str) -> bytes:
        weights = read_file(self.path / ACCEPTED / identity / WEIGHTS)
        if sha256(weights) != self.weights_hash(identity):
            raise _damaged(self.path / ACCEPTED / identity, WEIGHTS)
        return weights

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        """An accepted contribution's description and network.

        Raises:
            StorageError: it is no longer what was accepted.
        """
        contribution = self.describe(identity)
        network = build(
            contribution.architecture, num_classes=contribution.num_classes, input=contribution.input
        )
        network.load_state_dict(self._complete(contribution, identity, network))
        return contribution, network

    def state(self, identity: str) -> dict[str, Tensor]:
        """The state dict of an accepted contribution's network, without building it; raises as that does."""
        contribution = self.describe(identity)
        network = blueprint(contribution.architecture, contribution.num_classes, contribution.input)
        return self._complete(contribution, identity, network)

    def _complete(self, contribution: Contribution, identity: str, network: Classifier) -> dict[str, Tensor]:
        tensors = safetensors.torch.load(self._accepted_weights(identity))
        body = body_for(contribution, self.starts)
        return complete(network, tensors, f"contribution {identity[:12]}…", body)

    def contribution(self, identity: str) -> Contribution:
        """A contribution, checked against the contract; raises ContributionError."""
        return decode_contribution(*self.read(identity))

    def accept(self, identity: str) -> None:
        """Move a received contribution into the pool."""
        self._move(identity, ACCEPTED)

    def quarantine(self, identity: str, reason: str) -> None:
        """Set a received contribution aside, with the reason as one short line."""
        write_file(self.path / RECEIVED / identity / REASON, printable(reason).encode())
        self._move(identity, QUARANTINED)

    def remove(self, identity: str, reason: str) -> None:
        """Take a contribution out of the pool for good, with the reason; the same bytes never come back."""
        place = str(self.place_of(identity))
        write_file(self.path / place / identity / REASON, reason.encode())
        if place != QUARANTINED:
            self._move(identity, QUARANTINED, source=place)

    def damage(self, identity: str, place: str) -> str:
        """Which file of a contribution is no longer what arrived, by its hashes; empty where it is whole.

        Of one that was only received the manifest alone can tell: VERIFY looks at its weights.
        """
        folder = self.path / place / identity
        try:
            manifest = read_file(folder / MANIFEST)
            if contribution_id(manifest) != identity:
                return MANIFEST
            if place == ACCEPTED and sha256(read_file(folder / WEIGHTS)) != stated_weights_sha256(manifest):
                return WEIGHTS
        except StorageError as error:
            return str(error)
        return ""

    def set_aside_damaged(self, identity: str, place: str, reason: str) -> None:
        """Keep a damaged contribution where nobody uses it, so that the same can be handed over again."""
        write_file(self.path / place / identity / REASON, reason.encode())
        with named(f"cannot write {self.path}"):
            (self.path / DAMAGED).mkdir(exist_ok=True)
            shutil.rmtree(self.path / DAMAGED / identity, ignore_errors=True)  # of an earlier time
        self._move(identity, DAMAGED, source=place)

    def _move(self, identity: str, place: str, *, source: str = RECEIVED) -> None:
        with named(f"cannot write {self.path}"):
            (self.path / source / identity).rename(self.path / place / identity)
            for changed in (place, source):
                sync(self.path / changed)

    def reason(self, identity: str) -> str:
        """Why a contribution is in quarantine, printable."""
        return printable(read_file(self.path / QUARANTINED / identity / REASON).decode(errors="replace"))

    def organisation(self, identity: str) -> str | None:
        """Who handed a contribution over, where the door knew."""
        file = self.path / str(self.place_of(identity)) / identity / ORGANISATION
        return read_file(file).decode(errors="replace") if file.exists() else None

    def discard_leftovers(self) -> None:
        """Remove what killed processes left half written; uploads that go on are left alone."""
        with self.locked():
            for staging in self.path.glob(".staging-*"):
                try:
                    lock = _lock(staging, wait=False)
                except BlockingIOError:
                    continue
                _discard(staging, lock)


class Upload:
    """A contribution on its way to disk, of which the store shows nothing before :meth:`commit`."""

    def __init__(self, store: Store, identity: str, staging: Path, lock: int) -> None:
        self._store = store
        self._identity = identity
        self._staging = staging
        self._lock = lock
        self._weights = open_stream(staging / WEIGHTS)
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes of weights so far."""

    def write(self, chunk: bytes) -> None:
        """Append to the weights."""
        self._weights.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def sha256(self) -> str:
        """Hexadecimal hash of the weights so far."""
        return self._hash.hexdigest()

    def commit(self) -> None:
        """Bring the contribution into the store, whole and on disk; the same that came meanwhile stays."""
        self._weights.flush()
        for path in (*self._staging.iterdir(), self._staging):
            sync(path)
        received = self._store.path / RECEIVED
        with self._store.locked():
            if self._store.place_of(self._identity) is None:
                self._staging.rename(received / self._identity)
        sync(received)

    def close(self) -> None:
        """Forget what was not committed."""
        try:
            self._weights.close()
        finally:
            _discard(self._staging, self._lock)


def _damaged(folder: Path, name: str) -> StorageError:
    return StorageError(
        f"{folder / name} is damaged: it is no longer what was accepted. Give the command again: the "
        "contribution is set aside, learning goes on without it, and it may be handed over again"
    )


def _lock(folder: Path, *, wait: bool = True) -> int:
    """A descriptor that holds a folder's lock until it is closed or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _discard(staging: Path, lock: int) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    os.close(lock)
