"""What a reader of images passed over, counted by reason, in words for a person."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from enum import Enum

SHOWN = 3
"""How many names or suffixes are given as examples of a reason."""

Parts = tuple[str, ...]
"""A path inside a folder or zip, part by part."""


class Reason(Enum):
    """Why something is passed over: the words for one and for several, and what is shown of them."""

    HIDDEN = ("hidden", "hidden", None)
    NOT_IMAGE = ("not an image", "not images", "suffixes")
    NOT_READ = (
        "image in a format not read: convert it to JPEG",
        "images in formats not read: convert them to JPEG",
        "suffixes",
    )
    OUTSIDE = ("outside every class folder", "outside every class folder", "names")
    REPLACED = ("replaced by a later one in the zip", "replaced by later ones in the zip", "names")
    LOOP = ("link back to a folder above it", "links back to a folder above them", "names")
    NOWHERE = ("link that leads nowhere", "links that lead nowhere", "names")
    SPECIAL = ("neither file nor folder", "neither file nor folder", "names")
    NO_IMAGE = ("class folder without an image", "class folders without an image", "names")


@dataclass(frozen=True)
class PassedOver:
    """Paths that no reader takes for an image of a class, by reason."""

    paths: Mapping[Reason, Set[Parts]]
    """What is hidden counts once, a folder with all below it; only NO_IMAGE holds folders beside it."""

    def __bool__(self) -> bool:
        return any(self.paths.values())

    def __str__(self) -> str:
        """For instance ``passed over 6 files: 4 hidden, 2 not images (.txt)``."""
        found = {reason: paths for reason in Reason if (paths := self.paths.get(reason))}
        reasons = {reason: _describe(reason, paths) for reason, paths in found.items()}
        folders = reasons.pop(Reason.NO_IMAGE, None)
        count = sum(len(found[reason]) for reason in reasons)
        files = f"{count} file{'' if count == 1 else 's'}: {', '.join(reasons.values())}" if reasons else None
        return f"passed over {'; '.join(each for each in (files, folders) if each) or 'nothing'}"

    @property
    def remark(self) -> str:
        """What an error message ends with; empty where nothing was passed over."""
        return f"; {self}" if self else ""


def readable(name: str) -> str:
    """A file's name for a line of text: line breaks and bytes that are no character become ``?``."""
    return "".join(character if character.isprintable() else "?" for character in name)


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot; empty where there is none."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def _describe(reason: Reason, found: Iterable[Parts]) -> str:
    paths = sorted(found)
    one, several, shown = reason.value
    words = f"{len(paths)} {one if len(paths) == 1 else several}"
    if shown is None:
        return words
    names = ["/".join(parts) for parts in paths]
    if shown == "suffixes":
        names = sorted({suffix_of(name) or "no suffix" for name in names})
    return f"{words} ({readable(', '.join(names[:SHOWN]))}{', …' if len(names) > SHOWN else ''})"
