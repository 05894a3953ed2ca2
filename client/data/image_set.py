"""Labelled images in memory: how they are named apart, parted, and brought to a network's input."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfree.architectures import InputSpec
from fedfree.errors import DataError

LOOKED_AT_TOGETHER = 1024


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


def is_coloured(images: Tensor) -> bool:
    """Whether any of [n, channels, h, w] images has a pixel that is not grey."""
    return images.shape[1] == 3 and not all(
        bool((some[:, :1] == some).all()) for some in images.split(LOOKED_AT_TOGETHER)
    )


def to_input(images: Tensor, spec: InputSpec) -> Tensor:
    """[n, 1 or 3, h, w] uint8 to [n, spec.channels, spec.height, spec.width] float32, normalised."""
    return spec.normalise(spec.resize(images.float() / 255))


def _subset(images: ImageSet, mask: Tensor) -> ImageSet:
    return ImageSet(images.images[mask], images.labels[mask], images.class_names)
