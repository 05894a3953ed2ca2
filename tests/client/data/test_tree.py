"""What a tree of images means."""

import pytest

from client.data.tree import understand


def meaning(*paths: str) -> dict[str | None, dict[str, int]]:
    """Of each split, None where there is none, the classes with their numbers of images."""
    tree = understand({tuple(path.split("/")) for path in paths})
    return {
        split: {name: len(of_class) for name, of_class in classes.items()}
        for split, classes in tree.splits.items()
    }


def test_images_at_any_depth_are_of_the_class_folder_above_them() -> None:
    assert meaning("cat/0.png", "cat/2020/may/1.png", "dog/a/0.png") == {None: {"cat": 2, "dog": 1}}


@pytest.mark.parametrize("prefix", ["", "w/", "w/x/y/"])
def test_folders_that_wrap_the_tree_do_not_change_it(prefix: str) -> None:
    assert meaning(f"{prefix}cat/0.png", f"{prefix}dog/0.png") == {None: {"cat": 1, "dog": 1}}
    assert meaning(f"{prefix}meta_val/cat/0.png") == {"meta_val": {"cat": 1}}


@pytest.mark.parametrize("stray", ["stray.png", "w/stray.png"])
def test_a_stray_image_does_not_change_the_tree(stray: str) -> None:
    assert meaning("w/cat/0.png", "w/dog/0.png", stray) == {None: {"cat": 1, "dog": 1}}
    assert meaning("w/meta_test/dog/0.png", stray) == {"meta_test": {"dog": 1}}


def test_images_that_are_not_read_show_where_the_classes_are() -> None:
    jpegs, heic = {("cat", "old", "0.jpg"), ("cat", "new", "1.jpg")}, {("dog", "old", "0.heic")}
    assert understand(jpegs, heic).splits == {None: {"cat": sorted(jpegs)}}
    assert understand(set(), {("train", "a", "0.heic"), ("val", "a", "1.heic")}).split_names == (
        "train",
        "val",
    )


def test_a_single_class_is_not_taken_for_a_wrapping_folder() -> None:
    assert meaning("cat/0.png") == {None: {"cat": 1}}
    assert meaning("cat/0.png", "cat/old/1.png") == {None: {"cat": 2}}


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Training", "validation", "Testing"), ("train", "test")],
)
def test_splits_are_understood_as_people_spell_them(names: tuple[str, ...]) -> None:
    paths = [f"{split}/{name}/0.png" for split in reversed(names) for name in ("cat", "dog")]
    assert meaning(*paths) == {split: {"cat": 1, "dog": 1} for split in names}
    assert list(meaning(*paths)) == list(names)


def test_a_test_split_without_labels_is_no_class_and_no_split() -> None:
    assert meaning("train/cat/0.png", "train/dog/0.png", "test/0.png", "test/1.png") == {
        "train": {"cat": 1, "dog": 1}
    }


def test_what_is_called_like_a_split_may_be_a_class() -> None:
    assert meaning("train/0.png", "bus/0.png") == {None: {"bus": 1, "train": 1}}
    assert meaning("train/a/0.png", "bus/a/0.png") == {None: {"bus": 1, "train": 1}}
    assert meaning("train/0.png", "test/0.png") == {None: {"test": 1, "train": 1}}


def test_images_below_no_folder_are_of_no_class() -> None:
    assert meaning("0.png", "1.png") == {None: {}}
    assert meaning() == {None: {}}
