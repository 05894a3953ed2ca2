"""From the bytes of an image file to the pixels of a square, within a bound on memory."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedfree.host.images.formats import FORMATS, Fit

MAX_PIXELS = 2**28
"""Most pixels of one image, 268 million: the largest photographs (200 megapixels) and WebP's largest image.

Pillow holds up to 4 bytes a pixel, so one image takes at most 1 GiB, and twice that while it is converted.
"""

ALONE_PIXELS = 2**24
"""An image that is decoded to more pixels than this, 17 million, is decoded while no other such one is."""

GREY = 128
"""Of the bars of a letterbox: the middle of the scale, which most normalisations bring near zero."""
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
TURNED_BY_EXIF = ("JPEG", "MPO", "WEBP", "AVIF")
"""Formats whose orientation is in their metadata; Pillow itself turns TIFF, and a PNG's is not looked at.

MPO is what Pillow calls a JPEG with further pictures behind the first, as many telephones write it.
"""

TURNED, SIDEWAYS = range(2, 9), range(5, 9)
"""Values of the tag that turn or mirror an image at all, and those that swap its sides."""

_pillows_limit, _alone = threading.Lock(), threading.Lock()


class UndecodableError(Exception):
    """Bytes that give no image; the message says why."""


def look_at(content: bytes) -> tuple[int, int]:
    """The shorter side of the image in a file's bytes, and its channels: 1 for a greyscale one, else 3.

    Raises:
        UndecodableError: no image of a format that is read, or one of too many pixels.
    """
    with _reasons_named():
        image = _open(content)
    return min(image.size), 1 if image.mode in GREY_MODES else 3


@dataclass(frozen=True)
class Header:
    """What a file says of its image, without its pixels."""

    width: int
    """In pixels, of the upright image."""
    height: int
    is_grey: bool
    """Whether it is stored without colours."""
    is_turned: bool
    """Whether its metadata have it turned or mirrored when it is read."""


def read_header(content: bytes) -> Header:
    """What the bytes of a file say of the image in it; raises UndecodableError as :func:`look_at`."""
    with _reasons_named():
        image = _open(content)
        is_looked_at = image.format in (*TURNED_BY_EXIF, "TIFF")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if is_looked_at else 1
    sides = image.size[::-1] if orientation in SIDEWAYS and image.format in TURNED_BY_EXIF else image.size
    return Header(*sides, is_grey=image.mode in GREY_MODES, is_turned=orientation in TURNED)


def decode_square(content: bytes, size: int, channels: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """The upright image in a file's bytes, opaque, of several frames the first, as :func:`to_array` gives it.

    A JPEG is decoded at a half, a quarter or an eighth of its sides where that is still twice the size asked
    for: of a photograph of 12 megapixels, a sixteenth at 224 pixels.

    Raises:
        UndecodableError: as :func:`look_at` and :func:`to_array`, or a damaged image.
    """
    with _reasons_named():
        image = _open(content)
        _reduce(image, size, fit)
        is_large = image.width * image.height > ALONE_PIXELS
        with _alone if is_large else nullcontext():
            return to_array(_upright(image), size, channels, fit)


def to_array(image: Image.Image, size: int, channels: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """An image of any size and mode as [channels, size, size].

    Raises:
        UndecodableError: its colours or numbers have no 8-bit meaning.
    """
    with _reasons_named():
        image, mode = _eight_bit(image), "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (size, size):
            image = FITS["squeeze" if image.width == image.height else fit](image, size)
        array = np.asarray(image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _crop(image: Image.Image, size: int) -> Image.Image:
    """The middle, as wide as high: the shorter side decides."""
    side = min(image.size)
    left, top = ((each - side) // 2 for each in image.size)
    with _limit_of_our_own():
        middle = image.crop((left, top, left + side, top + side))
    return _squeeze(middle, size)


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    """All of it between grey bars: the longer side decides."""
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    square = Image.new(image.mode, (size, size), (GREY,) * len(image.getbands()))
    shrunk = image.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(shrunk, ((size - width) // 2, (size - height) // 2))
    return square


def _squeeze(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR)


FITS: Mapping[Fit, Callable[[Image.Image, int], Image.Image]] = {
    "crop": _crop,
    "letterbox": _letterbox,
    "squeeze": _squeeze,
}
"""How an image in mode L or RGB becomes a square of so many pixels a side."""


def _open(content: bytes) -> Image.Image:
    """An image of which only the header was read."""
    with _limit_of_our_own():
        return Image.open(BytesIO(content), formats=_readable_formats())


def _reduce(image: Image.Image, size: int, fit: Fit) -> None:
    """Let a JPEG that was not decoded yet be decoded smaller, to no less than twice the size asked for."""
    side = max(image.size) if fit == "letterbox" else min(image.size)
    if (times := side // (2 * size)) > 1:
        image.draft(image.mode, (max(1, image.width // times), max(1, image.height // times)))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if image.format in TURNED_BY_EXIF:
        ImageOps.exif_transpose(image, in_place=True)
    return _on_white(image) if image.has_transparency_data else image


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
