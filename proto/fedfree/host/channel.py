"""What both ends of the gRPC door agree on besides the schema: addresses, sizes, the token's place."""

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from fedfree.errors import ConfigError

MAX_MESSAGE_BYTES = 4 << 20
"""A message above this is refused before it is read."""
CHUNK_BYTES = 1 << 20
"""Of the weights, in one message."""
AUTHORIZATION, BEARER = "authorization", "Bearer "
"""Metadata key of the organisation's token, and what stands before the token."""

RELEASE = "fedfree-release"
"""Metadata key of the FedFREE that calls."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""How this machine is called from itself."""

_PING_MILLISECONDS = 30_000
_PONG_MILLISECONDS = 20_000

CLIENT_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _PONG_MILLISECONDS),
    # Without a cap gRPC would wait up to two minutes before it tries a connection again.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _PING_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", _PONG_MILLISECONDS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MILLISECONDS // 2),
    # A second server on a port that is taken must fail, not share it.
    ("grpc.so_reuseport", 0),
    # Estimating bandwidth, gRPC lets every upload send megabytes ahead of its reader: a hundred at once
    # held 1.6 GB, and 0.15 GB without.
    ("grpc.http2.bdp_probe", 0),
)


@dataclass(frozen=True)
class Address:
    """Where the server listens, or is found."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``HOST:PORT``, IPv6 addresses in brackets; raises ConfigError."""
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not _is_host(bare) or (":" in bare) != (bare != host) or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"{text!r} is not an address: write HOST:PORT, for instance localhost:9443")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is said there cannot leave this machine; a name counts for what it leads to."""
        if self.host != "localhost":
            return _is_loopback(self.host)
        found = self._resolved()
        return bool(found) and all(map(_is_loopback, found))

    def require_loopback(self) -> None:
        """Refuse to send weights and tokens in clear over a network; raises ConfigError."""
        if self.is_loopback:
            return
        leads = f" (here it leads to {', '.join(self._resolved()) or 'nothing'})" * (self.host == "localhost")
        raise ConfigError(
            f"without TLS the token and the weights would cross the network in clear: "
            f"--insecure is for localhost, not for {self.host}{leads}"
        )

    def _resolved(self) -> list[str]:
        try:
            return sorted({str(each[4][0]) for each in socket.getaddrinfo(self.host, self.port)})
        except OSError:
            return []


def _is_host(text: str) -> bool:
    """Whether it can be looked up, and be part of a file's name."""
    try:
        return bool(text.encode("idna")) and text.isprintable() and not set(text) & set("/ ")
    except UnicodeError:
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def chunks(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces that fit into a message."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
