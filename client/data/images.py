"""An organisation's private images: found, checked and decoded here, and nowhere sent."""

import hashlib
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from client.config import DataConfig
from fedfree.architectures import InputSpec
from fedfree.errors import DataError

SPLITS = ("meta_train", "meta_val", "meta_test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
MAX_FILE_BYTES = 256 * 2**20

_UNREADABLE = (
    OSError,
    SyntaxError,  # what Pillow raises for a broken PNG chunk
    ValueError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,  # a zip compression this Python lacks
    RuntimeError,  # an encrypted zip member
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

Read = Callable[[str], bytes]
"""From a file's path inside the source to its bytes."""
Classes = dict[str, list[str]]
"""From class name to the paths of its images inside the source, both sorted."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size."""

    images: Tensor
    """[n, channels, height, width], uint8."""
    labels: Tensor
    """[n], int64, indices into ``class_names``."""
    class_names: tuple[str, ...]
    """For this organisation's own reports only; never sent."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                "expected uint8 images [n, channels, height, width], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"expected {len(self.images)} int64 labels, got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise DataError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {self.num_classes} class names"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Classes named, also those without an image here."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Sha-256 in hexadecimal over shape, pixels and labels; blind to class names."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def load_images(
    source: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    images_per_class: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    min_classes: int = 2,
) -> ImageSet:
    """Read an image folder or a zip of one: ``<class>/<image>`` or ``<split>/<class>/<image>``.

    One folder may wrap the whole tree. Images lying deeper than their class folder, hidden files
    and files that are not PNG or JPEG are passed over.

    Args:
        source: a folder or a .zip; of a zip only the images asked for are read.
        split: ``meta_train``, ``meta_val`` or ``meta_test``; None for a tree without splits.
        classes: which classes, in any order; all by default. Labels follow their sorted names.
        images_per_class: keep the first so many of each class by file name; all by default.
        size: side in pixels that images are brought to; that of the first image by default (its
            shorter side where it is not square).
        channels: 1 or 3; by default 1 where the first image is greyscale, else 3.
        min_classes: fewest classes the caller can use.

    Raises:
        DataError: the source, split, a class or an image is missing or cannot be read.
    """
    _check_positive(images_per_class=images_per_class, size=size)
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 or 3 channels, got {channels}")
    with _opened(source) as (members, read):
        found = _choose(_classes_of(source, members, split), classes, source, min_classes)
        kept = {name: of_class[:images_per_class] for name, of_class in found.items()}
        pixels = _decode_all(
            source, [path for paths in kept.values() for path in paths], read, size, channels
        )
    counts = torch.tensor([len(of_class) for of_class in kept.values()], dtype=torch.int64)
    return ImageSet(torch.from_numpy(pixels), torch.arange(len(kept)).repeat_interleave(counts), tuple(kept))


def load_configured(data: DataConfig, *, size: int) -> ImageSet:
    """The images that a configuration names, brought to ``size`` pixels a side; raises DataError."""
    return load_images(
        data.source,
        split=data.split,
        classes=data.classes,
        images_per_class=data.images_per_class,
        size=size,
    )


def load_image(path: Path, *, size: int, channels: int) -> Tensor:
    """One image, decoded as :func:`load_images` does: [channels, size, size], uint8.

    Raises:
        DataError: the image is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"no such image: {path}")
    with _strict_about_size():
        image = _decode(path.parent, path.name, lambda _: path.read_bytes())
    return torch.from_numpy(np.array(_to_array(image, size, channels)))


def find_images(folder: Path) -> list[Path]:
    """Every image anywhere below a folder, sorted; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    below = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    found = [folder / Path(*parts) for parts in _image_paths([path.as_posix() for path in below])]
    if not found:
        raise DataError(f"no image in {folder}: expected .png, .jpg or .jpeg files")
    return found


def hash_images(
    source: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    images_per_class: int | None = None,
) -> frozenset[str]:
    """Sha-256 in hexadecimal of each file that :func:`load_images` would read, at any size.

    Raises:
        DataError: as :func:`load_images` does.
    """
    with _opened(source) as (members, read):
        found = _choose(_classes_of(source, members, split), classes, source, 1)
        paths = [path for of_class in found.values() for path in of_class[:images_per_class]]
        return frozenset(hashlib.sha256(read(path)).hexdigest() for path in paths)


def list_classes(source: Path, split: str | None = None) -> dict[str, int]:
    """Class names, sorted, with their numbers of images; no image is opened.

    Raises:
        DataError: the source or split is missing or cannot be read, or holds no class.
    """
    with _opened(source) as (members, _):
        return {name: len(paths) for name, paths in _classes_of(source, members, split).items()}


def list_splits(source: Path) -> tuple[str, ...]:
    """The splits of a source in the order train, val, test; empty for a plain image folder.

    Raises:
        DataError: the source is missing or cannot be read.
    """
    with _opened(source) as (members, _):
        return _splits_of(_image_paths(members))


def split_held_out(
    images: ImageSet, *, fraction: float, generator: torch.Generator
) -> tuple[ImageSet, ImageSet]:
    """Split into (kept, held out), class by class.

    Each class holds out about ``fraction`` of its images: at least one where it has two or more,
    never its last. Both parts keep all class names.

    Raises:
        DataError: a fraction outside (0, 1), or no class with two images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction held out is above 0 and below 1, got {fraction}")
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in range(images.num_classes):
        members = (images.labels == label).nonzero().squeeze(1)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        if count > 0:
            held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held.any():
        raise DataError("no class has two images, so none can be held out; add images")
    return _subset(images, ~held), _subset(images, held)


def to_input(images: Tensor, spec: InputSpec) -> Tensor:
    """[n, 1 or 3, h, w] uint8 to [n, spec.channels, spec.height, spec.width] float32, normalised."""
    return spec.normalise(spec.resize(images.float() / 255))


def _subset(images: ImageSet, mask: Tensor) -> ImageSet:
    return ImageSet(images.images[mask], images.labels[mask], images.class_names)


def _check_positive(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise DataError(f"{name} is at least 1, got {count}")


@contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], Read]]:
    """All file paths inside a folder or zip, and how to read one of them."""
    if source.is_dir():
        yield _walk(source), lambda member: (source / member).read_bytes()
    elif source.is_file():
        with _open_zip(source) as archive:
            yield archive.namelist(), lambda member: _read_member(archive, member)
    else:
        raise DataError(f"no such file or folder: {source}; pass an image folder or a zip of one")


def _open_zip(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"cannot read {source} as a zip ({error}); pass an image folder or an intact zip of one"
        ) from error


def _read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    size = archive.getinfo(member).file_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"unpacks to {size} bytes, more than {MAX_FILE_BYTES}")
    return archive.read(member)


def _walk(folder: Path) -> list[str]:
    """Paths of the files at most three folders down, which also ends the round trip of a looping link."""
    paths = []
    for root, folders, files in os.walk(folder, followlinks=True):
        relative = Path(root).relative_to(folder)
        if len(relative.parts) >= 3:
            folders.clear()
        paths += [(relative / file).as_posix() for file in files]
    return paths


def _image_paths(members: list[str]) -> list[tuple[str, ...]]:
    """The parts of the paths that are images and not hidden."""
    images = (tuple(member.split("/")) for member in members if member.lower().endswith(IMAGE_SUFFIXES))
    return [parts for parts in images if not any(part.startswith((".", "__MACOSX")) for part in parts)]


def _split_of(parts: tuple[str, ...]) -> str | None:
    """The split of ``[wrapping/]<split>/<class>/<image>``, or None."""
    place = len(parts) - 3
    return parts[place] if place in (0, 1) and parts[place] in SPLITS else None


def _splits_of(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    present = {_split_of(parts) for parts in paths}
    return tuple(split for split in SPLITS if split in present)


def _classes_of(source: Path, members: list[str], split: str | None) -> Classes:
    """The classes of one split of a source, or of a source without splits."""
    paths = _image_paths(members)
    _check_split(source, split, _splits_of(paths))
    chosen = _plain(paths) if split is None else [parts for parts in paths if _split_of(parts) == split]
    classes: Classes = {}
    for parts in sorted(chosen):
        classes.setdefault(parts[-2], []).append("/".join(parts))
    if not classes:
        raise DataError(f"no classes in {source}: expected images as <class>/<image>.png, .jpg or .jpeg")
    return dict(sorted(classes.items()))


def _check_split(source: Path, split: str | None, present: tuple[str, ...]) -> None:
    if split is None and present:
        raise DataError(f"{source} has the splits {', '.join(present)}; say which one to use")
    if split is not None and split not in present:
        remedy = f"it has {', '.join(present)}" if present else "it has no splits, so name none"
        raise DataError(f"no split {split!r} in {source}: {remedy}")


def _plain(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths of the form ``<class>/<image>``, or else those inside the one folder that wraps them."""
    if any(len(parts) == 2 for parts in paths):
        return [parts for parts in paths if len(parts) == 2]
    wrappers = {parts[0] for parts in paths if len(parts) == 3}
    return [parts for parts in paths if len(parts) == 3] if len(wrappers) == 1 else []


def _choose(found: Classes, names: Sequence[str] | None, source: Path, min_classes: int) -> Classes:
    """The classes asked for, in sorted order."""
    wanted = sorted(found if names is None else set(names))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        there = ", ".join(list(found)[:8]) + (", …" if len(found) > 8 else "")
        raise DataError(
            f"no class {unknown[0]!r} in {source}; its {len(found)} classes with images are {there}"
        )
    if len(wanted) < min_classes:
        raise DataError(
            f"expected at least {min_classes} classes in {source}, got {len(wanted)}"
            f" ({', '.join(wanted) or 'none'}); add classes, one folder each"
        )
    return {name: found[name] for name in wanted}


def _decode_all(
    source: Path, paths: list[str], read: Read, size: int | None, channels: int | None
) -> NDArray[np.uint8]:
    """Decode images into one array [n, channels, size, size]; the first decides what is left open."""
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    with _strict_about_size():
        for index, path in enumerate(paths):
            image = _decode(source, path, read)
            if index == 0:
                size = size or min(image.size)
                channels = channels or (1 if image.mode in GREY_MODES else 3)
                pixels = np.empty((len(paths), channels, size, size), np.uint8)
            pixels[index] = _to_array(image, pixels.shape[2], pixels.shape[1])
    return pixels


@contextmanager
def _strict_about_size() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode(source: Path, path: str, read: Read) -> Image.Image:
    try:
        image: Image.Image = Image.open(BytesIO(read(path)))
        image.load()
        if image.format == "JPEG":
            image = ImageOps.exif_transpose(image)
        return _on_white(image) if image.has_transparency_data else image
    except _UNREADABLE as error:
        unknown = isinstance(error, UnidentifiedImageError)  # its text is an address in memory
        reason = "of no known image format" if unknown else error
        raise DataError(
            f"cannot read the image {path} in {source} ({reason}); replace it or take it out"
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparency on white paper; hidden pixels hold arbitrary colours."""
    mode = "L" if image.mode in GREY_MODES else "RGB"
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)


def _to_array(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """An image of any size and mode as [channels, size, size]."""
    image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greyscale down; Pillow's own conversion clips it at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
