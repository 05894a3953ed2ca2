"""PREDICT: classes and their probabilities for an organisation's images, each image on its own."""

from collections.abc import Iterable, Iterator, Sequence
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
    similarity: float | None = None
    """To the nearest class mean; None: the classifier takes every image to belong to a class."""
    none_of_these: bool = False
    """Whether that similarity is below the classifier's threshold."""


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
        with torch.no_grad():
            pixels = torch.cat([each for _, each in batch])
            probabilities, judged = _judge(classifier, pixels)
        rankings = _rank(classifier.class_names, probabilities, top=top)
        for (path, _), ranking, judgement in zip(batch, rankings, judged, strict=True):
            yield Prediction(path, ranking, *judgement)


def _judge(
    classifier: FewShotClassifier, pixels: Tensor
) -> tuple[Tensor, Sequence[tuple[float | None, bool]]]:
    """Probabilities [batch, n_way]; and of each image its similarity and whether it is none of these."""
    openness = classifier.description.openness
    if openness is None:
        return classifier(pixels), [(None, False)] * len(pixels)
    probabilities, similarity = classifier.judge(pixels)
    return probabilities, [(value, value < openness.threshold) for value in similarity.tolist()]


def _rank(names: Sequence[str], probabilities: Tensor, *, top: int) -> list[tuple[tuple[str, float], ...]]:
    """The ``top`` likeliest classes of each image, from probabilities [batch, n_way]."""
    probabilities, classes = probabilities.topk(min(top, len(names)), dim=1)
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
