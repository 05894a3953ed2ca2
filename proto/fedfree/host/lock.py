"""A folder held by one process, which others can name: the kernel lets go of it however that process ends."""

import fcntl
import itertools
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedfree.errors import ConfigError
from fedfree.host.files import named

_FILE = ".lock"
_MAX_BYTES = 1000


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, until the block or the process ends in whatever way.

    Raises:
        ConfigError: another holds it; the message names that process.
        StorageError: the folder cannot be written.
    """
    file = folder / _FILE
    with named(f"cannot write {file}"):
        folder.mkdir(parents=True, exist_ok=True)
        # Never replaced nor removed: a lock on a file that has lost its name would keep nobody out.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Refuse a folder that another process holds; raises ConfigError."""
    if (folder / _FILE).exists():
        with exclusive(folder):
            pass


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, _MAX_BYTES, 0).decode(errors="replace").strip()
        shown = folder.parent if folder.name.startswith(".") else folder
        raise ConfigError(
            f"another process runs in {shown}: {holder or 'it does not say which'}; let it end, or stop it"
        ) from error
    with named(f"cannot write {folder / _FILE}"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _this_process().encode()[:_MAX_BYTES], 0)


def _this_process() -> str:
    """Who this is, without the options of its command: they may hold what is not for everyone."""
    words = itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:])
    command = shlex.join([Path(sys.argv[0]).name, *words])
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}: {command}\n"
