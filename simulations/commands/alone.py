"""Commands whose folder is theirs alone: two at once would mix what they leave there."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from fedfree.host.lock import exclusive

_Options = ParamSpec("_Options")


def alone_in_out(command: Callable[_Options, None]) -> Callable[_Options, None]:
    """A command that holds its ``out``, which a command line gives by name, until it ends.

    Raises:
        ConfigError: another process holds it; that is named.
        StorageError: the folder cannot be written.
    """

    @functools.wraps(command)
    def held(*args: _Options.args, **options: _Options.kwargs) -> None:
        out: Any = options["out"]
        with exclusive(out):
            command(*args, **options)

    return held
