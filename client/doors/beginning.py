"""Where training begins, as coordinator and organisation agree on it over Flower; knows nothing of Flower."""

import logging
from pathlib import Path

from client.config import ClientConfig
from fedfree.codec import sha256, short
from fedfree.errors import StartError
from fedfree.host.starts import has_start, keep_start, read_start
from fedfree.settings import merge
from fedfree.start import check_licence, decode_start, require_same_start

log = logging.getLogger(__name__)

THE_STARTS = {"architecture", "image_size"}
"""What of the training a start decides."""


def begin(config: ClientConfig, federation: str, sent: tuple[bytes, bytes] | None) -> ClientConfig | None:
    """The configuration, beginning where the federation does; None where its start must be sent first.

    An organisation that names a start of its own only compares hashes. One that names none keeps the
    federation's beside its trained models.

    Args:
        federation: identity of the federation's start, hexadecimal; empty without one.
        sent: manifest and weights of that start, where they came with the question.

    Raises:
        StartError: the two begin from different starts, or the start's licence is not one of the usual.
        StorageError, ContributionError: a start that cannot be read, kept, or used.
    """
    own = config.training.start
    if own is not None or not federation:
        require_same_start(read_start(own)[0].sha256 if own else "", federation)
        return config
    folder = config.cache.parent / "starts" / federation
    if not has_start(folder):
        if sent is None:
            return None
        _keep(folder, federation, *sent)
    return _begun_at(config, folder)


def _keep(folder: Path, federation: str, manifest: bytes, weights: bytes) -> None:
    """Check what was sent, and keep it under its hash."""
    if sha256(manifest) != federation:
        raise StartError(f"the start {short(sha256(manifest))} was sent in the place of {short(federation)}")
    start = decode_start(manifest, weights)
    check_licence(start.licence)
    keep_start(folder, start, weights)
    log.info("kept the start %s in %s", short(federation), folder)


def _begun_at(config: ClientConfig, folder: Path) -> ClientConfig:
    """The same with a start; what was left at its default may be another from there."""
    given = config.model_dump(
        mode="json", exclude_unset=True, exclude_defaults=True, exclude={"training": THE_STARTS}
    )
    return ClientConfig.checked(merge(given, {"training": {"start": folder}}))
