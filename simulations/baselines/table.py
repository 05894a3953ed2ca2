"""The baselines, one function each: from what a federation leaves to accuracies on test episodes."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.adapt import (
    episode_accuracies,
    extract_features,
    head_accuracies,
    sample_episodes,
)
from client.data.image_set import ImageSet, LazyInputs
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec, build
from fedfree.codec import Contribution, MetaLearner
from fedfree.episodes import Episode
from fedfree.host.compute import choose_device
from fedfree.seeding import derive_seed
from simulations.config import SimulationConfig
from simulations.federation.splits import episode_specs

CHOICE_EPISODES = 200
"""Episodes of meta_val on which the best single model is chosen."""

Measure = Callable[[ImageSet, Sequence[Sequence[Episode]]], list[Tensor]]
"""From test images and episodes of several shapes to accuracies [episodes], one for each shape."""


@dataclass(frozen=True)
class Available:
    """What a baseline may draw on: a federation's models, and the images on which choices are made."""

    config: SimulationConfig
    meta_learner: MetaLearner
    contributions: Sequence[Contribution]
    """Those in the pool."""
    validations: Sequence[ImageSet]
    """meta_val of each data set."""

    @property
    def device(self) -> torch.device:
        return choose_device(self.config.server.device)

    def measure(self, network: Classifier, input: InputSpec) -> Measure:
        """A network's accuracies with the meta-learner's recipe."""
        return lambda images, episodes: episode_accuracies(
            network.to(self.device), self.meta_learner.recipe, LazyInputs(images.images, input), episodes
        )


@dataclass(frozen=True)
class Baseline:
    """Something that the meta-learner is compared with."""

    label: str
    measure: Callable[[Available], Measure | None]
    """None where these models have no such baseline."""
    note: str = ""
    """What a reader must know of it; goes into ``result.json``."""
    is_reference: bool = False
    """Whether it is shown beside the others though no federation could hand it out."""


def random_init(available: Available) -> Measure:
    """The meta-learner's network before it learned anything."""
    learned = available.meta_learner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(available.config.seed, "random baseline"))
        network = build(learned.architecture, num_classes=learned.num_classes, input=learned.input)
    return available.measure(network, learned.input)


def parameter_average(available: Available) -> Measure | None:
    """One network with the mean of all parameters and buffers; None where the models differ in shape."""
    models = available.contributions
    if len({(each.architecture, each.num_classes, each.input) for each in models}) > 1:
        return None
    states = [each.network().state_dict() for each in models]
    network = models[0].network()
    network.load_state_dict(
        OrderedDict(
            (name, torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype))
            for name, tensor in states[0].items()
        )
    )
    return available.measure(network, models[0].input)


def best_single_model(available: Available) -> Measure:
    """The contributed model with the highest mean accuracy on episodes of each data set's meta_val."""
    spec, *_ = episode_specs(available.config)
    episodes = [
        sample_episodes(images.labels, spec, CHOICE_EPISODES, seed=available.config.seed)
        for images in available.validations
    ]

    def mean_accuracy(contribution: Contribution) -> float:
        measure = available.measure(contribution.network(), contribution.input)
        accuracies = [
            measure(images, [drawn])[0] for images, drawn in zip(available.validations, episodes, strict=True)
        ]
        return float(torch.cat(accuracies).mean())

    best = max(available.contributions, key=mean_accuracy)
    return available.measure(best.network(), best.input)


def pool_concatenation(available: Available) -> Measure:
    """Every model's features, each normalised, side by side: n times the size of one model's."""
    mirror = available.meta_learner.recipe.mirror

    def features(images: Tensor, model: Contribution) -> Tensor:
        network = model.network().to(available.device)
        return F.normalize(extract_features(network, LazyInputs(images, model.input), mirror=mirror), dim=1)

    def measure(images: ImageSet, episodes: Sequence[Sequence[Episode]]) -> list[Tensor]:
        blocks = [features(images.images, each) for each in available.contributions]
        return head_accuracies(torch.cat(blocks, dim=1), Recipe(), episodes)

    return measure


BASELINES: Mapping[str, Baseline] = {
    "random_init": Baseline("random initialisation", random_init),
    "parameter_average": Baseline("parameter average", parameter_average),
    "best_single_model": Baseline(
        "best single model", best_single_model, note="chosen on episodes of meta_val"
    ),
    "pool_concatenation": Baseline(
        "all models side by side",
        pool_concatenation,
        note="the features of all models side by side: a reference that cannot be broadcast, since it is as "
        "many times larger as there are models and would hand everyone's model to everyone",
        is_reference=True,
    ),
}
"""By name in ``result.json``, in the order in which they are shown."""
