"""The headline: how much of the way from what one has alone to what nobody may have a federation goes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from simulations.baselines.table import BEST_SINGLE, POOLED, PUBLIC_START


@dataclass(frozen=True)
class Share:
    """Of the way from a baseline to one network on everybody's images, in percent."""

    origin: str
    """The baseline that the way begins at: the public start, or without one the best single model."""
    mean: float
    """Below 0 where the meta-learner is worse than the origin, above 100 where it is better than the end."""
    ci95: float
    """Half-width of the 95 % interval over episodes."""


def share_closed(accuracies: Mapping[str, Tensor], name: str) -> Share | None:
    """How far one competitor comes; None where the way has no end, or it cannot be told from no way at all.

    The ratio of two paired mean differences, its interval by the delta method.

    Args:
        accuracies: by name of the competitor, fractions [episodes], the same episodes for all.
        name: of the competitor.
    """
    origin = PUBLIC_START if PUBLIC_START in accuracies else BEST_SINGLE
    if not {origin, POOLED} <= accuracies.keys():
        return None
    begin = accuracies[origin]
    gone, way = accuracies[name] - begin, accuracies[POOLED] - begin
    scale = 1.96 / math.sqrt(len(way))
    if float(way.mean()) <= scale * float(way.std()):
        return None
    ratio = gone.mean() / way.mean()
    error = scale * (gone - ratio * way).std() / way.mean()
    return Share(origin, 100 * float(ratio), 100 * float(error))
