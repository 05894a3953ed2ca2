"""Where training begins, as coordinator and organisation agree on it over Flower."""

import logging
from pathlib import Path

from flwr.app import RecordDict

from client.config import ClientConfig
from fedfree.codec import sha256, short
from fedfree.errors import StartError
from fedfree.flower_records import brings_start, from_records, start_named
from fedfree.host.starts import has_start, keep_start, read_start
from fedfree.start import check_licence, decode_start, require_same_start

log = logging.getLogger(__name__)


def begin(config: ClientConfig, question: RecordDict) -> ClientConfig | None:
    """The configuration, beginning where the federation does; None where its start must be sent first.

    An organisation that names a start of its own only compares hashes. One that names none is sent the
    federation's, and keeps it beside its trained models.

    Raises:
        StartError: the two begin from different starts, or the start's licence is not one of the usual.
        StorageError, ContributionError: a start that cannot be read, kept, or used.
    """
    federation, own = start_named(question), config.training.start
    if own is not None or not federation:
        require_same_start(read_start(own)[0].sha256 if own else "", federation)
        return config
    folder = config.cache.parent / "starts" / federation
    if not has_start(folder):
        if not brings_start(question):
            return None
        _keep(folder, federation, *from_records(question))
    training = config.training.model_copy(update={"start": folder})
    return config.model_copy(update={"training": training})


def _keep(folder: Path, federation: str, manifest: bytes, weights: bytes) -> None:
    """Check what was sent, and keep it under its hash."""
    if sha256(manifest) != federation:
        raise StartError(f"the start {short(sha256(manifest))} was sent in the place of {short(federation)}")
    start = decode_start(manifest, weights)
    check_licence(start.licence)
    keep_start(folder, start, weights)
    log.info("kept the start %s in %s", short(federation), folder)
