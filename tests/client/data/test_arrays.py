"""Images and labels in memory: brought to what files give, or refused with what was expected."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.arrays import image_set, label_values, number, to_pixels
from client.data.loading import load_images
from fedfree.errors import DataError

IMAGES = np.arange(4 * 3 * 16 * 16, dtype=np.uint32).reshape(4, 3, 16, 16).astype(np.uint8)
LABELS = ["b", "a", "b", "a"]


@pytest.mark.parametrize(("size", "channels"), [(16, None), (20, None), (16, 1)])
def test_images_become_what_they_would_in_files(tmp_path: Path, size: int, channels: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 24), dtype=np.uint8)
    for index, (image, label) in enumerate(zip(pixels, LABELS, strict=True)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / label / f"{index}.png")
    expected = load_images(tmp_path, size=size, channels=channels)
    given, classes = image_set(pixels, LABELS, size=size, channels=channels)
    assert classes == expected.class_names == given.class_names
    assert given.fingerprint() == expected.fingerprint()


def test_arrays_tensors_and_sequences_are_alike() -> None:
    forms = [IMAGES, torch.from_numpy(IMAGES), list(IMAGES), tuple(torch.from_numpy(IMAGES))]
    assert all(to_pixels(each, size=16).equal(torch.from_numpy(IMAGES)) for each in forms)
    differing = [IMAGES[0], IMAGES[1][:, :8]]
    assert to_pixels(differing, size=8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("labels", [np.array([3, 1, 3, 1]), torch.tensor([3, 1, 3, 1]), [3, 1, 3, 1]])
def test_labels_are_numbered_in_the_order_of_their_values(labels: list[int]) -> None:
    numbers, classes = number(label_values(labels, 4))
    assert numbers.tolist() == [1, 0, 1, 0] and classes == (1, 3)
    assert label_values([torch.tensor(3), np.int64(1), 3, 1], 4) == [3, 1, 3, 1]


def test_labels_of_several_types_are_classes_too() -> None:
    numbers, classes = number(["a", ("b", 1), "a", 7])
    assert set(classes) == {"a", ("b", 1), 7}
    assert [classes[each] for each in numbers] == ["a", ("b", 1), "a", 7]


REFUSED: list[tuple[object, str]] = [
    (IMAGES.transpose(0, 2, 3, 1), r"got uint8 \[4, 16, 16, 3\]: bring the channels before height"),
    (IMAGES / 255, r"got float64 \[4, 3, 16, 16\]: fractions times 255"),
    (IMAGES.astype(np.int64), r"got int64 \[4, 3, 16, 16\]$"),
    (IMAGES[:, 0], r"got uint8 \[4, 16, 16\]: add the one channel of grey images, images\[:, None\]"),
    (IMAGES[:, :2], r"got uint8 \[4, 2, 16, 16\]$"),
    ([IMAGES[0], IMAGES[0].transpose(1, 2, 0)], r"got image 1 is uint8 \[16, 16, 3\]: bring"),
    ([], "got none"),
    (IMAGES[:0], "got none"),
    (None, "got NoneType"),
    (torch.empty(2, 3, 16, 16, dtype=torch.uint8, device="meta"), "one without data"),
    (torch.nested.nested_tensor([torch.zeros(3, 16, 16)] * 2, layout=torch.jagged), "got a nested tensor"),
]


@pytest.mark.parametrize(("images", "message"), REFUSED, ids=lambda part: str(part)[:20])
def test_images_that_cannot_be_used_are_refused_with_what_was_expected(images: object, message: str) -> None:
    with pytest.raises(DataError, match=f"expected uint8 images .*{message}"):
        to_pixels(images, size=16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], "4 images, 2 labels"),
        (["a", "b", None, "b"], "the label of image 2 is missing: None"),
        (np.array([1, 2, np.nan, 2]), "the label of image 2 is missing: nan"),
        (None, "one hashable label an image"),
        (np.zeros((4, 2)), "one hashable label an image"),
        ([[1], [2], [1], [2]], "one hashable label an image"),
        (["a"] * 4, "at least 2 classes, got 1: 'a'"),
        ([1, "1", 1, "1"], "read alike"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_set(IMAGES, labels, size=16)
