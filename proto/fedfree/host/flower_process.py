"""Flower's programs as processes of ours: their environment, and an end to all that they started."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fedfree.errors import FederationError
from fedfree.host.channel import Address
from fedfree.host.proxy import without_proxy_to_loopback

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.3


def environment(home: Path, *addresses: Address) -> dict[str, str]:
    """This process's environment, with Flower's state in ``home``, and Flower private and quiet.

    Args:
        addresses: where Flower's programs will find each other; those of this machine without a proxy.
    """
    return without_proxy_to_loopback(os.environ, *addresses) | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def executable(name: str, environment: Mapping[str, str]) -> str:
    """Path of a program of Flower's; raises FederationError."""
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise FederationError(
            f"{name} is not installed beside {sys.executable}: pip install 'fedfree[flower]' there"
        )
    return found


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_all(home: Path) -> None:
    """End every process whose Flower state is in ``home``: first asking, then not."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(processes(home), signum)
        deadline = time.monotonic() + _STOP_SECONDS
        while processes(home) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def kill_all(home: Path) -> None:
    """End them at once, without asking: for somebody who waits, where what they write is whole or absent."""
    _signal_all(processes(home), signal.SIGKILL)


def processes(home: Path) -> list[int]:
    """Processes that inherited FLWR_HOME: Flower's and Ray's start sessions of their own.

    Without /proc there are none to see; Flower's then end by themselves when the one that started them is
    gone.
    """
    marker = f"FLWR_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [process for process in found if process != os.getpid()]


def _signal_all(processes: list[int], signum: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signum)
