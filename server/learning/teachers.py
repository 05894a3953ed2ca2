"""Who teaches on which images: the models that take one kind of input, and what they made of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.config import MetaLearnConfig
from server.learning.memory import Corpus
from server.learning.meta_learn import DistillationTask, Lesson
from server.learning.pool import Member
from server.learning.precision import widen
from server.learning.team import ALONE, Team

CPU_BATCH = 64
"""Images at once on a CPU: what fits its caches."""


@dataclass(frozen=True, eq=False)
class Faculty:
    """Teachers, with the images that they were shown."""

    teachers: Sequence[Member]
    corpus: Corpus
    projection: nn.Linear | None = None
    """From the student's features to those of all these teachers; it never leaves."""
    noise_channels: int = 0
    """Of the noise composed with their images; 0, none, where models with BatchNorm gave these."""

    def show(self, images: Tensor, *, team: Team = ALONE) -> None:
        """Ask every teacher about [batch, channels, size, size] images in [0, 1].

        Args:
            team: shares the images.
        """
        self.corpus.add(images, teacher_features(self.teachers, images, team=team))

    def lesson(self, count: int, *, rng: torch.Generator) -> tuple[Tensor, Lesson]:
        """At most ``count`` of the images that were shown, and what every teacher said of them."""
        images, features = self.corpus.sample(count, rng=rng)
        sizes = tuple(teacher.network.feature_size for teacher in self.teachers)
        return images, Lesson(features, sizes, self.projection)


def relational_tasks(
    faculties: Sequence[Faculty], config: MetaLearnConfig, *, rng: torch.Generator
) -> list[DistillationTask]:
    """Batches to which every faculty that was shown something gives its share.

    With batches of one kind each, BatchNorm would see one kind's statistics in training and everyone's later.
    """
    ready = [each for each in faculties if len(each.corpus)]
    count = config.relational_tasks if ready else 0
    return [_joint_task(ready, config.batch_size, rng=rng) for _ in range(count)]


def _joint_task(faculties: Sequence[Faculty], batch_size: int, *, rng: torch.Generator) -> DistillationTask:
    share = max(2, batch_size // len(faculties))
    images, lessons = zip(*(each.lesson(share, rng=rng) for each in faculties), strict=True)
    return DistillationTask(torch.cat(images), lessons=lessons)


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
