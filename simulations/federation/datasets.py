"""Where the images of an experiment come from, and which organisation gets which classes."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from client.data.tree import SPLITS
from fedfree.errors import DataError
from fedfree.extension import Table, extending
from fedfree.host.images.formats import why_no_image
from fedfree.seeding import make_generator
from simulations.federation import glyphs

GLYPHS_VERSION = 1
"""Raise it when the same seed renders other images, so that none of an older kind is reused."""

CIFAR_FS_VAL = (
    "beaver",
    "beetle",
    "butterfly",
    "camel",
    "cattle",
    "crab",
    "crocodile",
    "flatfish",
    "lamp",
    "maple_tree",
    "motorcycle",
    "otter",
    "sea",
    "shark",
    "television",
    "tractor",
)
CIFAR_FS_TEST = (
    "baby",
    "bed",
    "bicycle",
    "chimpanzee",
    "fox",
    "leopard",
    "man",
    "pickup_truck",
    "plain",
    "poppy",
    "rocket",
    "rose",
    "snail",
    "sweet_pepper",
    "table",
    "telephone",
    "wardrobe",
    "whale",
    "woman",
    "worm",
)
"""The split of CIFAR-100 by Bertinetto et al. (ICLR 2019); the other 64 classes are for meta-training."""

OMNIGLOT_VAL = ("Bengali", "Hebrew", "Latin", "Mkhedruli_(Georgian)", "Tifinagh")
"""Background alphabets to validate on; the other 25 are to train on, the evaluation set to test on."""

Members = Iterator[tuple[str, bytes]]
"""Paths in an archive with the bytes of the files."""


def resolve(name_or_path: str, *, cache: Path, seed: int, images_per_class: int) -> Path:
    """The zip or folder of a data set, made or downloaded into the cache where it is not there yet.

    Args:
        name_or_path: ``glyphs``, a name in ``DATASETS``, or an image folder or zip.
        cache: folder for what is made or downloaded.
        seed: of the images of ``glyphs``; the others do not depend on it.
        images_per_class: of ``glyphs``; the others are whole.

    Raises:
        DataError: no such data set or path, or the download failed.
    """
    path = location(name_or_path, cache=cache, seed=seed, images_per_class=images_per_class)
    if path.exists():
        return path
    if name_or_path == "glyphs":
        return glyphs.write_tree(path, seed=seed, images_per_class=images_per_class)
    if name_or_path in DATASETS:
        return _downloaded(name_or_path, path)
    raise no_such_data(name_or_path)


def no_such_data(name_or_path: str) -> DataError:
    """Where it is neither a known name nor a path that is there."""
    return DataError(
        f"no such data set or path: {name_or_path}; use {', '.join(('glyphs', *DATASETS))}, "
        "or the path of an image folder or zip"
    )


def location(name_or_path: str, *, cache: Path, seed: int, images_per_class: int) -> Path:
    """Where a data set is, or will be once :func:`resolve` has made or downloaded it.

    Raises:
        DataError: fewer than one image a class, or a data set of somebody's own whose name is a path.
    """
    if name_or_path == "glyphs":
        if images_per_class < 1:
            raise DataError(f"images_per_class is at least 1, got {images_per_class}")
        return cache / f"glyphs-v{GLYPHS_VERSION}-seed{seed}-{images_per_class}.zip"
    if name_or_path not in DATASETS:
        return Path(name_or_path)
    if Path(name_or_path).name != name_or_path:
        raise DataError(f"the data set {name_or_path!r} would not lie in {cache}: name it without a slash")
    return cache / f"{name_or_path}.zip"


def partition(
    classes: Sequence[str],
    *,
    organisations: int,
    classes_each: int,
    how: Literal["disjoint", "overlapping", "domain"],
    seed: int,
) -> list[tuple[str, ...]]:
    """The classes of each organisation, each tuple sorted.

    Args:
        how: ``disjoint`` gives no class twice; ``overlapping`` lets each organisation draw from all
            classes; ``domain`` gives each organisation classes of one domain (a script, an alphabet),
            domains in turn, without repeats within a domain for as long as its classes last.

    Raises:
        DataError: too few classes for what is asked.
    """
    if organisations < 1 or classes_each < 1:
        raise DataError(
            f"expected at least 1 organisation with 1 class, got {organisations} with {classes_each}"
        )
    if how == "disjoint":
        return _disjoint(classes, organisations, classes_each, seed)
    if how == "overlapping":
        return _overlapping(classes, organisations, classes_each, seed)
    return _by_domain(classes, organisations, classes_each, seed)


def domain_of(class_name: str) -> str:
    """``greek`` of ``greek_U+03B1``, ``Early_Aramaic`` of ``Early_Aramaic.character07``.

    The name up to its first slash, or else dot, or else underscore or hyphen.
    """
    for separators in ("/", ".", "_-"):
        ends = [class_name.index(mark) for mark in separators if mark in class_name]
        if ends:
            return class_name[: min(ends)]
    return class_name


def _downloaded(name: str, path: Path) -> Path:
    cache, make = path.parent, DATASETS[name]
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=cache) as folder, extending(f"the data set {name!r}", make):
            return glyphs.write_zip(path, _with_images(name, make(Path(folder))))
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(
            f"cannot download {name} into {cache} ({error}); pass the path of a zip or folder of its images"
        ) from error


def _with_images(name: str, members: Members) -> Members:
    """The same; raises DataError at their end where none is an image, so that no such archive is kept."""
    images = 0
    for path, content in members:
        images += why_no_image(tuple(path.split("/"))) is None
        yield path, content
    if not images:
        raise DataError(f"the data set {name!r} gave no image: expected <class>/<image> with its bytes")


def _omniglot_members(folder: Path) -> Members:
    """Omniglot as ``omniglot/<split>/<Alphabet>.<character>/<image>.png``."""
    from torchvision.datasets import Omniglot  # takes as long to import as torch itself

    for background in (True, False):
        root = Path(Omniglot(str(folder), background=background, download=True).target_folder)
        for image in sorted(root.glob("*/*/*.png")):
            alphabet, character = image.parts[-3:-1]
            held_out = "meta_val" if alphabet in OMNIGLOT_VAL else "meta_train"
            split = held_out if background else "meta_test"
            yield f"omniglot/{split}/{alphabet}.{character}/{image.name}", image.read_bytes()


def _cifar_fs_members(folder: Path) -> Members:
    """CIFAR-100, its training and test images together, as ``cifar-fs/<split>/<class>/<image>.png``."""
    from torchvision.datasets import CIFAR100

    for part in ("train", "test"):
        dataset: Any = CIFAR100(str(folder), train=part == "train", download=True)
        for index, (pixels, target) in enumerate(zip(dataset.data, dataset.targets, strict=True)):
            name = dataset.classes[target]
            yield f"cifar-fs/{_cifar_fs_split(name)}/{name}/{part}_{index:05d}.png", glyphs.encode_png(pixels)


def _cifar_fs_split(class_name: str) -> str:
    train, val, test = SPLITS
    return val if class_name in CIFAR_FS_VAL else test if class_name in CIFAR_FS_TEST else train


DATASETS: Table[Callable[[Path], Members]] = Table(
    "data set",
    {
        "omniglot": _omniglot_members,
        "cifar-fs": _cifar_fs_members,
    },
    reserved={"glyphs": glyphs.write_tree},
)
"""From name to what fills its archive, once, given an empty folder to download into."""


def _disjoint(classes: Sequence[str], organisations: int, each: int, seed: int) -> list[tuple[str, ...]]:
    if organisations * each > len(classes):
        raise DataError(
            f"{organisations} organisations with {each} classes each need {organisations * each} classes, "
            f"got {len(classes)}; use fewer, or overlapping classes"
        )
    shuffled = _shuffled(classes, make_generator(seed, "disjoint"))
    return [_window(shuffled, turn, each) for turn in range(organisations)]


def _overlapping(classes: Sequence[str], organisations: int, each: int, seed: int) -> list[tuple[str, ...]]:
    if each > len(classes):
        raise DataError(f"an organisation cannot draw {each} classes from {len(classes)}; use fewer each")
    generators = (make_generator(seed, "overlapping", index) for index in range(organisations))
    return [_window(_shuffled(classes, generator), 0, each) for generator in generators]


def _by_domain(classes: Sequence[str], organisations: int, each: int, seed: int) -> list[tuple[str, ...]]:
    domains: dict[str, list[str]] = {}
    for name in classes:
        domains.setdefault(domain_of(name), []).append(name)
    usable = {name: members for name, members in domains.items() if len(members) >= each}
    if not usable:
        largest = max((len(members) for members in domains.values()), default=0)
        raise DataError(
            f"no domain has {each} classes: the largest of {len(domains)} domains has {largest}; "
            "use fewer classes each, or disjoint classes"
        )
    order = _shuffled(list(usable), make_generator(seed, "domains"))
    shuffled = {name: _shuffled(usable[name], make_generator(seed, "domain", name)) for name in order}
    turns = (divmod(index, len(order)) for index in range(organisations))
    return [_window(shuffled[order[place]], turn, each) for turn, place in turns]


def _shuffled(names: Sequence[str], generator: torch.Generator) -> list[str]:
    """In random order, whatever order they come in."""
    ordered = sorted(names)
    return [ordered[place] for place in torch.randperm(len(ordered), generator=generator).tolist()]


def _window(names: Sequence[str], turn: int, each: int) -> tuple[str, ...]:
    """The classes of one turn, starting over at the end."""
    return tuple(sorted(names[(turn * each + step) % len(names)] for step in range(each)))
