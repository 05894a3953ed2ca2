"""Attackers who know the defence, and do what harm they think it lets pass.

They ask the server's own functions (server/learning/trust.py), with their images in the place of recovered
ones and each other's honest models in the place of the pool.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from client.adapting.adapt import extract_features
from client.data.image_set import LazyInputs
from fedfree.adaptation import Recipe
from fedfree.architectures import Classifier
from server.learning.merge import CLIP
from server.learning.trust import (
    ALIKE,
    FEWEST,
    by_direction,
    by_distance,
    by_sharing,
    by_skill,
    own_directions,
    own_ways,
    relations,
    skill,
    unit_rows,
)
from simulations.attacks.attacker import Attacker

PROBES = 256
"""Of its own images, on which an attacker weighs itself."""
STEPS, BATCH, RATE = 200, 128, 2e-3
LOOK_EVERY = 5
SMALLEST_RATE = RATE / 2**8
"""The rate is halved whenever too much was done; from here on nothing moves any more."""
SHADOW_NOISE = 0.3
"""Of the spread of the weights: who knows too few others takes its own model with noise for them."""
BISECTIONS = 20
FARTHEST_AGAINST = 16.0
LENGTHS = (0.95 * CLIP, 0.8 * CLIP, 0.65 * CLIP, 0.5 * CLIP)
"""Of what moves from the start, times the middle length, the longest first."""


def adaptive(attacker: Attacker) -> Classifier:
    """The most harmful model that the attacker would still let pass in the server's place."""
    return _against_the_direction(attacker) if attacker.began else _against_the_relations(attacker)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the server would hold against a model, as far as the attacker can tell."""

    inputs: Tensor
    """Of the attacker's images, [probes, channels, height, width]."""
    labels: Tensor
    honest: Tensor
    """What its honest model makes of them, [probes, features]."""
    known: Sequence[Tensor]
    """What others' honest models make of them, at least FEWEST - 1."""
    sent: Sequence[Tensor]
    """What the hostile models before make of them."""

    @torch.no_grad()
    def tolerates(self, network: Classifier) -> bool:
        """Whether it would count in full: as skilled and as near as is usual, and no copy."""
        features = network.features(self.inputs)
        related = torch.stack([relations(each) for each in (features, *self.known)])
        skills = torch.stack([self._skill(each) for each in (features, self.honest, self.honest)])
        everyone = torch.stack([*related, *(relations(each) for each in self.sent)])
        return (
            bool(by_distance(related, torch.arange(len(related))).factors[0] == 1)
            and bool(by_skill(skills, torch.arange(len(skills))).factors[0] == 1)
            and _is_alone(own_ways(everyone, torch.arange(len(everyone))), 1 + len(self.known))
        )

    def _skill(self, features: Tensor) -> Tensor:
        return skill(features, torch.zeros_like(self.labels), self.labels)[0]


def _is_alone(own: Tensor, place: int) -> bool:
    """Whether the first of [models, numbers] is the function of none of those from a place on."""
    return bool((own[place:] @ own[0] <= ALIKE).all())


@torch.no_grad()
def gather_evidence(attacker: Attacker, known: Sequence[Classifier]) -> Evidence:
    """Ask the honest models about some of the attacker's images."""
    images = attacker.read()
    spread = torch.linspace(0, len(images) - 1, min(PROBES, len(images))).long()
    inputs = LazyInputs(images.images, attacker.contribution.input)[spread]
    return Evidence(
        inputs,
        images.labels[spread],
        attacker.network.features(inputs),
        [each.features(inputs) for each in known],
        [each.features(inputs) for each in attacker.sent],
    )


def known_models(attacker: Attacker) -> list[Classifier]:
    """The colluders' honest models, and where they are too few, the attacker's own with noise."""
    missing = max(0, FEWEST - 1 - len(attacker.colluders))
    return [*attacker.colluders, *(_shadow(attacker) for _ in range(missing))]


@torch.no_grad()
def _shadow(attacker: Attacker) -> Classifier:
    network = copy.deepcopy(attacker.network)
    for name, parameter in network.named_parameters():
        moved = parameter - attacker.began[name].to(parameter) if name in attacker.began else parameter
        parameter.add_(SHADOW_NOISE * moved.std(correction=0) * attacker.noise_like(parameter))
    return network


def _against_the_relations(attacker: Attacker) -> Classifier:
    """Descend towards the opposite of the cosines that honest models agree on, as far as is tolerated."""
    network, images = attacker.network, attacker.read()
    inputs = LazyInputs(images.images, attacker.contribution.input)
    known = known_models(attacker)
    honest = [extract_features(each, inputs, Recipe()) for each in (network, *known)]
    evidence, kept, rate = gather_evidence(attacker, known), copy.deepcopy(network.state_dict()), RATE
    optimizer = torch.optim.Adam(network.requires_grad_(True).parameters(), rate)
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(inputs), (BATCH,), generator=attacker.rng)
        usual = torch.stack([relations(each[rows]) for each in honest]).mean(0)
        optimizer.zero_grad()
        _agreement(network, inputs[rows], usual).backward()
        optimizer.step()
        if step % LOOK_EVERY:
            continue
        if evidence.tolerates(network):
            kept = copy.deepcopy(network.state_dict())
        else:
            network.load_state_dict(kept)
            rate /= 2
            if rate < SMALLEST_RATE:
                break
            optimizer = torch.optim.Adam(network.parameters(), rate)
    network.load_state_dict(kept)
    return network


@torch.enable_grad()
def _agreement(network: Classifier, inputs: Tensor, usual: Tensor) -> Tensor:
    """Cosine between a model's relations of some images and the usual ones, a scalar."""
    return F.cosine_similarity(relations(network.features(inputs)), usual, dim=0)


@torch.no_grad()
def _against_the_direction(attacker: Attacker) -> Classifier:
    """Move from the start as far against the others, and as long a way, as is tolerated."""
    network, known = attacker.network, known_models(attacker)
    evidence = gather_evidence(attacker, known)
    names = [name for name, _ in network.named_parameters() if name in attacker.began]

    def differences(models: Sequence[Classifier]) -> list[Tensor]:
        """By tensor [models, numbers]."""
        return [
            torch.stack([(each.get_parameter(name) - attacker.began[name]).flatten() for each in models])
            for name in names
        ]

    own, others = differences([network]), differences(known)
    sent = differences(attacker.sent) if attacker.sent else [each[:0] for each in own]

    def moved(against: float) -> list[Tensor]:
        """By tensor, each as long as the middle one of the others."""
        rows = [mine - against * theirs.mean(0) for mine, theirs in zip(own, others, strict=True)]
        lengths = [each.norm(dim=1).median() for each in others]
        return [
            row * (length / row.norm().clamp(min=1e-12)) for row, length in zip(rows, lengths, strict=True)
        ]

    low, high = 0.0, FARTHEST_AGAINST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        passes = _direction_passes(moved(middle), others, sent)
        low, high = (middle, high) if passes else (low, middle)
    for length in LENGTHS:
        for name, row in zip(names, moved(low), strict=True):
            parameter = network.get_parameter(name)
            parameter.copy_(attacker.began[name] + length * row.view_as(parameter))
        if evidence.tolerates(network):
            break
    return network


def _direction_passes(mine: Sequence[Tensor], others: Sequence[Tensor], sent: Sequence[Tensor]) -> bool:
    """Whether a difference from the start would count in full; all by tensor, [models, numbers]."""
    everyone = torch.cat([torch.cat(rows) for rows in zip(mine, others, sent, strict=True)], dim=1)
    directions, count = unit_rows(everyone.double()), 1 + len(others[0])
    honest, voices = directions[:count], torch.arange(len(directions))
    votes = by_sharing(own_directions(honest, voices[:count]), voices[:count]).factors
    against = by_direction(honest, votes, voices[:count]).factors[0] < 1
    return not bool(against) and _is_alone(own_directions(directions, voices), count)
