"""A start on disk: what it is made from, and the folder that both programs read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedfree.architectures import ArchitectureId
from fedfree.errors import ContributionError
from fedfree.host.files import read_file, write_together, writing_new
from fedfree.settings import Listed, Settings
from fedfree.start import LoadedStart, Start, check_licence, decode_start, describe_start, encode_start

MANIFEST, WEIGHTS = "start.pb", "weights.safetensors"


class StartConfig(Settings):
    """What a start is made from; what a library knows of its own weights need not be said."""

    weights: Path | None = None
    """A safetensors file of your own to begin from, in our names or the library's."""
    architecture: ArchitectureId | None = None
    """Which network a file of your own belongs to, for instance timm/resnet18."""
    image_size: Annotated[int, Field(ge=16, le=512)] | None = None
    """Pixels a side of the images (default: what the weights were trained on)."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey images."""
    mean: Annotated[tuple[float, ...], Listed] = ()
    """One a channel or one for all, of pixels in 0 to 1 (default: what the weights were trained on)."""
    std: Annotated[tuple[float, ...], Listed] = ()
    """Likewise."""
    source: str | None = None
    """Who published the weights, and under which name; one line."""
    licence: str | None = None
    """SPDX identifier of the weights' licence, for instance Apache-2.0."""
    accept_licence: Annotated[tuple[str, ...], Listed] = ()
    """A licence that is not allowed by itself, which you have read and take responsibility for."""


def write_start(folder: Path, start: Start, weights: bytes) -> None:
    """Write a start into a folder that holds none; raises ConfigError and StorageError as ``writing_new``."""
    with writing_new(folder, {WEIGHTS: weights, MANIFEST: encode_start(start)}):
        pass


def keep_start(folder: Path, start: Start, weights: bytes) -> None:
    """Write a start where nothing but this start can be; a killed process may have left half of it.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_together({folder / WEIGHTS: weights, folder / MANIFEST: encode_start(start)})


def has_start(folder: Path) -> bool:
    """Whether a whole start lies in a folder, unread."""
    return (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file()


def read_start(folder: Path) -> tuple[Start, bytes]:
    """A start and its weights, checked tensor by tensor.

    Raises:
        StorageError: a file that cannot be read.
        ContributionError: anything in it that does not hold to the contract, with the folder's name.
    """
    manifest, weights = read_file(folder / MANIFEST), read_file(folder / WEIGHTS)
    try:
        return decode_start(manifest, weights), weights
    except ContributionError as error:
        raise ContributionError(f"no start in {folder}: {error}") from error


def describe_folder(folder: Path) -> Start:
    """What the start in a folder says, its weights unseen; raises as :func:`read_start`."""
    try:
        return describe_start(read_file(folder / MANIFEST))
    except ContributionError as error:
        raise ContributionError(f"no start in {folder}: {error}") from error


def load_start(folder: Path) -> LoadedStart:
    """As :func:`read_start`, ready to begin from."""
    return LoadedStart(*read_start(folder))


def start_lines(start: Start, weights: bytes, *, accepted: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Name and value of all that a start says, for people."""
    try:
        check_licence(start.licence, accepted=accepted)
        licence = start.licence
    except ContributionError as error:
        licence = f"{start.licence} ({error})"
    spec = start.input
    colours = "colour" if spec.channels == 3 else "grey"
    return [
        ("start", start.sha256),
        ("architecture", str(start.architecture)),
        ("weights", f"{start.weights_sha256} ({len(weights)} bytes)"),
        ("images", f"{colours}, {spec.height} x {spec.width} pixels"),
        ("mean, deviation", f"{_numbers(spec.mean)}; {_numbers(spec.std)}"),
        ("source", start.source),
        ("licence", licence),
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
