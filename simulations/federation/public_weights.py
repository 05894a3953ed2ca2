"""Initial weights that cost no privacy: learned from glyphs, which are nobody's data.

Models trained from them under differential privacy carry over better to other classes, at the same ε
(docs/method.md). They say nothing in a federation whose private images are glyphs themselves.
"""

from pathlib import Path

from client.config import TrainingConfig
from client.data.image_set import ImageSet
from client.data.loading import load_images
from client.training.fit import fit
from fedfree.architectures import Architecture
from fedfree.codec import encode_weights
from simulations.federation.datasets import resolve

IMAGES_PER_CLASS, EPOCHS, BATCH_SIZE = 60, 6, 128


def make_public_weights(
    architecture: Architecture,
    *,
    channels: int,
    image_size: int,
    device: str,
    threads: int,
    seed: int,
    cache: Path,
) -> bytes:
    """Train a classifier of all glyphs of meta_train, and return its weights as safetensors.

    Args:
        channels: 1 or 3, as in the images that are trained on later.
        image_size: pixels a side, likewise.

    Raises:
        ConfigError: a size, device or number of threads that cannot be.
    """
    values = {
        "architecture": architecture,
        "image_size": image_size,
        "horizontal_flip": False,
        "rotation_task": False,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "device": device,
        "threads": threads,
    }
    config = TrainingConfig.parse(values, origin="option")
    source = resolve("glyphs", cache=cache, seed=seed, images_per_class=IMAGES_PER_CLASS)
    glyphs = load_images(source, split="meta_train", size=image_size)
    return encode_weights(fit(in_both_polarities(glyphs, channels), config, seed=seed).network)


def in_both_polarities(glyphs: ImageSet, channels: int) -> ImageSet:
    """Every second image white on black, the others black on white, in so many equal channels."""
    images = glyphs.images.clone()
    images[::2] = 255 - images[::2]
    return ImageSet(images.expand(-1, channels, -1, -1).contiguous(), glyphs.labels, glyphs.class_names)
