"""Public images that a coordinator names: read once, into one file of the run directory.

They are the only images that the server ever reads, and this is the only place where it does.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from fedfree.errors import ConfigError, DataError
from fedfree.host.compute import count_threads
from fedfree.host.files import read_file, write_file
from fedfree.host.images.decoding import UndecodableError, decode_square
from fedfree.host.images.formats import FORMATS
from fedfree.host.images.passed_over import Parts, PassedOver, readable
from fedfree.host.images.sources import Source, open_source
from fedfree.seeding import make_generator
from server.learning.public_images import PublicImages

log = logging.getLogger(__name__)

MAX_BYTES = 2**28
"""Most bytes of pixels that are kept: 1,783 colour images at 224 pixels a side, 5,461 at 128."""
MAX_IMAGES = 10_000
MIN_IMAGES = 2
"""Teachers are asked how alike images are."""
DECODERS = 4
"""Most images that are decoded at once."""
REASONS_SHOWN = 3


def read_public_images(folder: Path, *, size: int, channels: int, seed: int) -> PublicImages:
    """The images of a folder or zip at any depth, or as many as are kept, in an order that the seed decides.

    Args:
        size: pixels a side that the middle of each is brought to.
        channels: 1 or 3; grey and coloured images are turned into each other.

    Raises:
        DataError: it is missing, or holds fewer than two images that can be read.
    """
    with open_source(folder) as opened:
        paths = sorted(opened.listing.images)
        passed_over = PassedOver(opened.listing.passed_over)
        if not paths:
            raise DataError(f"no image in {folder}: expected {' '.join(FORMATS)}{passed_over.remark}")
        if passed_over:
            log.warning("%s: %s", folder, passed_over)
        order = torch.randperm(len(paths), generator=make_generator(seed, "public images")).tolist()
        at_most = min(MAX_IMAGES, MAX_BYTES // (channels * size * size))
        pixels, broken = _read(opened, [paths[index] for index in order[:at_most]], size, channels)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in broken.most_common(REASONS_SHOWN))
    if broken:
        log.warning("%s: passed over %d images that cannot be read: %s", folder, broken.total(), reasons)
    if len(pixels) < MIN_IMAGES:
        remark = f" ({broken.total()} cannot be read: {reasons})" if broken else ""
        raise DataError(
            f"{len(pixels)} public images in {folder}{remark}: they are compared with one another, "
            f"so name at least {MIN_IMAGES}"
        )
    if channels == 3 and all((image == image[:1]).all() for image in pixels):
        log.warning("%s: all %d images are grey, and taken as grey images in colour", folder, len(pixels))
    if len(paths) > at_most:
        log.warning("%s: took %d of %d images, as many as are kept", folder, at_most, len(paths))
    return PublicImages(torch.from_numpy(pixels))


def write_kept(path: Path, images: PublicImages) -> None:
    """Write what :func:`read_kept` reads; raises StorageError."""
    write_file(path, safetensors.torch.save({"pixels": images.pixels.contiguous()}))


def read_kept(path: Path) -> PublicImages:
    """Public images that were read before; raises ConfigError and StorageError."""
    try:
        return PublicImages(safetensors.torch.load(read_file(path))["pixels"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}): delete it, and name the folder again, by --public-images at "
            "learn, serve or up"
        ) from error


def _read(
    source: Source, paths: Sequence[Parts], size: int, channels: int
) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", Counter[str]]:
    """Pixels of those that can be read, in order, and how many cannot by reason."""
    pixels = np.empty((len(paths), channels, size, size), np.uint8)

    def read(parts: Parts) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str":
        try:
            return decode_square(source.read(parts), size, channels)
        except UndecodableError as error:
            return readable(str(error))
        except DataError as error:
            why = error.__cause__
            return readable(str(why.strerror if isinstance(why, OSError) else why))

    kept, broken = 0, Counter[str]()
    pool = ThreadPoolExecutor(min(DECODERS, count_threads(None)))
    try:
        for image in pool.map(read, paths):
            if isinstance(image, str):
                broken[image] += 1
            else:
                pixels[kept] = image
                kept += 1
    finally:  # after Ctrl-C, those that wait are left alone
        pool.shutdown(cancel_futures=True)
    return pixels[:kept], broken
