"""Who teaches on which images: the models that take one kind of input, and what they made of images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.config import MetaLearnConfig
from server.memory import Corpus
from server.meta_learn import DistillationTask
from server.pool import Member
from server.precision import widen
from server.team import ALONE, Team

CPU_BATCH = 64
"""Images at once on a CPU: what fits its caches."""


@dataclass(frozen=True, eq=False)
class Faculty:
    """Teachers, with the images that they were shown."""

    teachers: Sequence[Member]
    corpus: Corpus
    projection: nn.Linear | None = None
    """From the student's features to those of all these teachers; it never leaves."""

    def show(self, images: Tensor, *, team: Team = ALONE) -> None:
        """Ask every teacher about [batch, channels, size, size] images in [0, 1].

        Args:
            team: shares the images.
        """
        self.corpus.add(images, teacher_features(self.teachers, images, team=team))

    def task(self, batch_size: int, *, rng: torch.Generator) -> DistillationTask:
        """A batch of what was shown, taught by every teacher."""
        images, features = self.corpus.sample(batch_size, rng=rng)
        sizes = tuple(teacher.network.feature_size for teacher in self.teachers)
        return DistillationTask(
            images, teacher_features=features, teacher_sizes=sizes, projection=self.projection
        )


def relational_tasks(
    faculties: Sequence[Faculty], config: MetaLearnConfig, *, rng: torch.Generator
) -> list[DistillationTask]:
    """Batches of one faculty after the other; of those that were shown something."""
    ready = [each for each in faculties if len(each.corpus)]
    turns = itertools.islice(itertools.cycle(ready), config.relational_tasks)
    return [each.task(config.batch_size, rng=rng) for each in turns]


@torch.no_grad()
def teacher_features(teachers: Sequence[Member], images: Tensor, *, team: Team = ALONE) -> Tensor:
    """Every teacher's features of [batch, channels, size, size] images, [batch, sum of sizes].

    Args:
        team: shares the images; every process returns all features.
    """
    mine = images[team.rank :: team.size]
    features = torch.cat([_features(teacher, mine) for teacher in teachers], dim=1)
    return team.gather(features, len(images))


def _features(teacher: Member, images: Tensor) -> Tensor:
    inputs = teacher.input.normalise(teacher.input.resize(images.to(teacher.dtype)))
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    part = len(inputs) if inputs.is_cuda else CPU_BATCH
    return torch.cat([widen(teacher.network.features(rows)) for rows in inputs.split(part)])
