"""The picture of recovered images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from simulations.reporting.pictures import CELL_PIXELS, MAX_CELL_PIXELS, synthetic_picture


def drawn(gallery: dict[str, torch.Tensor], path: Path) -> Image.Image:
    synthetic_picture(gallery, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


def pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(count for count, value in picture.getcolors(1 << 24) or [] if value == colour)


def plain(colour: tuple[int, int, int], *, classes: int, size: int) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(classes, 3, size, size)


def test_each_image_fills_its_cell_with_squares_of_whole_pixels(tmp_path: Path) -> None:
    picture = drawn({"a" * 64: plain((200, 10, 30), classes=3, size=32)}, tmp_path / "out.png")
    assert pixels_of(picture, (200, 10, 30)) == 3 * 64 * 64


def test_models_may_differ_in_classes_size_and_channels(tmp_path: Path) -> None:
    gallery = {
        "a" * 64: plain((200, 10, 30), classes=5, size=32),
        "b" * 64: torch.full((2, 1, 28, 28), 77, dtype=torch.uint8),
        "c" * 64: plain((10, 20, 250), classes=1, size=84),
    }
    picture = drawn(gallery, tmp_path / "out.png")
    assert pixels_of(picture, (200, 10, 30)) == 5 * 64 * 64
    assert pixels_of(picture, (77, 77, 77)) == 2 * 84 * 84
    assert pixels_of(picture, (10, 20, 250)) == 84 * 84
    assert picture.width > 5 * 84
    assert picture.height > 3 * 84


def test_rows_are_models_and_columns_are_classes(tmp_path: Path) -> None:
    images = torch.stack([torch.full((1, 16, 16), value, dtype=torch.uint8) for value in (11, 22, 33)])
    picture = drawn({"a" * 64: images, "b" * 64: images + 100}, tmp_path / "out.png").convert("L")
    bottom_right = (picture.width - 30, picture.height - 30)
    assert picture.getpixel(bottom_right) == 133
    assert picture.getpixel((bottom_right[0] - 2 * CELL_PIXELS - 8, bottom_right[1])) == 111
    assert picture.getpixel((bottom_right[0], bottom_right[1] - CELL_PIXELS - 4)) == 33


def test_large_images_are_shrunk_to_the_largest_cell(tmp_path: Path) -> None:
    picture = drawn({"a" * 64: plain((200, 10, 30), classes=2, size=224)}, tmp_path / "out.png")
    assert pixels_of(picture, (200, 10, 30)) == 2 * MAX_CELL_PIXELS**2


def test_each_row_carries_the_beginning_of_its_id(tmp_path: Path) -> None:
    images = plain((200, 10, 30), classes=1, size=32)
    one, same, other = (
        drawn({identity: images}, tmp_path / "out.png").tobytes()
        for identity in ("0123abcd" + "0" * 56, "0123abcd" + "1" * 56, "3210abcd" + "0" * 56)
    )
    assert one == same
    assert one != other


def test_an_empty_gallery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model"):
        synthetic_picture({}, tmp_path / "out.png")
