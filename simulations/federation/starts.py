"""The public starts of a simulated federation: made once into the cache, or the folders that hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from client.config import TrainingConfig
from fedfree.errors import ConfigError, StartError
from fedfree.host.public_weights import is_public_name, make_start
from fedfree.host.starts import StartConfig, has_start, keep_start


class Begins(Protocol):
    """The part of a configuration that says where training begins."""

    @property
    def starts(self) -> Sequence[str]: ...
    @property
    def training(self) -> TrainingConfig: ...
    @property
    def cache(self) -> Path: ...


def find_start(config: Begins) -> Path | None:
    """Folder of the start that the meta-learner begins from, the first; None without one.

    Raises as :func:`find_starts`.
    """
    return next(iter(find_starts(config)), None)


def find_starts(config: Begins) -> list[Path]:
    """Folders of the starts that organisations begin from, made where they are not there yet.

    Raises:
        ConfigError: weights that cannot be had here, or of which a person must say more.
        ContributionError: a licence that is not allowed, or weights that are not what they should be.
    """
    return [_find(start, config) for start in config.starts]


def _find(start: str, config: Begins) -> Path:
    folder = start_folder(start, config)
    if is_public_name(start) and not has_start(folder):
        _make(start, config.training.image_size, folder)
    return folder


def start_folder(start: str, config: Begins) -> Path:
    """Where a start is, or will be once it has been made."""
    if not is_public_name(start):
        return Path(start).resolve()
    name = f"{start.replace('/', '-')}-{config.training.image_size}"
    return (config.cache / "starts" / name).resolve()


def _make(name: str, size: int, folder: Path) -> None:
    try:
        start, weights = make_start(name, StartConfig(image_size=size))
    except (ConfigError, StartError) as error:
        remedy = "or make the start with fedfree-server start make, and name its folder as start"
        raise type(error)(f"{error}; {remedy}") from error
    keep_start(folder, start, weights)
