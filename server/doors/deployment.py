"""A coordinator's directory: a run directory with certificates, the keys of its organisations, and a port.

::

    deployment.toml        where the SuperLink listens
    server.toml            what the server is configured with, see server.storage.run_directory for the rest
    ca.crt, ca.key         the authority; organisations are given ca.crt
    server.crt, server.key
    enrolled/<name>.pub    public keys of the organisations that may take part
    superlink.db           what Flower remembers from one start to the next
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from fedfree.errors import ConfigError
from fedfree.host.channel import Address
from fedfree.host.files import read_file, require_file, write_file, writing_new
from fedfree.host.lock import changing
from fedfree.host.starts import load_start
from fedfree.settings import Settings
from server.config import CollectConfig, ServerConfig
from server.doors.authority import (
    certificate_pem,
    key_pem,
    make_authority,
    make_server_certificate,
    read_public_key,
)
from server.doors.tokens import require_name
from server.storage.run_directory import RunDirectory


def _address(text: str) -> str:
    return str(Address.parse(text))


class DeploymentConfig(Settings):
    """What an operator decides of a coordinator, besides what the server learns with."""

    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:8000"
    """HOST:PORT of Flower's SuperLink. Whoever reaches this port can list, submit and stop runs: keep it on
    this machine, and publish /v1/fleet/ alone through a proxy (deploy/nginx.conf)."""
    retries: Annotated[int, Field(ge=0)] = 10
    """How often in a row the SuperLink and the run are started again after they broke down."""


@dataclass(frozen=True)
class Deployment:
    """Paths of a coordinator's directory."""

    path: Path

    def __post_init__(self) -> None:
        require_file(self.config_file)
        if not self.config_file.is_file():
            raise ConfigError(
                f"{self.path} is not a coordinator's directory: make one with `fedfree-server init`"
            )

    @property
    def config_file(self) -> Path:
        return self.path / "deployment.toml"

    @property
    def authority(self) -> Path:
        return self.path / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        return self.path / "server.key"

    @property
    def database(self) -> Path:
        return self.path / "superlink.db"

    @property
    def run(self) -> RunDirectory:
        """The run directory, which is the same one."""
        return RunDirectory(self.path)

    def config(self) -> DeploymentConfig:
        """What the operator decided; raises ConfigError."""
        return DeploymentConfig.read(self.config_file)

    def enrolled(self) -> dict[str, Path]:
        """Organisation to the file of its public key."""
        return {path.stem: path for path in sorted((self.path / "enrolled").glob("*.pub"))}

    def enroll(self, name: str, public_key: Path) -> None:
        """Admit an organisation; raises ConfigError for a name or a key that cannot be taken."""
        require_name(name)
        key = read_public_key(public_key, read_file(public_key))
        folder = self.path / "enrolled"
        with changing(folder):
            for other, path in self.enrolled().items():
                if other == name:
                    raise ConfigError(f"{name} is enrolled: choose another name")
                if read_file(path).strip() == key:
                    raise ConfigError(f"{public_key} is the key of {other}: every organisation needs its own")
            write_file(folder / f"{name}.pub", key + b"\n")


def init(
    path: Path,
    names: Sequence[str],
    config: DeploymentConfig,
    collect: CollectConfig,
    *,
    starts: Sequence[Path] = (),
) -> Deployment:
    """Make a coordinator's directory with an authority, a certificate and commented configurations.

    Args:
        starts: folders of the public starts that the run begins from, that of the meta-learner first.

    Raises:
        ConfigError: a name that is none, or files that would be overwritten.
        StorageError, ContributionError: a start that cannot be used.
    """
    for start in starts:
        load_start(start)
    authority, authority_key = make_authority()
    certificate, key = make_server_certificate(authority, authority_key, names)
    files = {
        "server.toml": ServerConfig.begun(collect, has_start=bool(starts)).to_commented_toml().encode(),
        "ca.crt": certificate_pem(authority),
        "ca.key": key_pem(authority_key),
        "server.crt": certificate_pem(certificate),
        "server.key": key_pem(key),
        "deployment.toml": config.to_commented_toml().encode(),
    }
    with writing_new(path, files, private=("ca.key", "server.key")):
        if starts:
            RunDirectory(path).adopt_start(*starts)
    return Deployment(path)
