"""The public start of a simulated federation: made once into the cache, or the folder that holds one."""

from pathlib import Path
from typing import Protocol

from client.config import TrainingConfig
from fedfree.errors import ConfigError, StartError
from fedfree.host.public_weights import is_public_name, make_start
from fedfree.host.starts import StartConfig, has_start, keep_start


class Begins(Protocol):
    """The part of a configuration that says where training begins."""

    @property
    def start(self) -> str | None: ...
    @property
    def training(self) -> TrainingConfig: ...
    @property
    def cache(self) -> Path: ...


def find_start(config: Begins) -> Path | None:
    """Folder of the start that everybody begins from, made where it is not there yet; None without one.

    Raises:
        ConfigError: weights that cannot be had here, or of which a person must say more.
        ContributionError: a licence that is not allowed, or weights that are not what they should be.
    """
    if config.start is None:
        return None
    if not is_public_name(config.start):
        return Path(config.start).resolve()
    size = config.training.image_size
    folder = (config.cache / "starts" / f"{config.start.replace('/', '-')}-{size}").resolve()
    if not has_start(folder):
        _make(config.start, size, folder)
    return folder


def _make(name: str, size: int, folder: Path) -> None:
    try:
        start, weights = make_start(name, StartConfig(image_size=size))
    except (ConfigError, StartError) as error:
        remedy = "or make the start with fedfree-server start make, and name its folder as start"
        raise type(error)(f"{error}; {remedy}") from error
    keep_start(folder, start, weights)
