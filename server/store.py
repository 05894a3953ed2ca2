"""The content-addressed store: a run's contributions and what was decided about each.

One folder a contribution, named by its id (the hash of its manifest), in one of three places::

    received/<id>/     arrived, not yet looked at
    accepted/<id>/     verified; the pool
    quarantined/<id>/  refused; reason.txt says why

Every step is a rename on one file system, so a process that dies loses nothing and leaves no half.
"""

import os
import shutil
import tempfile
from pathlib import Path

import safetensors.torch

from fedfree.architectures import Classifier, build
from fedfree.codec import (
    Contribution,
    contribution_id,
    decode_contribution,
    describe_contribution,
    fill_network,
    weights_sha256,
)

RECEIVED, ACCEPTED, QUARANTINED = "received", "accepted", "quarantined"
MANIFEST, WEIGHTS, REASON = "manifest.pb", "weights.safetensors", "reason.txt"


class Store:
    """Contributions on disk; safe to reopen after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for place in (RECEIVED, ACCEPTED, QUARANTINED):
            (path / place).mkdir(parents=True, exist_ok=True)

    def receive(self, manifest: bytes, weights: bytes) -> str:
        """Persist a contribution unread and return its id; the same bytes twice are one contribution."""
        identity = contribution_id(manifest)
        if self.place_of(identity) is None:
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.path))
            write_durably(staging / MANIFEST, manifest)
            write_durably(staging / WEIGHTS, weights)
            staging.rename(self.path / RECEIVED / identity)
        return identity

    def place_of(self, identity: str) -> str | None:
        """``received``, ``accepted``, ``quarantined``, or None for a contribution never seen."""
        places = (RECEIVED, ACCEPTED, QUARANTINED)
        return next((place for place in places if (self.path / place / identity).is_dir()), None)

    def ids(self, place: str) -> list[str]:
        """Ids in one place, sorted: the order of arrival decides nothing."""
        return sorted(entry.name for entry in (self.path / place).iterdir())

    def read(self, identity: str) -> tuple[bytes, bytes]:
        """Manifest and weights of a contribution as they were received."""
        place = self.place_of(identity)
        if place is None:
            raise KeyError(identity)
        folder = self.path / place / identity
        return (folder / MANIFEST).read_bytes(), (folder / WEIGHTS).read_bytes()

    def describe(self, identity: str) -> Contribution:
        """What an accepted contribution says of itself; its weights are left on disk."""
        return describe_contribution((self.path / ACCEPTED / identity / MANIFEST).read_bytes())

    def weights_hash(self, identity: str) -> str:
        """SHA-256 of an accepted contribution's weights, hexadecimal; they are left on disk."""
        return weights_sha256((self.path / ACCEPTED / identity / MANIFEST).read_bytes())

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        """An accepted contribution's description and network, its weights mapped from disk."""
        contribution = self.describe(identity)
        network = build(
            contribution.architecture, num_classes=contribution.num_classes, input=contribution.input
        )
        tensors = safetensors.torch.load_file(self.path / ACCEPTED / identity / WEIGHTS)
        fill_network(network, tensors, f"contribution {identity[:12]}…")
        return contribution, network

    def contribution(self, identity: str) -> Contribution:
        """A contribution, checked against the contract; raises ContributionError."""
        return decode_contribution(*self.read(identity))

    def accept(self, identity: str) -> None:
        """Move a received contribution into the pool."""
        (self.path / RECEIVED / identity).rename(self.path / ACCEPTED / identity)

    def quarantine(self, identity: str, reason: str) -> None:
        """Set a received contribution aside, with the reason."""
        folder = self.path / RECEIVED / identity
        write_durably(folder / REASON, reason.encode())
        folder.rename(self.path / QUARANTINED / identity)

    def reason(self, identity: str) -> str:
        """Why a contribution is in quarantine."""
        return (self.path / QUARANTINED / identity / REASON).read_text()

    def discard_leftovers(self) -> None:
        """Remove what a killed :meth:`receive` left half written."""
        for staging in self.path.glob(".staging-*"):
            shutil.rmtree(staging, ignore_errors=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is whole and on disk, or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
