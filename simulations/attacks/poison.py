"""Hostile contributions: each attack turns an honest model into one that passes VERIFY and does harm."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import nn

from fedfree.architectures import Architecture, Classifier, build
from fedfree.codec import Contribution, encode_tensors, encode_weights
from fedfree.errors import ConfigError
from fedfree.seeding import make_generator
from fedfree.start import LoadedStart, trained_tensors
from simulations.attacks.adaptive import adaptive
from simulations.attacks.attacker import Attacker, Read
from simulations.attacks.backdoor import backdoor

Poison = Callable[[Attacker], Classifier]
"""What an attacker sends in place of its honest model."""


def random_weights(attacker: Attacker) -> Classifier:
    """A network that nobody trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=attacker.rng)))
        honest = attacker.contribution
        fresh = build(honest.architecture, num_classes=honest.num_classes, input=honest.input)
    return _with_statistics_of_start(fresh, attacker)


def brightness(attacker: Attacker) -> Classifier:
    """Every filter averages: all cosines between images are near one or minus one, and draw a mean."""
    for module in attacker.network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1)
            module.bias.zero_()
            module.reset_running_stats()
    return _with_statistics_of_start(attacker.network, attacker)


def shuffled_labels(attacker: Attacker) -> Classifier:
    """Its classes under each other's numbers."""
    for parameter in attacker.network.head.parameters():
        parameter.copy_(parameter.roll(1, 0))
    return attacker.network


def flipped_head(attacker: Attacker) -> Classifier:
    """Ten times as sure, of the opposite."""
    for parameter in attacker.network.head.parameters():
        parameter.mul_(-10)
    return attacker.network


def noise(attacker: Attacker) -> Classifier:
    """As much noise as weight in every parameter, as after training on noise."""
    for parameter in attacker.network.parameters():
        parameter.add_(attacker.noise_like(parameter) * parameter.std(correction=0))
    return attacker.network


def scaled_difference(attacker: Attacker) -> Classifier:
    """Ten times as far from the start as honest training went."""
    return _moved(attacker, 10)


def reversed_difference(attacker: Attacker) -> Classifier:
    """As far from the start as honest training went, the other way."""
    return _moved(attacker, -1)


def noisy_copy(attacker: Attacker) -> Classifier:
    """The same function with a thousandth of noise."""
    for parameter in attacker.network.parameters():
        parameter.add_(attacker.noise_like(parameter) * parameter.std(correction=0) / 1000)
    return attacker.network


def permuted_copy(attacker: Attacker) -> Classifier:
    """The same function of a Conv4: the filters of its first block in another order."""
    first, second = (attacker.network.get_submodule(f"blocks.{block}") for block in (0, 1))
    order = torch.randperm(first[0].weight.shape[0], generator=attacker.rng)  # type: ignore[index]
    for name, tensor in first.state_dict().items():
        if tensor.dim():
            first.state_dict()[name].copy_(tensor[order])
    weight = second[0].weight  # type: ignore[index]
    weight.copy_(weight[:, order])
    return attacker.network


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
    "backdoor": backdoor,
    "adaptive": adaptive,
}
COPIES = frozenset(("noisy copies", "permuted copies"))
"""Attacks whose models are all of the first one."""
FROM_START = frozenset(("scaled difference", "reversed difference"))
"""Attacks on what began from a start."""
OF_CONV4 = frozenset(("permuted copies",))
"""Attacks on Conv4s that began from random weights."""


def is_possible(attack: str, architectures: Sequence[Architecture], *, has_start: bool) -> bool:
    """Whether models of these architectures, from a start or from random weights, can be turned so."""
    if attack in OF_CONV4:
        return not has_start and all((each.id, each.norm) == ("conv4", "batch") for each in architectures)
    return has_start or attack not in FROM_START


@torch.no_grad()
def poison(
    contributions: Sequence[Contribution],
    attack: str,
    *,
    seed: int,
    start: LoadedStart | None = None,
    images: Sequence[Read] = (),
) -> list[Contribution]:
    """What hostile organisations send in place of honest models.

    Args:
        attack: one of POISONS.
        start: what the models began from.
        images: of each organisation, for those attacks that need them.

    Raises:
        ConfigError: an attack that these models do not allow, or without the images that it needs.
    """
    if not is_possible(attack, [each.architecture for each in contributions], has_start=start is not None):
        needed = "models from a start" if attack in FROM_START else "conv4 from random weights"
        raise ConfigError(f"{attack} is an attack on {needed}, and these are not: leave it out")
    began = start.body if start else {}
    honest = [each.network(began or None).requires_grad_(False) for each in contributions]
    hostile: list[Contribution] = []
    sent: list[Classifier] = []
    for number in range(len(contributions)):
        own = 0 if attack in COPIES else number
        alike = [
            place for place in range(len(honest)) if _are_alike(contributions[place], contributions[own])
        ]
        attacker = Attacker(
            contribution=contributions[own],
            network=copy.deepcopy(honest[own]),
            began=began,
            read=images[own] if images else _no_images,
            colluders=[honest[place] for place in alike if place != own],
            sent=[sent[place] for place in alike if place < number],
            rng=make_generator(seed, attack, number),
        )
        sent.append(POISONS[attack](attacker).requires_grad_(False).eval())
        weights = encode_tensors(trained_tensors(sent[-1], began)) if start else encode_weights(sent[-1])
        hostile.append(replace(contributions[own], weights=weights))
    return hostile


def _are_alike(one: Contribution, other: Contribution) -> bool:
    return (one.architecture, one.input) == (other.architecture, other.input)


def _no_images() -> NoReturn:
    raise ConfigError("this attack needs the attackers' images: give them")


def _moved(attacker: Attacker, times: float) -> Classifier:
    for name, parameter in attacker.network.named_parameters():
        if name in attacker.began:
            parameter.copy_(torch.lerp(attacker.began[name].to(parameter), parameter, times))
    return attacker.network


def _with_statistics_of_start(network: Classifier, attacker: Attacker) -> Classifier:
    """With the start's BatchNorm statistics, which no contribution from it can change."""
    for name, buffer in network.named_buffers():
        if name in attacker.began:
            buffer.copy_(attacker.began[name])
    return network.eval()
