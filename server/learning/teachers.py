"""Who teaches on which images: the models that take one shape of input, and what they made of images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fedfree.seeding import make_generator
from server.config import MetaLearnConfig
from server.learning.compose import patch
from server.learning.invert import batch_norms
from server.learning.memory import Corpus
from server.learning.meta_learn import DistillationTask, Lesson
from server.learning.pool import Member, Pool, middle
from server.learning.precision import widen
from server.learning.team import ALONE, Team
from server.learning.trust import (
    FEWEST,
    Ground,
    Trust,
    by_distance,
    by_head,
    by_sharing,
    by_skill,
    by_training,
    combine,
    head_skewness,
    heard,
    own_ways,
    relations,
    skill,
    voices_of,
)

MOST_FEATURES = 4096
"""A model with more teaches only where it has at most four times as many as the middle one."""
CPU_BATCH = 64
"""Images at once on a CPU: what fits its caches."""
PROBES = 256
"""Images, from all over the corpus, by whose relations models are compared."""
LABELLED = 800
"""Newest recovered images by whose classes models are compared, at most."""


@dataclass(frozen=True, eq=False)
class Teachers:
    """The models that teach on images of one shape, with the images that they were shown."""

    members: Sequence[Member]
    corpus: Corpus
    projection: nn.Linear | None = None
    """From the meta-learner's features to those of all these models; it never leaves."""
    noise_channels: int = 0
    """Of the noise composed with their images; 0, none, where models with BatchNorm gave these."""
    origins: Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.long))
    """The voice of each model of the pool, [models]: of those that images were recovered from."""

    def show(self, images: Tensor, *, sources: Tensor | None = None, team: Team = ALONE) -> list[str]:
        """Ask every model about [batch, channels, size, size] images in [0, 1].

        Args:
            sources: model and class that each image was recovered from, by which the models are weighed.
            team: shares the images.

        Returns:
            Ids of models whose features cannot be remembered; of these images they say nothing.
        """
        features = teacher_features(self.members, images, team=team)
        left_out = []
        for member, block in zip(self.members, features.split(self._sizes, dim=1), strict=True):
            if not block.half().isfinite().all():
                block.zero_()
                left_out.append(member.id)
        self.corpus.add(images, features, sources)
        return left_out

    def trusts(self) -> list[Trust]:
        """How much each model counts, by what it made of the images so far; the corpus alone decides."""
        grounds, voices = [], self._voices
        blocks = partial(self._blocks, self.corpus.rows.oldest_first())
        own = torch.empty(len(self.members), 0)
        if len(voices.unique()) >= FEWEST and len(self.corpus) > 2:
            spread = torch.linspace(0, len(self.corpus) - 1, min(PROBES, len(self.corpus))).long()
            related = torch.stack([relations(block) for block in blocks(spread)])
            own = own_ways(related, voices)
            grounds = [by_distance(related, voices), *self._grounds_of_heads()]
            sources = self.corpus.rows["sources"][self.corpus.rows.oldest_first()].cpu()
            labelled = (sources[:, 0] >= 0).nonzero().flatten()[-LABELLED:]
            if len(self.origins[sources[labelled, 0]].unique()) >= FEWEST:
                grounds.append(by_skill(self._skills(blocks(labelled), sources[labelled]), voices))
        return combine(len(self.members), [*grounds, by_sharing(own, voices)])

    @property
    def _voices(self) -> Tensor:
        return voices_of([each.organisation for each in self.members])

    def _blocks(self, order: Tensor, rows: Tensor) -> Sequence[Tensor]:
        """What each model made of some images, on the CPU."""
        features = self.corpus.rows["features"][order[rows.to(order.device)]]
        return torch.split(features.float().cpu(), list(self._sizes), dim=1)

    def _grounds_of_heads(self) -> list[Ground]:
        heads = [member.network.head.get_parameter("weight") for member in self.members]
        kinds = [(member.architecture, member.num_classes) for member in self.members]
        skewnesses = torch.tensor([head_skewness(each) for each in heads])
        return [by_head(skewnesses, self._voices), by_training(heads, kinds, self._voices)]

    def _skills(self, blocks: Sequence[Tensor], sources: Tensor) -> Tensor:
        """The middle of each model's skill on what was recovered from the others."""
        origins, skills = self.origins[sources[:, 0].unique()], []
        for member, block in zip(self.members, blocks, strict=True):
            others = origins != self.origins[member.number]
            found = skill(block, sources[:, 0], sources[:, 1])
            skills.append(heard(found[others], origins[others]).median())
        return torch.stack(skills)

    def votes(self) -> Tensor | None:
        """The weights of the models, [models]; None where all count the same."""
        weights = torch.tensor([each.weight for each in self.trusts()])
        return None if bool((weights == weights[0]).all()) else weights

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(member.network.feature_size for member in self.members)

    def lesson(
        self, count: int, votes: Tensor | None = None, *, rng: torch.Generator
    ) -> tuple[Tensor, Lesson]:
        """At most ``count`` of the images that were shown, and what every model said of them."""
        images, features = self.corpus.sample(count, rng=rng)
        return images, Lesson(features, self._sizes, self.projection, votes)


def draw_alike(pool: Pool, shapes: Tensor, *, at_most: int, seed: int) -> list[list[Member]]:
    """For each shape of input some models that take it (all, if they are few), in random order.

    Args:
        shapes: the number of each model's shape, [models].
        at_most: models of all shapes together, but at least one of each.
    """
    rng = make_generator(seed, "teachers")
    count = int(shapes.max()) + 1
    drawn = []
    for shape in range(count):
        numbers = (shapes == shape).nonzero().flatten()
        chosen = numbers[torch.randperm(len(numbers), generator=rng)[: max(1, at_most // count)]]
        drawn.append([pool.member(number) for number in chosen.tolist()])
    return drawn


def appoint(
    alike: Sequence[Sequence[Member]],
    feature_size: int,
    config: MetaLearnConfig,
    *,
    origins: Tensor,
    everywhere: Sequence[Member] = (),
) -> list[Teachers]:
    """Teachers for each shape: the models that take it or, where these are too few, those of every shape.

    Args:
        alike: models by shape, of :func:`draw_alike`.
        feature_size: of the meta-learner.
        origins: the voice of each model of the pool, [models].
        everywhere: further teachers, on images of every shape.
    """
    everyone = affordable(list(itertools.chain(*alike)))
    further = [each for each in everywhere if each in affordable([*everyone, each])]
    capacity = max(1, config.memory_images // len(alike))
    appointed = []
    for models in alike:
        own = [model for model in models if model in everyone]
        members = [*(own if len(own) >= config.min_alike else everyone), *further]
        matched = any(batch_norms(model.network) for model in models)
        noise_channels = 0 if matched else models[0].input.channels
        projection = _projection(members, feature_size, config)
        corpus = Corpus(capacity, models[0].device)
        appointed.append(Teachers(members, corpus, projection, noise_channels, origins))
    return appointed


def affordable(members: Sequence[Member]) -> list[Member]:
    """Those that may be asked about every image: one that costs many times what others do slows everybody."""
    voices = voices_of([member.organisation for member in members])
    features = middle([member.network.feature_size for member in members], voices)
    side = middle([_side(member) for member in members], voices)
    return [
        member
        for member in members
        if member.network.feature_size <= max(MOST_FEATURES, 4 * features) and _side(member) <= 8 * side
    ] or list(members)


def _side(member: Member) -> int:
    return max(member.input.height, member.input.width)


def _projection(members: Sequence[Member], feature_size: int, config: MetaLearnConfig) -> nn.Linear | None:
    if not (config.relational_tasks and config.projection_weight):
        return None
    size = sum(member.network.feature_size for member in members)
    return nn.Linear(feature_size, size).to(members[0].device, members[0].dtype)


def relational_tasks(
    teachers: Sequence[Teachers], config: MetaLearnConfig, *, rng: torch.Generator
) -> list[DistillationTask]:
    """Batches to which the teachers of every shape that were shown something give their share.

    With batches of one shape, BatchNorm would see one shape's statistics in training and everyone's later.
    """
    ready = [each for each in teachers if len(each.corpus)]
    count = config.relational_tasks if ready else 0
    votes = [each.votes() if config.robust else None for each in ready]
    return [_joint_task(ready, votes, config, rng=rng) for _ in range(count)]


def _joint_task(
    teachers: Sequence[Teachers],
    votes: Sequence[Tensor | None],
    config: MetaLearnConfig,
    *,
    rng: torch.Generator,
) -> DistillationTask:
    share = max(2, config.batch_size // len(teachers))
    heard = zip(teachers, votes, strict=True)
    images, lessons = zip(*(each.lesson(share, weights, rng=rng) for each, weights in heard), strict=True)
    seen = torch.cat(images)
    if config.patched:
        seen = patch(seen, config.patched, rng=rng)
    return DistillationTask(seen, lessons=lessons)


@torch.no_grad()
def teacher_features(members: Sequence[Member], images: Tensor, *, team: Team = ALONE) -> Tensor:
    """Every model's features of [batch, channels, size, size] images, [batch, sum of sizes].

    Args:
        team: shares the images; every process returns all features.
    """
    mine = images[team.rank :: team.size]
    features = torch.cat([_features(member, mine) for member in members], dim=1)
    return team.gather(features, len(images))


def _features(member: Member, images: Tensor) -> Tensor:
    inputs = member.input.normalise(member.input.resize(images.to(member.dtype)))
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    part = len(inputs) if inputs.is_cuda else CPU_BATCH
    return torch.cat([widen(member.network.features(rows)) for rows in inputs.split(part)])
