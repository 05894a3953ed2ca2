"""Labelled images in memory: how they are named apart, parted, and brought to a network's input."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from client.data.room import room_for
from fedfree.architectures import InputSpec
from fedfree.errors import DataError

LOOKED_AT_TOGETHER = 64


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
        for part in self.images.split(64):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, chosen: Tensor) -> "ImageSet":
        """A copy of some images, [n] bool, with all class names; raises StorageError as ``room_for`` does."""
        rows = chosen.nonzero().squeeze(1)
        pixels = room_for((len(rows), *self.images.shape[1:]))
        torch.index_select(self.images, 0, rows, out=pixels)
        return ImageSet(pixels, self.labels[chosen], self.class_names)


def split_held_out(
    images: ImageSet, *, fraction: float, generator: torch.Generator
) -> tuple[ImageSet, ImageSet]:
    """Split into (kept, held out), as :func:`choose_held_out` chooses. Both parts keep all class names.

    Raises:
        DataError: as :func:`choose_held_out`.
        StorageError: the parts are large, and the disk has no room for them.
    """
    held = choose_held_out(images, fraction=fraction, generator=generator)
    return images.subset(~held), images.subset(held)


def choose_held_out(images: ImageSet, *, fraction: float, generator: torch.Generator) -> Tensor:
    """Which images are held out, [n] bool, chosen class by class.

    Each class holds out about ``fraction`` of its images: at least one where it has two or more,
    never its last.

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
        raise DataError(
            f"no class has two images, so none can be held out: add images ({len(images)} images of "
            f"{images.num_classes} classes)"
        )
    return held


def is_coloured(images: Tensor) -> bool:
    """Whether any of [n, channels, h, w] images has a pixel that is not grey."""
    return images.shape[1] == 3 and not all(
        bool((some[:, :1] == some).all()) for some in images.split(LOOKED_AT_TOGETHER)
    )


def to_input(images: Tensor, spec: InputSpec) -> Tensor:
    """[n, 1 or 3, h, w] uint8 to [n, spec.channels, spec.height, spec.width] float32, normalised."""
    return spec.normalise(spec.resize(images.float() / 255))


class Inputs(Protocol):
    """Images as a network takes them, [n, channels, height, width]: a tensor, or :class:`LazyInputs`."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any, /) -> Tensor: ...

    def split(self, size: int, /) -> Any:
        """Tensors of at most so many images, in order."""


@dataclass(frozen=True, eq=False)
class LazyInputs:
    """Pixels that pass through :func:`to_input` when they are looked at; all at once, they grow fourfold."""

    images: Tensor
    """[n, 1 or 3, h, w], uint8."""
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Any, /) -> Tensor:
        return to_input(self.images[chosen], self.spec)

    def split(self, size: int, /) -> Iterator[Tensor]:
        return (to_input(part, self.spec) for part in self.images.split(size))
