"""A simulated federation's run directory: who holds which images, who trains what, what the server does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from client.config import ClientConfig, DataConfig, EvaluateConfig, TrainingConfig
from client.data.finding import list_classes
from client.data.image_set import ImageSet
from client.data.loading import load_configured
from client.training.cache import check_writable
from fedfree.architectures import Architecture
from fedfree.errors import ConfigError
from fedfree.host.files import write_file
from fedfree.host.starts import describe_folder
from fedfree.seeding import derive_seed
from fedfree.settings import leaves, value_at
from server.config import ServerConfig
from server.storage.run_directory import SIGNING_KEY, RunDirectory
from server.storage.signing_key import SigningKey
from simulations.config import SimulationConfig
from simulations.federation.datasets import partition
from simulations.federation.splits import DataSet, check_splits, find_datasets
from simulations.federation.starts import find_starts

CONFIG = "config.toml"
"""The simulation's own configuration, from which the others come."""
ORGANISATION_EPISODES = 50
"""Episodes each organisation measures the meta-learner on by itself."""
ORGANISATION_CLASSES = 10
"""New classes of each organisation, drawn from meta_test."""


def prepare(run: Path, config: SimulationConfig) -> None:
    """Write everything an engine needs into the run directory.

    A directory that holds the same federation already is continued: its contributions count, and what a
    person changed in its files stays.

    Raises:
        ConfigError: the directory holds another federation, or the start cannot be had.
        StorageError: the directory, or the cache, cannot be written.
        DataError: the data set is missing, or has too few classes or images for the configuration.
    """
    check_folder(run, config)
    datasets = find_datasets(config)
    for dataset in datasets:
        check_splits(dataset.source, config)
    check_writable(config.cache)
    files = {run / "server.toml": server_config(config).to_toml()}
    pinned = {"coordinator_key": SigningKey(run / SIGNING_KEY).public}
    for index, organisation in enumerate(organisation_configs(run, config, datasets)):
        files[_organisation_toml(run, index)] = organisation.model_copy(update=pinned).to_toml()
    if not (run / CONFIG).exists():
        _check_alike(files)
    (run / "organisations").mkdir(parents=True, exist_ok=True)
    for path, text in (files | {run / CONFIG: config.to_toml()}).items():
        if not path.exists():
            write_file(path, text.encode())
    if starts := find_starts(config):
        RunDirectory(run).adopt_start(*starts)
    if config.public_images:
        RunDirectory(run).adopt_public_images(config.public_images, size=max(config.dealt_image_sizes))


def check_folder(run: Path, config: SimulationConfig) -> None:
    """Raise ConfigError where the folder holds another federation, or is none."""
    there = next(each for each in (run, *run.parents) if each.exists() or each.is_symlink())
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder: choose another --out")
    existing = run / CONFIG
    if existing.exists() and (differing := _differing(existing, config)):
        raise ConfigError(
            f"{run} holds another federation ({existing} differs in {differing}): choose another --out, give "
            "the options it was made with, or remove it"
        )


def _differing(existing: Path, config: SimulationConfig) -> str:
    """The settings that differ from those of a file, of which an earlier release may not have had all."""
    if existing.read_bytes() == config.to_toml().encode():
        return ""
    there, here = SimulationConfig.read(existing).plain(), config.plain()
    paths = [leaf.path for leaf in leaves(SimulationConfig)]
    return ", ".join(path for path in paths if value_at(there, path) != value_at(here, path))


def _check_alike(files: Mapping[Path, str]) -> None:
    """Files without the configuration that they come from are taken where they are what it makes of them."""
    for path, text in files.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise ConfigError(
                f"{path} is there already and is not what these options make of it: choose another --out, "
                "or remove it"
            )


def read_organisations(run: Path, config: SimulationConfig) -> list[ClientConfig]:
    """Every organisation's configuration as it lies in a prepared run directory, in order."""
    return [ClientConfig.read(_organisation_toml(run, index)) for index in range(config.clients)]


def load_own(organisation: ClientConfig) -> ImageSet:
    """The images that an organisation trains on, as it loads them."""
    training = organisation.training
    channels = describe_folder(training.start).input.channels if training.start else None
    return load_configured(organisation.data, size=training.image_size, channels=channels)


def _organisation_toml(run: Path, index: int) -> Path:
    return run / "organisations" / f"{index}.toml"


def organisation_configs(
    run: Path, config: SimulationConfig, datasets: Sequence[DataSet]
) -> list[ClientConfig]:
    """What each organisation would write itself: data sets in turn; in each, architectures or starts."""
    count = len(datasets)
    starts: list[Path | None] = [*find_starts(config)] or [None]
    shares = [
        _deal_classes(config, dataset.source, organisations=len(range(place, config.clients, count)))
        for place, dataset in enumerate(datasets)
    ]
    configs = []
    for index in range(config.clients):
        turn, place = divmod(index, count)
        architecture = config.dealt_architectures[turn % len(config.dealt_architectures)]
        ledger = run / "organisations" / f"{index}.ledger.sqlite"
        configs.append(
            _organisation(
                config,
                index,
                datasets[place],
                _training(config, datasets[place], architecture, starts[turn % len(starts)]),
                *shares[place][turn],
                ledger,
            )
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
    dataset: DataSet,
    training: TrainingConfig,
    classes: tuple[str, ...],
    new_classes: tuple[str, ...],
    ledger: Path,
) -> ClientConfig:
    return ClientConfig(
        data=DataConfig(
            source=dataset.source,
            split="meta_train",
            classes=classes,
            images_per_class=config.images_per_class,
        ),
        training=training,
        privacy=config.privacy,
        evaluate=EvaluateConfig(
            data=DataConfig(source=dataset.source, split="meta_test", classes=new_classes),
            n_way=config.n_way,
            n_query=config.n_query,
            episodes=ORGANISATION_EPISODES,
        ),
        share_metrics=True,
        cache=(config.cache / "models").resolve(),
        ledger=ledger.resolve(),
        seed=derive_seed(config.seed, "organisation", index),
    )


def _training(
    config: SimulationConfig, dataset: DataSet, architecture: Architecture, start: Path | None
) -> TrainingConfig:
    initial, image_size = config.training.initial_weights, dataset.image_size
    if start:
        described = describe_folder(start)
        architecture, image_size = described.architecture, described.input.height
    return config.training.model_copy(
        update={
            "architecture": architecture,
            "image_size": image_size,
            "initial_weights": initial.resolve() if initial else None,
            "initial_weights_public": initial is not None,
            "start": start,
        }
    )


def server_config(config: SimulationConfig) -> ServerConfig:
    """What the server is configured with: as the simulation says, for its organisations and seed."""
    collect = config.server.collect.model_copy(update={"organisations": config.clients})
    return config.server.model_copy(update={"collect": collect, "seed": config.seed})
