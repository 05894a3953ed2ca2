"""Hostile contributions: each attack turns an honest model into one that passes VERIFY and does harm."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedfree.architectures import Classifier, build
from fedfree.codec import Contribution, encode_tensors, encode_weights
from fedfree.errors import ConfigError
from fedfree.seeding import make_generator
from fedfree.start import LoadedStart, trained_tensors

Poison = Callable[[Classifier, Contribution, Mapping[str, Tensor], torch.Generator], Classifier]
"""From the honest network, its contribution, the start's tensors (empty for random weights) and a seed."""


def random_weights(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """A network that nobody trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        fresh = build(
            contribution.architecture, num_classes=contribution.num_classes, input=contribution.input
        )
    return _with_statistics_of(fresh, began)


def brightness(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """Every filter averages: all cosines between images are near one or minus one, and draw a mean."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1)
            module.bias.zero_()
            module.reset_running_stats()
    return _with_statistics_of(network, began)


def shuffled_labels(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """Its classes under each other's numbers."""
    for parameter in network.head.parameters():
        parameter.copy_(parameter.roll(1, 0))
    return network


def flipped_head(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """Ten times as sure, of the opposite."""
    for parameter in network.head.parameters():
        parameter.mul_(-10)
    return network


def noise(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """As much noise as weight in every parameter, as after training on noise."""
    for parameter in network.parameters():
        parameter.add_(_like(parameter, rng) * parameter.std(correction=0))
    return network


def scaled_difference(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """Ten times as far from the start as honest training went."""
    return _moved(network, began, 10)


def reversed_difference(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """As far from the start as honest training went, the other way."""
    return _moved(network, began, -1)


def noisy_copy(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """The same function with a thousandth of noise."""
    for parameter in network.parameters():
        parameter.add_(_like(parameter, rng) * parameter.std(correction=0) / 1000)
    return network


def permuted_copy(
    network: Classifier, contribution: Contribution, began: Mapping[str, Tensor], rng: torch.Generator
) -> Classifier:
    """The same function of a Conv4: the filters of its first block in another order."""
    first, second = (network.get_submodule(f"blocks.{block}") for block in (0, 1))
    order = torch.randperm(first[0].weight.shape[0], generator=rng)  # type: ignore[index]
    for name, tensor in first.state_dict().items():
        if tensor.dim():
            first.state_dict()[name].copy_(tensor[order])
    weight = second[0].weight  # type: ignore[index]
    weight.copy_(weight[:, order])
    return network


POISONS: dict[str, Poison] = {
    "random": random_weights,
    "brightness": brightness,
    "shuffled labels": shuffled_labels,
    "flipped head": flipped_head,
    "noise": noise,
    "scaled difference": scaled_difference,
    "reversed difference": reversed_difference,
    "noisy copies": noisy_copy,
    "permuted copies": permuted_copy,
}
COPIES = frozenset(("noisy copies", "permuted copies"))
"""Attacks whose models are all of the first one."""
FROM_START = frozenset(("scaled difference", "reversed difference"))
"""Attacks on what began from a start."""


@torch.no_grad()
def poison(
    contributions: Sequence[Contribution], attack: str, *, seed: int, start: LoadedStart | None = None
) -> list[Contribution]:
    """What hostile organisations send in place of honest models.

    Args:
        attack: one of POISONS.
        start: what the models began from.

    Raises:
        ConfigError: an attack on a start, and there is none.
    """
    if attack in FROM_START and start is None:
        raise ConfigError(
            f"{attack} is an attack on models from a start, and these began from random weights"
        )
    hostile = []
    for number, own in enumerate(contributions):
        honest = contributions[0] if attack in COPIES else own
        began = start.body if start else {}
        network = copy.deepcopy(honest.network(began or None))
        turned = POISONS[attack](network, honest, began, make_generator(seed, attack, number))
        weights = encode_tensors(trained_tensors(turned, began)) if start else encode_weights(turned)
        hostile.append(replace(honest, weights=weights))
    return hostile


def _moved(network: Classifier, began: Mapping[str, Tensor], times: float) -> Classifier:
    for name, parameter in network.named_parameters():
        if name in began:
            parameter.copy_(torch.lerp(began[name].to(parameter), parameter, times))
    return network


def _with_statistics_of(network: Classifier, began: Mapping[str, Tensor]) -> Classifier:
    """With the start's BatchNorm statistics, which no contribution from it can change."""
    for name, buffer in network.named_buffers():
        if name in began:
            buffer.copy_(began[name])
    return network.eval()


def _like(parameter: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=rng).to(parameter)
