"""What somebody added to one of FedFREE's tables (docs/extending.md): a fault there is said as theirs."""

import contextlib
import traceback
from collections import UserDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from fedfree.errors import ExtensionError, FedFreeError

Entry = TypeVar("Entry")
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


class Table(UserDict[str, Entry]):
    """Entries by name, to which somebody may add their own under other names than those of ours."""

    def __init__(self, kind: str, ours: Mapping[str, Entry], *, reserved: Mapping[str, object] | None = None):
        """Fill a table.

        Args:
            kind: of the entries, for instance ``head``.
            ours: the entries that come with FedFREE.
            reserved: names that mean something else of ours already, with what has them.
        """
        super().__init__()
        self._kind = kind
        self.data |= ours
        self._ours: dict[str, object] = {**ours, **(reserved or {})}

    def __setitem__(self, name: str, entry: Entry) -> None:
        if name in self._ours and entry is not self._ours[name]:
            raise name_taken(self._kind, name, entry, self._ours[name])
        super().__setitem__(name, entry)


def name_taken(kind: str, name: str, entry: object, ours: object) -> ExtensionError:
    """Somebody's own entry has the name of one of ours."""
    return ExtensionError(
        f"the {kind} {name!r} comes with FedFREE{_origin(ours)}: give yours{_origin(entry)} another name"
    )


def _origin(entry: object) -> str:
    """For instance `` (fedfree.adaptation.ridge)``; empty of what is no function."""
    for within in ("build", "measure", "func"):  # of a Family, a Baseline, a partial
        entry = getattr(entry, within, entry)
    module, name = (getattr(entry, each, "") for each in ("__module__", "__qualname__"))
    return f" ({module}.{name})" if module and name else ""


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
