"""CONTRIBUTE: from private images to the one message that leaves."""

import logging
import shutil
import tempfile
from pathlib import Path

import torch

import fedfree
from client.config import ClientConfig
from client.data import ImageSet, load_images
from client.pretrain import pretrain
from fedfree.codec import Contribution, decode_contribution, encode_contribution, encode_weights, sha256
from fedfree.errors import ContributionError
from fedfree.seeding import make_generator
from fedfree.statement import PrivacyStatement

log = logging.getLogger(__name__)

MANIFEST, WEIGHTS, HELD_OUT = "manifest.pb", "weights.safetensors", "held_out_accuracy.txt"


def contribute(config: ClientConfig) -> tuple[bytes, bytes]:
    """Train a classifier on the organisation's images, or take the one trained before.

    Returns:
        The manifest and the weights of the contribution (see ``fedfree.codec``).

    Raises:
        DataError: the images cannot be used.
    """
    images = load_images(
        config.data.source,
        split=config.data.split,
        classes=config.data.classes,
        images_per_class=config.data.images_per_class,
        size=config.pretrain.image_size,
    )
    cached = config.cache / cache_key(config, images)
    if cached.is_dir() and not _can_be_contributed(cached):
        log.warning("model %s was cached in a form this release cannot read: trained again", cached.name[:12])
        shutil.rmtree(cached)
    if not cached.is_dir():
        _train_into(cached, config, images)
    return (cached / MANIFEST).read_bytes(), (cached / WEIGHTS).read_bytes()


def cache_key(config: ClientConfig, images: ImageSet) -> str:
    """Hash of everything that decides the trained model: data, training configuration, seed, release."""
    parts = (
        images.fingerprint(),
        config.pretrain.sha256(),
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
    trained = pretrain(shuffle_classes(images, config.seed), config.pretrain, seed=config.seed)
    contribution = Contribution(
        architecture=config.pretrain.architecture,
        num_classes=images.num_classes,
        input=trained.input,
        privacy=PrivacyStatement(),
        weights=encode_weights(trained.network),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".training-", dir=folder.parent))
    (staging / MANIFEST).write_bytes(encode_contribution(contribution))
    (staging / WEIGHTS).write_bytes(contribution.weights)
    (staging / HELD_OUT).write_text(f"{trained.held_out_accuracy:.4f}\n")
    try:
        staging.rename(folder)
    except OSError:  # another process trained the same model meanwhile; both are the same
        log.info("model %s was cached by another process", folder.name[:12])


def shuffle_classes(images: ImageSet, seed: int) -> ImageSet:
    """Renumber the classes at random: their alphabetical order would say something about their names."""
    generator = make_generator(seed, "class order", images.fingerprint())
    order = torch.randperm(images.num_classes, generator=generator)
    names = [""] * images.num_classes
    for before, after in enumerate(order.tolist()):
        names[after] = images.class_names[before]
    return ImageSet(images.images, order[images.labels], tuple(names))
