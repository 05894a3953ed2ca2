"""Public images, without labels, that a coordinator named: teachers look at them beside recovered ones."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from server.learning.memory import to_pixels


@dataclass(frozen=True, eq=False)
class PublicImages:
    """Nobody's private images. Nothing is known of them, so they are neither remembered nor judged by."""

    pixels: Tensor
    """[images, channels, size, size], uint8, in the order in which they are shown."""

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal hash over number, size and pixels."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()

    def turn(self, number: int, count: int) -> Tensor:
        """The images of one turn (from 0) of so many each, in [0, 1]; none once all were shown."""
        return to_pixels(self.pixels[number * count : (number + 1) * count])
