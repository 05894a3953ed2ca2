"""N-way K-shot episodes and accuracy with its 95 % interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfree.errors import DataError


@dataclass(frozen=True)
class EpisodeSpec:
    """The shape of an episode."""

    n_way: int = 5
    """Classes an episode distinguishes."""
    n_shot: int = 1
    """Labelled support images a class."""
    n_query: int = 15
    """Query images a class, disjoint from the support images."""

    def __post_init__(self) -> None:
        if self.n_way < 2 or self.n_shot < 1 or self.n_query < 1:
            raise DataError(f"an episode needs at least 2 ways, 1 shot and 1 query image a class, got {self}")

    @property
    def name(self) -> str:
        """For instance ``5way1shot``."""
        return f"{self.n_way}way{self.n_shot}shot"


@dataclass(frozen=True)
class Episode:
    """Indices into an image set, with labels 0 … n_way - 1 given anew in each episode."""

    support: Tensor
    """[n_way * n_shot], int64, class by class."""
    support_labels: Tensor
    """[n_way * n_shot], int64."""
    query: Tensor
    """[n_way * n_query], int64, class by class."""
    query_labels: Tensor
    """[n_way * n_query], int64."""


def sample_episode(labels: Tensor, spec: EpisodeSpec, *, generator: torch.Generator) -> Episode:
    """Draw one episode: classes uniformly without replacement, then images likewise.

    Args:
        labels: [images], int64, on the CPU.

    Raises:
        DataError: fewer classes than ways, or too few images in the classes drawn from.
    """
    classes, counts = labels.unique(return_counts=True)
    per_class = spec.n_shot + spec.n_query
    usable = classes[counts >= min(per_class, len(labels) + 1)]  # a tensor compares with 64 bits
    if len(usable) < spec.n_way:
        raise DataError(
            f"a {spec.n_way}-way episode needs {spec.n_way} classes of at least {per_class} images "
            f"({spec.n_shot} shot + {spec.n_query} query), got {len(usable)} of {len(classes)} classes; "
            "use fewer ways, shots or query images, or more data"
        )
    drawn = usable[torch.randperm(len(usable), generator=generator)[: spec.n_way]]
    support, query = [], []
    for label in drawn.tolist():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)[:per_class]]
        support.append(members[: spec.n_shot])
        query.append(members[spec.n_shot :])
    ways = torch.arange(spec.n_way)
    return Episode(
        support=torch.cat(support),
        support_labels=ways.repeat_interleave(spec.n_shot),
        query=torch.cat(query),
        query_labels=ways.repeat_interleave(spec.n_query),
    )


@dataclass(frozen=True)
class Accuracy:
    """A mean over episodes with the half-width of its 95 % interval, both in percent."""

    mean: float
    ci95: float
    episodes: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.ci95:.1f}"


def mean_and_ci95(per_episode: Sequence[float] | Tensor) -> Accuracy:
    """Mean and 1.96 standard errors of per-episode accuracies (or paired differences), in percent.

    Args:
        per_episode: at least two fractions in [0, 1] (differences: [-1, 1]), one an episode.
    """
    values = torch.as_tensor(per_episode, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"an interval needs at least 2 episodes, got shape {tuple(values.shape)}")
    standard_error = values.std().item() / math.sqrt(len(values))
    return Accuracy(100 * values.mean().item(), 100 * 1.96 * standard_error, len(values))
