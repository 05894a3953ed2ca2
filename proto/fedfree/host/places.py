"""Where a person's own files are unless told otherwise: the same from every working directory."""

import os
from pathlib import Path

from fedfree.errors import ConfigError


def state_folder() -> Path:
    """For what must not be lost, such as the ledger; raises ConfigError as :func:`cache_folder` does."""
    return _folder("state", "XDG_STATE_HOME", Path(".local/state"))


def cache_folder() -> Path:
    """For what can be made again.

    ``$FEDFREE_HOME/cache`` where that is set, else ``fedfree`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        ConfigError: FEDFREE_HOME is relative, HOME relative or empty, or this user has no home.
    """
    return _folder("cache", "XDG_CACHE_HOME", Path(".cache"))


def _folder(kind: str, variable: str, below_home: Path) -> Path:
    if own := os.environ.get("FEDFREE_HOME"):
        return _absolute("FEDFREE_HOME", own) / kind
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():  # relative ones are to be ignored, says the XDG specification
        base = _home() / below_home
    return base / "fedfree"


def _home() -> Path:
    if (named := os.environ.get("HOME")) is not None:
        return _absolute("HOME", named)
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError("this user has no home: set FEDFREE_HOME to a folder of yours") from error


def _absolute(variable: str, folder: str) -> Path:
    """A relative one would be another folder, with another ledger, in every working directory."""
    if not Path(folder).is_absolute():
        raise ConfigError(f"{variable} is {folder!r}: set it to a path that begins with /")
    return Path(folder)
