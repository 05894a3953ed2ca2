"""Models kept on disk: under what key, and each whole or absent.

Without differential privacy the key holds a hash of the code that trains: other code, another model. Under
differential privacy it does not: training again would spend ε again, so the model that was paid for is
sent again, by whatever release it was trained, as long as images and configuration are the same.
"""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from client.config import ClientConfig, DataConfig, TrainingConfig
from client.data.finding import hash_images
from client.data.image_set import ImageSet
from fedfree.codec import Contribution, decode_contribution, encode_contribution, sha256
from fedfree.errors import ConfigError, OutOfTimeError
from fedfree.host.code import code_sha256
from fedfree.host.files import named, read_file, sync, write_file
from fedfree.host.starts import describe_folder
from fedfree.settings import Settings

log = logging.getLogger(__name__)

MANIFEST, WEIGHTS, HELD_OUT = "manifest.pb", "weights.safetensors", "held_out_accuracy.txt"
RESERVATION = "reservation.txt"
"""Which row of the ledger a cached model is."""
TRAINS = (
    *("client.config", "client.data", "client.training.fit", "client.training.scope"),
    *("client.training.layers", "client.training.low_rank", "client.training.pretrain"),
    *("client.training.privacy", "fedfree.architectures"),
    *("fedfree.codec", "fedfree.low_rank", "fedfree.seeding", "fedfree.host.compute"),
)
"""The modules that decide what comes out of a training."""
PRIVATE_TRAINING = (
    *("architecture", "image_size", "horizontal_flip", "epochs", "crop_padding"),
    *("trained", "low_rank"),
)
"""What private training takes from the table ``training``, but for the initial weights."""
PRIVATE = (
    *("epsilon", "delta", "max_grad_norm", "batch_size", "learning_rate", "averaging"),
    *("images_rounded_to", "augmentations", "head_epochs", "head_learning_rate", "parameter_noise"),
)
"""What it takes from ``privacy``. Whoever adds a name makes everybody's private models train again, unless
the setting is among ``ADDED``."""
ADDED = frozenset(
    ("trained", "low_rank", "augmentations", "head_epochs", "head_learning_rate", "parameter_noise")
)
"""Settings that an earlier release did not have: out of the key where they have their default."""


def cached_folder(config: ClientConfig, images: ImageSet) -> Path:
    """Where the model that a configuration trains on these images is, or will be."""
    return config.cache / cache_key(config, images)


def cache_key(config: ClientConfig, images: ImageSet) -> str:
    """Hash of everything that decides the trained model; see above for what that is."""
    initial = begun_from(config.training)
    if config.privacy.is_dp:
        parts = (files_sha256(config.data, images), _private_settings(config), initial, str(config.seed))
        return sha256("\n".join(parts).encode())
    settings = without_paths(config.training).sha256()
    return training_key(images, f"{settings} {initial}", seed=config.seed)


def without_paths(training: TrainingConfig) -> TrainingConfig:
    """The same but for where files lie, which decides nothing; see :func:`begun_from` for what is in them."""
    return training.model_copy(update={"initial_weights": None, "start": None})


def begun_from(training: TrainingConfig) -> str:
    """Hash of the initial weights or the start, wherever their file is; empty without."""
    if training.start:
        return describe_folder(training.start).sha256
    return sha256(read_file(training.initial_weights)) if training.initial_weights else ""


def training_key(images: ImageSet, config_hash: str, *, seed: int) -> str:
    """Hash of what decides a model without a place in the ledger: pixels, settings, seed and code."""
    parts = (images.fingerprint(), config_hash, str(seed), code_sha256(*TRAINS), torch.__version__)
    return sha256("\n".join(parts).encode())


def files_sha256(data: DataConfig, images: ImageSet) -> str:
    """Hash of the image files by class, blind to the classes' names and to the code that decodes files."""
    by_class = [
        hash_images(data.source, split=data.split, classes=[name], images_per_class=data.images_per_class)
        for name in images.class_names
    ]
    return sha256("\n".join(sorted(" ".join(sorted(files)) for files in by_class)).encode())


def _private_settings(config: ClientConfig) -> str:
    training, privacy = (
        settings.model_dump(mode="json", include=set(names) - _without_effect(settings), exclude_none=True)
        for settings, names in ((config.training, PRIVATE_TRAINING), (config.privacy, PRIVATE))
    )
    unlike = [config.data.fit] if config.data.fit != DataConfig.model_fields["fit"].default else []
    return json.dumps([training, privacy, config.training.initial_weights_public, *unlike], sort_keys=True)


def _without_effect(settings: Settings) -> set[str]:
    fields = type(settings).model_fields
    return {name for name in ADDED & fields.keys() if getattr(settings, name) == fields[name].default}


def read_cached(folder: Path) -> Contribution:
    """The model in a folder of the cache, checked.

    Raises:
        ConfigError: there is none: it was trained by other code, or somebody emptied the cache.
        ContributionError: it is damaged, or of a release with another protocol.
    """
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"no model {folder.name[:12]} in {folder.parent}: its code has changed since, or the cache was "
            "emptied; train it again"
        )
    return decode_contribution(read_file(folder / MANIFEST), read_file(folder / WEIGHTS))


def check_writable(cache: Path, size: int = 0) -> None:
    """Raise StorageError where ``size`` bytes could not be kept: better known before than after training."""
    with named(f"cannot write the cache {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(bytes(size))


def check_time(folder: Path, seconds: float | None) -> None:
    """Raise OutOfTimeError where so many seconds were too few for this model before."""
    path = _too_short(folder)
    if seconds is None or not path.exists():
        return
    if seconds <= (before := float(read_file(path))):
        raise OutOfTimeError(
            f"training this model was ended after {before:g} s before, and limits.seconds is {seconds:g}: "
            "another attempt would spend privacy budget on nothing; raise limits.seconds"
        )


@contextmanager
def remembered_time(folder: Path, seconds: float | None) -> Iterator[None]:
    """Keep, for :func:`check_time`, that so many seconds were too few: where the block is out of time."""
    try:
        yield
    except OutOfTimeError:
        write_file(_too_short(folder), f"{seconds!r}\n".encode())
        raise


def _too_short(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds")


def write_cached(folder: Path, contribution: Contribution, more: Mapping[str, bytes]) -> None:
    """Put a trained model, and ``more`` files beside it, into a cache: whole and on disk, or not at all.

    Raises:
        StorageError: the disk is full, or the cache cannot be written; nothing is left behind.
    """
    content = {MANIFEST: encode_contribution(contribution), WEIGHTS: contribution.weights, **more}
    with named(f"cannot write the model into the cache {folder.parent}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".training-", dir=folder.parent))
        try:
            for name, data in content.items():
                write_file(staging / name, data)
            _rename(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync(folder.parent)


def _rename(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        log.info("model %s was cached by another process, and that one is taken", folder.name[:12])
