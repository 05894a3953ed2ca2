"""One table between gRPC's status and our errors: the server answers by it, the client raises by it."""

import re

import grpc

from fedfree.errors import (
    AccessError,
    ContributionError,
    FederationError,
    FedFreeError,
    LimitError,
    NotReadyError,
    VersionError,
    printable,
)

MAX_DETAIL_CHARACTERS = 500
"""Of an error's message; gRPC carries it in a header, and headers are small."""

_TABLE: dict[type[FedFreeError], grpc.StatusCode] = {
    ContributionError: grpc.StatusCode.INVALID_ARGUMENT,
    VersionError: grpc.StatusCode.FAILED_PRECONDITION,
    AccessError: grpc.StatusCode.UNAUTHENTICATED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReadyError: grpc.StatusCode.NOT_FOUND,
    FederationError: grpc.StatusCode.UNAVAILABLE,
}
TOLD = tuple(_TABLE)
"""Errors whose words are meant for the other side; any other stays in the log of whoever met it."""
_ERRORS = {status: error for error, status in _TABLE.items()}

# gRPC tells in words alone why a connection was not made.
_HANDSHAKES = {
    "certificate has expired": "the server's certificate has expired by this machine's clock: the "
    "coordinator must renew it",
    "certificate is not yet valid": "the server's certificate is not valid yet by this machine's clock: set "
    "it right, or ask the coordinator",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the CA that is trusted here: "
    "name the coordinator's with --ca",
    "Hostname Verification": "the server's certificate is for another name than the one that was called",
    "WRONG_VERSION_NUMBER": "the server does not speak TLS: is this the right port?",
    "failed to connect.*(Socket closed|Connection reset)": "the server hung up: it may ask for a "
    "certificate (--cert, --key) or for TLS (no --insecure)",
}


def status_of(error: FedFreeError) -> grpc.StatusCode:
    """The status by which the other side is told of an error, one of TOLD."""
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def error_of(call: grpc.RpcError) -> FedFreeError:
    """The error behind a failed call, in words for whoever made it."""
    details = printable(call.details() or "", MAX_DETAIL_CHARACTERS)
    for pattern, words in _HANDSHAKES.items():
        if re.search(pattern, details):
            return AccessError(words)
    if call.code() in _ERRORS:
        return _ERRORS[call.code()](details)
    return FederationError(f"the server answered {call.code().name}: {details}")
