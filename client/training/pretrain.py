"""CONTRIBUTE: from private images to the one message that leaves."""

import logging
import math
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch

import fedfree
from client.config import ClientConfig, PrivacyConfig
from client.data.finding import hash_images
from client.data.image_set import ImageSet
from client.data.loading import load_configured
from client.training.fit import fit, initialise
from client.training.ledger import Ledger
from client.training.privacy import ACCOUNTANT, check_private, plan, software, train_privately
from fedfree.architectures import Classifier, InputSpec
from fedfree.codec import (
    Contribution,
    contribution_id,
    decode_contribution,
    describe_contribution,
    encode_contribution,
    encode_weights,
    sha256,
)
from fedfree.errors import ContributionError
from fedfree.host.compute import choose_device, use_cpu
from fedfree.host.files import read_file
from fedfree.seeding import make_generator
from fedfree.statement import (
    Composition,
    DifferentialPrivacy,
    DpSgd,
    InitialWeights,
    PrivacyStatement,
    PrivacyStatus,
)

log = logging.getLogger(__name__)

MANIFEST, WEIGHTS, HELD_OUT = "manifest.pb", "weights.safetensors", "held_out_accuracy.txt"
RESERVATION = "reservation.txt"
"""Which row of the ledger a cached model is."""


def pretrain(config: ClientConfig) -> tuple[bytes, bytes]:
    """Train a classifier on the organisation's images, or take the one trained before.

    The ledger holds every contribution before this returns; one under differential privacy, before its
    training begins.

    Returns:
        The manifest and the weights of the contribution (see ``fedfree.codec``).

    Raises:
        DataError: the images cannot be used.
        ConfigError: a GPU was asked for that is not there.
        PrivacyError: the promise cannot be kept, or the contribution would exceed the privacy budget.
    """
    data = config.data
    images = load_configured(data, size=config.training.image_size)
    files = hash_images(
        data.source, split=data.split, classes=data.classes, images_per_class=data.images_per_class
    )
    ledger = Ledger(config.ledger_path)
    cached = config.cache / cache_key(config, images)
    if cached.is_dir() and not _can_be_contributed(cached):
        log.warning("model %s was cached in a form this release cannot read: trained again", cached.name[:12])
        shutil.rmtree(cached)
    if not cached.is_dir() and config.privacy.is_dp:
        _train_privately_into(cached, config, images, files, ledger)
    elif not cached.is_dir():
        _train_into(cached, config, images)
    return _ready(cached, config.privacy, files, ledger)


def cache_key(config: ClientConfig, images: ImageSet) -> str:
    """Hash of everything that decides the trained model: data, training configuration, seed, release."""
    initial = _initial_weights(config)
    parts = (
        images.fingerprint(),
        config.training.model_copy(update={"initial_weights": None}).sha256(),
        initial.sha256 if initial else "",
        config.privacy.training_sha256() if config.privacy.is_dp else "",
        str(config.seed),
        fedfree.__version__,
        torch.__version__,
    )
    return sha256("\n".join(parts).encode())


def _can_be_contributed(cached: Path) -> bool:
    try:
        decode_contribution((cached / MANIFEST).read_bytes(), (cached / WEIGHTS).read_bytes())
    except ContributionError:
        return False
    return True


def _train_into(folder: Path, config: ClientConfig, images: ImageSet) -> None:
    trained = fit(shuffle_classes(images, config.seed), config.training, seed=config.seed)
    statement = PrivacyStatement(initial_weights=_initial_weights(config))
    contribution = _contribution(config, images, trained.network, trained.input, statement)
    held_out = f"{trained.held_out_accuracy:.4f}\n".encode()
    write_cached(folder, contribution, {RESERVATION: uuid.uuid4().hex.encode(), HELD_OUT: held_out})


def _train_privately_into(
    folder: Path, config: ClientConfig, images: ImageSet, files: frozenset[str], ledger: Ledger
) -> None:
    """Check and plan, then write the plan into the ledger, and only then train.

    The model is not measured on held-out images: nothing is chosen by it, and every image trains.
    """
    use_cpu(config.training.threads)
    privacy = config.privacy
    untrained = initialise(images, config.training, seed=config.seed)
    check_private(untrained.network)
    choose_device(config.training.device)
    run = plan(len(images), privacy, epochs=config.training.epochs)
    reservation = uuid.uuid4().hex
    composition = ledger.reserve(
        reservation, files, run, delta=privacy.delta, epsilon_budget=privacy.epsilon_budget
    )
    spent = train_privately(
        untrained,
        shuffle_classes(images, config.seed),
        privacy,
        run,
        crop_padding=config.training.crop_padding,
        device=config.training.device,
    )
    log.info("trained %s on %d images, epsilon %.2f", config.training.architecture, len(images), spent)
    statement = _dp_statement(config, len(images), run, spent, composition)
    contribution = _contribution(config, images, untrained.network, untrained.input, statement)
    write_cached(folder, contribution, {RESERVATION: reservation.encode()})


def _dp_statement(
    config: ClientConfig, num_images: int, run: DpSgd, spent: float, composition: Composition
) -> PrivacyStatement:
    """What was spent; status ``none`` where that is infinite."""
    privacy, initial = config.privacy, _initial_weights(config)
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
    config: ClientConfig, images: ImageSet, network: Classifier, input: InputSpec, privacy: PrivacyStatement
) -> Contribution:
    return Contribution(
        architecture=config.training.architecture,
        num_classes=images.num_classes,
        input=input,
        privacy=privacy,
        weights=encode_weights(network),
    )


def _initial_weights(config: ClientConfig) -> InitialWeights | None:
    path = config.training.initial_weights
    return InitialWeights(sha256(read_file(path)), config.training.initial_weights_public) if path else None


def write_cached(folder: Path, contribution: Contribution, more: Mapping[str, bytes]) -> None:
    """Put a trained model, and ``more`` files beside it, into a cache: whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".training-", dir=folder.parent))
    content = {MANIFEST: encode_contribution(contribution), WEIGHTS: contribution.weights, **more}
    for name, data in content.items():
        (staging / name).write_bytes(data)
    try:
        staging.rename(folder)
    except OSError:  # another process was first, and its model is the contribution
        log.info("model %s was cached by another process", folder.name[:12])
        shutil.rmtree(staging)


def _ready(
    cached: Path, privacy: PrivacyConfig, files: frozenset[str], ledger: Ledger
) -> tuple[bytes, bytes]:
    """A cached model, which the ledger holds from now on if it did not before."""
    manifest, weights = (cached / MANIFEST).read_bytes(), (cached / WEIGHTS).read_bytes()
    reservation = (cached / RESERVATION).read_text()
    spent = describe_contribution(manifest).privacy.differential_privacy
    if spent and not ledger.knows(reservation):
        ledger.reserve(
            reservation, files, spent.run, delta=spent.delta, epsilon_budget=privacy.epsilon_budget
        )
    ledger.spend(reservation, files, contribution_id(manifest))
    return manifest, weights


def shuffle_classes(images: ImageSet, seed: int) -> ImageSet:
    """Renumber the classes at random: their alphabetical order would say something about their names."""
    generator = make_generator(seed, "class order", images.fingerprint())
    order = torch.randperm(images.num_classes, generator=generator)
    names = [""] * images.num_classes
    for before, after in enumerate(order.tolist()):
        names[after] = images.class_names[before]
    return ImageSet(images.images, order[images.labels], tuple(names))
