"""What a tree of images means: which folders are classes, which are splits, which only wrap the others.

A class is a folder with all images below it, however deep. Above the classes there may be splits, and
folders that only wrap the whole. Images beside the classes change nothing.
"""

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass

from fedfree.host.images.passed_over import Parts

SPLITS = ("meta_train", "meta_val", "meta_test")
USUAL_SPLITS = (("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing", "eval"))
"""What other data sets call their splits. These may be classes too (a train runs on rails), so they count as
splits only where there are two kinds of them, one with folders in it."""

Classes = dict[str, list[Parts]]
"""From class name to the paths of its images, both sorted."""


@dataclass(frozen=True)
class Tree:
    """Classes of images, by split."""

    splits: Mapping[str | None, Classes]
    """None stands for the classes of a tree without splits."""
    bases: Mapping[str | None, Parts]
    """The folder in which the folders of its classes are, for each split."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """In the order train, val, test; empty for a tree without splits."""
        return tuple(name for name in self.splits if name is not None)

    def images(self) -> set[Parts]:
        """Every image of a class."""
        return {
            parts for classes in self.splits.values() for of_class in classes.values() for parts in of_class
        }

    def class_folders(self) -> set[Parts]:
        """The folder of every class."""
        return {(*self.bases[split], name) for split, classes in self.splits.items() for name in classes}


def understand(images: Set[Parts], unread: Set[Parts] = frozenset()) -> Tree:
    """The classes and splits of a tree, from the paths of its images.

    Args:
        unread: images in formats that are not read; they are of no class, and show where the classes are.
    """
    base, splits = _below_wrapping(images | unread)
    bases: dict[str | None, Parts] = {name: (*base, name) for name in splits} if splits else {None: base}
    return Tree({name: _classes_in(images, place) for name, place in bases.items()}, bases)


def _below_wrapping(images: Collection[Parts]) -> tuple[Parts, tuple[str, ...]]:
    """The folder in which the classes or splits are, and the names of the splits."""
    base: Parts = ()
    while True:
        folders = _folders_in(images, base)
        splits = _splits_among(images, base, folders)
        if splits or len(folders) != 1 or not _wraps(images, inner := (*base, *folders)):
            return base, splits
        base = inner


def _wraps(images: Collection[Parts], folder: Parts) -> bool:
    """Whether the only folder of a tree wraps it, and is not its only class."""
    folders = _folders_in(images, folder)
    if len(folders) != 1:
        return len(folders) > 1
    holds_images = any(len(parts) == len(folder) + 1 for parts in _in(images, folder))
    return not holds_images or bool(_splits_among(images, folder, folders))


def _splits_among(images: Collection[Parts], base: Parts, folders: Iterable[str]) -> tuple[str, ...]:
    """Those of the folders that are splits, in order."""
    named = set(folders)
    if ours := [name for name in SPLITS if name in named and _folders_in(images, (*base, name))]:
        return tuple(ours)
    kinds = [sorted(name for name in named if name.lower() in usual) for usual in USUAL_SPLITS]
    if sum(map(bool, kinds)) < 2:
        return ()
    return tuple(name for kind in kinds for name in kind if _folders_in(images, (*base, name)))


def _classes_in(images: Iterable[Parts], base: Parts) -> Classes:
    depth = len(base)
    classes: Classes = {}
    for parts in sorted(_in(images, base)):
        if len(parts) > depth + 1:
            classes.setdefault(parts[depth], []).append(parts)
    return classes


def _folders_in(images: Iterable[Parts], base: Parts) -> set[str]:
    """Folders right below one that hold images, at whatever depth."""
    return {parts[len(base)] for parts in _in(images, base) if len(parts) > len(base) + 1}


def _in(images: Iterable[Parts], base: Parts) -> Iterable[Parts]:
    return (parts for parts in images if parts[: len(base)] == base)
