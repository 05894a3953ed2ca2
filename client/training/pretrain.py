"""PRETRAIN: from private images to the one message that would leave; trained now, or recalled."""

import logging
import math
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.config import ClientConfig, TrainingConfig
from client.data.finding import hash_images
from client.data.image_set import ImageSet
from client.data.loading import load_configured
from client.limits import check_spending, check_training
from client.training.cache import (
    HELD_OUT,
    MANIFEST,
    RESERVATION,
    WEIGHTS,
    cached_folder,
    check_time,
    check_writable,
    read_cached,
    remembered_time,
    write_cached,
)
from client.training.fit import Fitted, Untrained, course, fit, held_out, initialise, read_start
from client.training.ledger import Ledger, open_ledger
from client.training.observer import Observer, ignore, until
from client.training.privacy import ACCOUNTANT, plan, software, train_privately, trainable
from fedfree.codec import (
    Contribution,
    contribution_id,
    describe_contribution,
    encode_tensors,
    encode_weights,
    raise_variances,
    sha256,
)
from fedfree.errors import ConfigError, ContributionError, StorageError
from fedfree.host.compute import choose_device, use_cpu
from fedfree.host.files import read_file
from fedfree.seeding import make_generator
from fedfree.start import LoadedStart, trained_tensors
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Takes one line for the person who waits."""


@dataclass(frozen=True)
class Pretrained:
    """A contribution, ready to be sent, and what stays at home."""

    manifest: bytes
    weights: bytes
    held_out_accuracy: float | None
    """Fraction in [0, 1]; None under differential privacy, where no image is held out."""


def pretrain(config: ClientConfig) -> tuple[bytes, bytes]:
    """The manifest and the weights of the contribution; see :func:`pretrain_measured`."""
    done = pretrain_measured(config)
    return done.manifest, done.weights


def pretrain_measured(
    config: ClientConfig, *, observe: Observer = ignore, tell: Tell = log.info
) -> Pretrained:
    """Train a classifier on the organisation's images, or take the one trained before.

    The ledger holds every contribution before this returns; one under differential privacy, before its
    training begins. Whoever interrupts training loses it, and its row stays, reserved: what a run that was
    begun has shown to anybody, nobody can say.

    ``limits.seconds`` ends training likewise: no model is kept. Without differential privacy nothing is
    written down. Under it, where the time is up before the first step, nothing is either; later the row
    stays, reserved, and no other attempt is begun, nor reserved, until the limit is raised: a coordinator
    that asks again spends nothing more.

    Args:
        observe: told how many steps are done.
        tell: told what will be done before it is, and how well the model does.

    Raises:
        DataError: the images cannot be used.
        ConfigError: a GPU was asked for that is not there.
        StorageError: the cache or the ledger cannot be written, or a private model in the cache not be read.
        PrivacyError: the promise cannot be kept, or the contribution would exceed the privacy budget.
        TooMuchError: the images are larger than ``limits`` allow, or budget would be spent that they keep.
        OutOfTimeError: training took longer than they allow.
    """
    check_training(config.training.image_size, config.limits)
    data, start = config.data, read_start(config.training)
    images = load_configured(
        data,
        size=config.training.image_size,
        channels=start.start.input.channels if start else None,
        on_read=lambda done, of: observe("read", done, of),
    )
    files = hash_images(
        data.source, split=data.split, classes=data.classes, images_per_class=data.images_per_class
    )
    ledger = open_ledger(config.ledger)
    cached = cached_folder(config, images)
    if cached.is_dir():
        _forget_unreadable(cached, config)
    if not (cached.is_dir() and ledger.knows(_reservation(cached))):
        check_spending(config.limits)
    if cached.is_dir():
        tell(f"taken from {config.cache}: this model was trained before, on the same images in the same way")
    else:
        check_writable(config.cache)
        train_into = _train_privately_into if config.privacy.is_dp else _train_into
        in_time = until(config.limits.seconds, observe)
        train_into(cached, config, images, files, ledger, in_time, tell)
    done = _ready(cached, config, files, ledger)
    tell(_how_good(done, images))
    return done


def _how_good(done: Pretrained, images: ImageSet) -> str:
    if done.held_out_accuracy is None:
        return (
            "held-out accuracy: not measured, because every image trains, and a number from private images "
            "is covered by no epsilon"
        )
    return (
        f"held-out accuracy: {done.held_out_accuracy:.1%} (chance is {1 / images.num_classes:.1%}); "
        "it is not part of the contribution"
    )


def _forget_unreadable(cached: Path, config: ClientConfig) -> None:
    """Remove a cached model that cannot be contributed; raises StorageError if budget was spent on it."""
    try:
        read_cached(cached)
        _reservation(cached)
        _held_out(cached)
    except (ContributionError, ConfigError) as error:
        if config.privacy.is_dp:
            raise StorageError(
                f"cannot contribute the private model in {cached} ({error}): it is damaged, or of another "
                "release, and to train it again would spend as much of the privacy budget again. Put a copy "
                "of it back, or let the release that trained it contribute it; else remove that folder"
            ) from error
        log.warning("model %s was cached in a form this release cannot read: trained again", cached.name[:12])
        shutil.rmtree(cached)


def _train_into(
    folder: Path,
    config: ClientConfig,
    images: ImageSet,
    files: frozenset[str],
    ledger: Ledger,
    observe: Observer,
    tell: Tell,
) -> None:
    shuffled = shuffle_classes(images, config.seed)
    _initialise_with_room(folder, shuffled, config)
    tell(announcement(config, shuffled))
    contribution, accuracy = train(shuffled, config.training, seed=config.seed, observe=observe)
    held_out = f"{accuracy:.4f}\n".encode()
    write_cached(folder, contribution, {RESERVATION: uuid.uuid4().hex.encode(), HELD_OUT: held_out})


def _initialise_with_room(folder: Path, images: ImageSet, config: ClientConfig) -> Untrained:
    """The classifier before training; raises StorageError where the cache has no room for the trained one."""
    untrained = initialise(images, config.training, seed=config.seed)
    check_writable(folder.parent, len(encode_weights(untrained.network)))
    return untrained


def train(
    images: ImageSet, training: TrainingConfig, *, seed: int, observe: Observer = ignore
) -> tuple[Contribution, float]:
    """Train without differential privacy, and keep nothing: neither cache nor ledger knows of it.

    Args:
        images: their classes in an order that says nothing of them, see :func:`shuffle_classes`.

    Returns:
        The contribution, and its accuracy on images held out, a fraction in [0, 1].

    Raises:
        DataError, ConfigError, ContributionError: as :func:`client.training.fit.fit`.
    """
    trained = fit(images, training, seed=seed, observe=observe)
    statement = PrivacyStatement(initial_weights=_initial_weights(training, trained.start))
    return _contribution(training, images, trained, statement), trained.held_out_accuracy


def announcement(config: ClientConfig, images: ImageSet) -> str:
    """What a training without differential privacy will do; of the images only the labels are looked at.

    Raises:
        DataError: no class has two images.
    """
    training, held = config.training, held_out(images, config.training, seed=config.seed)
    planned = course(int((~held).sum()), training)
    line = (
        f"training {training.architecture} on {(~held).sum()} images of {images.num_classes} classes"
        f"{_unequal(images.labels[~held])}, {held.sum()} more held out: "
        f"{planned.steps} steps, {planned.epochs} epochs of {planned.batches}"
    )
    if planned.epochs == training.epochs:
        return line
    return (
        f"{line}; {training.epochs} epochs were asked for, but fewer than min_steps = {training.min_steps} "
        "steps teach little from so few images"
    )


def _unequal(labels: Tensor) -> str:
    """How many images classes have to train on, where some have twice as many as others; none has none."""
    counts = labels.bincount()
    fewest, most = int(counts.min()), int(counts.max())
    return f" ({fewest} to {most} a class)" if most >= 2 * fewest else ""


def _train_privately_into(
    folder: Path,
    config: ClientConfig,
    images: ImageSet,
    files: frozenset[str],
    ledger: Ledger,
    observe: Observer,
    tell: Tell,
) -> None:
    """Check and plan, then write the plan into the ledger, and only then train.

    The model is not measured on held-out images: nothing is chosen by it, and every image trains.
    """
    check_time(folder, config.limits.seconds)
    use_cpu(config.training.threads)
    privacy, architecture = config.privacy, config.training.architecture
    untrained = _initialise_with_room(folder, images, config)
    with trainable(untrained):
        pass
    choose_device(config.training.device)
    tell(f"looking for the noise that spends at most epsilon {privacy.epsilon:g} on {len(images)} images")
    epochs = config.training.epochs
    run = plan(len(images), privacy, epochs=epochs)
    observe("plan", 1, 1)
    reservation = uuid.uuid4().hex
    composition = ledger.reserve(
        reservation, files, run, delta=privacy.delta, epsilon_budget=privacy.epsilon_budget
    )
    tell(
        f"{private_announcement(config, images, run)}, {_head_first(config)}noise multiplier "
        f"{run.noise_multiplier:.3g}; the ledger {ledger.path} counts it from now on, also if it is stopped"
    )
    with remembered_time(folder, config.limits.seconds):
        spent = train_privately(
            untrained,
            shuffle_classes(images, config.seed),
            privacy,
            run,
            crop_padding=config.training.crop_padding,
            device=config.training.device,
            observe=observe,
        )
    log.info("trained %s on %d images, epsilon %.2f", architecture, len(images), spent)
    initial = _initial_weights(config.training, untrained.start)
    statement = _dp_statement(config, len(images), run, spent, composition, initial)
    contribution = _contribution(config.training, images, untrained, statement)
    write_cached(folder, contribution, {RESERVATION: reservation.encode()})


def private_announcement(config: ClientConfig, images: ImageSet, run: DpSgd) -> str:
    """What a training under differential privacy will do; of the images only the labels are looked at."""
    training = config.training
    return (
        f"training {training.architecture} by DP-SGD on all {len(images)} images of {images.num_classes} "
        f"classes: {run.steps} steps, {training.epochs} epochs of {run.steps // training.epochs}"
    )


def _head_first(config: ClientConfig) -> str:
    alone, trained = config.privacy.head_epochs, config.training.trained
    return f"{alone} of them the head alone, then {trained}, " if alone and trained != "head" else ""


def _dp_statement(
    config: ClientConfig,
    num_images: int,
    run: DpSgd,
    spent: float,
    composition: Composition,
    initial: InitialWeights | None,
) -> PrivacyStatement:
    """What was spent; status ``none`` where that is infinite."""
    privacy = config.privacy
    if not math.isfinite(spent):
        return PrivacyStatement(initial_weights=initial)
    rounding = privacy.images_rounded_to
    return PrivacyStatement(
        PrivacyStatus.DP,
        DifferentialPrivacy(
            epsilon=spent,
            delta=privacy.delta,
            run=run,
            max_grad_norm=privacy.max_grad_norm,
            images=num_images // rounding * rounding,
            images_rounded_to=rounding,
            accountant=ACCOUNTANT,
            software=software(),
            composition=composition,
        ),
        initial,
    )


def _contribution(
    training: TrainingConfig, images: ImageSet, trained: Untrained | Fitted, privacy: PrivacyStatement
) -> Contribution:
    network, start = trained.network, trained.start
    if start is None:
        raise_variances(network)
        tensors = network.state_dict()
    else:
        tensors = trained_tensors(network, start.body, trained.low_rank.factors)
    return Contribution(
        architecture=training.architecture,
        num_classes=images.num_classes,
        input=trained.input,
        privacy=privacy,
        weights=encode_tensors(tensors),
        start=start.start.sha256 if start else "",
    )


def _initial_weights(training: TrainingConfig, start: LoadedStart | None) -> InitialWeights | None:
    if start is not None:
        return start.start.initial_weights
    path = training.initial_weights
    return InitialWeights(sha256(read_file(path)), training.initial_weights_public) if path else None


def _ready(cached: Path, config: ClientConfig, files: frozenset[str], ledger: Ledger) -> Pretrained:
    """A cached model, which the ledger holds from now on if it did not before."""
    manifest, weights = read_file(cached / MANIFEST), read_file(cached / WEIGHTS)
    reservation = _reservation(cached)
    spent = describe_contribution(manifest).privacy.differential_privacy
    if spent and not ledger.knows(reservation):
        ledger.reserve(
            reservation, files, spent.run, delta=spent.delta, epsilon_budget=config.privacy.epsilon_budget
        )
    ledger.spend(reservation, files, contribution_id(manifest))
    return Pretrained(manifest, weights, _held_out(cached))


def _reservation(cached: Path) -> str:
    """Which row of the ledger a cached model is; raises StorageError."""
    name = read_file(cached / RESERVATION).decode(errors="replace")
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise StorageError(f"{cached / RESERVATION} is damaged: it names no row of a ledger")
    return name


def _held_out(cached: Path) -> float | None:
    """The accuracy that was measured where not every image trained; raises StorageError."""
    measured = cached / HELD_OUT
    if not measured.exists():
        return None
    try:
        return float(read_file(measured))
    except ValueError as error:
        raise StorageError(f"{measured} is damaged: it holds no number") from error


def shuffle_classes(images: ImageSet, seed: int) -> ImageSet:
    """Renumber the classes at random: their alphabetical order would say something about their names."""
    generator = make_generator(seed, "class order", images.fingerprint())
    order = torch.randperm(images.num_classes, generator=generator)
    names = [""] * images.num_classes
    for before, after in enumerate(order.tolist()):
        names[after] = images.class_names[before]
    return ImageSet(images.images, order[images.labels], tuple(names))
