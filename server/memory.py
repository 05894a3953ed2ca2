"""What the server remembers: recovered images with model and class, and images with teachers' features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from server.invert import RecoveredTask


def append(kept: Tensor, added: Tensor, capacity: int) -> Tensor:
    """Rows of both, the oldest dropped beyond the capacity."""
    return torch.cat([kept.to(added.device), added])[-capacity:] if len(kept) else added[-capacity:]


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] to uint8."""
    return (images * 255).round().to(torch.uint8)


class Corpus:
    """Images, of no model in particular, with what all teachers make of them; first in, first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.images = torch.empty(0, dtype=torch.uint8)
        """[images, channels, size, size]."""
        self.features = torch.empty(0)
        """[images, size of the teachers' features], half precision."""

    def __len__(self) -> int:
        return len(self.images)

    def add(self, images: Tensor, features: Tensor) -> None:
        """Append [images, channels, size, size] in [0, 1] with their features [images, size]."""
        self.images = append(self.images, to_bytes(images), self._capacity)
        self.features = append(self.features, features.half(), self._capacity)

    def sample(self, count: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and features of ``count`` rows drawn without replacement while they last."""
        drawn = torch.randperm(len(self), generator=rng)[:count].to(self.images.device)
        return self.images[drawn].float() / 255, self.features[drawn].float()


class Memory:
    """Recovered images, first in, first out; kept as bytes, as a picture file would."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._model_numbers: dict[str, int] = {}
        self.images = torch.empty(0, dtype=torch.uint8)
        """[images, channels, size, size]."""
        self.models = torch.empty(0, dtype=torch.int64)
        """[images]: the model each was recovered from, numbered as they came."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """[images]: class of that model."""

    def __len__(self) -> int:
        return len(self.models)

    def add(self, tasks: Sequence[RecoveredTask]) -> None:
        """Append tasks and drop the oldest images beyond the capacity."""
        for task in tasks:
            number = self._model_numbers.setdefault(task.member.id, len(self._model_numbers))
            numbers = torch.full((len(task.labels),), number)
            self.models = append(self.models, numbers, self._capacity)
            self.classes = append(self.classes, task.labels.cpu(), self._capacity)
            self.images = append(self.images, to_bytes(task.images), self._capacity)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images [batch, channels, size, size] in [0, 1]."""
        return self.images[indices.to(self.images.device)].float() / 255

    def gallery(self) -> dict[str, Tensor]:
        """For each model the newest image of each of its classes, [classes, channels, size, size], uint8."""
        gallery = {}
        for identity, number in self._model_numbers.items():
            members = (self.models == number).nonzero().squeeze(1)
            newest = {int(self.classes[index]): int(index) for index in members}
            order = torch.tensor([newest[label] for label in sorted(newest)], dtype=torch.int64)
            gallery[identity] = self.images[order.to(self.images.device)].cpu()
        return gallery
