"""Certificates and keys from files, looked at before gRPC is given them: it would not say what is wrong."""

import socket
import ssl
from pathlib import Path

from fedfree.errors import AccessError, ConfigError, FederationError
from fedfree.host.channel import Address
from fedfree.host.files import read_file
from fedfree.host.proxy import Proxy

_CONNECT_SECONDS = 10.0


def read_certificate(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A certificate chain and its private key, both PEM; raises ConfigError where they do not fit."""
    pair = read_file(certificate), read_file(key)
    try:
        # An empty password: OpenSSL would ask at the terminal for an encrypted key's.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key} are not a certificate with its private key (PEM, not encrypted)"
        ) from error
    return pair


def read_authority(path: Path) -> bytes:
    """Certificates of those who are trusted to sign others', PEM; raises ConfigError."""
    content = read_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path} holds no certificate of an authority (PEM)") from error
    return content


def check_server(address: Address, authority: Path) -> str:
    """Refuse a server whose certificate ``authority`` did not sign.

    Returns:
        Why no server answers; empty where one does.

    Raises:
        ConfigError: ``authority`` cannot be used.
        AccessError: another authority's certificate, an expired one, or one for another name.
    """
    read_authority(authority)
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            _connection(address) as connection,
            context.wrap_socket(connection, server_hostname=address.host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        raise AccessError(f"the certificate of {address} is refused: {error.verify_message}") from error
    except FederationError as error:
        return str(error)
    except OSError as error:
        return f"{address} does not answer: {error}"


def _connection(address: Address) -> socket.socket:
    if proxy := Proxy.towards(address):
        return proxy.connect(address, _CONNECT_SECONDS)
    return socket.create_connection((address.host, address.port), _CONNECT_SECONDS)
