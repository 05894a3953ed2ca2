"""How much each contribution counts: a weight in [0, 1] from what it does, whoever sent it.

Nobody here has an image to ask, and a majority of honest organisations is all that is assumed. Each piece
of evidence holds a model against the others by the middle one of them, which a minority cannot move far:
there an organisation has one voice, however many models it sent. Ordinary models count in full, so that
without a hostile one nothing changes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 4
"""Among fewer voices there is no telling which is the odd one out."""
BLOCK = 1024
"""Models that are compared with all others at once."""
ALIKE = 0.5
"""Two models whose own ways correlate more than this are one. Honest ones stay below 0.2, copies with a
hundredth of noise above 0.8."""
NOTHING_OWN = 1e-3
"""Of a direction: what is left of it without the middle one is rounding below this."""
LEAST_AGREEMENT = 0.01
"""Cosine below which the middle model does not move with the others."""
LEAST_SKEWNESS = 0.1
"""Skewness of the middle model's head below which nothing is said of heads; from a start it is near 0, and a
head turned around does no harm."""
BY_CHANCE, NOT_BY_CHANCE, FAR_FROM_CHANCE = 1.5, 2.5, 4.0
"""Skewness of a head in standard deviations of chance: of what nobody trained, of what counts in full, and of
the middle of those that somebody trained, for anything to be said. Of 36 Conv4 with BatchNorm trained on
CIFAR-FS the least had 2.9, the middle one 4.8; of 40 that nobody trained the most had 1.4."""
SKILL_SPREAD = 0.05
"""Least spread of skill that is taken for ordinary."""


@dataclass(frozen=True)
class Trust:
    """How much one model counts, and why."""

    weight: float
    evidence: str = ""
    """In words; empty where it counts in full."""

    def said(self) -> dict[str, float | str]:
        """As plain values."""
        return {"counts": round(self.weight, 4), "evidence": self.evidence}


@dataclass(frozen=True, eq=False)
class Ground:
    """One piece of evidence on several models."""

    factors: Tensor
    """[models], in [0, 1]."""
    words: Sequence[str]
    """What was seen, for each model."""


def weigh(count: int, grounds: Sequence[Ground]) -> Tensor:
    """The product of all factors, [count]; where that would leave nobody, all count in full."""
    product = torch.ones(count, dtype=torch.float64)
    for each in grounds:
        product = product * each.factors
    return product if bool((product > 0).any()) else torch.ones_like(product)


def combine(count: int, grounds: Sequence[Ground]) -> list[Trust]:
    """As :func:`weigh`, with the words of those grounds that take something away."""
    return [
        Trust(weight, "; ".join(each.words[index] for each in grounds if each.factors[index] < 1))
        for index, weight in enumerate(weigh(count, grounds).tolist())
    ]


def voices_of(organisations: Sequence[str | None]) -> Tensor:
    """The number of each model's voice, [models]: all models of one organisation have one together.

    Args:
        organisations: who sent each; None where nobody knows, and it has its own.
    """
    names = [place if each is None else each for place, each in enumerate(organisations)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


def heard(values: Tensor, voices: Tensor) -> Tensor:
    """What each voice says, the mean of its models' values; [voices, ...] from [models, ...]."""
    names, places = voices.unique(return_inverse=True)
    sums = values.new_zeros(len(names), *values.shape[1:]).index_add_(0, places, values)
    return sums.div_(places.bincount().view(-1, *(1,) * (values.ndim - 1)))


def relations(features: Tensor) -> Tensor:
    """The cosines between all pairs of [images, size] features, centred; [images * (images - 1) / 2]."""
    rows = F.normalize(features - features.mean(0), dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return (rows @ rows.T)[first, second]


def skill(features: Tensor, models: Tensor, classes: Tensor) -> Tensor:
    """How well features tell apart the classes recovered from each model, [models], leaving one image out.

    Args:
        features: [images, size].
        models: [images], the number of the model that an image was recovered from.
        classes: [images], its class of that model.

    Returns:
        Share of images nearest to the mean of their own class, of each model in ``models.unique()``.
    """
    return torch.stack(
        [_skill(features[models == each], classes[models == each]) for each in models.unique()]
    )


def _skill(features: Tensor, classes: Tensor) -> Tensor:
    rows = F.normalize(features - features.mean(0), dim=1)
    sums = F.one_hot(classes).to(rows.dtype).T @ rows
    similar = rows @ F.normalize(sums, dim=1).T
    without = F.normalize(sums[classes] - rows, dim=1)
    similar[torch.arange(len(rows)), classes] = (rows * without).sum(1)
    return (similar.argmax(1) == classes).float().mean()


def by_skill(skills: Tensor, voices: Tensor) -> Ground:
    """Who tells recovered classes apart far worse than the middle model.

    Args:
        skills: [models], each the median of :func:`skill` over the *other* voices.
        voices: [models], of :func:`voices_of`, here and below.
    """
    said = heard(skills, voices)
    middle = said.median()
    spread = (1.4826 * (said - middle).abs().median()).clamp(min=SKILL_SPREAD)
    factors = (4 - (middle - skills) / spread).div(1.5).clamp(0, 1)
    words = [
        f"tells {100 * each:.0f} % of the images recovered from others apart (the middle model "
        f"{100 * middle:.0f} %)"
        for each in skills.tolist()
    ]
    return Ground(factors, words)


def by_distance(related: Tensor, voices: Tensor) -> Ground:
    """Whose relations lie farther from the others' than is usual: these would draw the mean the most.

    Args:
        related: [models, pairs], of :func:`relations`.
    """
    others = median_of_others(heard(related, voices))[voices.unique(return_inverse=True)[1]]
    distances = (related - others).square().mean(1).sqrt()
    times = distances / heard(distances, voices).median().clamp(min=1e-6)
    words = [f"relations {each:.1f} times as far from the others' as the middle model's" for each in times]
    return Ground((2.5 - times).clamp(0, 1), words)


def head_skewness(head: Tensor) -> float:
    """Skewness of the weights [classes, features] of a head, each less its mean over the classes.

    Features are seldom negative, and of few classes each: a trained head has a few large weights for these
    and many small ones against them. Conv4 with BatchNorm, trained from random weights, has 0.2 to 0.8, other
    networks less; of two classes it is 0.
    """
    weights = head.detach().double().cpu()
    weights = weights - weights.mean(0)
    return float(weights.pow(3).mean() / weights.square().mean().clamp(min=1e-24).pow(1.5))


def by_head(skewnesses: Tensor, voices: Tensor) -> Ground:
    """Whose head was turned around, and says the opposite of what it learned.

    Args:
        skewnesses: [models], of :func:`head_skewness`.
    """
    middle = heard(skewnesses, voices).median()
    words = [
        f"its head is turned around (the skewness of its weights is {each:+.2f}, the middle model's "
        f"{middle:+.2f})"
        for each in skewnesses.tolist()
    ]
    return Ground(_unless_against(skewnesses, middle, LEAST_SKEWNESS), words)


def by_training(heads: Sequence[Tensor], kinds: Sequence[Hashable], voices: Tensor) -> Ground:
    """Whose head is as if nobody had trained it, where most of its kind are far from that.

    Weights drawn independently have a skewness, too; of n its standard deviation is sqrt(6 / n).

    Args:
        heads: the weights [classes, features] of each.
        kinds: what makes two of them comparable; of fewer than ``FEWEST`` of one kind nothing is said.
    """
    skewnesses = torch.tensor([head_skewness(each) for each in heads], dtype=torch.float64)
    times = skewnesses.abs() * torch.tensor([(each.numel() / 6) ** 0.5 for each in heads])
    factors = ((times - BY_CHANCE) / (NOT_BY_CHANCE - BY_CHANCE)).clamp(0, 1)
    for kind in set(kinds):
        same = torch.tensor([each == kind for each in kinds])
        if not _are_trained(heard(times[same], voices[same])):
            factors[same] = 1
    words = [
        f"its head is as if nobody had trained it (the skewness of its weights is {each:+.2f})"
        for each in skewnesses.tolist()
    ]
    return Ground(factors, words)


def _are_trained(times: Tensor) -> bool:
    """Whether most of [voices] are farther from chance than that, and the middle one of these by far."""
    trained = times[times > BY_CHANCE]
    are_most = len(times) >= FEWEST and 2 * len(trained) > len(times)
    return are_most and bool(trained.median() > FAR_FROM_CHANCE)


def _unless_against(values: Tensor, middle: Tensor, least: float) -> Tensor:
    """1 for [models] values on the middle one's side of 0, and 0 from minus half of it on; 1 for all where
    the middle one is below ``least`` and there is no side to be on.
    """
    factors = (1.25 + 2.5 * values / middle.clamp(min=1e-6)).clamp(0, 1)
    return torch.where(middle < least, 1.0, factors)


def median_of_others(rows: Tensor) -> Tensor:
    """For each of [models, values] the median of all others, value by value; models are three or more."""
    ordered, count = rows.sort(0).values, len(rows)
    low, high = (count - 2) // 2, (count - 1) // 2
    lower = torch.where(rows > ordered[low], ordered[low], ordered[low + 1])
    upper = torch.where(rows > ordered[high], ordered[high], ordered[high + 1])
    return (lower + upper) / 2


def unit_rows(rows: Tensor, *, least: float = 1e-12) -> Tensor:
    """Each of [rows, numbers] made as long as one, in place; what is shorter than the least stays short."""
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp(min=least))


def own_ways(related: Tensor, voices: Tensor) -> Tensor:
    """What is each model's own in its relations, [models, pairs]; inner products are correlations.

    The same function has the same relations, whatever the order and scale of its filters.
    """
    own = related - heard(related, voices).median(0).values
    return unit_rows(own - own.mean(1, keepdim=True))


def by_sharing(own: Tensor, voices: Tensor) -> Ground:
    """One share for all models of one voice, and for all that are the same function.

    Args:
        own: [models, numbers], of :func:`own_ways` or :func:`own_directions`; of no numbers where these are
            unknown, and only voices are told apart.
    """
    counts = []
    for block in torch.arange(len(own)).split(BLOCK):
        together = (own[block] @ own.T > ALIKE) | (voices[block, None] == voices)
        counts += together.sum(1).tolist()
    words = [f"shares one vote with {count - 1} of the same organisation or function" for count in counts]
    return Ground(1 / torch.tensor(counts, dtype=torch.float64), words)


def own_directions(directions: Tensor, voices: Tensor) -> Tensor:
    """What is each model's own in its difference from the start, [models, numbers], likewise.

    What all share is their geometric median, by Weiszfeld's steps as of Pillutla et al. (2022).

    Args:
        directions: [models, numbers], these differences, of unit length.
    """
    weights = 1 / voices.bincount()[voices].to(directions)
    shares = weights / weights.sum()
    for _ in range(20):
        closeness = weights / (directions - shares @ directions).norm(dim=1).clamp(min=NOTHING_OWN)
        shares = closeness / closeness.sum()
    return unit_rows(directions - shares @ directions, least=NOTHING_OWN)


def by_direction(directions: Tensor, votes: Tensor, voices: Tensor) -> Ground:
    """Who moved from the start against the others; who moved elsewhere may hold other things.

    Where the middle model does not move with the others there is no common way to move against.

    Args:
        directions: [models, numbers], differences from the start, of unit length.
        votes: [models], of each on the others, such as the factors of :func:`by_sharing`.
    """
    votes = votes.to(directions)
    everyone = votes @ directions
    to_all, itself = directions @ everyone, votes * directions.square().sum(1)
    # The others' sum is everyone's without one's own: |all - own|^2 = |all|^2 - 2 all.own + |own|^2.
    lengths = (everyone @ everyone - votes * (2 * to_all - itself)).clamp(min=1e-12).sqrt()
    agreement = (to_all - itself) / lengths
    middle = heard(agreement, voices).median()
    words = [
        f"moved from the start against the others (cosine {each:.2f}, the middle model {middle:.2f})"
        for each in agreement.tolist()
    ]
    return Ground(_unless_against(agreement, middle, LEAST_AGREEMENT), words)
