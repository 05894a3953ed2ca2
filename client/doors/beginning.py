"""Where training begins, as coordinator and organisation agree on it over Flower; knows nothing of Flower."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from client.config import ClientConfig
from client.limits import check_start
from fedfree.codec import sha256, short
from fedfree.errors import StartError
from fedfree.host.starts import has_start, keep_start, read_start
from fedfree.settings import merge
from fedfree.start import check_licence, decode_start, describe_start, find_start, require_same_start

log = logging.getLogger(__name__)

THE_STARTS = {"architecture", "image_size"}
"""What of the training a start decides."""


def begin(
    config: ClientConfig,
    starts: Sequence[str],
    sent: tuple[bytes, bytes] | None,
    look: Callable[[bytes], None],
) -> ClientConfig | str:
    """The configuration, beginning where the federation does, or the identity of a start to be sent first.

    An organisation that names a start of its own only compares hashes. One that names none keeps the
    federation's beside its trained models: of several that which ``start_sha256`` begins, or the first.
    What asks for more than ``limits`` allow is neither kept nor built.

    Args:
        starts: identities of the federation's starts, hexadecimal; none for random weights.
        sent: manifest and weights of the start, where they came with the question.
        look: may refuse what was sent by its manifest; raises SignatureError.

    Raises:
        StartError: the two begin from different starts, none or several begin as ``start_sha256``, or the
            start's licence is not one of the usual.
        TooMuchError: the start's images are larger than the limits allow.
        StorageError, ContributionError: a start that cannot be read, kept, or used.
    """
    own = config.training.start
    chosen = find_start(starts, config.start_sha256 or "")
    if own is not None or not chosen:
        require_same_start(read_start(own)[0].sha256 if own else "", starts)
        return config
    folder = config.cache.parent / "starts" / chosen
    if not has_start(folder):
        if sent is None:
            return chosen
        if sha256(sent[0]) != chosen:
            raise StartError(f"the start {short(sha256(sent[0]))} was sent in the place of {short(chosen)}")
        look(sent[0])
        check_start(describe_start(sent[0]), config.limits)
        _keep(folder, *sent)
    return _begun_at(config, folder)


def _keep(folder: Path, manifest: bytes, weights: bytes) -> None:
    """Check what was sent, and keep it under its hash."""
    start = decode_start(manifest, weights)
    check_licence(start.licence)
    keep_start(folder, start, weights)
    log.info("kept the start %s in %s", short(sha256(manifest)), folder)


def _begun_at(config: ClientConfig, folder: Path) -> ClientConfig:
    """The same with a start; what was left at its default may be another from there."""
    given = config.model_dump(
        mode="json",
        exclude_unset=True,
        exclude_defaults=True,
        exclude={"training": THE_STARTS, "start_sha256": True},
    )
    return ClientConfig.checked(merge(given, {"training": {"start": folder}}))
