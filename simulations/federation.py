"""A simulated federation from data set to report: prepare, run, evaluate.

``prepare`` writes a run directory, an engine runs the real Flower apps on it, ``evaluate`` compares
what came out with the baselines on episodes of meta_test, which nothing has touched before.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.adapt import SHOTS, episode_accuracies, nearest_mean_accuracies, sample_episodes
from client.config import ClientConfig, DataConfig, EvaluateConfig, PretrainConfig
from client.data import ImageSet, list_classes, list_splits, load_images, to_input
from fedfree.adaptation import Recipe
from fedfree.architectures import Architecture, Classifier, InputSpec
from fedfree.codec import Contribution, MetaLearner, decode_meta_learner
from fedfree.episodes import Episode, EpisodeSpec
from fedfree.errors import ConfigError, DataError
from fedfree.host.compute import choose_device
from fedfree.host.files import write_file
from fedfree.seeding import derive_seed
from server.config import ServerConfig, preset
from server.events import Event, OnEvent
from server.run_directory import RunDirectory
from server.store import ACCEPTED
from simulations import baselines
from simulations.config import SimulationConfig
from simulations.datasets import partition, resolve
from simulations.engines import run_flower, run_in_process

log = logging.getLogger(__name__)

SPLITS = ("meta_train", "meta_val", "meta_test")
ORGANISATION_EPISODES = 50
"""Episodes each organisation measures the meta-learner on by itself."""
ORGANISATION_CLASSES = 10
"""New classes of each organisation, drawn from meta_test."""


@dataclass(frozen=True)
class Domain:
    """One data set of a federation."""

    name: str
    source: Path
    image_size: int
    """Pixels a side, of its organisations' images."""


def find_domains(config: SimulationConfig) -> list[Domain]:
    """The data sets in the order in which they are dealt out, made or downloaded where they are missing.

    Raises:
        DataError: no such data set or path, or the download failed.
    """
    sources = {
        name: resolve(each, cache=config.cache, seed=config.seed, images_per_class=config.images_per_class)
        for name, each in config.datasets.items()
    }
    sizes = itertools.cycle(config.image_size)
    return [Domain(name, source.resolve(), next(sizes)) for name, source in sources.items()]


def prepare(run: Path, config: SimulationConfig) -> None:
    """Write everything an engine needs into the run directory.

    A directory that holds the same federation already is continued: its contributions count.

    Raises:
        ConfigError: the directory holds another federation.
        DataError: the data set is missing, or has too few classes or images for the configuration.
    """
    text = config.to_toml().encode()
    existing = run / "config.toml"
    if existing.exists() and existing.read_bytes() != text:
        raise ConfigError(
            f"{run} holds another federation (see {existing}): choose another --out or remove it"
        )
    domains = find_domains(config)
    for domain in domains:
        check_splits(domain.source, config)
    (run / "organisations").mkdir(parents=True, exist_ok=True)
    for index, organisation in enumerate(organisation_configs(run, config, domains)):
        write_file(run / "organisations" / f"{index}.toml", organisation.to_toml().encode())
    write_file(run / "server.toml", server_config(config).to_toml().encode())
    write_file(existing, text)


def check_splits(source: Path, config: SimulationConfig) -> None:
    """Raise DataError where the data cannot give the episodes that the evaluation needs."""
    missing = set(SPLITS) - set(list_splits(source))
    if missing:
        raise DataError(
            f"{source} has no {', '.join(sorted(missing))}: a simulation needs a folder or zip with "
            "meta_train, meta_val and meta_test, each with a folder a class"
        )
    per_class = max(SHOTS) + config.n_query
    for split in ("meta_val", "meta_test"):
        counts = list_classes(source, split)
        enough = sum(count >= per_class for count in counts.values())
        if enough < config.n_way:
            raise DataError(
                f"{config.n_way}-way episodes need {config.n_way} classes of at least {per_class} images in "
                f"{split}, got {enough} of {len(counts)}: use fewer ways or query images, or more data"
            )


def organisation_configs(
    run: Path, config: SimulationConfig, domains: Sequence[Domain]
) -> list[ClientConfig]:
    """What each organisation would write itself: data sets in turn, architectures in turn within each."""
    count = len(domains)
    shares = [
        _deal_classes(config, domain.source, organisations=len(range(place, config.clients, count)))
        for place, domain in enumerate(domains)
    ]
    configs = []
    for index in range(config.clients):
        turn, place = divmod(index, count)
        architecture = config.architectures[turn % len(config.architectures)]
        ledger = run / "organisations" / f"{index}.ledger.sqlite"
        configs.append(
            _organisation(config, index, domains[place], architecture, *shares[place][turn], ledger)
        )
    return configs


def _deal_classes(
    config: SimulationConfig, source: Path, *, organisations: int
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each organisation's own classes of meta_train, and its new classes of meta_test."""
    own = partition(
        list(list_classes(source, "meta_train")),
        organisations=organisations,
        classes_each=config.classes_each,
        how=config.partition,
        seed=config.seed,
    )
    candidates = list(list_classes(source, "meta_test"))
    new = partition(
        candidates,
        organisations=organisations,
        classes_each=min(max(ORGANISATION_CLASSES, config.n_way), len(candidates)),
        how="overlapping",
        seed=derive_seed(config.seed, "new classes"),
    )
    return list(zip(own, new, strict=True))


def _organisation(
    config: SimulationConfig,
    index: int,
    domain: Domain,
    architecture: Architecture,
    classes: tuple[str, ...],
    new_classes: tuple[str, ...],
    ledger: Path,
) -> ClientConfig:
    return ClientConfig(
        data=DataConfig(
            source=domain.source,
            split="meta_train",
            classes=classes,
            images_per_class=config.images_per_class,
        ),
        pretrain=PretrainConfig(
            architecture=architecture,
            image_size=domain.image_size,
            horizontal_flip=config.horizontal_flip,
            epochs=config.epochs,
            min_steps=config.min_steps,
            rotation_task=config.rotation_task,
            initial_weights=config.initial_weights.resolve() if config.initial_weights else None,
            initial_weights_public=config.initial_weights is not None,
            device=config.device,
            threads=config.threads,
        ),
        privacy=config.privacy,
        evaluate=EvaluateConfig(
            data=DataConfig(source=domain.source, split="meta_test", classes=new_classes),
            n_way=config.n_way,
            n_query=config.n_query,
            episodes=ORGANISATION_EPISODES,
        ),
        share_metrics=True,
        cache=(config.cache / "models").resolve(),
        ledger=ledger.resolve(),
        seed=derive_seed(config.seed, "organisation", index),
    )


def server_config(config: SimulationConfig) -> ServerConfig:
    """The preset with what the simulation decides."""
    changes: dict[str, Any] = {
        "seed": config.seed,
        "device": config.device,
        "threads": config.threads,
        "collect": {"organisations": config.clients},
        "architecture": config.student,
    }
    if config.iterations is not None:
        changes["iterations"] = config.iterations
    return ServerConfig.parse(preset(config.preset).model_dump() | changes, origin="option")


def run_engine(run: Path, config: SimulationConfig, *, on_event: OnEvent) -> None:
    """Run the Flower apps; raises FederationError where they did not complete."""
    engine = run_in_process if config.engine == "in-process" else run_flower
    engine(run, organisations=config.clients, on_event=on_event)


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
    competitors["pool_concatenation"] = lambda images, episodes: nearest_mean_accuracies(
        baselines.pool_concatenation(contributions, images.images, mirror=recipe.mirror, device=device),
        Recipe(),
        episodes,
    )
    return competitors
