"""An organisation's directory for Flower's SuperNode: its key, its configurations, and the node kept up.

::

    node.toml      where the coordinator is
    client.toml    images, training, and what may leave; see client.config
    client.coordinator.json
                   the key that the coordinator signs with; see client.doors.trust
    ledger.sqlite  what was contributed, and what it spent; see client.training.ledger
    ca.crt         the authority that signed the coordinator's certificate
    node.key       the organisation's private key, which never leaves
    node.key.pub   its public half, for the coordinator's `fedfree-server enroll`
    node.log       what the SuperNode says
"""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field

from client.config import LEDGER, ClientConfig
from client.doors.trust import Trust
from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from fedfree.host.files import require_file, write_file, writing_new
from fedfree.host.flower_process import environment, executable, free_port, stop_all
from fedfree.host.lock import exclusive
from fedfree.host.supervise import ProcessEndedError, child, persist, signals_raise
from fedfree.host.tls import check_server, read_authority
from fedfree.settings import Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
REPLACED = "flwr-clientapp"
"""Flower's program that executes what a coordinator sends; a SuperNode looks for it on its PATH."""
_REFUSED = "Exit Code: 305"
"""What Flower's SuperNode says last when the coordinator does not let it in."""


def _address(text: str) -> str:
    return str(Address.parse(text))


class NodeConfig(Settings):
    """Where a node finds its coordinator."""

    server: Annotated[str, AfterValidator(_address)]
    """HOST:PORT of the coordinator, as its certificate names it."""
    retries: Annotated[int, Field(ge=0)] = 10
    """How often in a row the SuperNode is started again after it broke down or was refused. The coordinator
    refuses a node for a minute after it was killed; ten retries go on for about five minutes."""


@dataclass(frozen=True)
class Node:
    """Paths of an organisation's directory."""

    path: Path

    def __post_init__(self) -> None:
        require_file(self.path / "node.toml")
        if not (self.path / "node.toml").is_file():
            raise ConfigError(
                f"{self.path} is not an organisation's directory: make one with `fedfree-client init`"
            )

    @property
    def authority(self) -> Path:
        return self.path / "ca.crt"

    @property
    def key(self) -> Path:
        return self.path / "node.key"

    @property
    def client_toml(self) -> Path:
        return self.path / "client.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "node.log"

    def config(self) -> NodeConfig:
        """Where the coordinator is; raises ConfigError."""
        return NodeConfig.read(self.path / "node.toml")


def init(
    path: Path, config: NodeConfig, authority: Path, data: Path, *, coordinator_key: str | None = None
) -> Node:
    """Make an organisation's directory with a new key and commented configurations.

    Args:
        coordinator_key: what the coordinator signs with; None to believe the first that is seen.

    Raises:
        ConfigError: no authority, no such images, or files that would be overwritten.
    """
    certificate = read_authority(authority)
    if not data.exists():
        raise ConfigError(f"there are no images at {data}")
    values = {
        "data": {"source": data.resolve()},
        "coordinator_key": coordinator_key,
        "cache": path.resolve() / "cache",
        "ledger": path.resolve() / LEDGER,
    }
    client = ClientConfig.parse(values, origin="option")
    private, public = make_key()
    files = {
        "client.toml": client.to_commented_toml().encode(),
        "ca.crt": certificate,
        "node.key": private,
        "node.key.pub": public,
        "node.toml": config.to_commented_toml().encode(),
    }
    with writing_new(path, files, private=("node.key",)):
        pass
    return Node(path)


def make_key() -> tuple[bytes, bytes]:
    """A new key on the curve P-384: both halves as ``ssh-keygen -t ecdsa -b 384`` writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def up(node: Node) -> None:
    """Keep a SuperNode running until this process is told to end; says first what limits it.

    Raises:
        AccessError: the coordinator shows a certificate that the authority did not sign.
        ProcessEndedError: the SuperNode broke down or was refused more often than ``retries`` allows.
    """
    config = ClientConfig.read(node.client_toml)
    log.info("limits: %s", config.limits.words())
    log.info("%s", Trust.beside(node.client_toml, config.coordinator_key).words())
    retries = node.config().retries
    home = node.path.resolve() / ".flwr"
    with signals_raise(), exclusive(home):
        stop_all(home)  # what an `up` that was killed left behind
        persist(lambda: _attempt(node, home), retries=retries)


def _attempt(node: Node, home: Path) -> None:
    """One life of the SuperNode."""
    address = Address.parse(node.config().server)
    quiet = environment(home, address)
    supernode = executable("flower-supernode", quiet)
    quiet["PATH"] = os.pathsep.join([str(replace_program(home / "bin")), quiet["PATH"]])
    _find(address, node.authority)
    said_before = node.log_file.stat().st_size if node.log_file.exists() else 0
    command = [
        supernode,
        *("--superlink", str(address), "--root-certificates", str(node.authority.resolve())),
        *("--auth-supernode-private-key", str(node.key.resolve())),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", f"config={json.dumps(str(node.client_toml.resolve()))}"),
    ]
    try:
        with child(command, environment=quiet, directory=node.path, output=node.log_file) as process:
            log.info("SuperNode started for %s", address)
            _wait(process, node, said_before)
    finally:
        stop_all(home)


def replace_program(folder: Path) -> Path:
    """Put client.doors.own_app into ``folder`` under the name of Flower's program; the folder, for a PATH."""
    command = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m client.doors.own_app "$@"\n'
    write_file(folder / REPLACED, command.encode(), mode=0o700)
    return folder


def _find(address: Address, authority: Path) -> None:
    """Return once the coordinator answers: with a wrong CA Flower would try for ever and say nothing."""
    said = ""
    while why := check_server(address, authority):
        if why != said:
            log.info("waiting for %s: %s", address, why)
        said = why
        time.sleep(_LOOK_SECONDS)


def _wait(process: "subprocess.Popen[bytes]", node: Node, said_before: int) -> None:
    status = process.wait()
    with node.log_file.open("rb") as file:
        file.seek(said_before)
        if _REFUSED.encode() in file.read():
            raise ProcessEndedError(
                "the coordinator refused this node: its key is not enrolled, or the coordinator has only "
                "just started, or the node was killed less than a minute ago (enroll it with "
                f"`fedfree-server enroll NAME {node.key}.pub`; see {node.log_file})"
            )
    raise ProcessEndedError(f"the SuperNode ended with exit status {status}; see {node.log_file}")
