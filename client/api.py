"""The organisation's side as Python functions, on arrays in memory.

Images are uint8 [images, channels, height, width] with 1 or 3 channels: a numpy array, a torch tensor, or a
sequence of [channels, height, width], which may differ in size. They become squares of the size that is
needed as those of files do: the middle is cut out and resized. Labels are one hashable value an image.

Nothing here touches a disk: no cache, and **no ledger**. Who contributes to a federation whose contributions
count, such as under differential privacy, does so by ``fedfree-client pretrain``.
"""

import importlib
import math
from collections.abc import Callable, Hashable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.adapting import classifier as adapted
from client.adapting.adapt import make_classifier, measure
from client.adapting.predict import BATCH
from client.config import PrivacyConfig, TrainingConfig, check_training, implied_training
from client.data.arrays import Images, Labels, image_set, label_values, to_pixels
from client.training.fit import read_start
from client.training.observer import Observer, ignore
from client.training.pretrain import shuffle_classes, train
from fedfree.codec import Contribution, MetaLearner
from fedfree.episodes import Accuracy, EpisodeSpec
from fedfree.errors import ConfigError
from fedfree.host.compute import ComputeConfig, choose_device
from fedfree.settings import merge


def contribute(
    images: Images,
    labels: Labels,
    *,
    start: Path | str | None = None,
    epsilon: float = math.inf,
    seed: int = 0,
    observe: Observer = ignore,
    **training: object,
) -> Contribution:
    """Train a classifier, and return what an organisation would contribute: weights and their description.

    The bytes are those of ``fedfree-client pretrain`` on the same images in files, with the same settings.

    >>> contribution = contribute(images, labels, image_size=16, epochs=1, min_steps=5)
    >>> contribution.num_classes, contribution.input.height, str(contribution.architecture)
    (3, 16, 'conv4-32-batch')

    Args:
        images: uint8 [images, channels, height, width], see :data:`client.data.arrays.Images`.
        labels: one hashable value an image; at least two classes.
        start: folder of a public start to train from; None for random weights.
        epsilon: ``inf`` and nothing else: differential privacy needs the ledger, which ``pretrain`` keeps.
        seed: decides everything random.
        observe: told how many steps are done.
        training: as in ``[training]`` of ``client.toml`` (docs/configuration.md), for instance ``epochs=3``.

    Raises:
        DataError: images or labels that cannot be used.
        ConfigError: a setting that is unknown or out of range, a seed that is no number, or an ``epsilon``.
        StorageError, ContributionError: a start or initial weights that cannot be read.
    """
    if epsilon != math.inf:
        raise ConfigError(
            f"epsilon {epsilon} has to be counted in the organisation's ledger, by the files of its images, "
            "which arrays have not: train by fedfree-client pretrain --epsilon, or leave it out here"
        )
    _check_whole(0, seed=seed)
    config = _training({**training, **({"start": str(start)} if start else {})})
    began = read_start(config)
    channels = began.start.input.channels if began else None
    private, _ = image_set(images, labels, size=config.image_size, channels=channels)
    contribution, _ = train(shuffle_classes(private, seed), config, seed=seed, observe=observe)
    return contribution


def _training(chosen: dict[str, object]) -> TrainingConfig:
    """Training settings, with what a start brings where they say nothing; raises ConfigError."""
    given = {"training": chosen}
    values = merge(implied_training(given).values, given)["training"]
    config = TrainingConfig.parse(values, origin="contribute")
    check_training(config, PrivacyConfig())
    return config


def adapt(meta_learner: MetaLearner, images: Images, labels: Labels) -> "FewShotClassifier":
    """Turn a meta-learner into a classifier of new classes, from one labelled image each or more.

    >>> classifier = adapt(meta_learner, images, labels)
    >>> classifier.predict_proba(images[:4]).shape
    (4, 3)

    Args:
        images: uint8 [images, channels, height, width], see :data:`client.data.arrays.Images`.
        labels: one hashable value an image; at least two classes.

    Raises:
        DataError: images or labels that cannot be used.
        ConfigError: something that is no meta-learner.
        ContributionError: adapting has led to NaN or infinity.
    """
    return FewShotClassifier(meta_learner).fit(images, labels)


def evaluate(
    meta_learner: MetaLearner,
    images: Images,
    labels: Labels,
    *,
    n_way: int = 5,
    n_shot: int = 1,
    n_query: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> Accuracy:
    """Mean accuracy over few-shot episodes of labelled images, in percent, with its 95 % interval.

    Not transductive: each query image is classified on its own. The numbers are those of ``fedfree-client
    evaluate`` on the same images.

    >>> accuracy = evaluate(meta_learner, images, labels, n_way=2, n_query=5, episodes=20)
    >>> 0 <= accuracy.mean <= 100, accuracy.episodes
    (True, 20)

    Args:
        images: uint8 [images, channels, height, width], see :data:`client.data.arrays.Images`, of classes
            that nobody trained on.
        labels: one hashable value an image; ``n_shot + n_query`` images or more of ``n_way`` classes.

    Raises:
        DataError: images or labels that cannot be used, or too few of them.
        ConfigError: something that is no meta-learner, a number that is not whole, fewer than 2 episodes.
    """
    _check_whole(0, seed=seed, n_way=n_way, n_shot=n_shot, n_query=n_query)
    _check_whole(2, episodes=episodes)
    input, spec = _checked(meta_learner).input, EpisodeSpec(n_way, n_shot, n_query)
    drawn_from, _ = image_set(images, labels, size=input.height, channels=input.channels)
    device = choose_device(ComputeConfig().device)
    (measured,) = measure(meta_learner, drawn_from, [spec], episodes=episodes, seed=seed, device=device)
    return measured.accuracy


class FewShotClassifier:
    """A classifier of new classes with the methods that scikit-learn's classifiers have.

    >>> classifier = FewShotClassifier(meta_learner).fit(images, labels)
    >>> classifier.classes_.tolist()
    ['blue', 'green', 'red']
    >>> classifier.predict(images[:2]).shape, classifier.none_of_these(images[:2]).dtype
    ((2,), dtype('bool'))
    """

    _estimator_type = "classifier"
    """For scikit-learn before 1.6."""

    classes_: NDArray[Any]
    """[n_way]: the value of each class, sorted; known after :meth:`fit`, as ``classifier_`` is."""
    classifier_: adapted.FewShotClassifier
    """The same as a torch module, as ``fedfree-client adapt`` makes it: ``write_classifier`` keeps it."""

    def __init__(self, meta_learner: MetaLearner) -> None:
        self.meta_learner = meta_learner

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What a copy of this classifier, not fitted, is made with."""
        return {"meta_learner": self.meta_learner}

    def set_params(self, **params: Any) -> Self:
        """Change what :meth:`get_params` names; raises ConfigError for anything else."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ConfigError(f"no such parameter: {name}; there is meta_learner alone")
            setattr(self, name, value)
        return self

    def fit(self, images: Images, labels: Labels) -> Self:
        """Adapt to the classes of labelled images, and calibrate the probabilities; see :func:`adapt`."""
        input = _checked(self.meta_learner).input
        support, classes = image_set(images, labels, size=input.height, channels=input.channels)
        self.classifier_ = make_classifier(self.meta_learner, support)
        self.classes_ = _array_of(classes)
        return self

    def predict(self, images: Images) -> NDArray[Any]:
        """The likeliest class of each image, [images]; see :meth:`none_of_these` for those of no class."""
        likeliest = self.predict_proba(images).argmax(1)
        chosen: NDArray[Any] = self.classes_[likeliest]
        return chosen

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities, [images, n_way], each row summing to 1; the columns as in ``classes_``."""
        return self._in_batches(images, self._fitted)

    def none_of_these(self, images: Images) -> NDArray[np.bool_]:
        """Whether each image belongs to none of the classes, [images].

        Raises:
            ConfigError: the meta-learner's recipe changes the network, so that there is no measure of it.
        """
        classifier = self._fitted
        if (openness := classifier.description.openness) is None:
            raise ConfigError(
                f"with head {classifier.description.recipe.head} and {classifier.description.recipe.steps} "
                "steps every image is taken to belong to a class: adapt a meta-learner of another recipe"
            )
        similarity = self._in_batches(images, lambda pixels: classifier.judge(pixels)[1])
        below: NDArray[np.bool_] = similarity < openness.threshold
        return below

    def score(self, images: Images, labels: Labels) -> float:
        """Fraction of the images whose likeliest class is their label."""
        chosen = self.predict_proba(images).argmax(1)
        numbers = {each: index for index, each in enumerate(self.classes_.tolist())}
        expected = [numbers.get(each, -1) for each in label_values(labels, len(chosen))]
        return float((chosen == expected).mean())

    def __sklearn_tags__(self) -> Any:
        """Asked by scikit-learn alone, which is installed then."""
        utils = importlib.import_module("sklearn.utils")
        return utils.Tags(
            estimator_type="classifier",
            target_tags=utils.TargetTags(required=True),
            classifier_tags=utils.ClassifierTags(),
        )

    @property
    def _fitted(self) -> adapted.FewShotClassifier:
        if not hasattr(self, "classifier_"):
            raise ConfigError("the classifier knows no classes yet: call fit(images, labels) first")
        return self.classifier_

    @torch.no_grad()
    def _in_batches(self, images: Images, ask: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        """What ``ask`` gives for pixels [batch, channels, height, width] in [0, 1], for all images."""
        input = self._fitted.description.input
        pixels = to_pixels(images, size=input.height, channels=input.channels)
        answers = [ask(input.resize(part.float() / 255)) for part in pixels.split(BATCH)]
        return torch.cat(answers).numpy()


def _check_whole(least: int, **numbers: object) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
            raise ConfigError(f"{name} is a whole number from {least} on, got {number!r}")


def _checked(meta_learner: MetaLearner) -> MetaLearner:
    """The same; raises ConfigError for anything else, such as the path of one."""
    if not isinstance(meta_learner, MetaLearner):
        raise ConfigError(
            f"expected a meta-learner (server.api.learn makes one), got a {type(meta_learner).__name__}"
        )
    return meta_learner


def _array_of(classes: Sequence[Hashable]) -> NDArray[Any]:
    """Values as numpy has them where they are of one plain type, else as objects."""
    if len({type(each) for each in classes}) == 1 and isinstance(classes[0], bool | int | float | str):
        return np.array(classes)
    values = np.empty(len(classes), dtype=object)
    for index, each in enumerate(classes):
        values[index] = each
    return values
