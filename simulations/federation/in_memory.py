"""Contributed models held in memory, as a pool asks for them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedfree.architectures import Classifier
from fedfree.codec import Contribution
from fedfree.host.compute import choose_device
from fedfree.start import LoadedStart, body_for
from server.config import ServerConfig
from server.learning.pool import Pool
from server.learning.precision import parameter_dtype


class ModelsInMemory:
    """Contributions by id, with what they began from; whose they are, nobody knows."""

    def __init__(self, models: Mapping[str, Contribution], starts: Sequence[LoadedStart]) -> None:
        self._models, self._starts = models, starts
        self.start = starts[0] if starts else None
        self.further_starts = starts[1:]

    def describe(self, identity: str) -> Contribution:
        return self._models[identity]

    def network(self, identity: str) -> tuple[Contribution, Classifier]:
        model = self._models[identity]
        return model, model.network(body_for(model, self._starts))

    def state(self, identity: str) -> Mapping[str, Tensor]:
        return self.network(identity)[1].state_dict()

    def organisation(self, identity: str) -> None:
        return None


def pool_in_memory(
    models: Mapping[str, Contribution], starts: Sequence[LoadedStart], config: ServerConfig
) -> Pool:
    """A pool of contributions, in the order of their ids, on the device and in the format configured."""
    device, dtype = choose_device(config.device), parameter_dtype(config.precision)
    return Pool(ModelsInMemory(models, starts), sorted(models), device, dtype)
