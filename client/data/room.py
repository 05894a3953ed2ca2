"""Room for the pixels of many images: in memory where they are few, else in a file that is mapped into it."""

import math
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedfree.host.files import named
from fedfree.host.places import cache_folder

IN_MEMORY = 2**28
"""Most bytes of pixels that are held in memory: 1,783 colour images at 224 pixels a side, 5,461 at 128."""


def room_for(shape: Sequence[int]) -> Tensor:
    """An uninitialised uint8 tensor.

    Beyond IN_MEMORY its pixels are in a nameless file in the cache folder, which is gone with the tensor, or
    with the process however that ends. The system keeps as much of it in memory as it has to spare.

    Raises:
        StorageError: the disk has no room for it, which is found out here and not while it is filled.
    """
    if (size := math.prod(shape)) <= IN_MEMORY:
        return torch.empty(*shape, dtype=torch.uint8)
    folder = cache_folder()
    remedy = "free some, name a folder elsewhere in XDG_CACHE_HOME, or take fewer or smaller images"
    with named(f"no room in {folder} for {shape[0]} images, {size / 1e6:,.0f} MB of pixels ({remedy})"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=tuple(shape)))


def _reserve(file: int, size: int) -> None:
    """Without its blocks a file that is mapped ends the process, where the disk turns out to be full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        os.truncate(file, size)
