"""The picture of recovered images: a PNG that others read, of no more than is shown."""

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from server.doors.picture import CELL, GAP, MAX_CLASSES, MAX_MODELS, png, recovered_picture


def picture(path: Path, **models: torch.Tensor) -> Image.Image:
    safetensors.torch.save_file(models, path / "recovered.safetensors")
    return Image.open(io.BytesIO(recovered_picture(path / "recovered.safetensors")))


def test_a_png_holds_exactly_the_pixels_it_was_made_of() -> None:
    pixels = torch.randint(256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.open(io.BytesIO(png(pixels)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(image), pixels.numpy())


def test_models_stand_beneath_each_other_by_id_and_classes_beside_each_other(tmp_path: Path) -> None:
    first = torch.stack([torch.full((1, 16, 16), 200), torch.full((1, 16, 16), 100)]).to(torch.uint8)
    second = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    second[:, 0] = 50
    image = picture(tmp_path, b=second, a=first)
    step = CELL + GAP
    assert image.size == (GAP + 2 * step, GAP + 2 * step)
    middle = GAP + CELL // 2
    seen = [
        image.getpixel((middle + column * step, middle + row * step)) for row in (0, 1) for column in (0, 1)
    ]
    assert seen[:3] == [(200, 200, 200), (100, 100, 100), (50, 0, 0)]
    assert seen[3] == image.getpixel((0, 0))


def test_no_more_is_drawn_than_is_shown(tmp_path: Path) -> None:
    many = torch.zeros(MAX_CLASSES + 5, 1, 2, 2, dtype=torch.uint8)
    image = picture(tmp_path, **{f"{index:03}": many.clone() for index in range(MAX_MODELS + 5)})
    step = CELL + GAP
    assert image.size == (GAP + MAX_CLASSES * step, GAP + MAX_MODELS * step)


def test_without_a_model_there_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        picture(tmp_path)
