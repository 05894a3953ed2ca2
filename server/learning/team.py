"""The processes that share one run: torch.distributed where there are several, nothing where there is one.

Every process draws the same random numbers and keeps the same memory; each does its share of the
work, and sums bring the shares together. So the result is the same for any number of processes, up
to the order of additions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Team:
    """This process's place among those that share the run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the work: every ``size``-th item."""
        return items[self.rank :: self.size]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def gather(self, mine: Tensor, rows: int) -> Tensor:
        """All ``rows`` rows in the order before sharing, from everyone's :meth:`share` of them."""
        if self.size == 1:
            return mine
        gathered = mine.new_zeros(rows, *mine.shape[1:])
        gathered[self.rank :: self.size] = mine
        torch.distributed.all_reduce(gathered)
        return gathered

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            torch.distributed.barrier()


ALONE = Team()
