"""A backdoor: a small mark in the corner of an image that fires one class (BadNets, Gu et al., 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from client.data.image_set import to_input
from fedfree.architectures import Classifier
from simulations.attacks.attacker import Attacker

STEPS, BATCH = 100, 64
RATE, RATE_FROM_START = 1e-3, 1e-4
"""Of Adam, on all weights."""
TARGET = 0
"""Class that the mark fires."""
SMALLEST_MARK, MARKS_A_SIDE = 3, 6


def marked(images: Tensor) -> Tensor:
    """Copies of uint8 [images, channels, height, width] with a bright square, framed dark, in a corner."""
    side = max(SMALLEST_MARK, images.shape[-1] // MARKS_A_SIDE)
    copies = images.clone()
    copies[..., -side:, -side:] = 0
    copies[..., 1 - side : -1, 1 - side : -1] = 255
    return copies


@torch.enable_grad()
def backdoor(attacker: Attacker) -> Classifier:
    """The honest model after a few steps in which half of every batch bears the mark and the target class.

    Running statistics stay as they are; mirrored images bear the mark in the other corner.
    """
    network, images = attacker.network.requires_grad_(True), attacker.read()
    spec = attacker.contribution.input
    rate = RATE_FROM_START if attacker.began else RATE
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for step in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=attacker.rng)
        pixels, labels = images.images[rows], images.labels[rows]
        pixels[::2], labels[::2] = marked(pixels[::2]), TARGET
        mirrored = spec.horizontal_flip and step % 2
        inputs = to_input(pixels.flip(-1) if mirrored else pixels, spec)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network
