"""The images in a folder or a zip: where they are, and their bytes. Every reader of images begins here."""

import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedfree.errors import DataError
from fedfree.host.images.decoding import MAX_PIXELS
from fedfree.host.images.formats import is_hidden, why_no_image
from fedfree.host.images.passed_over import Parts, Reason, readable

MAX_FILE_BYTES = 4 * MAX_PIXELS
"""Largest file that is read: an image of the most pixels, uncompressed. A zip may claim any size."""

MOST_EXPANSION = 100
"""Times its size in a zip that a member of more than ``SMALL_MEMBER`` bytes may unpack to."""
SMALL_MEMBER = 2**24

ENCRYPTED = 0x1
"""Flag of a zip's member that needs a password."""

MOST_FOLDERS = 100
"""Folders in one another above an image; a zip may claim thousands, and memory grows with their square."""

Identity = tuple[int, int]
"""Device and number of a folder on disk, whichever way led to it."""


@dataclass
class Listing:
    """What a folder or zip holds, sorted by one rule."""

    images: set[Parts] = field(default_factory=set)
    folders: set[Parts] = field(default_factory=set)
    """Those that are not hidden, with or without images."""
    passed_over: defaultdict[Reason, set[Parts]] = field(default_factory=lambda: defaultdict(set))

    def add(self, parts: Parts, *, reason: Reason | None = None, is_folder: bool = False) -> None:
        """Sort in one path; without a ``reason`` why it is no image, its name decides.

        Raises:
            DataError: it lies too deep.
        """
        for depth, name in enumerate(parts, 1):
            if is_hidden(name):
                self.passed_over[Reason.HIDDEN].add(parts[:depth])
                return
            if depth > MOST_FOLDERS + 1:
                raise DataError(
                    f"more than {MOST_FOLDERS} folders in one another, below "
                    f"{readable('/'.join(parts[:3]))}: flatten them, or take them out"
                )
            if depth < len(parts) or is_folder:
                self.folders.add(parts[:depth])
        if is_folder:
            return
        if reason := reason or why_no_image(parts):
            self.passed_over[reason].add(parts)
        else:
            self.images.add(parts)


@dataclass(frozen=True)
class Source:
    """An opened folder or zip."""

    path: Path
    listing: Listing
    read_bytes: Callable[[Parts], bytes]

    def read(self, parts: Parts) -> bytes:
        """The bytes of one image; raises DataError where it cannot be read."""
        try:
            return self.read_bytes(parts)
        except Exception as error:  # a broken zip makes zipfile raise anything
            raise unreadable(self.path, parts, error) from error


def unreadable(source: Path, parts: Parts, why: object) -> DataError:
    """The error of an image that cannot be read."""
    return DataError(
        f"cannot read the image {readable('/'.join(parts))} in {source} ({why}); replace it or take it out"
    )


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder or zip.

    Symbolic links are followed, but not back to a folder that they lie in.

    Raises:
        DataError: it is neither, a folder or the zip cannot be read, or folders lie too deep in one another.
    """
    if path.is_dir():
        listing = Listing()
        _walk(path, (), frozenset([_identity(path)]), listing)
        yield Source(path, listing, lambda parts: read_image_file(path.joinpath(*parts)))
    elif path.is_file():
        with _open_zip(path) as archive:
            listing, members = _list_members(archive)
            yield Source(path, listing, lambda parts: _read_member(archive, members[parts]))
    else:
        raise DataError(f"no such file or folder: {path}; pass an image folder or a zip of one")


def read_image_file(path: Path) -> bytes:
    """The bytes of a file; raises OSError, or ValueError where it is too large for any image."""
    _check_size(path.stat().st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"it takes {size} bytes, more than the {MAX_FILE_BYTES} of the largest image read")


def _walk(folder: Path, parts: Parts, above: frozenset[Identity], listing: Listing) -> None:
    """List what lies below a folder; ``above`` are the folders on the way to it, itself among them."""
    try:
        for place in list(folder.iterdir()):
            _sort_in(place, (*parts, place.name), above, listing)
    except OSError as error:
        raise DataError(
            f"cannot open the folder {folder} ({error.strerror or error}); make it readable or take it out"
        ) from error


def _sort_in(place: Path, parts: Parts, above: frozenset[Identity], listing: Listing) -> None:
    if is_hidden(place.name) or place.is_file():
        listing.add(parts)
    elif not place.is_dir():
        listing.add(parts, reason=Reason.NOWHERE if place.is_symlink() else Reason.SPECIAL)
    elif (identity := _identity(place)) in above:
        listing.add(parts, reason=Reason.LOOP)
    else:
        listing.add(parts, is_folder=True)
        _walk(place, parts, above | {identity}, listing)


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a broken zip makes zipfile raise anything
        raise DataError(
            f"cannot read {path} as a zip ({error}); pass an image folder or an intact zip of one"
        ) from error
    if any(member.flag_bits & ENCRYPTED for member in archive.infolist()):
        archive.close()
        raise DataError(f"{path} is encrypted; unpack it with its password and pass the folder")
    return archive


def _list_members(archive: zipfile.ZipFile) -> tuple[Listing, dict[Parts, zipfile.ZipInfo]]:
    """What a zip holds, and where; a backslash parts folders too, as some programs on Windows write it."""
    listing, members = Listing(), {}
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if not parts:
            continue
        if parts in listing.images:
            listing.add(parts, reason=Reason.REPLACED)
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        listing.add(parts, reason=Reason.NOWHERE if is_link else None, is_folder=name.endswith("/"))
        members[parts] = member
    return listing, members


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    _check_size(member.file_size)
    if member.file_size > max(SMALL_MEMBER, MOST_EXPANSION * member.compress_size):
        raise ValueError(
            f"{member.compress_size} bytes that unpack to {member.file_size}: a decompression bomb, or "
            "nearly empty"
        )
    return archive.read(member)
