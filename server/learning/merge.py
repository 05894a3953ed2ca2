"""MERGE: the first meta-learner of a federation whose models began from one public start.

Networks that were fine-tuned from the same weights stay in one basin, where their mean is better than
each of them (model soups, Wortsman et al., ICML 2022). Networks from random weights have no such mean.
Of several starts each has its own: the first one's is the meta-learner, the others teach it.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedfree.architectures import Classifier, build, use_channels_last
from fedfree.codec import is_body, short
from fedfree.errors import FederationError
from fedfree.start import Start
from server.learning.pool import Member, Pool


def merge_into(network: nn.Module, pool: Pool) -> None:
    """Give ``network`` the mean of those bodies that began where the meta-learner does.

    Its head, which no other has, stays as it is.

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
    _average(network, pool, numbers)


def further_means(pool: Pool) -> list[Member]:
    """For each further start that several models began from, their mean, numbered as the first of them."""
    begun = ((start, pool.began_from(start)) for start in pool.further_starts)
    return [_mean(pool, start, numbers) for start, numbers in begun if len(numbers) > 1]


def _mean(pool: Pool, start: Start, numbers: Sequence[int]) -> Member:
    network = build(start.architecture, num_classes=2, input=start.input).eval().requires_grad_(False)
    use_channels_last(network.to(pool.device, pool.dtype))
    _average(network, pool, numbers)
    return Member(
        f"mean of {start.sha256}", numbers[0], start.architecture, network, start.input, 2, pool.device
    )


@torch.no_grad()
def _average(network: nn.Module, pool: Pool, numbers: Sequence[int]) -> None:
    """Sums are in double precision, so that what all models share comes out to the bit."""
    own = {name: tensor for name, tensor in network.state_dict().items() if is_body(name)}
    sums: dict[str, Tensor] = {}
    for number in numbers:
        state = pool.member(number).network.state_dict()
        sums = {name: sums.get(name, 0) + state[name].double() for name in own}
    for name, tensor in own.items():
        tensor.copy_(sums[name] / len(numbers))


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
