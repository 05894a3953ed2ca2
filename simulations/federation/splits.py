"""The data sets of a federation, their splits, and the kinds of episodes that everything is measured on."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from client.adapting.adapt import SHOTS
from client.data.finding import list_classes, list_splits
from client.data.image_set import ImageSet
from client.data.loading import load_images
from client.data.tree import SPLITS
from fedfree.episodes import EpisodeSpec
from fedfree.errors import DataError
from fedfree.host.starts import describe_folder
from simulations.config import SimulationConfig
from simulations.federation.datasets import resolve
from simulations.federation.starts import find_start


@dataclass(frozen=True)
class DataSet:
    """One data set of a federation."""

    name: str
    source: Path
    image_size: int
    """Pixels a side, of its organisations' images."""
    channels: int | None = None
    """1 or 3 where a start decides it; else the images do."""

    def load(self, split: str, *, images_per_class: int | None = None) -> ImageSet:
        """The images of a split: all, or so many of each class."""
        return load_images(
            self.source,
            split=split,
            images_per_class=images_per_class,
            size=self.image_size,
            channels=self.channels,
        )


def find_datasets(config: SimulationConfig) -> list[DataSet]:
    """The data sets in the order in which they are dealt out, made or downloaded where they are missing.

    The start is made before them, where there is one: it may lack something, and it decides what their images
    are brought to.

    Raises:
        ConfigError, ContributionError: the start cannot be had.
        DataError: no such data set or path, or the download failed.
    """
    start = find_start(config)
    channels = describe_folder(start).input.channels if start else None
    sources = {
        name: resolve(each, cache=config.cache, seed=config.seed, images_per_class=config.images_per_class)
        for name, each in config.datasets.items()
    }
    sizes = itertools.cycle(config.dealt_image_sizes)
    return [DataSet(name, source.resolve(), next(sizes), channels) for name, source in sources.items()]


def episode_specs(config: SimulationConfig) -> list[EpisodeSpec]:
    """The shapes of episodes that are measured, the one with the fewest shots first."""
    return [EpisodeSpec(config.n_way, n_shot, config.n_query) for n_shot in SHOTS]


def check_splits(source: Path, config: SimulationConfig) -> None:
    """Raise DataError where the data cannot give the episodes that the evaluation needs."""
    found = list_splits(source)
    if not found:
        list_classes(source)  # which says of what holds no class at all what was passed over
    if missing := set(SPLITS) - set(found):
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
