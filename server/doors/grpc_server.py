"""The gRPC door as a process: listen, check health, describe itself, and stop without losing an upload."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedfree.errors import ConfigError
from fedfree.host.channel import SERVER_OPTIONS, Address
from fedfree.host.tls import read_authority, read_certificate
from fedfree.v1 import service_pb2
from fedfree.v1.service_pb2_grpc import add_FedFREEServicer_to_server
from server.doors.gate import Gate
from server.doors.grpc_service import Service

SERVICE_NAME = service_pb2.DESCRIPTOR.services_by_name["FedFREE"].full_name
MAX_CALLS_AT_ONCE = 1000
"""Of everyone; more are refused before they are looked at."""
_OPTIONS = (
    *SERVER_OPTIONS,
    # A connection that says nothing, or only half of its greeting, is closed after this.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_allowed_incoming_connections", 1000),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
)


def credentials(certificate: Path | None, key: Path | None, client_ca: Path | None = None) -> Any:
    """TLS by a certificate; with ``client_ca``, for clients only that show one it signed.

    Raises:
        ConfigError: files that are missing or cannot be used.
    """
    if certificate is None or key is None:
        raise ConfigError("give --certificate and --key, or --insecure to serve this machine alone")
    chain, private_key = read_certificate(certificate, key)
    return grpc.ssl_server_credentials(
        [(private_key, chain)],
        root_certificates=None if client_ca is None else read_authority(client_ca),
        require_client_auth=client_ca is not None,
    )


class Door:
    """A server that answers from :meth:`open` to :meth:`close`."""

    def __init__(self, service: Service) -> None:
        self._server = grpc.aio.server(
            options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS_AT_ONCE, interceptors=[Gate(service)]
        )
        self._health = health.aio.HealthServicer()
        add_FedFREEServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def open(self, listen: Address, tls: Any | None) -> Address:
        """Listen, with port 0 on any free port; without ``tls`` on this machine only.

        Raises:
            ConfigError: the address cannot be had.
        """
        if tls is None:
            listen.require_loopback()
        try:
            port = self._bind(listen, tls)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {listen}: taken, or not of this machine") from error
        await self._server.start()
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        return Address(listen.host, port)

    def _bind(self, listen: Address, tls: Any | None) -> int:
        port: int = (
            self._server.add_insecure_port(str(listen))
            if tls is None
            else self._server.add_secure_port(str(listen), tls)
        )
        return port

    async def close(self, grace_seconds: float) -> None:
        """Take no new calls, and end those under way when they are through or time is up."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


async def serve(
    service: Service,
    listen: Address,
    tls: Any | None,
    *,
    grace_seconds: float,
    on_ready: Callable[[Address], None],
) -> None:
    """Answer calls until the process is told to end (SIGTERM, or SIGINT from a keyboard)."""
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_end.set)
    door = Door(service)
    on_ready(await door.open(listen, tls))
    await told_to_end.wait()
    await door.close(grace_seconds)
