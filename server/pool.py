"""The pool: accepted contributions as networks, loaded when they are needed."""

from collections import OrderedDict
from dataclasses import dataclass

import torch

from fedfree.architectures import Classifier, InputSpec, use_channels_last
from fedfree.codec import Contribution
from fedfree.errors import FederationError
from server.store import ACCEPTED, Store

CACHED_NETWORKS = 64


@dataclass(frozen=True)
class Member:
    """One accepted model, frozen, in evaluation mode."""

    id: str
    network: Classifier
    input: InputSpec
    num_classes: int
    device: torch.device


class Pool:
    """Members by id, in sorted order; the most recently used networks stay in memory."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self.device = device
        self._cache: OrderedDict[str, Member] = OrderedDict()
        self.ids = store.ids(ACCEPTED)

    def __len__(self) -> int:
        return len(self.ids)

    def descriptions(self) -> list[Contribution]:
        """What each member says of itself, without its weights."""
        return [self._store.describe(identity) for identity in self.ids]

    def member(self, identity: str) -> Member:
        """Load a member, or take it from memory."""
        if identity not in self._cache:
            self._cache[identity] = self._load(identity)
        self._cache.move_to_end(identity)
        while len(self._cache) > CACHED_NETWORKS:
            self._cache.popitem(last=False)
        return self._cache[identity]

    def _load(self, identity: str) -> Member:
        contribution = self._store.contribution(identity)
        network = contribution.network().requires_grad_(False)
        network.to(self.device)
        use_channels_last(network)
        return Member(identity, network, contribution.input, contribution.num_classes, self.device)

    def sample(self, count: int, rng: torch.Generator) -> list[Member]:
        """``count`` different members (all of them, if there are fewer), uniformly."""
        order = torch.randperm(len(self.ids), generator=rng)[:count].tolist()
        return [self.member(self.ids[index]) for index in order]

    def require(self, quorum: int) -> None:
        """Raise FederationError with fewer than ``quorum`` members."""
        if len(self) < quorum:
            raise FederationError(
                f"{len(self)} accepted contributions, the quorum is {quorum}: wait for more organisations "
                "or lower collect.quorum"
            )
