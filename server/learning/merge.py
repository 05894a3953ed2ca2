"""MERGE: the first meta-learner of a federation whose models began from one public start.

Networks that were fine-tuned from the same weights stay in one basin, where their mean is better than
each of them (model soups, Wortsman et al., ICML 2022). Networks from random weights have no such mean.
Of several starts each has its own: the first one's is the meta-learner, the others teach it.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedfree.architectures import Classifier, build, use_channels_last
from fedfree.codec import is_body, short
from fedfree.errors import FederationError
from fedfree.seeding import make_generator
from fedfree.start import Start
from server.learning.pool import Member, Pool
from server.learning.trust import (
    FEWEST,
    Ground,
    Trust,
    by_direction,
    by_sharing,
    combine,
    heard,
    own_directions,
    unit_rows,
    weigh,
)

CLIP = 2.0
"""A tensor that moved from the start so many times as far as the middle model's counts as if it had moved so
far. Honest ones move at most 1.8 times as far."""
FEWEST_LENGTHS = 3
"""Voices: the middle length of two would be one of theirs."""
BLOCK = 32
"""Models whose differences are compared at once."""
EXACTLY = 128
"""Up to so many models, all pairs of differences are compared in full; of more, sketches of these, which read
each model once."""
SKETCH, SKETCHES = 16_384, 2**25
"""Numbers of a sketch, which says a cosine to within a hundredth, and of all together: those of 10,000 models
say it to within two."""


def merge_into(network: nn.Module, pool: Pool, *, robust: bool = False) -> dict[str, Trust]:
    """Give ``network`` the mean of those bodies that began where the meta-learner does.

    Its head, which no other has, stays as it is.

    Args:
        robust: whether what moved unlike the others counts less.

    Returns:
        How much each counts, by its id; empty where all count the same.

    Raises:
        FederationError: no model began there.
    """
    numbers = pool.began_from(pool.start)
    if pool.start and not numbers:
        raise FederationError(
            f"no accepted contribution began from {short(pool.start.sha256)} ({pool.start.architecture}), "
            "the first start of this run, from which the meta-learner begins: wait for one, or begin a run "
            "with another start first"
        )
    return _average(network, pool, pool.start if robust else None, numbers)


def further_means(pool: Pool, *, robust: bool = False) -> list[Member]:
    """For each further start that several models began from, their mean, numbered as the first of them."""
    begun = ((start, pool.began_from(start)) for start in pool.further_starts)
    return [_mean(pool, start, numbers, robust) for start, numbers in begun if len(numbers) > 1]


def _mean(pool: Pool, start: Start, numbers: Sequence[int], robust: bool) -> Member:
    network = build(start.architecture, num_classes=2, input=start.input).eval().requires_grad_(False)
    use_channels_last(network.to(pool.device, pool.dtype))
    _average(network, pool, start if robust else None, numbers)
    return Member(
        f"mean of {start.sha256}", numbers[0], start.architecture, network, start.input, 2, pool.device
    )


@torch.no_grad()
def _average(network: nn.Module, pool: Pool, start: Start | None, numbers: Sequence[int]) -> dict[str, Trust]:
    """Sums are in double precision, so that what all models share comes out to the bit.

    Args:
        start: from which differences are bounded; None for the plain mean.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if is_body(name)}
    body = pool.body(start) if start else {}
    influence = _influence(pool, body, numbers) if start else Influence(torch.ones(len(numbers)), {}, [])
    sums: dict[str, Tensor] = {}
    for place, (number, vote) in enumerate(zip(numbers, influence.votes.tolist(), strict=True)):
        state = pool.state(number)
        for name in own:
            tensor = state[name].double()
            if (kept := float(influence.kept.get(name, influence.votes.new_ones(len(numbers)))[place])) < 1:
                tensor = torch.lerp(body[name].to(tensor), tensor, kept)
            sums[name] = sums.get(name, 0) + vote * tensor
    for name, tensor in own.items():
        tensor.copy_(sums[name] / float(influence.votes.sum()))
    return {pool.ids[number]: trust for number, trust in zip(numbers, influence.trusts, strict=False)}


@dataclass(frozen=True, eq=False)
class Influence:
    """What each of several models may do to their mean."""

    votes: Tensor
    """[models], weights in the mean."""
    kept: Mapping[str, Tensor]
    """By tensor the share of each model's difference from the start that counts, [models]."""
    trusts: Sequence[Trust]
    """In words, both together."""


def _influence(pool: Pool, body: Mapping[str, Tensor], numbers: Sequence[int]) -> Influence:
    """Bound the length of each difference from the start by the middle one (Karimireddy et al., ICML 2021,
    clip likewise), and leave out who moves against the others.
    """
    voices = pool.voices[list(numbers)]
    heard_of, unknown = len(voices.unique()), torch.empty(len(numbers), 0)
    if heard_of < FEWEST_LENGTHS:
        sharing = by_sharing(unknown, voices)
        return Influence(sharing.factors, {}, combine(len(numbers), [sharing]))
    kept = _kept(pool, body, numbers, voices)
    if heard_of < FEWEST:
        grounds = [by_sharing(unknown, voices)]
    else:
        directions = _directions(pool, body, numbers, kept)
        sharing = by_sharing(own_directions(directions, voices), voices)
        grounds = [by_direction(directions, sharing.factors, voices), sharing]
    shares = torch.stack(list(kept.values()))
    words = [
        f"moved {int((each < 1).sum())} of {len(each)} tensors over {CLIP:g} times as far as the middle "
        "model, which was cut"
        for each in shares.T
    ]
    return Influence(
        weigh(len(numbers), grounds), kept, combine(len(numbers), [*grounds, Ground(shares.mean(0), words)])
    )


def _kept(
    pool: Pool, body: Mapping[str, Tensor], numbers: Sequence[int], voices: Tensor
) -> dict[str, Tensor]:
    """By tensor the share of each model's difference that is not too long, [models].

    What fewer than half of the voices trained may change by as large a part as other tensors do.
    """
    names = [name for name, tensor in body.items() if tensor.is_floating_point()]
    lengths = torch.tensor(
        [
            [float(_differences(body, [state], name).norm()) for name in names]
            for state in (pool.state(number) for number in numbers)
        ]
    )
    sizes = torch.tensor([float(body[name].norm()) for name in names])
    said = heard(lengths, voices)
    relative = said / sizes.clamp(min=1e-12)
    usual = relative[relative > 0].median() if bool((relative > 0).any()) else 0.0
    middle = said.median(0).values
    limits = CLIP * torch.where(middle > 0, middle, usual * sizes)
    kept = (limits / lengths.clamp(min=1e-30)).clamp(max=1)
    return dict(zip(names, torch.where(lengths > 0, kept, 1.0).T, strict=True))


def _directions(
    pool: Pool, body: Mapping[str, Tensor], numbers: Sequence[int], kept: Mapping[str, Tensor]
) -> Tensor:
    """Rows of unit length whose inner products are the cosines of the cut differences, [models, numbers]."""
    if len(numbers) > EXACTLY:
        rows = _sketches(pool, body, numbers, kept)
    else:
        values, vectors = torch.linalg.eigh(_products(pool, body, numbers, kept))
        rows = vectors * values.clamp(min=0).sqrt()
    return unit_rows(rows)


def _products(
    pool: Pool, body: Mapping[str, Tensor], numbers: Sequence[int], kept: Mapping[str, Tensor]
) -> Tensor:
    """Inner products of the cut differences, [models, models]."""
    products = torch.zeros(len(numbers), len(numbers), dtype=torch.float64)
    blocks = torch.arange(len(numbers)).split(BLOCK)
    for rows, columns in itertools.combinations_with_replacement(blocks, 2):
        pair = [[pool.state(numbers[each]) for each in block] for block in (rows, columns)]
        for name, shares in kept.items():
            row, column = (
                shares[block, None] * _differences(body, states, name)
                for block, states in zip((rows, columns), pair, strict=True)
            )
            products[rows[:, None], columns] += row @ column.T
    return products.triu() + products.triu(1).T


def _sketches(
    pool: Pool, body: Mapping[str, Tensor], numbers: Sequence[int], kept: Mapping[str, Tensor]
) -> Tensor:
    """Sums of each cut difference's numbers, every one with a random sign in one of them, [models, sums].

    Their inner products are, but for chance, those of the differences (Charikar, Chen and Farach-Colton,
    ICALP 2002).
    """
    size = min(SKETCH, SKETCHES // len(numbers))
    sketches = torch.zeros(len(numbers), size)
    ids = [pool.ids[number] for number in numbers]  # who fits a model to what is drawn changes what is drawn
    drawn = {
        name: torch.randint(
            2 * size, (body[name].numel(),), generator=make_generator(0, "sketch", name, *ids)
        )
        for name in kept
    }
    for place, number in enumerate(numbers):
        state = pool.state(number)
        for name, shares in kept.items():
            signed = _differences(body, [state], name)[0] * (1 - 2 * (drawn[name] % 2))
            sketches[place].index_add_(0, drawn[name] // 2, (shares[place] * signed).float())
    return sketches


def _differences(body: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """What models changed of one tensor of their start, [models, numbers], in double precision on the CPU."""
    began = body[name].to(states[0][name].dtype).double()
    return torch.stack([(state[name].cpu().double() - began).flatten() for state in states])


@torch.no_grad()
def part_way(mean: Classifier, learned: Classifier, share: float) -> Classifier:
    """The network whose every weight lies ``share`` of the way from ``mean`` to ``learned``.

    Fine-tuned networks are worth more with some of the way back (WiSE-FT, Wortsman et al., CVPR 2022).
    """
    network = copy.deepcopy(learned)
    ends = mean.state_dict(), learned.state_dict()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(ends[0][name], ends[1][name], share))
    return network
