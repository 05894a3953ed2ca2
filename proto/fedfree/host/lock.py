"""A folder held by one process, which others can name: the kernel lets go of it however that process ends."""

import fcntl
import functools
import itertools
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfree.errors import ConfigError
from fedfree.host.files import named

_FILE = ".lock"
_MAX_BYTES = 1000
_POLL_SECONDS = 0.01
WAIT_SECONDS = 30.0
"""How long :func:`changing` waits for others, who read, change and write and are done."""


@contextmanager
def exclusive(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process alone, until the block or the process ends in whatever way.

    Args:
        wait_seconds: for how long it is tried to get it.

    Raises:
        ConfigError: another holds it; the message names that process.
        StorageError: the folder cannot be written.
    """
    descriptor = _hold(folder, time.monotonic() + wait_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def alone(command: Callable[..., None]) -> Callable[..., None]:
    """A command that continues what is in its ``out``, run only while no other process does so.

    Nothing is left of that: neither the lock, nor a folder into which the command wrote nothing.
    """

    @functools.wraps(command)
    def held(*given: Any, out: Path, **named: Any) -> None:
        is_new = not out.exists()
        with exclusive(out):
            try:
                command(*given, out=out, **named)
            finally:
                with suppress(OSError):
                    (out / _FILE).unlink()
                    if is_new:
                        out.rmdir()  # refused where there is something in it

    return held


def changing(file: Path) -> AbstractContextManager[None]:
    """Read, change and write a file while no other process does.

    Raises:
        ConfigError: another held it for WAIT_SECONDS.
        StorageError: the folder cannot be written.
    """
    return exclusive(file.parent / f".{file.name}", wait_seconds=WAIT_SECONDS)


def require_free(folder: Path) -> None:
    """Refuse a folder that another process holds; raises ConfigError."""
    if (folder / _FILE).exists():
        with exclusive(folder):
            pass


def holder(folder: Path) -> str:
    """Who holds a folder, in its own words; empty where nobody does. Nothing is written."""
    try:
        descriptor = os.open(folder / _FILE, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _said(descriptor) or "another process"
    finally:
        os.close(descriptor)
    return ""


def _hold(folder: Path, until: float) -> int:
    """A descriptor that holds the folder's lock file until it is closed."""
    file = folder / _FILE
    while True:
        with named(f"cannot write {file}"):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, folder, until)
            # A lock on a file that has lost its name meanwhile would keep nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _said(descriptor: int) -> str:
    return os.pread(descriptor, _MAX_BYTES, 0).decode(errors="replace").strip()


def _take(descriptor: int, folder: Path, until: float) -> None:
    try:
        _flock(descriptor, until)
    except BlockingIOError as error:
        shown = folder.parent if folder.name.startswith(".") else folder
        who = _said(descriptor) or "it does not say which"
        raise ConfigError(f"another process runs in {shown}: {who}; let it end, or stop it") from error
    with named(f"cannot write {folder / _FILE}"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _this_process().encode(errors="replace")[:_MAX_BYTES], 0)


def _flock(descriptor: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(_POLL_SECONDS)


def _this_process() -> str:
    """Who this is, without the options of its command: they may hold what is not for everyone."""
    words = itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:])
    command = shlex.join([Path(sys.argv[0]).name, *words])
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}: {command}\n"
