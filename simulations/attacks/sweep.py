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

from client.config import PRIVACY_ONLY, WITHOUT_PRIVACY_ONLY, ClientConfig
from client.data.image_set import ImageSet, to_input
from client.data.loading import load_configured
from client.rehearsing.attacks import ONLINE, EpsilonBound, Exposure
from client.rehearsing.rehearse import (
    CANARIES,
    NATURAL,
    attack_ceiling,
    examine,
    score_models,
    trainer_of,
)
from client.training.ledger import Ledger
from client.training.observer import Observer, ignore
from client.training.pretrain import shuffle_classes
from fedfree.adaptation import FEATURE_BATCH
from fedfree.architectures import Architecture, Classifier, InputSpec
from fedfree.codec import Contribution
from fedfree.errors import ConfigError
from fedfree.host.files import write_file
from fedfree.host.options import given_values
from fedfree.settings import merge
from fedfree.start import body_for
from server.storage.run_directory import RunDirectory
from server.storage.store import Store
from simulations.attacks.audit import load_organisations, plan_and_train
from simulations.attacks.config import AuditConfig
from simulations.config import SimulationConfig
from simulations.federation.datasets import resolve
from simulations.federation.prepare import read_organisations
from simulations.federation.starts import find_start
from simulations.series import Measured, Run, over_seeds, run_series

SMALL: Mapping[str, object] = {
    "clients": 8,
    "images_per_class": 60,
    "server": {"iterations": 8},
}
"""What a sweep begins from: sized for four ε and three seeds in 45 minutes on two cores."""
PRIVATE = Architecture(norm="group")
"""What trains at every ε where nobody says otherwise, so that ε is all in which the federations differ."""
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


def check_base(base: SimulationConfig) -> None:
    """Refuse what a sweep cannot audit; raises ConfigError."""
    if len(base.datasets) > 1:
        raise ConfigError(f"a sweep audits an organisation of one data set, got {base.dataset}")
    if base.privacy.is_dp:
        raise ConfigError("a sweep decides privacy.epsilon: name them all with --epsilon")


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
        ConfigError: a run directory of another configuration, or an ε that promises nothing: before a data
            set is made.
    """
    configs = {epsilon: at_epsilon(base, epsilon) for epsilon in epsilons}
    dataset = {"dataset": str(find_source(base))}
    planned = {
        f"epsilon {epsilon:g}": over_seeds(out / f"{epsilon:g}", config.model_copy(update=dataset), seeds)
        for epsilon, config in configs.items()
    }
    return dict(zip(epsilons, run_series(planned, tell), strict=True))


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
    """The same at another ε, checked anew; what has no effect there is at its default.

    From a start, the schedule of training is the one that suits the ε, unless a person chose it.
    """
    table, unused = (
        ("training", WITHOUT_PRIVACY_ONLY) if math.isfinite(epsilon) else ("privacy", PRIVACY_ONLY)
    )
    values = merge(_said(base), {"privacy": {"epsilon": epsilon}})
    values[table] = {name: value for name, value in values.get(table, {}).items() if name not in unused}
    return SimulationConfig.parse(values, origin=f"epsilon {epsilon:g}")


def _said(base: SimulationConfig) -> dict[str, Any]:
    if base.start:
        return given_values(base)
    training = base.training
    if training.architecture == Architecture():
        training = training.model_copy(update={"architecture": PRIVATE})
    return base.model_copy(update={"training": training}).model_dump()


def audit_config(config: SimulationConfig, shadows: int) -> AuditConfig:
    """An audit of an organisation like those of a federation."""
    shared = ("dataset", "images_per_class", "privacy", "seed", "cache")
    training = config.training.model_copy(
        update={
            "architecture": config.dealt_architectures[0],
            "image_size": config.dealt_image_sizes[0],
            "start": find_start(config),
        }
    )
    return AuditConfig(
        classes=config.classes_each,
        training=training,
        shadows=shadows,
        **{name: getattr(config, name) for name in shared},
    )


def audit_models(cache: Path, config: AuditConfig, observe: Observer) -> Audited:
    """Train models of one organisation, attack each, and compute what no attack can exceed.

    Args:
        cache: folder for the models. There is no ledger: they are never released.
    """
    organisation, *_ = load_organisations(config)
    trainer = trainer_of(config.training, config.privacy)

    def told(what: str, done: int, of: int) -> None:
        observe(f"{what}, epsilon {config.privacy.epsilon:g}", done, of)

    plan, models = plan_and_train(organisation, trainer, config, cache=cache, observe=told)
    finding = examine(plan, score_models(plan, models), delta=config.privacy.delta)
    natural, canaries = (finding.exposures[kind][ONLINE] for kind in (NATURAL, CANARIES))
    return Audited(
        natural, canaries, finding.bound, attack_ceiling(plan, config.privacy, epochs=config.training.epochs)
    )


def local_accuracies(run: Run) -> list[float]:
    """Of each contributed model on unseen images of its own classes, in percent; measured once a run."""
    written = run.folder / LOCAL
    if not written.exists():
        store = RunDirectory(run.folder).store()
        organisations = read_organisations(run.folder, run.config)
        measured = [local_accuracy(store, organisation) for organisation in organisations]
        found = [100 * accuracy for accuracy in measured if not math.isnan(accuracy)]
        write_file(written, json.dumps(found).encode())
    accuracies: list[float] = json.loads(written.read_text())
    return accuracies


def local_accuracy(store: Store, organisation: ClientConfig) -> float:
    """Fraction right of the images beyond those that the organisation uses, by the model that it sent.

    NaN where there are no such images, or the store holds no model of the organisation's.
    """
    data, size = organisation.data, organisation.training.image_size
    model = sent_model(store, organisation)
    if data.images_per_class is None or model is None:
        return math.nan
    more = data.model_copy(update={"images_per_class": data.images_per_class + SPARE_IMAGES})
    loaded = load_configured(more, size=size, channels=model.input.channels)
    own, spare = split_by_rank(loaded, data.images_per_class)
    if not len(spare):
        return math.nan
    order = shuffle_classes(own, organisation.seed).class_names
    network = model.network(body_for(model, store.starts))
    return _accuracy(network, model.input, spare, order)


def sent_model(store: Store, organisation: ClientConfig) -> Contribution | None:
    """What an organisation sent by its own ledger, as the store received it; None where it sent nothing."""
    sent = [entry.contribution for entry in Ledger(organisation.ledger_path).entries() if entry.contribution]
    received = [identity for identity in sent if store.place_of(identity) is not None]
    return store.contribution(received[-1]) if received else None


def split_by_rank(images: ImageSet, first: int) -> tuple[ImageSet, ImageSet]:
    """The ``first`` images of each class, and the others; images come class by class."""
    counts = images.labels.bincount(minlength=images.num_classes)
    ranks = torch.cat([torch.arange(int(count)) for count in counts])
    return images.subset(ranks < first), images.subset(ranks >= first)


@torch.no_grad()
def _accuracy(network: Classifier, spec: InputSpec, images: ImageSet, outputs: Sequence[str]) -> float:
    """Of a network whose outputs stand for classes in this order."""
    labels = torch.tensor([outputs.index(name) for name in images.class_names])[images.labels]
    guesses = [network(to_input(part, spec)).argmax(1) for part in images.images.split(FEATURE_BATCH)]
    return float((torch.cat(guesses) == labels).double().mean())
