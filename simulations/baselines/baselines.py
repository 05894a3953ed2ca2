"""What the meta-learner is compared with: the same recipe, the same episodes."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.adapt import episode_accuracies, extract_features, sample_episodes
from client.data.image_set import ImageSet, to_input
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, build
from fedfree.codec import Contribution, MetaLearner
from fedfree.episodes import EpisodeSpec
from fedfree.seeding import derive_seed

CHOICE_EPISODES = 200
"""Episodes of meta_val on which the best single model is chosen."""


def random_network(meta_learner: MetaLearner, *, seed: int) -> Classifier:
    """The meta-learner's network before it learned anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "random baseline"))
        return build(
            meta_learner.architecture, num_classes=meta_learner.num_classes, input=meta_learner.input
        )


def average_parameters(contributions: Sequence[Contribution]) -> Classifier | None:
    """One network with the mean of all parameters and buffers; None where the models differ in shape."""
    first = contributions[0]
    alike = {(each.architecture, each.num_classes, each.input) for each in contributions}
    if len(alike) > 1:
        return None
    states = [each.network().state_dict() for each in contributions]
    network = first.network()
    network.load_state_dict(
        OrderedDict(
            (name, torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype))
            for name, tensor in states[0].items()
        )
    )
    return network


def best_single_model(
    contributions: Sequence[Contribution],
    recipe: Recipe,
    validations: Sequence[ImageSet],
    spec: EpisodeSpec,
    *,
    seed: int,
    device: torch.device,
) -> Contribution:
    """The contributed model with the highest mean accuracy on episodes of each data set's meta_val."""
    episodes = [sample_episodes(images.labels, spec, CHOICE_EPISODES, seed=seed) for images in validations]

    def mean_accuracy(contribution: Contribution) -> float:
        network = contribution.network().to(device)
        accuracies = [
            episode_accuracies(network, recipe, to_input(images.images, contribution.input), [drawn])[0]
            for images, drawn in zip(validations, episodes, strict=True)
        ]
        return float(torch.cat(accuracies).mean())

    return max(contributions, key=mean_accuracy)


def pool_concatenation(
    contributions: Sequence[Contribution], images: Tensor, *, mirror: bool, device: torch.device
) -> Tensor:
    """Every model's features, each normalised, side by side: [images, sum of feature sizes].

    A reference that cannot be broadcast: n times the size, and everyone would get everyone's model.
    """
    blocks = []
    for contribution in contributions:
        inputs = to_input(images, contribution.input)
        features = extract_features(contribution.network().to(device), inputs, mirror=mirror)
        blocks.append(F.normalize(features, dim=1))
    return torch.cat(blocks, dim=1)
