"""Which FedFREE each side is: two whose contract may differ refuse each other, both named."""

import functools
import hashlib
from pathlib import Path
from typing import Literal

import fedfree
from fedfree.errors import VersionError, printable

Side = Literal["coordinator", "organisation"]

_CONTRACT, _NO_CONTRACT = ("*.py", "*.proto"), "host"
_DIGITS = 12
_MAX_CHARACTERS = 60
"""Of what another party says that it is."""


@functools.cache
def this_release() -> str:
    """Version, protocol, and the beginning of the contract's hash, as the sides tell each other."""
    contract = _contract_sha256()[:_DIGITS]
    return f"{fedfree.__version__} (protocol {fedfree.PROTOCOL_VERSION}, contract {contract})"


def require_same_release(theirs: object, who: Side) -> None:
    """Refuse another FedFREE than this one.

    Args:
        theirs: what the other side says that it is.
        who: the other side.

    Raises:
        VersionError: it names both.
    """
    if theirs == this_release():
        return
    said = theirs if isinstance(theirs, str) and theirs else "that does not say which"
    shown = printable(said, _MAX_CHARACTERS)
    here = "coordinator" if who == "organisation" else "organisation"
    raise VersionError(
        f"the {here} has FedFREE {this_release()}, the {who} a FedFREE {shown}: "
        "install the same on both sides"
    )


def _contract_sha256() -> str:
    """Of the sources of the contract: under one version they may change."""
    root = Path(fedfree.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(path for pattern in _CONTRACT for path in root.rglob(pattern)):
        name = path.relative_to(root)
        if name.parts[0] != _NO_CONTRACT:
            hashed.update(f"{name.as_posix()}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()
