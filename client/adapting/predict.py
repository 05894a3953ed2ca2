"""PREDICT: classes and their probabilities for an organisation's images, each image on its own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from client.adapting.classifier import Description, FewShotClassifier
from client.data.loading import OnUnreadable, read_images
from fedfree.errors import DataError

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image."""

    image: Path
    ranking: tuple[tuple[str, float], ...]
    """Class names with their probabilities, the likeliest first."""


def predict(
    classifier: FewShotClassifier, paths: Iterable[Path], *, top: int, on_unreadable: OnUnreadable
) -> Iterator[Prediction]:
    """Predict every image that can be read, in order; why another cannot goes to ``on_unreadable``.

    Args:
        paths: images, and folders or zips whose images are taken at whatever depth.
        top: length of the rankings; all classes where there are fewer.
    """
    images = _read_all(paths, classifier.description, on_unreadable)
    while batch := list(islice(images, BATCH)):
        rankings = rank(classifier, torch.cat([pixels for _, pixels in batch]), top=top)
        for (path, _), ranking in zip(batch, rankings, strict=True):
            yield Prediction(path, ranking)


@torch.no_grad()
def rank(classifier: FewShotClassifier, pixels: Tensor, *, top: int) -> list[tuple[tuple[str, float], ...]]:
    """The ``top`` likeliest classes of each image.

    Args:
        pixels: [batch, channels, height, width] in [0, 1].
    """
    names = classifier.class_names
    probabilities, classes = classifier(pixels).topk(min(top, len(names)), dim=1)
    return [
        tuple((names[label], value) for label, value in zip(labels, values, strict=True))
        for labels, values in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def _read_all(
    paths: Iterable[Path], description: Description, on_unreadable: OnUnreadable
) -> Iterator[tuple[Path, Tensor]]:
    """Each readable image with its pixels [1, channels, height, width] in [0, 1]."""
    input = description.input
    for path in paths:
        try:
            for place, image in read_images(
                path,
                size=input.height,
                channels=input.channels,
                fit=description.fit,
                on_unreadable=on_unreadable,
            ):
                yield place, input.resize(image[None].float() / 255)
        except DataError as error:
            on_unreadable(error)
