"""From the bytes of an image file to pixels, within a bound on memory."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from client.data.formats import FORMATS

MAX_PIXELS = 2**28
"""Most pixels of one image, 268 million: the largest photographs (200 megapixels) and WebP's largest image.

Pillow holds up to 4 bytes a pixel, so one image takes at most 1 GiB, and twice that while it is converted.
"""

WHOLE_PIXELS = 2**28 // 3
"""A JPEG of more pixels, 89 million, is decoded at a half, a quarter or an eighth of its side where that is
still twice the side asked for. A smaller one never is, so that its pixels come from all of it."""

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
TURNED_BY_EXIF = ("JPEG", "WEBP", "AVIF")
"""Formats whose orientation is in their metadata; Pillow itself turns TIFF, and a PNG's is not looked at."""

_pillows_limit = threading.Lock()


class UndecodableError(Exception):
    """Bytes that give no image; the message says why."""


def decode(content: bytes, *, size: int | None = None) -> Image.Image:
    """The upright image in a file's bytes, opaque; of several frames the first.

    Args:
        size: side to which it is going to be brought; a very large JPEG is then decoded at reduced size.

    Raises:
        UndecodableError: no image of a format that is read, a damaged one, or one of too many pixels.
    """
    with _reasons_named(), _limit_of_our_own():
        image: Image.Image = Image.open(BytesIO(content), formats=_readable_formats())
        if size is not None and image.width * image.height > WHOLE_PIXELS:
            image.draft(image.mode, (2 * size, 2 * size))
        image.load()
        if image.format in TURNED_BY_EXIF:
            image = ImageOps.exif_transpose(image)
        return _on_white(image) if image.has_transparency_data else image


def to_array(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """An image of any size and mode as [channels, size, size].

    Raises:
        UndecodableError: its colours or numbers have no 8-bit meaning.
    """
    with _reasons_named():
        image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        array = np.asarray(image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def channels_of(image: Image.Image) -> int:
    """1 for a greyscale image, else 3."""
    return 1 if image.mode in GREY_MODES else 3


@contextmanager
def _reasons_named() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:  # its text is an address in memory
        raise UndecodableError(f"of no known image format: {', '.join(FORMATS)} are read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodableError(
            f"more than {MAX_PIXELS} pixels, too much memory if not a decompression bomb: scale it down"
        ) from error
    except Exception as error:  # a broken file makes Pillow raise anything
        raise UndecodableError(str(error) or type(error).__name__) from error


@contextmanager
def _limit_of_our_own() -> Iterator[None]:
    """Pillow's default limit refuses photographs, and can only be set for the whole process."""
    with _pillows_limit, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@cache
def _readable_formats() -> tuple[str, ...]:
    """Of the formats that are read those which this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _on_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparency on white paper; hidden pixels hold arbitrary colours."""
    mode = "L" if image.mode in GREY_MODES else "RGB"
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greyscale down; Pillow's own conversion clips it at 255."""
    if image.mode == "F":
        raise ValueError("it holds fractions of no known scale: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it holds 32-bit numbers of no known scale: save it with 8 or 16 bits")
    return Image.fromarray((values // 256).astype(np.uint8))
