"""What a run would do, in order: read off its settings and what is on disk already. Nothing is written."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.config import ClientConfig, TrainingConfig
from client.data.finding import list_classes
from client.data.tree import SPLITS
from client.training.cache import cached_folder
from client.training.fit import course
from fedfree.host.starts import has_start
from simulations.config import SimulationConfig, describe
from simulations.federation import glyphs
from simulations.federation.datasets import DATASETS, location, no_such_data
from simulations.federation.prepare import check_folder, load_own, organisation_configs
from simulations.federation.splits import check_splits, find_datasets
from simulations.federation.starts import start_folder
from simulations.reporting.runs import FoundRun, look_at

LOOK_SECONDS = 5.0
"""How long it is looked for models in the cache: every image is read for it."""


@dataclass(frozen=True)
class PlannedData:
    """A data set, and how many images it has."""

    name: str
    source: Path
    is_there: bool
    counts: Mapping[str, Mapping[str, int]]
    """Of each split the images of each class; empty before it is downloaded."""

    def images(self, split: str) -> int:
        return sum(self.counts.get(split, {}).values())

    def classes(self, split: str) -> int:
        return len(self.counts.get(split, {}))


@dataclass(frozen=True)
class PlannedModel:
    """What one organisation would train."""

    training: TrainingConfig
    classes: int
    images: int
    """At most, where its data set is not there yet."""
    is_cached: bool | None = False
    """Whether it was trained before; None where that was not looked up."""

    @property
    def kind(self) -> tuple[str, int]:
        """Architecture and pixels a side, which decide how long a step takes."""
        return str(self.training.architecture), self.training.image_size

    @property
    def steps(self) -> int:
        """Of its training, from random weights or a start."""
        held = int(self.images * self.training.held_out_fraction)
        return course(max(1, self.images - held), self.training).steps


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    config: SimulationConfig
    run: Path
    found: FoundRun | None
    """What is in its directory already."""
    datasets: tuple[PlannedData, ...]
    starts: tuple[tuple[str, bool], ...]
    """Names of the starts, and whether they are there."""
    models: tuple[PlannedModel, ...]

    @property
    def to_train(self) -> tuple[PlannedModel, ...]:
        """Models that are not known to be in the cache."""
        return tuple(model for model in self.models if not model.is_cached)

    def images(self, split: str) -> int:
        """Of all data sets; of one that is not downloaded yet none."""
        return sum(each.images(split) for each in self.datasets)

    @property
    def images_to_draw(self) -> int:
        """Images of the data sets that are made here."""
        missing = [each for each in self.datasets if not each.is_there]
        return sum(each.images(split) for each in missing for split in each.counts)


def make_plan(run: Path, config: SimulationConfig, *, clock: Callable[[], float] = time.monotonic) -> Plan:
    """Look up what a run would do.

    Raises:
        ConfigError: the directory holds another federation.
        DataError: a data set that is missing, or too small for what is asked.
    """
    check_folder(run, config)
    datasets = tuple(_look_at_data(name, each, config) for name, each in config.datasets.items())
    starts = tuple((each, has_start(start_folder(each, config))) for each in config.starts)
    is_ready = all(each.is_there for each in datasets) and all(is_there for _, is_there in starts)
    return Plan(
        config,
        run,
        look_at(run) if (run / "config.toml").exists() else None,
        datasets,
        starts,
        tuple(_ready_models(run, config, datasets, clock) if is_ready else _expected_models(config)),
    )


def _look_at_data(name: str, given: str, config: SimulationConfig) -> PlannedData:
    counts: Mapping[str, Mapping[str, int]] = {}
    source = location(given, cache=config.cache, seed=config.seed, images_per_class=config.images_per_class)
    if source.exists():
        check_splits(source, config)
        counts = {split: list_classes(source, split) for split in SPLITS}
    elif given == "glyphs":
        counts = {
            split: dict.fromkeys(glyphs.class_names(split), config.images_per_class) for split in SPLITS
        }
    elif given not in DATASETS:
        raise no_such_data(given)
    return PlannedData(name, source, source.exists(), counts)


def _ready_models(
    run: Path, config: SimulationConfig, datasets: Sequence[PlannedData], clock: Callable[[], float]
) -> Iterator[PlannedModel]:
    """What organisations would train, of data and starts that are there; looked up as far as time allows."""
    organisations = organisation_configs(run, config, find_datasets(config))
    until = clock() + LOOK_SECONDS
    for organisation, data in zip(organisations, itertools.cycle(datasets), strict=False):
        own = organisation.data.classes or ()
        images = sum(min(config.images_per_class, data.counts["meta_train"][name]) for name in own)
        is_cached = _is_cached(organisation) if clock() < until else None
        yield PlannedModel(organisation.training, len(own), images, is_cached)


def _is_cached(organisation: ClientConfig) -> bool:
    return organisation.cache.is_dir() and cached_folder(organisation, load_own(organisation)).is_dir()


def _expected_models(config: SimulationConfig) -> Iterator[PlannedModel]:
    """What organisations would train, as far as that can be said before data and starts are there."""
    sizes, architectures = config.dealt_image_sizes, config.dealt_architectures
    if config.starts:
        architectures = tuple(describe(each)[0] for each in config.starts)
    for index in range(config.clients):
        turn, place = divmod(index, len(config.datasets))
        size, architecture = sizes[place % len(sizes)], architectures[turn % len(architectures)]
        training = config.training.model_copy(update={"architecture": architecture, "image_size": size})
        yield PlannedModel(training, config.classes_each, config.classes_each * config.images_per_class)
