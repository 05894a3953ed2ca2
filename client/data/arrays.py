"""Images and labels that a program holds in memory, checked and brought to the form of those in files."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from client.data.image_set import ImageSet
from client.data.loading import TRAINED_CLASSES
from client.data.room import room_for
from fedfree.errors import DataError
from fedfree.host.images.decoding import to_array

Images = NDArray[np.uint8] | Tensor | Sequence[NDArray[np.uint8] | Tensor]
"""uint8 [images, channels, height, width] with 1 or 3 channels; or one [channels, height, width] each."""
Labels = Sequence[Hashable] | NDArray[Any] | Tensor
"""One hashable value an image: a class is whatever is equal."""

EXPECTED = "uint8 images [images, channels, height, width] with 1 or 3 channels"


def image_set(
    images: Images, labels: Labels, *, size: int, channels: int | None = None
) -> tuple[ImageSet, tuple[Hashable, ...]]:
    """Labelled images as :func:`client.data.loading.load_images` gives them: sorted by class, square.

    Args:
        images: see :data:`Images`; they may differ in size, and become squares as those of files do.
        size: side in pixels that they are brought to.
        channels: 1 or 3; by default as many as the first image has.

    Returns:
        The images, and the class values in the order of the labels there.

    Raises:
        DataError: what cannot be used, with what was expected.
    """
    pixels = to_pixels(images, size=size, channels=channels)
    numbers, classes = number(label_values(labels, len(pixels)))
    order = numbers.argsort(stable=True)
    return ImageSet(pixels[order], numbers[order], tuple(map(str, classes))), classes


def to_pixels(images: Images, *, size: int, channels: int | None = None) -> Tensor:
    """Images as a tensor [images, channels, size, size], uint8; raises DataError.

    An image of the size and channels asked for stays as it is; others go through the function that decoded
    files go through: the middle is cut out and resized, colours become grey or grey ones colour.
    """
    arrays = _checked(images)
    channels = channels or arrays[0].shape[0]
    pixels = room_for((len(arrays), channels, size, size))
    for place, array in zip(pixels.numpy(), arrays, strict=True):
        place[...] = _square(array, size, channels)
    return pixels


def label_values(labels: Labels, count: int) -> list[Hashable]:
    """One label for each of ``count`` images; raises DataError where they are missing, or not hashable."""
    values = _listed(labels)
    if len(values) != count:
        raise DataError(f"expected one label an image: {count} images, {len(values)} labels")
    for index, each in enumerate(values):
        if each is None or each != each:
            raise DataError(f"the label of image {index} is missing: {each!r}")
    return values


def _listed(labels: Any) -> list[Hashable]:
    try:
        values = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else list(map(_plain, labels))
        hash(tuple(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"expected one hashable label an image: {error}") from error
    return values


def _plain(label: Any) -> Any:
    """Tensors and numbers of numpy as Python has them: to a hash, two tensors are never equal."""
    return label.item() if isinstance(label, np.generic | np.ndarray | Tensor) else label


def number(values: Sequence[Hashable]) -> tuple[Tensor, tuple[Hashable, ...]]:
    """Labels [images], int64, and the value of each class: sorted, by type and text where they have no order.

    Raises:
        DataError: fewer than two classes, or two that read alike.
    """
    classes = _sorted(values)
    if len(classes) < TRAINED_CLASSES:
        raise DataError(f"expected at least {TRAINED_CLASSES} classes, got {len(classes)}: {classes[0]!r}")
    texts: dict[str, Hashable] = {}
    for each in classes:
        if (same := texts.setdefault(str(each), each)) is not each:
            raise DataError(f"the classes {same!r} and {each!r} read alike: rename one of them")
    numbers = {each: index for index, each in enumerate(classes)}
    return torch.tensor([numbers[each] for each in values]), classes


def _sorted(values: Sequence[Any]) -> tuple[Hashable, ...]:
    distinct = dict.fromkeys(values)
    try:
        return tuple(sorted(distinct))
    except TypeError:
        return tuple(sorted(distinct, key=lambda each: (type(each).__name__, str(each))))


def _checked(images: Any) -> list[NDArray[np.uint8]]:
    """Each image, [1 or 3, height, width]; raises DataError."""
    whole = isinstance(images, np.ndarray | Tensor)
    if isinstance(images, Tensor) and (images.is_nested or images.is_meta):
        raise DataError(f"expected {EXPECTED}, got a nested tensor, or one without data")
    if whole and (images.ndim != 4 or _dtype(images) != "uint8"):
        raise _unexpected(images)
    try:
        arrays = [_array(each) for each in images]
    except TypeError as error:
        raise DataError(f"expected {EXPECTED}, got {type(images).__name__}") from error
    if not arrays:
        raise DataError(f"expected {EXPECTED}, got none")
    for index, each in enumerate(arrays):
        fits = each.dtype == np.uint8 and each.ndim == 3 and len(each) in (1, 3) and each.size
        if not fits:
            raise _unexpected(images) if whole else _unexpected(each, f"image {index} is ")
    return arrays


def _array(image: Any) -> NDArray[Any]:
    return image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)


def _dtype(images: NDArray[Any] | Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


def _unexpected(images: NDArray[Any] | Tensor, which: str = "") -> DataError:
    shape, remedy = list(images.shape), ""
    if _dtype(images) != "uint8":
        remedy = ": fractions times 255, rounded, are uint8" if "float" in _dtype(images) else ""
    elif shape[-1:] in ([1], [3]):
        remedy = ": bring the channels before height and width, images.transpose(0, 3, 1, 2)"
    elif len(shape) == (2 if which else 3):
        remedy = ": add the one channel of grey images, images[:, None]"
    return DataError(f"expected {EXPECTED}, got {which}{_dtype(images)} {shape}{remedy}")


def _square(array: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    if array.shape == (channels, size, size):
        return array
    image = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return to_array(image, size, channels)
