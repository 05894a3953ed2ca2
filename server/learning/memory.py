"""What the server remembers: recovered images with model and class, and images with teachers' features."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from server.learning.invert import RecoveredTask


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] to uint8."""
    return (images * 255).round().to(torch.uint8)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to [0, 1], float32."""
    return images.float() / 255


class Ring:
    """Rows of several tensors side by side; first in, first out."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self._device = device
        self.added = 0
        """Rows ever added."""
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def __getitem__(self, name: str) -> Tensor:
        """A column, [rows, …], in no particular order."""
        return self._columns[name][: len(self)]

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """Write rows over the oldest ones; the first call decides types and shapes."""
        count = len(next(iter(columns.values())))
        kept = min(count, self.capacity)
        if not self._columns:
            self._columns = {
                name: torch.empty(self.capacity, *rows.shape[1:], dtype=rows.dtype, device=self._device)
                for name, rows in columns.items()
            }
        places = self._places(self.added + count - kept, self.added + count)
        for name, rows in columns.items():
            self._columns[name][places] = rows[count - kept :].to(self._device)
        self.added += count

    def oldest_first(self) -> Tensor:
        """Indices of all rows in the order in which they came."""
        return self._places(self.added - len(self), self.added)

    def _places(self, first: int, beyond: int) -> Tensor:
        return torch.arange(first, beyond, device=self._device) % self.capacity

    def tensors(self) -> dict[str, Tensor]:
        """All rows, oldest first, and how many ever came."""
        rows = {name: self[name][self.oldest_first()] for name in self._columns}
        return rows | {"added": torch.tensor(self.added)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`tensors` returned."""
        added = int(tensors["added"])
        rows = {name: tensor for name, tensor in tensors.items() if name != "added"}
        self.added = added - min(added, self.capacity)
        if rows:
            self.add(rows)


class Corpus:
    """Images, of no model in particular, with what all teachers make of them; first in, first out."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = Ring(capacity, device)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, images: Tensor, features: Tensor, sources: Tensor | None = None) -> None:
        """Append [images, channels, size, size] in [0, 1] with their features [images, size].

        Args:
            sources: [images, 2], model and class that each was recovered from; -1, as by default, where it
                comes of several.
        """
        sources = torch.full((len(images), 2), -1) if sources is None else sources
        self.rows.add({"images": to_bytes(images), "features": features.half(), "sources": sources})

    def sample(self, count: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and features of ``count`` rows drawn without replacement while they last."""
        images, features = self.rows["images"], self.rows["features"]
        drawn = torch.randperm(len(self), generator=rng)[:count].to(images.device)
        return to_pixels(images[drawn]), features[drawn].float()


class Memory:
    """Recovered images, first in, first out; kept as bytes, as a picture file would."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = Ring(capacity, device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def models(self) -> Tensor:
        """[images]: the number of the model each was recovered from, on the CPU."""
        return self._numbers("models")

    @property
    def classes(self) -> Tensor:
        """[images]: class of that model, on the CPU."""
        return self._numbers("classes")

    def _numbers(self, name: str) -> Tensor:
        return self.rows[name].cpu() if len(self) else torch.empty(0, dtype=torch.int64)

    def add(self, tasks: Sequence[RecoveredTask]) -> None:
        """Append tasks; the oldest images beyond the capacity are forgotten."""
        for task in tasks:
            self.rows.add(
                {
                    "models": torch.full((len(task.labels),), task.member.number),
                    "classes": task.labels,
                    "images": to_bytes(task.images),
                }
            )

    def pixels(self, indices: Tensor) -> Tensor:
        """Images [batch, channels, size, size] in [0, 1]."""
        images = self.rows["images"]
        return to_pixels(images[indices.to(images.device)])

    def gallery(self) -> dict[int, Tensor]:
        """For each model's number the newest image of each of its classes, uint8 [classes, c, size, size]."""
        if not len(self):
            return {}
        newest: dict[int, dict[int, int]] = {}
        models, classes = self.models.tolist(), self.classes.tolist()
        for row in self.rows.oldest_first().tolist():
            newest.setdefault(models[row], {})[classes[row]] = row
        images = self.rows["images"]
        return {
            model: torch.stack([images[rows[label]] for label in sorted(rows)]).cpu()
            for model, rows in newest.items()
        }
