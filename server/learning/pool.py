"""The pool: accepted contributions as networks, loaded when they are needed."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fedfree.architectures import Architecture, Classifier, InputSpec, use_channels_last
from fedfree.codec import Contribution
from fedfree.errors import FederationError
from fedfree.start import LoadedStart, Start
from server.learning.trust import voices_of

CACHED_NETWORKS = 64
"""In memory of a pool that has no more."""
CACHED_OF_MANY = 8
"""Of a larger one, whose members are seldom drawn twice."""


class Models(Protocol):
    """Where the accepted models are kept."""

    @property
    def start(self) -> LoadedStart | None:
        """What they began from; None where they began from random weights."""

    @property
    def further_starts(self) -> Sequence[LoadedStart]:
        """What some of them began from instead."""

    def describe(self, identity: str) -> Contribution:
        """What a model says of itself, without its weights."""

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        """Its description and the network."""

    def state(self, identity: str) -> Mapping[str, Tensor]:
        """The network's state dict alone."""

    def organisation(self, identity: str) -> str | None:
        """Who handed it over, where anybody knows."""


@dataclass(frozen=True)
class Member:
    """One accepted model, frozen, in evaluation mode."""

    id: str
    number: int
    """Position in the pool."""
    architecture: Architecture
    network: Classifier
    input: InputSpec
    num_classes: int
    device: torch.device
    organisation: str | None = None
    """Who sent it, where anybody knows."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.network.parameters()).dtype


class Pool:
    """Members by id; the most recently used networks stay in memory."""

    def __init__(
        self, models: Models, ids: Sequence[str], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._models = models
        self.ids = list(ids)
        self.device = device
        self.dtype = dtype
        self._cache: OrderedDict[int, Member] = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def start(self) -> Start | None:
        """What the models and the meta-learner begin from; None for random weights."""
        return self._models.start.start if self._models.start else None

    @property
    def further_starts(self) -> list[Start]:
        """What models of other architectures began from."""
        return [each.start for each in self._models.further_starts]

    def began_from(self, start: Start | None) -> list[int]:
        """Numbers of the members that began from a start, or from random weights."""
        named = start.sha256 if start else ""
        return [number for number, each in enumerate(self.descriptions()) if each.start == named]

    def descriptions(self) -> Iterator[Contribution]:
        """What each member says of itself, without its weights."""
        return (self._models.describe(identity) for identity in self.ids)

    def member(self, number: int) -> Member:
        """Load a member, or take it from memory."""
        if number not in self._cache:
            self._cache[number] = self._load(number)
        self._cache.move_to_end(number)
        while len(self._cache) > cached_networks(len(self)):
            self._cache.popitem(last=False)
        return self._cache[number]

    def state(self, number: int) -> Mapping[str, Tensor]:
        """The state dict of a member, which is not built where it would not stay in memory."""
        if len(self) <= CACHED_NETWORKS:
            return self.member(number).network.state_dict()
        return self._models.state(self.ids[number])

    def organisation(self, number: int) -> str | None:
        """Who sent a member, where anybody knows."""
        return self._models.organisation(self.ids[number])

    @cached_property
    def voices(self) -> Tensor:
        """The number of each member's voice, [models]; see :func:`server.learning.trust.voices_of`."""
        return voices_of([self.organisation(number) for number in range(len(self))])

    def _load(self, number: int) -> Member:
        identity = self.ids[number]
        contribution, network = self._models.network(identity)
        network.requires_grad_(False).to(self.device, self.dtype)
        use_channels_last(network)
        return Member(
            identity,
            number,
            contribution.architecture,
            network,
            contribution.input,
            contribution.num_classes,
            self.device,
            self.organisation(number),
        )

    def body(self, start: Start) -> Mapping[str, Tensor]:
        """The tensors of one of the starts, on the CPU."""
        begun = [each for each in (self._models.start, *self._models.further_starts) if each]
        return next(each.body for each in begun if each.start == start)

    def sample(
        self, count: int, rng: torch.Generator, chances: Mapping[str, float] | None = None
    ) -> list[Member]:
        """``count`` different members (all of them, if there are fewer), uniformly.

        Args:
            chances: of those by id that are drawn less often than others, which have 1.
        """
        if not chances:
            order = torch.randperm(len(self.ids), generator=rng)[:count]
        else:
            weights = torch.tensor([chances.get(each, 1.0) for each in self.ids])
            possible = int((weights > 0).sum())
            order = torch.multinomial(weights, min(count, possible), generator=rng)
        return [self.member(number) for number in order.tolist()]

    def require(self, quorum: int) -> None:
        """Raise FederationError with fewer than ``quorum`` members."""
        if len(self) < quorum:
            raise FederationError(
                f"{len(self)} accepted contributions, the quorum is {quorum}: wait for more organisations "
                "or lower collect.quorum"
            )


def cached_networks(models: int) -> int:
    """How many of so many models' networks stay in memory."""
    return models if models <= CACHED_NETWORKS else CACHED_OF_MANY


def middle(values: Sequence[int], voices: Tensor) -> int:
    """The middle voice's value; where one has several models, what their middle one has.

    Args:
        values: [models].
        voices: [models], of :func:`server.learning.trust.voices_of`.
    """
    said: dict[int, list[int]] = {}
    for value, voice in zip(values, voices.tolist(), strict=True):
        said.setdefault(voice, []).append(value)
    return _middle([_middle(each) for each in said.values()])


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def common_input(inputs: Sequence[InputSpec], voices: Tensor) -> InputSpec:
    """What the meta-learner takes: images as large as the middle one, mirrored if all models allow it."""
    side = middle([max(each.height, each.width) for each in inputs], voices)
    flip = all(each.horizontal_flip for each in inputs)
    return InputSpec(max(each.channels for each in inputs), side, side, horizontal_flip=flip)


MOST_CLASSES = 4
"""Of the middle model's classes: so many times as many count at most."""


def common_classes(counts: Sequence[int], voices: Tensor) -> int:
    """Outputs of the meta-learner: as many as any model has, but one with very many decides for no other.

    Of a model with more, the first so many are taken.
    """
    return min(max(counts), MOST_CLASSES * middle(counts, voices))


def number_shapes(inputs: Sequence[InputSpec]) -> Tensor:
    """The number of each input's shape, [inputs], counted in the order of the shapes.

    A shape is channels and size: organisations whose images differ in these hold different things.
    """
    shapes = [(each.channels, each.height, each.width) for each in inputs]
    numbers = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
    return torch.tensor([numbers[shape] for shape in shapes])
