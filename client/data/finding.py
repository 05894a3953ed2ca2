"""Which images of a folder or zip a reader takes, and what it passes over; no image is opened."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.tree import Classes, Tree, understand
from fedfree.errors import DataError
from fedfree.host.images.formats import FORMATS
from fedfree.host.images.passed_over import PassedOver, Reason
from fedfree.host.images.sources import Listing, Source, open_source


@dataclass(frozen=True)
class Survey:
    """What a reader would take from a source, without opening an image."""

    classes: dict[str, int]
    """Class names, sorted, with their numbers of images."""
    passed_over: PassedOver


def find_images(
    source: Source,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    images_per_class: int | None = None,
    min_classes: int = 1,
) -> tuple[Classes, PassedOver]:
    """The images asked for, and what the whole source holds beside images of classes.

    Args:
        source: opened.
        split, classes, images_per_class, min_classes: as in ``client.data.loading.load_images``.

    Raises:
        DataError: the split or a class is missing, or there are too few classes.
    """
    found, passed_over = _find_classes(source, split)
    wanted = sorted(found if classes is None else set(classes))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        there = ", ".join(list(found)[:8]) + (", …" if len(found) > 8 else "")
        raise DataError(
            f"no class {unknown[0]!r} in {source.path}; "
            f"its {len(found)} classes with images are {there}{passed_over.remark}"
        )
    if len(wanted) < min_classes:
        raise DataError(
            f"expected at least {min_classes} classes in {source.path}, got {len(wanted)}"
            f" ({', '.join(wanted) or 'none'}); add classes, one folder each{passed_over.remark}"
        )
    return {name: found[name][:images_per_class] for name in wanted}, passed_over


def hash_images(
    source: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    images_per_class: int | None = None,
) -> frozenset[str]:
    """Sha-256 in hexadecimal of each file that ``client.data.loading.load_images`` would read, at any size.

    Raises:
        DataError: as ``client.data.loading.load_images`` does.
    """
    with open_source(source) as opened:
        kept, _ = find_images(opened, split=split, classes=classes, images_per_class=images_per_class)
        paths = [parts for of_class in kept.values() for parts in of_class]
        return frozenset(hashlib.sha256(opened.read(parts)).hexdigest() for parts in paths)


def survey(source: Path, split: str | None = None) -> Survey:
    """Classes, numbers of images, and what is passed over; no image is opened.

    Raises:
        DataError: the source or split is missing or cannot be read, or holds no class.
    """
    with open_source(source) as opened:
        found, passed_over = _find_classes(opened, split)
    return Survey({name: len(of_class) for name, of_class in found.items()}, passed_over)


def list_classes(source: Path, split: str | None = None) -> dict[str, int]:
    """The classes of :func:`survey`."""
    return survey(source, split).classes


def list_splits(source: Path) -> tuple[str, ...]:
    """The splits of a source in the order train, val, test; empty for a plain image folder.

    Raises:
        DataError: the source is missing or cannot be read.
    """
    with open_source(source) as opened:
        return _tree_of(opened).split_names


def _tree_of(source: Source) -> Tree:
    return understand(source.listing.images, source.listing.passed_over[Reason.NOT_READ])


def _find_classes(source: Source, split: str | None) -> tuple[Classes, PassedOver]:
    """The classes of one split of a source, or of a source without splits."""
    tree = _tree_of(source)
    _check_split(source.path, split, tree.split_names)
    passed_over = _passed_over(source.listing, tree)
    if not (classes := tree.splits[split]):
        raise DataError(
            f"no classes in {source.path}: expected <class>/<image>, images as {' '.join(FORMATS)}"
            f"{passed_over.remark}"
        )
    return classes, passed_over


def _passed_over(listing: Listing, tree: Tree) -> PassedOver:
    outside = listing.images - tree.images()
    empty = {
        folder
        for folder in listing.folders - tree.class_folders()
        if folder[:-1] in tree.bases.values() and folder not in tree.bases.values()
    }
    found = {**listing.passed_over, Reason.OUTSIDE: outside, Reason.NO_IMAGE: empty}
    return PassedOver({reason: frozenset(paths) for reason, paths in found.items() if paths})


def _check_split(source: Path, split: str | None, present: tuple[str, ...]) -> None:
    if split is None and present:
        raise DataError(
            f"{source} has the splits {', '.join(present)}; say which one to use, as split or by --split "
            f"where that can be said, for instance {present[0]}, or pass the folder of that split alone"
        )
    if split is not None and split not in present:
        remedy = f"it has {', '.join(present)}" if present else "it has no splits, so name none"
        raise DataError(f"no split {split!r} in {source}: {remedy}")
