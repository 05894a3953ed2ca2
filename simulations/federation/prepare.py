"""A simulated federation's run directory: who holds which images, who trains what, what the server does."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.adapting.adapt import SHOTS
from client.config import ClientConfig, DataConfig, EvaluateConfig
from client.data.finding import list_classes, list_splits
from fedfree.architectures import Architecture
from fedfree.errors import ConfigError, DataError
from fedfree.host.files import write_file
from fedfree.seeding import derive_seed
from fedfree.settings import Settings
from server.config import ServerConfig
from simulations.config import SimulationConfig
from simulations.federation.datasets import partition, resolve

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
    sizes = itertools.cycle(config.dealt_image_sizes)
    return [Domain(name, source.resolve(), next(sizes)) for name, source in sources.items()]


def prepare(run: Path, config: SimulationConfig) -> None:
    """Write everything an engine needs into the run directory.

    A directory that holds the same federation already is continued: its contributions count.

    Raises:
        ConfigError: the directory holds another federation.
        DataError: the data set is missing, or has too few classes or images for the configuration.
    """
    existing = run / "config.toml"
    if existing.exists() and existing.read_text(encoding="utf-8") != config.to_toml():
        raise ConfigError(
            f"{run} holds another federation (see {existing}): choose another --out or remove it"
        )
    domains = find_domains(config)
    for domain in domains:
        check_splits(domain.source, config)
    configurations: dict[str, Settings] = {"server.toml": server_config(config)}
    for index, organisation in enumerate(organisation_configs(run, config, domains)):
        configurations[f"organisations/{index}.toml"] = organisation
    configurations["config.toml"] = config
    for name, settings in configurations.items():
        write_once(run / name, settings.to_toml())


def write_once(path: Path, text: str) -> None:
    """Write a configuration where there is none; raises ConfigError where another one is."""
    if not path.exists():
        write_file(path, text.encode())
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} was changed since the run was prepared, and is left as it is: use another --out, or "
            "undo the change and give it as an option"
        )


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
        architecture = config.dealt_architectures[turn % len(config.dealt_architectures)]
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
    initial = config.training.initial_weights
    return ClientConfig(
        data=DataConfig(
            source=domain.source,
            split="meta_train",
            classes=classes,
            images_per_class=config.images_per_class,
        ),
        training=config.training.model_copy(
            update={
                "architecture": architecture,
                "image_size": domain.image_size,
                "initial_weights": initial.resolve() if initial else None,
                "initial_weights_public": initial is not None,
            }
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
    """What the server is configured with: as the simulation says, for its organisations and seed."""
    collect = config.server.collect.model_copy(update={"organisations": config.clients})
    return config.server.model_copy(update={"collect": collect, "seed": config.seed})
