"""MERGE: the first meta-learner of a federation whose models began from one public start.

Networks that were fine-tuned from the same weights stay in one basin, where their mean is better than
each of them (model soups, Wortsman et al., ICML 2022). Networks from random weights have no such mean.
"""

import copy

import torch
from torch import Tensor, nn

from fedfree.architectures import Classifier
from fedfree.codec import is_body
from server.learning.pool import Pool


@torch.no_grad()
def merge_into(network: nn.Module, pool: Pool) -> None:
    """Give ``network`` the mean of the pool's bodies; its head, which no other has, stays as it is.

    Sums are in double precision, so that what all models share comes out to the bit.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if is_body(name)}
    sums: dict[str, Tensor] = {}
    for number in range(len(pool)):
        state = pool.member(number).network.state_dict()
        sums = {name: sums.get(name, 0) + state[name].double() for name in own}
    for name, tensor in own.items():
        tensor.copy_(sums[name] / len(pool))


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
