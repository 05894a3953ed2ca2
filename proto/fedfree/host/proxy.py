"""The HTTP proxy that the environment names, read in one way for every connection that we make.

To this machine there is none, whatever the environment says: what is said in clear must not leave it.
"""

import base64
import http.client
import ipaddress
import os
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fedfree.errors import FederationError
from fedfree.host.channel import LOOPBACK, Address

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""In the order in which gRPC looks; in small letters alone, as there."""
_EXEMPT = ("no_grpc_proxy", "no_proxy", "NO_PROXY")


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable of the environment that names it."""

    url: str
    variable: str

    @classmethod
    def towards(cls, target: Address, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The proxy on the way to ``target``; None where the way is direct."""
        if target.is_loopback or _is_exempt(target, environment):
            return None
        for variable in _VARIABLES:
            if value := environment.get(variable, "").strip():
                url = value if "://" in value else f"http://{value}"
                return cls(url, variable) if url.startswith("http://") else None
        return None

    def connect(self, target: Address, timeout_seconds: float) -> socket.socket:
        """A connection to ``target`` through the proxy.

        Raises:
            FederationError: the proxy cannot be reached, or refuses.
        """
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port or 80, timeout=timeout_seconds
        )
        connection.set_tunnel(str(target).rpartition(":")[0], target.port, _authorization(parts))
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise FederationError(self.blame(target, str(error))) from error
        return connection.sock

    def blame(self, target: Address, why: str) -> str:
        """Words for a connection that failed on its way through the proxy; its password is left out."""
        parts = urllib.parse.urlsplit(self.url)
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return f"{target} cannot be reached through the proxy {shown} named by {self.variable}: {why}"


def without_proxy_to_loopback(environment: Mapping[str, str], *more: Address) -> dict[str, str]:
    """The environment for a program of others, which then reaches this machine directly too.

    Args:
        more: addresses that it will be given; those of this machine are named one by one, because not every
            program understands networks here.
    """
    named = (name for variable in _EXEMPT for name in environment.get(variable, "").split(","))
    here = (*LOOPBACK, *(each.host for each in more if each.is_loopback))
    exempt = ",".join(dict.fromkeys(name.strip() for name in (*named, *here) if name.strip()))
    return {**environment, **dict.fromkeys(_EXEMPT, exempt)}


def _is_exempt(target: Address, environment: Mapping[str, str]) -> bool:
    names = (name.strip() for variable in _EXEMPT for name in environment.get(variable, "").split(","))
    return any(_covers(name, target) for name in names if name)


def _covers(name: str, target: Address) -> bool:
    """Whether a name of no_proxy means ``target``: ``*``, a domain, a network, an address."""
    bare = name.lower().removesuffix(f":{target.port}").lstrip("*.")
    host = target.host.lower()
    if not bare or host == bare or host.endswith(f".{bare}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(bare, strict=False)
    except ValueError:
        return False


def _authorization(parts: urllib.parse.SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
