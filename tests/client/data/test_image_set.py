"""Labelled images in memory: named apart, parted, and brought to a network's input."""

import pytest
import torch

from client.data.image_set import ImageSet, LazyInputs, choose_held_out, split_held_out, to_input
from fedfree.architectures import InputSpec
from fedfree.errors import DataError


def image_set(counts: tuple[int, ...]) -> ImageSet:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    return ImageSet(images, labels, tuple(f"class{index}" for index in range(len(counts))))


def test_the_fingerprint_sees_pixels_labels_and_shape_but_no_names() -> None:
    base = image_set((2, 2))
    same = ImageSet(base.images, base.labels, ("other", "names"))
    assert base.fingerprint() == same.fingerprint()
    others = [
        ImageSet(255 - base.images, base.labels, base.class_names),
        ImageSet(base.images, 1 - base.labels, base.class_names),
        ImageSet(base.images.reshape(4, 1, 8, 32), base.labels, base.class_names),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_an_inconsistent_image_set_is_refused() -> None:
    base = image_set((2, 2))
    with pytest.raises(DataError, match="expected uint8 images"):
        ImageSet(base.images.float(), base.labels, base.class_names)
    with pytest.raises(DataError, match="expected 4 int64 labels"):
        ImageSet(base.images, base.labels[:3], base.class_names)
    with pytest.raises(DataError, match="labels run from 0 to 1"):
        ImageSet(base.images, base.labels, ("one",))


def test_held_out_images_are_stratified_and_the_parts_make_the_whole() -> None:
    images = image_set((20, 10, 2, 1))
    kept, held = split_held_out(images, fraction=0.2, generator=torch.Generator().manual_seed(0))
    assert held.labels.bincount(minlength=4).tolist() == [4, 2, 1, 0]
    values = [*kept.images[:, 0, 0, 0].tolist(), *held.images[:, 0, 0, 0].tolist()]
    assert sorted(values) == list(range(33))
    assert kept.class_names == held.class_names == images.class_names


def test_the_same_generator_holds_out_the_same_images() -> None:
    held = [
        split_held_out(image_set((20, 20)), fraction=0.3, generator=torch.Generator().manual_seed(seed))[1]
        for seed in (1, 1, 2)
    ]
    assert held[0].fingerprint() == held[1].fingerprint() != held[2].fingerprint()


def test_every_class_keeps_an_image_and_impossible_fractions_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    kept, _ = split_held_out(image_set((5, 2)), fraction=0.99, generator=generator)
    assert kept.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"no class has two images, .* add images \(2 images of 2 classes\)"):
        split_held_out(image_set((1, 1)), fraction=0.5, generator=generator)
    with pytest.raises(DataError, match="above 0 and below 1, got 1"):
        split_held_out(image_set((5, 2)), fraction=1, generator=generator)


def test_pixels_reach_the_scale_channels_and_size_of_the_network() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 28, 28)
    inputs = to_input(images, InputSpec(channels=3, height=32, width=32))
    assert inputs.shape == (2, 3, 32, 32)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.mean((1, 2, 3)), torch.tensor([-1.0, 1.0]))


def test_what_is_chosen_to_be_held_out_is_what_is_held_out() -> None:
    images = image_set((5, 90, 1))
    held = choose_held_out(images, fraction=0.1, generator=torch.Generator().manual_seed(3))
    kept, out = split_held_out(images, fraction=0.1, generator=torch.Generator().manual_seed(3))
    assert images.labels[held].bincount(minlength=3).tolist() == [1, 9, 0]
    assert torch.equal(out.images, images.images[held]) and torch.equal(kept.images, images.images[~held])


def test_lazy_inputs_are_the_inputs_and_are_made_only_where_they_are_looked_at() -> None:
    images, spec = torch.randint(0, 256, (7, 3, 20, 20), dtype=torch.uint8), InputSpec(3, 16, 16)
    lazy, all_at_once = LazyInputs(images, spec), to_input(images, spec)
    assert len(lazy) == 7
    assert torch.equal(lazy[:], all_at_once)
    assert torch.equal(lazy[torch.tensor([5, 1])], all_at_once[[5, 1]])
    parts = list(lazy.split(3))
    assert [len(part) for part in parts] == [3, 3, 1] and torch.equal(torch.cat(parts), all_at_once)
