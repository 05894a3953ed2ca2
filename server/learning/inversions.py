"""The ways to turn models into labelled synthetic images, by name; ``invert.inversion`` chooses one.

Nothing is imported here but for its type: the configuration looks names up in this table, and learning
imports the configuration.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fedfree.extension import Table

if TYPE_CHECKING:
    from server.learning.invert import Objective
    from server.learning.pool import Member


class Inversion(Protocol):
    """Recovers images from a meta-batch of models, each with a random stream of its own.

    ``objective.config`` says how many images of each, and ``objective.meta_learner`` is the meta-learner as
    it stands. With several processes each is handed its share of the models.
    """

    def __call__(
        self, members: "Sequence[Member]", objective: "Objective", rngs: Sequence[torch.Generator]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """Of each model its images [images, channels, height, width] in [0, 1] and their classes [images]."""


META_GENERATOR = "meta-generator"
INVERSIONS: Table[Inversion | None] = Table("inversion", {META_GENERATOR: None})
"""None for what is more than a function: FIVE, whose meta-generator learns from every meta-batch."""
