"""The one rule for what is an image: which formats are read, and by which suffix a file is known as one.

Read is what photographs and scans are kept in and what Pillow decodes by itself: the raster formats whose
decoders every browser or scanner exercises daily. Left out are formats that start another program (EPS,
WMF), hold layers or several unlike pictures (PSD, ICO, ICNS), or have rarely used decoders (JPEG 2000, DDS,
TGA, …): an image of one of those is named, never silently gone.
"""

from typing import Literal

from fedfree.host.images.passed_over import Parts, Reason, suffix_of

Fit = Literal["crop", "letterbox", "squeeze"]
"""How an image that is not square becomes one; a square one is resized alike by all three."""

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""Pillow's name of each format that is read, with its suffixes; of several frames or pages the first is read.

A file is taken for an image by its suffix, and decoded by its content, whichever of these that is. Pillow
before 11.3 has no AVIF: there, such an image is refused by name.
"""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_UNREAD = """
    heic heif hif avifs jxl jp2 j2k jpf jpx psd psb xcf svg svgz eps ai ico icns tga dds exr hdr pfm pcx qoi
    dcm fits wmf emf raw dng cr2 cr3 crw nef nrw arw srf sr2 orf raf rw2 pef srw 3fr x3f kdc dcr rwl
"""
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split())
"""Suffixes of photographs and pictures in formats that are not read."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS adds to its zips."""
    return name.startswith((".", "__MACOSX"))


def why_no_image(parts: Parts) -> Reason | None:
    """Why a file is not taken for an image by its name; None where it is."""
    suffix = suffix_of(parts[-1])
    if suffix in SUFFIXES:
        return None
    return Reason.NOT_READ if suffix in UNREAD_SUFFIXES else Reason.NOT_IMAGE
