"""What differential privacy costs and what it buys: federations and audits at several ε.

Every federation is an ordinary run directory, ``<out>/<epsilon>/<seed>``, with the ledgers of its
organisations, and every model of an audit is kept in ``<out>/shadows``: a sweep that was killed goes on
where it was.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.config import ClientConfig
from client.data.images import ImageSet, load_images, to_input
from client.rehearsing.attacks import ONLINE, EpsilonBound, Exposure
from client.rehearsing.rehearse import (
    CANARIES,
    NATURAL,
    attack_ceiling,
    examine,
    score_models,
    trainer_of,
)
from client.training.cache import cached_folder, read_cached
from client.training.observer import Observer, ignore
from client.training.pretrain import shuffle_classes
from fedfree.codec import Contribution
from fedfree.errors import ConfigError
from fedfree.host.files import write_file
from simulations.attacks.audit import load_organisations, plan_and_train
from simulations.attacks.config import AuditConfig
from simulations.benchmarks.quality import Measured, Run, check_folder, run_all
from simulations.commands.options import read_config
from simulations.config import SimulationConfig
from simulations.federation.datasets import resolve

SMALL: Mapping[str, object] = {"clients": 8, "images_per_class": 60, "iterations": 8}
"""What a sweep changes unless told otherwise: sized for four ε and three seeds in 45 minutes on two cores."""
SPARE_IMAGES = 60
"""Images of each private class, at most, on which contributed models are measured; nobody trains on them."""
LOCAL = "local_accuracy.json"


@dataclass(frozen=True)
class Audited:
    """What the models of one organisation gave away, LiRA online."""

    natural: Exposure
    canaries: Exposure
    bound: EpsilonBound
    """From the canaries."""
    ceiling: float
    """Highest true-positive rate of any attack at 1 % false positives; 1 without differential privacy."""


@dataclass(frozen=True)
class Level:
    """Everything measured at one ε."""

    epsilon: float
    federations: Measured
    local_accuracies: tuple[float, ...]
    """In percent, one a contributed model; empty where the data set has no image to spare."""
    audited: Audited


def read_epsilons(text: str) -> tuple[float, ...]:
    """``1,3,inf`` as numbers, ascending; raises ConfigError."""
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        found = set()
    if not found or not all(value > 0 for value in found):
        raise ConfigError(f"expected numbers above 0 separated by commas, such as 1,3,8,inf, got {text!r}")
    return tuple(sorted(found))


def read_base(file: Path | None, given: Mapping[str, Any], epsilons: Sequence[float]) -> SimulationConfig:
    """What the federations of a sweep have in common: the options, the file, and SMALL, in this order.

    One architecture for all of them, conv4-group by default, so that ε is all in which they differ.
    """
    in_file = SimulationConfig.read(file).model_fields_set if file else set()
    options = {name: value for name, value in given.items() if value is not None}
    small = {name: value for name, value in SMALL.items() if name not in in_file}
    base = read_config(file, {**small, **options, "epsilon": epsilons[0]})
    if len(base.datasets) > 1:
        raise ConfigError(f"a sweep audits an organisation of one data set, got {base.dataset}")
    return base


def run_federations(
    out: Path,
    base: SimulationConfig,
    *,
    epsilons: Sequence[float],
    seeds: Sequence[int],
    tell: Callable[[str], None],
) -> dict[float, Measured]:
    """The federations at each ε; those whose result is there are taken.

    Args:
        tell: takes one line for each federation.

    Raises:
        ConfigError: a run directory of another configuration.
    """
    configs = {epsilon: at_epsilon(base, epsilon) for epsilon in epsilons}
    dataset = str(find_source(base))
    planned = {
        epsilon: [
            (out / f"{epsilon:g}" / str(seed), config.model_copy(update={"seed": seed, "dataset": dataset}))
            for seed in seeds
        ]
        for epsilon, config in configs.items()
    }
    for runs in planned.values():
        for folder, config in runs:
            check_folder(folder, config)
    return {
        epsilon: Measured(f"{epsilon:g}", tuple(run_all(f"epsilon {epsilon:g}", runs, tell)))
        for epsilon, runs in planned.items()
    }


def audit_federations(
    out: Path, federations: Mapping[float, Measured], *, shadows: int, observe: Observer = ignore
) -> list[Level]:
    """Measure the contributed models at each ε, and attack an organisation's models like those of seed 0."""
    levels = []
    for epsilon, measured in federations.items():
        local = tuple(accuracy for run in measured.runs for accuracy in local_accuracies(run))
        audited = audit_models(out / "shadows", audit_config(measured.config, shadows), observe)
        levels.append(Level(epsilon, measured, local, audited))
    return levels


def find_source(config: SimulationConfig) -> Path:
    """The data set; one that is made holds more images of each class than organisations train on."""
    return resolve(
        config.dataset,
        cache=config.cache,
        seed=config.seed,
        images_per_class=config.images_per_class + SPARE_IMAGES,
    )


def at_epsilon(base: SimulationConfig, epsilon: float) -> SimulationConfig:
    """The same at another ε, checked anew."""
    values = base.model_dump()
    return SimulationConfig.parse(
        values | {"privacy": values["privacy"] | {"epsilon": epsilon}}, origin=f"epsilon {epsilon:g}"
    )


def audit_config(config: SimulationConfig, shadows: int) -> AuditConfig:
    """An audit of an organisation like those of a federation."""
    shared = (
        *("dataset", "images_per_class", "epochs", "min_steps", "rotation_task", "initial_weights"),
        *("privacy", "device", "threads", "seed", "cache"),
    )
    return AuditConfig(
        classes=config.classes_each,
        architecture=config.architectures[0],
        image_size=config.image_size[0],
        shadows=shadows,
        **{name: getattr(config, name) for name in shared},
    )


def audit_models(cache: Path, config: AuditConfig, observe: Observer) -> Audited:
    """Train models of one organisation, attack each, and compute what no attack can exceed.

    Args:
        cache: folder for the models. There is no ledger: they are never released.
    """
    organisation, *_ = load_organisations(config)
    trainer = trainer_of(config.training(), config.privacy)

    def told(what: str, done: int, of: int) -> None:
        observe(f"{what}, epsilon {config.privacy.epsilon:g}", done, of)

    plan, models = plan_and_train(organisation, trainer, config, cache=cache, observe=told)
    finding = examine(plan, score_models(plan, models), delta=config.privacy.delta)
    natural, canaries = (finding.exposures[kind][ONLINE] for kind in (NATURAL, CANARIES))
    return Audited(natural, canaries, finding.bound, attack_ceiling(plan, config.privacy))


def local_accuracies(run: Run) -> list[float]:
    """Of each contributed model on unseen images of its own classes, in percent; measured once a run."""
    written = run.folder / LOCAL
    if not written.exists():
        files = (run.folder / "organisations" / f"{index}.toml" for index in range(run.config.clients))
        measured = [local_accuracy(ClientConfig.read(file)) for file in files]
        found = [100 * accuracy for accuracy in measured if not math.isnan(accuracy)]
        write_file(written, json.dumps(found).encode())
    accuracies: list[float] = json.loads(written.read_text())
    return accuracies


def local_accuracy(organisation: ClientConfig) -> float:
    """Fraction right of the images beyond those that the organisation uses; NaN where there are none."""
    data, size = organisation.data, organisation.training.image_size
    if data.images_per_class is None:
        return math.nan
    loaded = load_images(
        data.source,
        split=data.split,
        classes=data.classes,
        images_per_class=data.images_per_class + SPARE_IMAGES,
        size=size,
    )
    own, spare = split_by_rank(loaded, data.images_per_class)
    if not len(spare):
        return math.nan
    model = read_cached(cached_folder(organisation, own))
    order = shuffle_classes(own, organisation.seed).class_names
    return _accuracy(model, spare, order)


def split_by_rank(images: ImageSet, first: int) -> tuple[ImageSet, ImageSet]:
    """The ``first`` images of each class, and the others; images come class by class."""
    counts = images.labels.bincount(minlength=images.num_classes)
    ranks = torch.cat([torch.arange(int(count)) for count in counts])
    early, late = (
        ImageSet(images.images[chosen], images.labels[chosen], images.class_names)
        for chosen in (ranks < first, ranks >= first)
    )
    return early, late


@torch.no_grad()
def _accuracy(model: Contribution, images: ImageSet, outputs: Sequence[str]) -> float:
    """Of a model whose outputs stand for classes in this order."""
    network = model.network()
    labels = torch.tensor([outputs.index(name) for name in images.class_names])[images.labels]
    guesses = [network(to_input(part, model.input)).argmax(1) for part in images.images.split(256)]
    return float((torch.cat(guesses) == labels).double().mean())
