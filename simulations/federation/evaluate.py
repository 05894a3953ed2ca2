"""Meta-learner and baselines on the same episodes of meta_test, which nothing has touched before."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.adapting.adapt import SHOTS, episode_accuracies, head_accuracies, sample_episodes
from client.data.images import ImageSet, load_images, to_input
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import Contribution, MetaLearner, decode_meta_learner
from fedfree.episodes import Episode, EpisodeSpec
from fedfree.host.compute import choose_device
from server.events import Event, OnEvent
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.baselines import baselines
from simulations.config import SimulationConfig
from simulations.federation.prepare import Domain, find_domains

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Test episodes of one shape with everyone's accuracy on each."""

    spec: EpisodeSpec
    accuracies: Mapping[str, Tensor]
    """Name to fractions [episodes]; ``meta_learner`` and the baselines there are."""


def evaluate(run: Path, config: SimulationConfig, *, on_event: OnEvent) -> dict[str, list[Comparison]]:
    """Meta-learner and baselines on the same episodes of meta_test, with the same recipe.

    Returns:
        For each data set, by name, a comparison for each kind of episode; no episode mixes data sets.
    """
    directory = RunDirectory(run)
    meta_learner = decode_meta_learner(directory.manifest.read_bytes(), directory.weights.read_bytes())
    store = directory.store()
    contributions = [store.contribution(identity) for identity in store.ids(ACCEPTED)]
    domains = find_domains(config)
    specs = [EpisodeSpec(config.n_way, n_shot, config.n_query) for n_shot in SHOTS]
    validations = [load_split(domain, "meta_val") for domain in domains]
    device = choose_device(config.device)
    competitors = _competitors(meta_learner, contributions, validations, specs[0], config.seed, device)
    comparisons = {}
    done, of = 0, len(domains) * len(competitors)
    for domain in domains:
        test = load_split(domain, "meta_test")
        episodes = [sample_episodes(test.labels, spec, config.episodes, seed=config.seed) for spec in specs]
        accuracies: dict[str, list[Tensor]] = {}
        for name, measure in competitors.items():
            on_event(Event("evaluate", "progress", {"done": done, "of": of}))
            accuracies[name] = measure(test, episodes)
            done += 1
        comparisons[domain.name] = [
            Comparison(spec, {name: each[position] for name, each in accuracies.items()})
            for position, spec in enumerate(specs)
        ]
    on_event(Event("evaluate", "finished", {"done": done, "of": of}))
    return comparisons


def load_split(domain: Domain, split: str) -> ImageSet:
    """All images of a split, at the size of the domain's organisations."""
    return load_images(domain.source, split=split, size=domain.image_size)


Measure = Callable[[ImageSet, Sequence[Sequence[Episode]]], list[Tensor]]


def _competitors(
    meta_learner: MetaLearner,
    contributions: Sequence[Contribution],
    validations: Sequence[ImageSet],
    choice: EpisodeSpec,
    seed: int,
    device: torch.device,
) -> dict[str, Measure]:
    """Name to a function from test images and episodes to accuracies, the meta-learner first."""
    recipe = meta_learner.recipe

    def measured(network: Classifier, input: InputSpec) -> Measure:
        return lambda images, episodes: episode_accuracies(
            network.to(device), recipe, to_input(images.images, input), episodes
        )

    best = baselines.best_single_model(contributions, recipe, validations, choice, seed=seed, device=device)
    average = baselines.average_parameters(contributions)
    competitors = {
        "meta_learner": measured(meta_learner.network(), meta_learner.input),
        "random_init": measured(baselines.random_network(meta_learner, seed=seed), meta_learner.input),
        "best_single_model": measured(best.network(), best.input),
    }
    if average is not None:
        competitors["parameter_average"] = measured(average, contributions[0].input)
    competitors["pool_concatenation"] = lambda images, episodes: head_accuracies(
        baselines.pool_concatenation(contributions, images.images, mirror=recipe.mirror, device=device),
        Recipe(),
        episodes,
    )
    return competitors
