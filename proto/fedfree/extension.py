"""What somebody added to one of FedFREE's tables (docs/extending.md): a fault there is said as theirs."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from fedfree.errors import ExtensionError, FedFreeError

_OURS = ("fedfree", "client", "server", "simulations")


@contextlib.contextmanager
def extending(what: str, entry: Any) -> Iterator[None]:
    """Let whatever goes wrong in an entry of somebody's own name it, in one line.

    Args:
        what: the kind and the name of the entry, for instance ``the head 'distance'``.
        entry: the function of the table. The faults of our own entries are our own, and pass unchanged.

    Raises:
        ExtensionError: it raised something, with the line of its file.
    """
    try:
        yield
    except (FedFreeError, MemoryError):
        raise
    except Exception as error:
        if is_ours(entry):
            raise
        raise ExtensionError(
            f"{what} failed{_line_of(error, entry)}: {type(error).__name__}: {error}"
        ) from error


def is_ours(entry: Any) -> bool:
    """Whether a function comes with FedFREE, also where it is the function of a ``partial``."""
    function = getattr(entry, "func", entry)
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).partition(".")[0] in _OURS


def described(value: object) -> Any:
    """What somebody gave, for an error: the shape of a tensor, what a sequence holds, or a type."""
    if isinstance(value, Tensor | np.ndarray):
        return list(value.shape)
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    return type(value).__name__


def _line_of(error: Exception, entry: Any) -> str:
    """The last line that was reached of the file in which the entry is; empty where it was not reached."""
    file = getattr(getattr(entry, "__code__", None), "co_filename", None)
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == file]
    return f" at {file}:{lines[-1]}" if lines else ""
