"""The meta-learner and the start as they lie in the run directory, for whoever hands them out."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Self

from google.protobuf.message import DecodeError

from fedfree.codec import sha256
from fedfree.errors import FederationError, NotReadyError, SignatureError, StorageError
from fedfree.host.starts import MANIFEST, WEIGHTS
from fedfree.start import require_same_start
from fedfree.v1.meta_learner_pb2 import MetaLearner
from fedfree.v1.start_pb2 import Start
from server.storage.run_directory import RunDirectory

_ATTEMPTS = 3
"""Of opening what may be replaced, and removed, between the look at where it is and the opening."""


class Broadcast:
    """A manifest and weights to hand out, opened: that others take their place meanwhile does not show."""

    signature = b""
    """Over the manifest, see :mod:`fedfree.signing`."""

    def __init__(self, manifest: bytes, weights: BufferedReader) -> None:
        self.manifest = manifest
        self.size = os.fstat(weights.fileno()).st_size
        self.sha256 = hashlib.file_digest(weights, "sha256").digest()
        self._weights = weights

    @classmethod
    def meta_learner(cls, run: RunDirectory) -> Self:
        """Open the meta-learner that was written last.

        Raises:
            NotReadyError: there is none yet.
            FederationError: it is just being replaced, is damaged, or is not signed by this coordinator.
        """
        absent = "there is no meta-learner yet: ask again later"
        for _ in range(_ATTEMPTS):
            folder = run.published  # all are read from one folder, whatever is published meanwhile
            identity = folder.name if folder != run.path.resolve() else ""
            with suppress(NotReadyError):
                files = folder / run.manifest.name, folder / run.weights.name
                sign = partial(run.published_signature, folder=folder)
                return cls._open(MetaLearner, *files, identity, absent, "meta-learner", sign)
        raise NotReadyError(absent)

    @classmethod
    def start(cls, run: RunDirectory, sha256: str = "") -> Self:
        """Open a start of the run.

        Args:
            sha256: which one, by its identity; empty for the first.

        Raises:
            NotReadyError: it has none.
            StartError: it has others.
            FederationError: it is just being written, or is damaged.
        """
        absent = "this federation has no public start: train without one"
        folders = run.start_folders()
        if folders and sha256:
            require_same_start(sha256, list(folders))
        identity = sha256 or next(iter(folders), "")
        folder = folders.get(identity, run.start_folder)
        files = folder / MANIFEST, folder / WEIGHTS
        return cls._open(Start, *files, identity, absent, "start", run.start_signature)

    @classmethod
    def _open(
        cls,
        schema: type[MetaLearner] | type[Start],
        manifest: Path,
        weights: Path,
        identity: str,
        absent: str,
        what: str,
        sign: Callable[[bytes], bytes],
    ) -> Self:
        try:
            opened = cls(manifest.read_bytes(), weights.open("rb"))
        except FileNotFoundError as error:
            raise NotReadyError(absent) from error
        if not opened._is_whole(schema, identity):
            opened.close()
            raise FederationError(
                f"the {what} is just being replaced, or is damaged on the server's disk: ask again, or "
                "where that does not help, ask the coordinator to publish it again"
            )
        try:
            opened.signature = sign(opened.manifest)
        except (SignatureError, StorageError) as error:
            opened.close()
            if not manifest.exists():
                raise NotReadyError(absent) from error
            raise FederationError(
                f"the {what} on the server's disk is not signed by its coordinator: ask the coordinator to "
                "publish it again, fedfree-server resume"
            ) from error
        return opened

    def _is_whole(self, schema: type[MetaLearner] | type[Start], identity: str) -> bool:
        """Whether both are what was written, by their hashes; ``identity`` is the manifest's, where known."""
        if identity and sha256(self.manifest) != identity:
            return False
        try:
            return self.sha256 == schema.FromString(self.manifest).weights_sha256
        except DecodeError:
            return False

    def offset(self, sha256: bytes, size: int) -> int:
        """Where someone goes on who has ``size`` bytes of weights with this hash; others begin anew."""
        return size if sha256 == self.sha256 and size <= self.size else 0

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the weights from ``offset`` on."""
        return os.pread(self._weights.fileno(), size, offset)

    def close(self) -> None:
        """Let go of the file."""
        self._weights.close()
