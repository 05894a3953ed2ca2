"""The readers of images: pixels and labels from a folder, a zip or one file."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.config import DataConfig
from client.data.finding import find_images
from client.data.image_set import ImageSet
from client.data.room import room_for
from fedfree.errors import DataError
from fedfree.host.compute import count_threads
from fedfree.host.images.decoding import UndecodableError, decode_square, look_at
from fedfree.host.images.formats import FORMATS, Fit
from fedfree.host.images.passed_over import Parts, PassedOver
from fedfree.host.images.sources import Listing, Source, open_source, read_image_file, unreadable

log = logging.getLogger(__name__)

OnPassedOver = Callable[[Path, PassedOver], None]
OnUnreadable = Callable[[DataError], None]
OnRead = Callable[[int, int], None]
"""Told how many images are read, and of how many."""

Result = TypeVar("Result")

TRAINED_CLASSES = 2
"""Fewest classes that a classifier can be trained on."""
DECODERS = 4
"""Most images that are decoded at once; each may be held whole for a moment."""


def warn_of_passed_over(source: Path, passed_over: PassedOver) -> None:
    """Log what a reader passed over, in one line."""
    log.warning("%s: %s", source, passed_over)


def load_images(
    source: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    images_per_class: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    min_classes: int = TRAINED_CLASSES,
    on_passed_over: OnPassedOver = warn_of_passed_over,
    on_read: OnRead = lambda done, of: None,
) -> ImageSet:
    """Read an image folder or a zip of one: ``<class>/…/<image>`` or ``<split>/<class>/…/<image>``.

    Images at any depth below a class folder are of that class. Folders may wrap the whole tree. What an
    image is, is said in ``fedfree.host.images.formats``.

    Args:
        source: a folder or a .zip; of a zip only the images asked for are read.
        split: ``meta_train``, ``train`` or whatever the split's folder is called; None for a tree without.
        classes: which classes, in any order; all by default. Labels follow their sorted names.
        images_per_class: keep the first so many of each class by path; all by default.
        size: side in pixels that images are brought to; that of the first image by default (its
            shorter side where it is not square).
        channels: 1 or 3; by default 1 where the first image is greyscale, else 3.
        fit: how an image that is not square becomes one.
        min_classes: fewest classes the caller can use.
        on_passed_over: told once what the source holds beside images of classes, where it holds any.
        on_read: told after every image: thousands of photographs take minutes.

    Raises:
        DataError: the source, split, a class or an image is missing or cannot be read.
        StorageError: so many pixels that they go to disk, and it has no room for them.
    """
    _check_positive(images_per_class=images_per_class, size=size)
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 or 3 channels, got {channels}")
    with open_source(source) as opened:
        kept, passed_over = find_images(
            opened, split=split, classes=classes, images_per_class=images_per_class, min_classes=min_classes
        )
        if passed_over:
            on_passed_over(source, passed_over)
        paths = [parts for of_class in kept.values() for parts in of_class]
        pixels = _read_all(opened, paths, size, channels, fit, on_read)
    counts = torch.tensor([len(of_class) for of_class in kept.values()], dtype=torch.int64)
    return ImageSet(pixels, torch.arange(len(kept)).repeat_interleave(counts), tuple(kept))


def load_configured(
    data: DataConfig,
    *,
    size: int,
    channels: int | None = None,
    on_read: OnRead = lambda done, of: None,
) -> ImageSet:
    """The images that a configuration names, ``size`` pixels a side; raises as :func:`load_images`."""
    return load_images(
        data.source,
        split=data.split,
        classes=data.classes,
        images_per_class=data.images_per_class,
        size=size,
        channels=channels,
        fit=data.fit,
        on_read=on_read,
    )


def load_image(path: Path, *, size: int, channels: int, fit: Fit = "crop") -> Tensor:
    """One image, decoded as :func:`load_images` does: [channels, size, size], uint8.

    Raises:
        DataError: the image is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"no such image: {path}")
    alone = Source(path.parent, Listing(), lambda parts: read_image_file(path))
    return torch.from_numpy(np.array(read_array(alone, (path.name,), size, channels, fit)))


def read_images(
    path: Path,
    *,
    size: int,
    channels: int,
    fit: Fit = "crop",
    on_unreadable: OnUnreadable,
    on_passed_over: OnPassedOver = warn_of_passed_over,
) -> Iterator[tuple[Path, Tensor]]:
    """Every image of a folder or zip, at whatever depth, or the one image that ``path`` is; sorted.

    Yields:
        Where each image is (in a zip, as if it were a folder) and its pixels, [channels, size, size], uint8.
    """
    if not path.is_dir() and path.suffix.lower() != ".zip":
        yield path, load_image(path, size=size, channels=channels, fit=fit)
        return
    with open_source(path) as opened:
        passed_over = PassedOver(opened.listing.passed_over)
        if not opened.listing.images:
            raise DataError(f"no image in {path}: expected {' '.join(FORMATS)}{passed_over.remark}")
        if passed_over:
            on_passed_over(path, passed_over)
        for parts in sorted(opened.listing.images):
            try:
                pixels = read_array(opened, parts, size, channels, fit)
            except DataError as error:
                on_unreadable(error)
            else:
                yield path.joinpath(*parts), torch.from_numpy(np.array(pixels))


def _check_positive(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise DataError(f"{name} is at least 1, got {count}")


def _read_all(
    source: Source,
    paths: Sequence[Parts],
    size: int | None,
    channels: int | None,
    fit: Fit,
    on_read: OnRead,
) -> Tensor:
    """All images, [n, channels, size, size], uint8; the first decides what is left open."""
    size, channels = decide_form(source, paths[0], size, channels)
    pixels = room_for((len(paths), channels, size, size))
    places = pixels.numpy()

    def read(index: int) -> None:
        places[index] = read_array(source, paths[index], size, channels, fit)

    for _ in in_threads(read, len(paths), on_read):
        pass
    return pixels


def decide_form(source: Source, first: Parts, size: int | None, channels: int | None) -> tuple[int, int]:
    """Side in pixels and channels of a set of images: what the ``first`` has, where that is left open.

    Raises:
        DataError: it cannot be read.
    """
    if size is None or channels is None:
        with _named(source, first):
            side, own_channels = look_at(source.read(first))
        return size or side, channels or own_channels
    return size, channels


def in_threads(read: Callable[[int], Result], count: int, on_read: OnRead) -> Iterator[Result]:
    """What ``read`` gives for 0 to ``count`` - 1, in order, a few at once."""
    pool = ThreadPoolExecutor(min(DECODERS, count_threads(None)))
    try:
        for done, result in enumerate(pool.map(read, range(count)), start=1):
            on_read(done, count)
            yield result
    finally:  # after an image that cannot be read, or Ctrl-C, those that wait are left alone
        pool.shutdown(cancel_futures=True)


def read_array(source: Source, parts: Parts, size: int, channels: int, fit: Fit) -> NDArray[np.uint8]:
    """One image of a source, [channels, size, size]; raises DataError where it cannot be read."""
    with _named(source, parts):
        return decode_square(source.read(parts), size, channels, fit)


@contextmanager
def _named(source: Source, parts: Parts) -> Iterator[None]:
    try:
        yield
    except UndecodableError as error:
        raise unreadable(source.path, parts, error) from error
