"""The bounded memory of recovered images, each with its model and class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from server.invert import RecoveredTask


class Memory:
    """First in, first out. Images are kept as bytes, as a picture file would."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._model_numbers: dict[str, int] = {}
        self.images = torch.empty(0, dtype=torch.uint8)
        """[images, channels, size, size]."""
        self.models = torch.empty(0, dtype=torch.int64)
        """[images]: the model each was recovered from, numbered as they came."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """[images]: class of that model."""
        self.features = torch.empty(0)
        """[images, size of the teachers' features], half precision; empty without teachers."""

    def __len__(self) -> int:
        return len(self.models)

    def add(self, tasks: Sequence[RecoveredTask], features: Tensor | None) -> None:
        """Append tasks and drop the oldest images beyond the capacity.

        Args:
            features: [images of all tasks, size], rows in the order of the tasks.
        """
        for task in tasks:
            number = self._model_numbers.setdefault(task.member.id, len(self._model_numbers))
            self.models = self._append(self.models, torch.full((len(task.labels),), number))
            self.classes = self._append(self.classes, task.labels.cpu())
            self.images = self._append(self.images, (task.images * 255).round().to(torch.uint8))
        if features is not None:
            self.features = self._append(self.features, features.half())

    def _append(self, kept: Tensor, added: Tensor) -> Tensor:
        return torch.cat([kept.to(added.device), added])[-self._capacity :] if len(kept) else added

    def pixels(self, indices: Tensor) -> Tensor:
        """Images [batch, channels, size, size] in [0, 1]."""
        return self.images[indices.to(self.images.device)].float() / 255

    def sample(self, count: int, *, rng: torch.Generator) -> Tensor:
        """Indices of ``count`` images drawn uniformly, without replacement while they last."""
        return torch.randperm(len(self), generator=rng)[:count]

    def gallery(self) -> dict[str, Tensor]:
        """For each model the newest image of each of its classes, [classes, channels, size, size], uint8."""
        gallery = {}
        for identity, number in self._model_numbers.items():
            members = (self.models == number).nonzero().squeeze(1)
            newest = {int(self.classes[index]): int(index) for index in members}
            order = torch.tensor([newest[label] for label in sorted(newest)], dtype=torch.int64)
            gallery[identity] = self.images[order.to(self.images.device)].cpu()
        return gallery
