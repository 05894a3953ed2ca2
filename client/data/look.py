"""What a folder or zip of images holds, image by image, as a training on it would read it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from client.config import DataConfig
from client.data.finding import find_images
from client.data.image_set import is_coloured
from client.data.loading import TRAINED_CLASSES, OnRead, decide_form, in_threads, read_array
from client.data.tree import Classes
from fedfree.errors import DataError
from fedfree.host.images.decoding import read_header
from fedfree.host.images.passed_over import Parts, PassedOver, Reason, readable, suffix_of
from fedfree.host.images.sources import Source, open_source

HEIC = (".heic", ".heif", ".hif")
HOW_TO_CONVERT = (
    "HEIC photos are not read. On a Mac: sips -s format jpeg *.HEIC --out ., on Linux: heif-convert a.heic "
    "a.jpg; an iPhone takes JPEG from now on with Settings, Camera, Formats, Most Compatible"
)


@dataclass(frozen=True)
class Photo:
    """An image that was read."""

    name: str
    """Its path inside the folder or zip."""
    label: str
    width: int
    """In pixels, upright, as the file has it."""
    height: int
    is_turned: bool
    """Whether its metadata have it turned or mirrored when it is read."""
    is_grey: bool
    """Whether the file holds grey levels only, or no pixel that training sees has a colour."""
    pixels: bytes
    """Sha-256 of the pixels that training sees."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read."""

    name: str
    label: str
    reason: str


@dataclass(frozen=True)
class ClassFound:
    """The images of one class that were read."""

    name: str
    images: int
    unreadable: int
    smallest: tuple[int, int] | None
    """Width and height in pixels of the image with the fewest; None where none was read."""
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    grey: int
    turned: int


@dataclass(frozen=True)
class Copies:
    """Images that training cannot tell apart."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    """Those that they are of, each once."""

    @property
    def contradict(self) -> bool:
        """Whether they are of several classes."""
        return len(self.classes) > 1


@dataclass(frozen=True)
class Look:
    """What was found, and what training sees of it."""

    size: int
    """Pixels a side that training sees."""
    channels: int
    """1 where training sees all images grey, else 3."""
    first: str
    """The image that decides the channels, where no start does."""
    classes: tuple[ClassFound, ...]
    unreadable: tuple[Unreadable, ...]
    copies: tuple[Copies, ...]
    passed_over: PassedOver
    small: int
    """Images that are enlarged."""
    not_square: int
    refusal: str | None
    """Why no training accepts these classes, whatever else it is told."""

    @property
    def images(self) -> int:
        """Read, of all classes."""
        return sum(each.images for each in self.classes)

    @property
    def grey(self) -> int:
        """Images without a colour."""
        return sum(each.grey for each in self.classes)

    @property
    def turned(self) -> int:
        """Images that their metadata have turned or mirrored."""
        return sum(each.turned for each in self.classes)

    @property
    def has_heic(self) -> bool:
        """Whether photos were passed over that a telephone wrote in its own format."""
        return _has_heic(self.passed_over.paths)


def look(
    data: DataConfig, *, size: int, channels: int | None = None, on_read: OnRead = lambda done, of: None
) -> Look:
    """Read every image that ``client.data.loading.load_configured`` would, and keep none.

    An image that cannot be read does not end it, and one class is enough to be looked at.

    Args:
        size, channels: as ``load_configured`` is given them.
        on_read: told after every image.

    Raises:
        DataError: there is no such folder, zip, split or class, or no image in it.
    """
    with open_source(data.source) as source:
        found, passed_over = _find(source, data, min_classes=1)
        paths = [(label, parts) for label, of_class in found.items() for parts in of_class]
        size, channels, first = _form(source, [parts for _, parts in paths], size, channels)

        def read(index: int) -> Photo | Unreadable:
            return _read(source, *paths[index], size, channels or 3, data)

        seen = list(in_threads(read, len(paths), on_read))
        refusal = _refusal(source, data)
    photos = [each for each in seen if isinstance(each, Photo)]
    broken = [each for each in seen if isinstance(each, Unreadable)]
    return Look(
        size=size,
        channels=channels,
        first=readable("/".join(first)),
        classes=_by_class(found, photos, broken),
        unreadable=tuple(broken),
        copies=_copies(photos),
        passed_over=passed_over,
        small=sum(min(each.width, each.height) < size for each in photos),
        not_square=sum(each.width != each.height for each in photos),
        refusal=refusal,
    )


def _find(source: Source, data: DataConfig, *, min_classes: int) -> tuple[Classes, PassedOver]:
    try:
        return find_images(
            source,
            split=data.split,
            classes=data.classes,
            images_per_class=data.images_per_class,
            min_classes=min_classes,
        )
    except DataError as error:
        is_remedy = not source.listing.images and _has_heic(source.listing.passed_over)
        remedy = f". {HOW_TO_CONVERT}" if is_remedy else ""
        raise DataError(f"{error}{remedy}") from error


def _has_heic(passed_over: Mapping[Reason, object]) -> bool:
    unread = passed_over.get(Reason.NOT_READ, ())
    assert isinstance(unread, frozenset | set | tuple)
    return any(suffix_of(parts[-1]) in HEIC for parts in unread)


def _refusal(source: Source, data: DataConfig) -> str | None:
    try:
        _find(source, data, min_classes=TRAINED_CLASSES)
    except DataError as error:
        return str(error)
    return None


def _form(source: Source, paths: Sequence[Parts], size: int, channels: int | None) -> tuple[int, int, Parts]:
    """Side and channels of what is read, and the image that decides what is open: the first that can."""
    for parts in paths:
        try:
            return (*decide_form(source, parts, size, channels), parts)
        except DataError:
            continue
    return size, 3, paths[0]


def _read(
    source: Source, label: str, parts: Parts, size: int, channels: int, data: DataConfig
) -> Photo | Unreadable:
    name = readable("/".join(parts))
    try:
        content = source.read(parts)
        pixels = read_array(replace(source, read_bytes=lambda _: content), parts, size, channels, data.fit)
    except DataError as error:
        return Unreadable(name, label, readable(str(error.__cause__)))
    header = read_header(content)
    return Photo(
        name=name,
        label=label,
        width=header.width,
        height=header.height,
        is_turned=header.is_turned,
        is_grey=header.is_grey or (channels == 3 and not is_coloured(torch.tensor(pixels)[None])),
        pixels=hashlib.sha256(pixels.tobytes()).digest(),
    )


def _by_class(
    found: Classes, photos: Sequence[Photo], broken: Sequence[Unreadable]
) -> tuple[ClassFound, ...]:
    of_class: dict[str, list[Photo]] = {name: [] for name in found}
    for each in photos:
        of_class[each.label].append(each)
    lost = Counter(each.label for each in broken)
    return tuple(_class(name, some, lost[name]) for name, some in of_class.items())


def _class(name: str, photos: Sequence[Photo], unreadable: int) -> ClassFound:
    sizes = sorted(((each.width, each.height) for each in photos), key=lambda sides: sides[0] * sides[1])
    return ClassFound(
        name=name,
        images=len(photos),
        unreadable=unreadable,
        smallest=sizes[0] if sizes else None,
        median=sizes[(len(sizes) - 1) // 2] if sizes else None,
        largest=sizes[-1] if sizes else None,
        grey=sum(each.is_grey for each in photos),
        turned=sum(each.is_turned for each in photos),
    )


def _copies(photos: Sequence[Photo]) -> tuple[Copies, ...]:
    alike: defaultdict[bytes, list[Photo]] = defaultdict(list)
    for each in photos:
        alike[each.pixels].append(each)
    return tuple(
        Copies(tuple(each.name for each in some), tuple(sorted({each.label for each in some})))
        for some in alike.values()
        if len(some) > 1
    )
