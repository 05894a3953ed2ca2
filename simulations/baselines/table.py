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
    nearest_mean_accuracies,
    sample_episodes,
)
from client.data.images import ImageSet, to_input
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
class Outcome:
    """What a baseline may draw on: a federation's models, and the images on which choices are made."""

    config: SimulationConfig
    meta_learner: MetaLearner
    contributions: Sequence[Contribution]
    """Those in the pool."""
    validations: Sequence[ImageSet]
    """meta_val of each data set."""

    @property
    def device(self) -> torch.device:
        return choose_device(self.config.device)

    def measure(self, network: Classifier, input: InputSpec) -> Measure:
        """A network's accuracies with the meta-learner's recipe."""
        return lambda images, episodes: episode_accuracies(
            network.to(self.device), self.meta_learner.recipe, to_input(images.images, input), episodes
        )


@dataclass(frozen=True)
class Baseline:
    """Something that the meta-learner is compared with."""

    label: str
    measure: Callable[[Outcome], Measure | None]
    """None where these models have no such baseline."""
    note: str = ""
    """What a reader must know of it; goes into ``result.json``."""
    is_reference: bool = False
    """Whether it is shown beside the others though no federation could hand it out."""


def random_init(outcome: Outcome) -> Measure:
    """The meta-learner's network before it learned anything."""
    learned = outcome.meta_learner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(outcome.config.seed, "random baseline"))
        network = build(learned.architecture, num_classes=learned.num_classes, input=learned.input)
    return outcome.measure(network, learned.input)


def parameter_average(outcome: Outcome) -> Measure | None:
    """One network with the mean of all parameters and buffers; None where the models differ in shape."""
    models = outcome.contributions
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
    return outcome.measure(network, models[0].input)


def best_single_model(outcome: Outcome) -> Measure:
    """The contributed model with the highest mean accuracy on episodes of each data set's meta_val."""
    spec, *_ = episode_specs(outcome.config)
    episodes = [
        sample_episodes(images.labels, spec, CHOICE_EPISODES, seed=outcome.config.seed)
        for images in outcome.validations
    ]

    def mean_accuracy(contribution: Contribution) -> float:
        measure = outcome.measure(contribution.network(), contribution.input)
        accuracies = [
            measure(images, [drawn])[0] for images, drawn in zip(outcome.validations, episodes, strict=True)
        ]
        return float(torch.cat(accuracies).mean())

    best = max(outcome.contributions, key=mean_accuracy)
    return outcome.measure(best.network(), best.input)


def pool_concatenation(outcome: Outcome) -> Measure:
    """Every model's features, each normalised, side by side: n times the size of one model's."""
    mirror = outcome.meta_learner.recipe.mirror

    def features(images: Tensor, model: Contribution) -> Tensor:
        network = model.network().to(outcome.device)
        return F.normalize(extract_features(network, to_input(images, model.input), mirror=mirror), dim=1)

    def measure(images: ImageSet, episodes: Sequence[Sequence[Episode]]) -> list[Tensor]:
        blocks = [features(images.images, each) for each in outcome.contributions]
        return nearest_mean_accuracies(torch.cat(blocks, dim=1), Recipe(), episodes)

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
