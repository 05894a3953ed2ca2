"""What a run would do, in order: read off its settings and what is on disk already. Nothing is written."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.config import ClientConfig, TrainingConfig
from client.data.finding import list_classes
from client.data.loading import load_configured
from client.data.tree import SPLITS
from client.training.cache import cached_folder
from fedfree.errors import DataError
from fedfree.host.starts import describe_folder, has_start
from simulations.config import SimulationConfig, describe
from simulations.federation import glyphs
from simulations.federation.datasets import DATASETS, location
from simulations.federation.prepare import check_folder, organisation_configs
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
    images: dict[str, int] | None
    """Of each split; None before it is downloaded."""
    classes: dict[str, int]
    """Of each split; empty before it is downloaded."""

    @property
    def test_classes(self) -> int:
        return self.classes.get("meta_test", 0)

    @property
    def val_classes(self) -> int:
        return self.classes.get("meta_val", 0)


@dataclass(frozen=True)
class PlannedModel:
    """What one organisation would train."""

    training: TrainingConfig
    classes: int
    images: int
    """At most, where its data set is not there yet."""
    is_cached: bool | None
    """Whether it was trained before; None where that was not looked up."""


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

    @property
    def cached(self) -> int:
        """How many models are known to be in the cache."""
        return len(self.models) - len(self.to_train)

    def split_images(self, split: str) -> list[int]:
        """Images of a split in each data set; of one that is not there yet none."""
        return [(each.images or {}).get(split, 0) for each in self.datasets]


def make_plan(run: Path, config: SimulationConfig, *, clock: Callable[[], float] = time.monotonic) -> Plan:
    """Look up what a run would do.

    Raises:
        ConfigError: the directory holds another federation.
        DataError: a data set that is missing, or too small for what is asked.
    """
    check_folder(run, config)
    starts = [(each, start_folder(each, config)) for each in config.starts]
    datasets = tuple(_look_at_data(name, each, config) for name, each in config.datasets.items())
    is_ready = all(each.is_there for each in datasets) and all(has_start(folder) for _, folder in starts)
    return Plan(
        config,
        run,
        look_at(run) if (run / "config.toml").exists() else None,
        datasets,
        tuple((name, has_start(folder)) for name, folder in starts),
        tuple(_ready_models(run, config, clock) if is_ready else _expected_models(config)),
    )


def _look_at_data(name: str, given: str, config: SimulationConfig) -> PlannedData:
    source = location(given, cache=config.cache, seed=config.seed, images_per_class=config.images_per_class)
    if source.exists():
        check_splits(source, config)
        there = {split: list_classes(source, split) for split in SPLITS}
        images = {split: sum(counts.values()) for split, counts in there.items()}
        return PlannedData(
            name, source, True, images, {split: len(counts) for split, counts in there.items()}
        )
    if given == "glyphs":
        classes = {split: len(glyphs.class_names(split)) for split in SPLITS}
        images = {split: config.images_per_class * count for split, count in classes.items()}
        return PlannedData(name, source, False, images, classes)
    if given not in DATASETS:
        raise DataError(
            f"no such data set or path: {given}; use {', '.join(('glyphs', *DATASETS))}, or a path"
        )
    return PlannedData(name, source, False, None, {})


def _ready_models(run: Path, config: SimulationConfig, clock: Callable[[], float]) -> Sequence[PlannedModel]:
    """What organisations would train, of data and starts that are there; looked up as far as time allows."""
    organisations = organisation_configs(run, config, find_datasets(config))
    counts = {each.data.source: list_classes(each.data.source, "meta_train") for each in organisations}
    until = clock() + LOOK_SECONDS
    return [
        PlannedModel(
            each.training,
            len(each.data.classes or ()),
            sum(
                min(config.images_per_class, counts[each.data.source][name])
                for name in each.data.classes or ()
            ),
            _is_cached(each) if clock() < until else None,
        )
        for each in organisations
    ]


def _is_cached(organisation: ClientConfig) -> bool:
    training = organisation.training
    if not organisation.cache.is_dir():
        return False
    channels = describe_folder(training.start).input.channels if training.start else None
    images = load_configured(organisation.data, size=training.image_size, channels=channels)
    return cached_folder(organisation, images).is_dir()


def _expected_models(config: SimulationConfig) -> Sequence[PlannedModel]:
    """What organisations would train, as far as that can be said before data and starts are there."""
    models = []
    for index in range(config.clients):
        turn, place = divmod(index, len(config.datasets))
        training = _expected_training(config, turn, place)
        images = config.classes_each * config.images_per_class
        models.append(PlannedModel(training, config.classes_each, images, False))
    return models


def _expected_training(config: SimulationConfig, turn: int, place: int) -> TrainingConfig:
    sizes, architectures = config.dealt_image_sizes, config.dealt_architectures
    size, architecture = sizes[place % len(sizes)], architectures[turn % len(architectures)]
    if config.starts:
        architecture, _ = describe(config.starts[turn % len(config.starts)])
    return config.training.model_copy(update={"architecture": architecture, "image_size": size})
