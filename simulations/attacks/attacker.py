"""What one hostile organisation holds and knows when it makes what it sends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.data.image_set import ImageSet
from fedfree.architectures import Classifier
from fedfree.codec import Contribution

Read = Callable[[], ImageSet]
"""Reads an organisation's private images, under the numbers that its model gives their classes."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """One of several hostile organisations, who help each other."""

    contribution: Contribution
    """The honest one: of what is sent only the weights differ."""
    network: Classifier
    """The honest model, the attacker's to change."""
    began: Mapping[str, Tensor]
    """Tensors of the start; empty for random weights."""
    read: Read
    """Its own images, read by those attacks that need them."""
    colluders: Sequence[Classifier]
    """Honest models of the other hostile organisations, of its own architecture and input."""
    sent: Sequence[Classifier]
    """What those of them have made who came before."""
    rng: torch.Generator

    def noise_like(self, tensor: Tensor) -> Tensor:
        """Of the normal distribution, in the shape of ``tensor``."""
        return torch.randn(tensor.shape, generator=self.rng).to(tensor)
