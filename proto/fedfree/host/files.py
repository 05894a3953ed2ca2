"""Files that matter: read with a clear error, written whole or not at all.

A full disk, a read-only folder and a missing file each become one :class:`fedfree.errors.StorageError`
that names the path and what the system said.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from fedfree.errors import ConfigError, StorageError

PRIVATE = 0o600
"""Permissions of a file for its owner's eyes alone."""
MOST_PIPED = 2**16
"""Bytes that are read of a pipe."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def read_file(path: Path) -> bytes:
    """The content of a file that somebody named; raises StorageError."""
    with open_file(path) as file, named(f"cannot read {path}"):
        return file.read()


def open_file(path: Path) -> BinaryIO:
    """A file that somebody named, to read.

    Raises:
        StorageError: it cannot be read, or is none: a pipe may never speak, and a device never end.
    """
    with named(f"cannot read {path}"):
        require_regular(path)
        return path.open("rb")


def require_regular(path: Path) -> None:
    """Refuse what is no file: a folder, a pipe, a socket, a device; raises OSError."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device: name a file", str(path))


def require_file(path: Path) -> None:
    """Refuse what is there and is no file, before its content is asked for; raises StorageError."""
    if os.path.lexists(path):
        with named(f"cannot read {path}"):
            require_regular(path)


def is_there(path: Path) -> bool:
    """Whether a file is there whose absence means that nothing was written yet, such as a ledger.

    Raises:
        StorageError: a link that leads nowhere, as to a disk that is not there now.
    """
    with named(f"cannot read {path}"):
        if path.is_symlink():
            path.stat()
        return path.exists()


def read_piped(path: Path) -> bytes:
    """As :func:`read_file`, also of a pipe, as in ``--token-file <(pass show token)``: what it has to say."""
    if not path.is_fifo():
        return read_file(path)
    with named(f"cannot read {path}"):
        # Whoever opens a pipe without a writer waits for one, unless they say that they would not.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as pipe:
            os.set_blocking(descriptor, True)
            return pipe.read(MOST_PIPED)


def write_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file, with the folders above it, so that it is whole and on disk or as it was before.

    It is written beside its place, synced and renamed: whoever reads it meanwhile, or after a loss of power,
    finds the old content or the new.

    Args:
        mode: permissions, less what the umask takes.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with named(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, mode=mode) as partial, partial.open("wb") as file:
            file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """An empty file beside ``path``, which takes its place, synced, when the block ends without an error.

    Raises:
        OSError: it cannot be written, or a folder, a pipe, a socket or a device is there.
    """
    if path.exists():
        require_regular(path)
    partial = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield partial
        move_into_place(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def require_writable(path: Path) -> None:
    """Refuse a place where :func:`write_file` could not write, before long work whose result would be lost.

    Nothing is left there: a folder that is yet to be made is asked for in the nearest that is there.

    Raises:
        StorageError: what :func:`write_file` would say.
    """
    with named(f"cannot write {path}"):
        if path.exists():
            require_regular(path)
        with tempfile.TemporaryFile(dir=next(each for each in path.parents if os.path.lexists(each))):
            pass


def refuse_foreign(path: Path, mark: bytes) -> None:
    """Refuse to write over a file that somebody made otherwise.

    Args:
        mark: what every file holds that is written there.

    Raises:
        ConfigError: a file is there, not empty, without the mark.
        StorageError: it cannot be read, or is no file.
    """
    if not path.exists():
        return
    with named(f"cannot write {path}"):
        require_regular(path)
    with open_file(path) as file, named(f"cannot read {path}"):
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            is_ours = content.find(mark) >= 0
    if not is_ours:
        raise ConfigError(
            f"{path} is there, and is nothing that this command writes: choose another name, or remove it"
        )


def write_once(path: Path, data: bytes, *, mode: int = 0o666) -> bool:
    """Write a file that must not be there yet; of several processes at once the first does.

    Returns:
        Whether it was this one: nothing is ever overwritten.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with named(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.once")
        try:
            write_file(partial, data, mode=mode)
            path.hardlink_to(partial)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        sync(path.parent)
    return True


def point(link: Path, target: str) -> None:
    """Let a symbolic link lead to ``target``, relative to its folder: before, or from now on, never between.

    Raises:
        StorageError: the folder cannot be written.
    """
    partial = link.with_name(f".{link.name[:64]}.{uuid.uuid4().hex[:8]}.partial")
    with named(f"cannot write {link}"):
        try:
            partial.symlink_to(target)
            partial.replace(link)
        finally:
            partial.unlink(missing_ok=True)
        sync(link.parent)


def discard(path: Path) -> None:
    """Remove a folder with all it holds, or a file; what is not there need not be removed.

    Raises:
        StorageError: it cannot be removed.
    """
    with named(f"cannot remove {path}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def move_into_place(partial: Path, path: Path) -> None:
    """Let a finished file take the place of ``path`` beside it, on disk; raises StorageError."""
    with named(f"cannot write {path}"):
        sync(partial)
        partial.replace(path)
        sync(path.parent)


def open_stream(path: Path, *, begun: bool = False) -> BinaryIO:
    """A file to write piece by piece, which nobody looks for before it, or its folder, is moved into place.

    Args:
        begun: go on at the end of what is there, instead of beginning anew.

    Raises:
        StorageError: it cannot be written.
    """
    with named(f"cannot write {path}"):
        return path.open("ab" if begun else "wb")


def append_line(path: Path, line: str) -> None:
    """Add a line, with its end, to a log that several processes share.

    A line that a killed process left half written is ended first: it stays one line that cannot be read, and
    spoils no other.

    Raises:
        StorageError: the disk is full, or the file cannot be written; of the new line nothing may be there.
    """
    with named(f"cannot write {path}"), path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # or another's line, not yet whole, would be taken for a torn one
        torn = file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write(b"\n" * bool(torn) + line.encode())


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together over those of before, all or none: each is on disk before the first
    takes its place, and only a kill between two renames leaves new ones beside old ones. Of several processes
    at once one comes after the other.

    Raises:
        StorageError: the disk is full, or a folder cannot be written; all are as they were before.
    """
    with contextlib.ExitStack() as replaced:
        for path in files:
            with named(f"cannot write {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
        for folder in sorted({path.parent for path in files}):
            replaced.enter_context(_alone_in(folder))
        for path, data in files.items():
            with named(f"cannot write {path}"):
                partial = replaced.enter_context(replacing(path))
                partial.write_bytes(data)
                sync(partial)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process out that asks likewise, which waits; raises StorageError."""
    with named(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with named(f"cannot write {folder}"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_new(folder: Path, files: Mapping[str, bytes], *, private: Sequence[str] = ()) -> Iterator[None]:
    """Write files that must not be there yet, the ``private`` ones for their owner's eyes alone: all or none.

    The last, by which readers know that all are there, comes when the block has ended. Where the block fails
    nothing is left; what a killed process left is taken away by the next.

    Raises:
        ConfigError: one of them is there; nothing is overwritten.
        StorageError: the folder cannot be written.
    """
    with _alone_in(folder):
        _take_back(folder, files)
        for name in files:
            if (folder / name).exists():
                raise _already_there(folder, name)
        *others, last = files
        try:
            for name, content in files.items():
                write_file(folder / _STAGED / name, content, mode=PRIVATE if name in private else 0o644)
            _link_staged(folder, others)
            yield
            _link_staged(folder, [last])
        finally:
            _take_back(folder, files)


_STAGED = ".new"
"""Folder of what :func:`writing_new` has not finished; a file above it that is the same one is its own."""


def _already_there(folder: Path, name: str) -> ConfigError:
    return ConfigError(f"{folder} has a {name}: choose another folder, nothing is overwritten")


def _link_staged(folder: Path, names: Sequence[str]) -> None:
    with named(f"cannot write {folder}"):
        for name in names:
            try:
                (folder / name).hardlink_to(folder / _STAGED / name)
            except FileExistsError:
                raise _already_there(folder, name) from None
        sync(folder)


def _take_back(folder: Path, files: Iterable[str]) -> None:
    """Remove what was begun, unless all of it is there."""
    *others, last = files
    with named(f"cannot remove {folder / _STAGED}"):
        for name in others:
            staged, path = folder / _STAGED / name, folder / name
            if not (folder / last).exists() and staged.exists() and path.exists() and path.samefile(staged):
                path.unlink()
    discard(folder / _STAGED)


def sync(path: Path) -> None:
    """Put a file's content or a folder's entries on disk, so that they outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that begins with ``what``."""
    try:
        yield
    except OSError as error:
        remedy = "; make room, and give the command again" if error.errno in _FULL else ""
        said = misplaced(error) or error.strerror or error
        raise StorageError(f"{what}: {said}{remedy}") from error


def misplaced(error: OSError) -> str:
    """Which folder is in the place of a file, or file in that of a folder; empty where that is not why."""
    named_in = (error.filename2, error.filename)
    paths = [Path(os.fsdecode(each)) for each in named_in if isinstance(each, str | bytes | os.PathLike)]
    if error.errno == errno.EEXIST:  # of a folder that was to be made, the only one
        paths = paths if len(paths) == 1 else []
    elif error.errno == errno.ENOTDIR:
        paths = [above for path in paths for above in (path, *path.parents)]
    elif error.errno != errno.EISDIR:
        return ""
    is_folder = error.errno == errno.EISDIR
    with contextlib.suppress(OSError):
        for path in paths:
            if path.is_dir() if is_folder else path.exists() and not path.is_dir():
                here, wanted = ("folder", "file") if is_folder else ("file", "folder")
                return f"{path} is a {here} where a {wanted} is expected: move it away, or name a {wanted}"
    return ""
