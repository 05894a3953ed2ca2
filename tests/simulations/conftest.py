"""Tiny data sets, and a start."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfree.host.starts import write_start
from fedfree.start import LoadedStart

MakeTree = Callable[..., Path]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Writes an image tree of classes told apart by their pattern: name, side, whether it has colours."""

    def make(name: str, *, side: int = 16, colour: bool = False, classes: int = 5) -> Path:
        rng = np.random.default_rng(side)
        shape = (side, side, 3) if colour else (side, side)
        for split in ("meta_train", "meta_val", "meta_test"):
            for label in range(classes):
                folder = tmp_path / name / split / f"{split}{label}"
                folder.mkdir(parents=True)
                pattern = rng.integers(0, 255, shape)
                for index in range(8):
                    pixels = np.clip(pattern + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    return make


@pytest.fixture
def start(tmp_path: Path, make_start: Callable[..., LoadedStart]) -> Path:
    """Folder of a start for three channels of 16 pixels."""
    made = make_start(channels=3)
    write_start(tmp_path / "start", made.start, made.weights)
    return tmp_path / "start"
