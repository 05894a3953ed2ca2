"""Initial weights that cost no privacy: learned from glyphs, which are nobody's data.

Models trained from them under differential privacy carry over better to other classes, at the same ε
(docs/method.md). They say nothing in a federation whose private images are glyphs themselves.
"""

from collections.abc import Mapping
from pathlib import Path

from client.config import TrainingConfig
from client.data.image_set import ImageSet
from client.data.loading import load_images
from client.training.fit import fit
from fedfree.codec import encode_weights
from simulations.federation.datasets import resolve

IMAGES_PER_CLASS = 60
GLYPHS: Mapping[str, object] = {
    "architecture": "conv4-group",
    "horizontal_flip": False,
    "rotation_task": False,
    "epochs": 6,
    "batch_size": 128,
}
"""How a network learns them, unless told otherwise."""


def make_public_weights(config: TrainingConfig, *, channels: int, seed: int, cache: Path) -> bytes:
    """Train a classifier of all glyphs of meta_train, and return its weights as safetensors.

    Args:
        config: architecture and image size are those of the training that begins from the weights.
        channels: 1 or 3, as in the images that are trained on later.
    """
    source = resolve("glyphs", cache=cache, seed=seed, images_per_class=IMAGES_PER_CLASS)
    glyphs = load_images(source, split="meta_train", size=config.image_size)
    return encode_weights(fit(in_both_polarities(glyphs, channels), config, seed=seed).network)


def in_both_polarities(glyphs: ImageSet, channels: int) -> ImageSet:
    """Every second image white on black, the others black on white, in so many equal channels."""
    images = glyphs.images.clone()
    images[::2] = 255 - images[::2]
    return ImageSet(images.expand(-1, channels, -1, -1).contiguous(), glyphs.labels, glyphs.class_names)
