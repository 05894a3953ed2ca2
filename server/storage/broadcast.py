"""The meta-learner as it lies in the run directory, for whoever hands it out."""

import hashlib
import os
from io import BufferedReader
from typing import Self

from fedfree.errors import FederationError, NotReadyError
from fedfree.v1.meta_learner_pb2 import MetaLearner
from server.storage.run_directory import RunDirectory


class Broadcast:
    """A meta-learner to hand out, opened: that another takes its place meanwhile does not show."""

    def __init__(self, manifest: bytes, weights: BufferedReader) -> None:
        self.manifest = manifest
        self.size = os.fstat(weights.fileno()).st_size
        self.sha256 = hashlib.file_digest(weights, "sha256").digest()
        self._weights = weights

    @classmethod
    def open(cls, run: RunDirectory) -> Self:
        """Open what was written last.

        Raises:
            NotReadyError: there is none yet.
            FederationError: it is just being replaced; ask again.
        """
        try:
            manifest, weights = run.manifest.read_bytes(), run.weights.open("rb")
        except FileNotFoundError as error:
            raise NotReadyError("there is no meta-learner yet: ask again later") from error
        opened = cls(manifest, weights)
        if opened.sha256 != MetaLearner.FromString(manifest).weights_sha256:
            opened.close()
            raise FederationError("the meta-learner is just being replaced: ask again")
        return opened

    def offset(self, sha256: bytes, size: int) -> int:
        """Where someone goes on who has ``size`` bytes of weights with this hash; others begin anew."""
        return size if sha256 == self.sha256 and size <= self.size else 0

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the weights from ``offset`` on."""
        return os.pread(self._weights.fileno(), size, offset)

    def close(self) -> None:
        """Let go of the file."""
        self._weights.close()
