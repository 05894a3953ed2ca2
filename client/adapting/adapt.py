"""ADAPT: measure the meta-learner, or turn it into a classifier, on the organisation's own new classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.adapting.calibrate import calibrate
from client.adapting.classifier import Description, FewShotClassifier
from client.adapting.openness import measure_openness
from client.config import ClientConfig
from client.data.image_set import ImageSet, Inputs, LazyInputs
from client.data.loading import load_configured
from fedfree.adaptation import FEATURE_BATCH, AdaptedClassifier, Recipe, adapt, head_accuracy
from fedfree.architectures import Classifier
from fedfree.codec import MetaLearner, encode_meta_learner, sha256
from fedfree.episodes import Accuracy, Episode, EpisodeSpec, mean_and_ci95, sample_episode
from fedfree.host.compute import choose_device, use_cpu
from fedfree.host.images.formats import Fit
from fedfree.seeding import make_generator

SHOTS = (1, 5)
MAX_REFITS, MAX_READAPTATIONS = 500, 40
"""Support images left out one at a time: where only the class means are fitted anew, and where the
network is adapted anew for each."""
SOLVED_IMAGES = 30_000
"""A head that solves equations over the support set is fitted anew to so many images in all, because the time
that takes grows faster than their number; and to MAX_READAPTATIONS support sets at least."""


@dataclass(frozen=True)
class FewShotAccuracy:
    """What an organisation may report: aggregates over episodes, nothing of an image."""

    spec: EpisodeSpec
    accuracy: Accuracy


def make_classifier(meta_learner: MetaLearner, images: ImageSet, *, fit: Fit = "crop") -> FewShotClassifier:
    """Adapt a meta-learner to the classes of ``images``, and calibrate its probabilities.

    Args:
        images: at least one of each class; any size, the meta-learner's own by preference.
        fit: by which they became square, remembered so that whatever is predicted becomes so too.
    """
    network, recipe, n_way = meta_learner.network(), meta_learner.recipe, images.num_classes
    inputs = LazyInputs(images.images, meta_learner.input)
    counts = images.labels.bincount(minlength=n_way)
    with torch.no_grad():
        openness, means = None, None
        if recipe.keeps_network:
            features = extract_features(network, inputs, recipe)
            head = recipe.fit_head(features, images.labels, n_way=n_way)
            adapted = AdaptedClassifier(network, dict(network.named_parameters()), head, recipe)
            logits, labels = _refit(recipe, features, images.labels, n_way=n_way)
            openness, means = measure_openness(features, images.labels, n_way=n_way)
        else:
            adapted = adapt(network, recipe, inputs[:], images.labels, n_way=n_way)
            logits, labels = leave_one_out(network, recipe, inputs, images.labels, n_way=n_way)
    values = {
        "architecture": meta_learner.architecture,
        "input": meta_learner.input,
        "recipe": recipe,
        "fit": fit,
        "support": dict(zip(images.class_names, counts.tolist(), strict=True)),
        "calibration": calibrate(logits, labels, near_one=recipe.is_calibrated) if len(labels) else None,
        "openness": openness,
        "meta_learner": sha256(encode_meta_learner(meta_learner)),
        "provenance": meta_learner.provenance,
    }
    description = Description.parse(values, origin="the classifier")
    return FewShotClassifier.from_adapted(adapted, description, means)


def leave_one_out(
    network: Classifier, recipe: Recipe, inputs: Inputs, labels: Tensor, *, n_way: int
) -> tuple[Tensor, Tensor]:
    """Logits of support images, each predicted by a classifier adapted without it.

    Images that are their class's only one are not left out. Of many, evenly spaced ones are: at most
    MAX_REFITS where features need no recomputation, MAX_READAPTATIONS elsewhere.

    Args:
        inputs: [images, channels, height, width], normalised.
        labels: [images], int64 in 0 … n_way - 1, in runs of one class each.

    Returns:
        Logits [left out, n_way], and their labels [left out].
    """
    if recipe.keeps_network:
        features = extract_features(network, inputs, recipe)
        return _refit(recipe, features, labels, n_way=n_way)
    left_out = _to_leave_out(labels, MAX_READAPTATIONS)
    logits = [torch.empty(0, n_way)]
    for index in left_out.tolist():
        others = torch.arange(len(labels)) != index
        adapted = adapt(network, recipe, inputs[others], labels[others], n_way=n_way)
        logits.append(adapted.logits(inputs[index : index + 1]).detach())
    return torch.cat(logits), labels[left_out]


def _refit(recipe: Recipe, features: Tensor, labels: Tensor, *, n_way: int) -> tuple[Tensor, Tensor]:
    """As :func:`leave_one_out`, for features [images, size] already extracted."""
    count = MAX_REFITS
    if recipe.head == "ridge":
        count = min(count, max(MAX_READAPTATIONS, SOLVED_IMAGES // len(labels)))
    left_out = _to_leave_out(labels, count)
    logits = [torch.empty(0, n_way)]
    for index in left_out.tolist():
        others = torch.arange(len(labels)) != index
        head = recipe.fit_head(features[others], labels[others], n_way=n_way)
        logits.append(head.logits(features[index : index + 1]))
    return torch.cat(logits), labels[left_out]


def _to_leave_out(labels: Tensor, count: int) -> Tensor:
    """Evenly spaced images of classes that have others: ``count`` at most."""
    indices = (labels.bincount()[labels] >= 2).nonzero().squeeze(1)
    if len(indices) <= count:
        return indices
    return indices[torch.arange(count) * len(indices) // count]


def evaluate(meta_learner: MetaLearner, config: ClientConfig) -> list[FewShotAccuracy]:
    """Accuracy on 1-shot and 5-shot episodes of the organisation's new classes; empty without such images."""
    if config.evaluate is None:
        return []
    use_cpu(config.training.threads)
    input = meta_learner.input
    images = load_configured(config.evaluate.data, size=input.height, channels=input.channels)
    specs = [EpisodeSpec(config.evaluate.n_way, n_shot, config.evaluate.n_query) for n_shot in SHOTS]
    device = choose_device(config.training.device)
    return measure(
        meta_learner, images, specs, episodes=config.evaluate.episodes, seed=config.seed, device=device
    )


def measure(
    meta_learner: MetaLearner,
    images: ImageSet,
    specs: Sequence[EpisodeSpec],
    *,
    episodes: int,
    seed: int,
    device: torch.device,
) -> list[FewShotAccuracy]:
    """Accuracy on episodes of each kind, drawn from labelled images; raises DataError with too few."""
    drawn = [sample_episodes(images.labels, spec, episodes, seed=seed) for spec in specs]
    inputs = LazyInputs(images.images, meta_learner.input)
    network = meta_learner.network().to(device)
    accuracies = episode_accuracies(network, meta_learner.recipe, inputs, drawn)
    return [FewShotAccuracy(spec, mean_and_ci95(each)) for spec, each in zip(specs, accuracies, strict=True)]


def sample_episodes(labels: Tensor, spec: EpisodeSpec, count: int, *, seed: int) -> list[Episode]:
    """The same episodes for the same (labels, spec, seed), whatever is measured on them."""
    generator = make_generator(seed, "episodes", spec.name)
    return [sample_episode(labels, spec, generator=generator) for _ in range(count)]


def episode_accuracies(
    network: Classifier, recipe: Recipe, inputs: Inputs, sets: Sequence[Sequence[Episode]]
) -> list[Tensor]:
    """Fraction of query images classified correctly in each episode: a tensor [episodes] for each set.

    Args:
        inputs: [images, channels, height, width], normalised, that the episodes index.
        sets: of episodes, for instance 1-shot and 5-shot.
    """
    if recipe.keeps_network:
        return head_accuracies(extract_features(network, inputs, recipe), recipe, sets)
    return [
        torch.stack([_adapted_accuracy(network, recipe, inputs, episode) for episode in episodes])
        for episodes in sets
    ]


@torch.no_grad()
def extract_features(network: Classifier, inputs: Inputs, recipe: Recipe) -> Tensor:
    """What the recipe's head takes, [images, feature_size], on the CPU; no image influences another's."""
    batches = (part.contiguous(memory_format=torch.channels_last) for part in inputs.split(FEATURE_BATCH))
    return torch.cat([recipe.embed(network, batch.to(network.device)).cpu() for batch in batches])


def head_accuracies(features: Tensor, recipe: Recipe, sets: Sequence[Sequence[Episode]]) -> list[Tensor]:
    """As :func:`episode_accuracies`, for features [images, size] already extracted."""
    return [
        torch.stack([head_accuracy(features, recipe, episode) for episode in episodes]) for episodes in sets
    ]


def _adapted_accuracy(network: Classifier, recipe: Recipe, inputs: Inputs, episode: Episode) -> Tensor:
    n_way = int(episode.support_labels.max()) + 1
    support, labels, query = (
        each.to(network.device)
        for each in (inputs[episode.support], episode.support_labels, inputs[episode.query])
    )
    adapted = adapt(network, recipe, support, labels, n_way=n_way)
    with torch.no_grad():
        predicted = adapted.logits(query).argmax(1).cpu()
    return (predicted == episode.query_labels).double().mean()
