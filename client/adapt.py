"""ADAPT: measure the meta-learner, or turn it into a classifier, on the organisation's own new classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.config import ClientConfig, EvaluateConfig
from client.data import ImageSet, load_images, to_input
from fedfree.adaptation import Recipe, adapt, nearest_mean
from fedfree.architectures import Classifier
from fedfree.codec import MetaLearner
from fedfree.compute import use_cpu
from fedfree.episodes import Accuracy, Episode, EpisodeSpec, mean_and_ci95, sample_episode
from fedfree.seeding import make_generator

SHOTS = (1, 5)


@dataclass(frozen=True)
class FewShotAccuracy:
    """What an organisation may report: aggregates over episodes, nothing of an image."""

    spec: EpisodeSpec
    accuracy: Accuracy


def evaluate(meta_learner: MetaLearner, config: ClientConfig) -> list[FewShotAccuracy]:
    """Accuracy on 1-shot and 5-shot episodes of the organisation's new classes; empty without such images."""
    if config.evaluate is None:
        return []
    use_cpu(config.pretrain.threads)
    images = _load(config.evaluate, meta_learner)
    specs = [EpisodeSpec(config.evaluate.n_way, n_shot, config.evaluate.n_query) for n_shot in SHOTS]
    episodes = [
        sample_episodes(images.labels, spec, config.evaluate.episodes, seed=config.seed) for spec in specs
    ]
    inputs = to_input(images.images, meta_learner.input)
    accuracies = episode_accuracies(meta_learner.network(), meta_learner.recipe, inputs, episodes)
    return [FewShotAccuracy(spec, mean_and_ci95(each)) for spec, each in zip(specs, accuracies, strict=True)]


def _load(config: EvaluateConfig, meta_learner: MetaLearner) -> ImageSet:
    return load_images(
        config.data.source,
        split=config.data.split,
        classes=config.data.classes,
        images_per_class=config.data.images_per_class,
        size=meta_learner.input.height,
    )


def sample_episodes(labels: Tensor, spec: EpisodeSpec, count: int, *, seed: int) -> list[Episode]:
    """The same episodes for the same (labels, spec, seed), whatever is measured on them."""
    generator = make_generator(seed, "episodes", spec.name)
    return [sample_episode(labels, spec, generator=generator) for _ in range(count)]


def episode_accuracies(
    network: Classifier, recipe: Recipe, inputs: Tensor, sets: Sequence[Sequence[Episode]]
) -> list[Tensor]:
    """Fraction of query images classified correctly in each episode: a tensor [episodes] for each set.

    Args:
        inputs: [images, channels, height, width], normalised, that the episodes index.
        sets: of episodes, for instance 1-shot and 5-shot.
    """
    if recipe.head == "nearest_mean" and recipe.steps == 0:
        return nearest_mean_accuracies(extract_features(network, inputs), recipe, sets)
    return [
        torch.stack([_adapted_accuracy(network, recipe, inputs, episode) for episode in episodes])
        for episodes in sets
    ]


@torch.no_grad()
def extract_features(network: Classifier, inputs: Tensor) -> Tensor:
    """Features [images, feature_size]; in evaluation mode no image influences another's."""
    batches = inputs.contiguous(memory_format=torch.channels_last).split(64)
    return torch.cat([network.features(batch) for batch in batches])


def nearest_mean_accuracies(
    features: Tensor, recipe: Recipe, sets: Sequence[Sequence[Episode]]
) -> list[Tensor]:
    """As :func:`episode_accuracies`, for features [images, size] already extracted."""
    return [
        torch.stack([_nearest_mean_accuracy(features, recipe, episode) for episode in episodes])
        for episodes in sets
    ]


def _nearest_mean_accuracy(features: Tensor, recipe: Recipe, episode: Episode) -> Tensor:
    n_way = int(episode.support_labels.max()) + 1
    head = nearest_mean(
        features[episode.support], episode.support_labels, n_way=n_way, temperature=recipe.temperature
    )
    predicted = head.logits(features[episode.query]).argmax(1)
    return (predicted == episode.query_labels).double().mean()


def _adapted_accuracy(network: Classifier, recipe: Recipe, inputs: Tensor, episode: Episode) -> Tensor:
    n_way = int(episode.support_labels.max()) + 1
    adapted = adapt(network, recipe, inputs[episode.support], episode.support_labels, n_way=n_way)
    with torch.no_grad():
        predicted = adapted.logits(inputs[episode.query]).argmax(1)
    return (predicted == episode.query_labels).double().mean()
