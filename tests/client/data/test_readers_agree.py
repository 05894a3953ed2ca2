"""Whatever a tree looks like: every reader sees the same files in it, as a folder and as a zip."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from client.data.finding import Survey, hash_images, list_classes, list_splits, survey
from client.data.loading import load_images, read_images
from fedfree.errors import DataError
from fedfree.host.images.passed_over import PassedOver, Reason

WriteSource = Callable[[Path, Mapping[str, bytes]], Path]

FOLDERS = ("cat", "dog", "ćma ß", "meta_train", "meta_test", "train", "Val", "w", ".git", "__MACOSX")
FILES = ("0.png", "1.JPG", "2.webp", "3.tiff", "a.heic", "b.txt", "name", ".hidden.png", "._4.png")
PATHS = st.builds(
    lambda folders, file: "/".join((*folders, file)),
    st.lists(st.sampled_from(FOLDERS), max_size=4),
    st.sampled_from(FILES),
)


def colour_of(index: int) -> bytes:
    """An image unlike that of any other index; its content decides its format, whatever its name says."""
    buffer = BytesIO()
    Image.new("RGB", (1, 1), (index, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def all_images(source: Path) -> set[str]:
    def refuse(error: DataError) -> None:
        raise error

    found = read_images(source, size=4, channels=3, on_unreadable=refuse, on_passed_over=lambda *_: None)
    try:
        return {path.relative_to(source).as_posix() for path, _ in found}
    except DataError as error:
        assert "no image in" in str(error)
        return set()


def check_one_split(source: Path, split: str | None, files: Mapping[str, bytes]) -> tuple[Survey, int]:
    """Every reader agrees on one split; its survey, and how many images it has."""
    looked = survey(source, split)
    told: list[PassedOver] = []
    loaded = load_images(
        source, split=split, size=4, min_classes=1, on_passed_over=lambda _, report: told.append(report)
    )
    assert told == [looked.passed_over] * bool(looked.passed_over)
    assert list_classes(source, split) == looked.classes
    counts = loaded.labels.bincount(minlength=loaded.num_classes).tolist()
    assert dict(zip(loaded.class_names, counts, strict=True)) == looked.classes
    of_value = {content: name for name, content in files.items()}
    names = {of_value[colour_of(int(image[0, 0, 0]))] for image in loaded.images}
    hashes = {hashlib.sha256(files[name]).hexdigest() for name in names}
    assert hash_images(source, split=split) == hashes
    return looked, len(loaded)


def check(source: Path, files: Mapping[str, bytes]) -> object:
    """All that the readers see, where they agree with each other."""
    images, splits = all_images(source), list_splits(source)
    found: dict[str | None, tuple[Survey, int]] = {}
    for split in splits or (None,):
        try:
            found[split] = check_one_split(source, split, files)
        except DataError as error:
            assert "no classes in" in str(error)
    for looked, _ in found.values():
        paths = {
            reason: {"/".join(parts) for parts in of_reason}
            for reason, of_reason in looked.passed_over.paths.items()
        }
        outside = paths.get(Reason.OUTSIDE, set())
        assert sum(count for _, count in found.values()) + len(outside) == len(images)
        passed = {path for reason, each in paths.items() if reason is not Reason.NO_IMAGE for path in each}
        for name in files:
            is_passed = name in passed or any(name.startswith(f"{each}/") for each in passed)
            assert is_passed == (name not in images or name in outside)
    return images, splits, found


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(paths=st.sets(PATHS, min_size=1, max_size=12))
@example(paths={"train/cat/0.png", "train/dog/0.png", "Val/cat/0.png", "Val/1.JPG"})
@example(paths={"w/cat/0.png", "w/dog/cat/dog/2.webp", "w/0.png", "1.JPG", "b.txt", "w/w/a.heic"})
def test_every_reader_sees_the_same_files_in_a_folder_and_its_zip(
    write_source: WriteSource, paths: set[str]
) -> None:
    files = {path: colour_of(index) for index, path in enumerate(sorted(paths))}
    with tempfile.TemporaryDirectory() as place:
        folder = write_source(Path(place) / "tree", files)
        zipped = write_source(Path(place) / "tree.zip", files)
        windows = {name.replace("/", "\\"): content for name, content in files.items()}
        backslashed = write_source(Path(place) / "windows.zip", windows)
        assert check(folder, files) == check(zipped, files) == check(backslashed, files)


@pytest.mark.parametrize("kind", ["folder", "images.zip"])
def test_what_is_passed_over_is_logged_once_a_load(
    tmp_path: Path, write_source: WriteSource, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    names = ("cat/0.png", "dog/a/0.png", "stray.png", "notes.txt", "cat/b.heic", ".DS_Store", "owl/c.txt")
    files = {name: colour_of(index) for index, name in enumerate(names)}
    source = write_source(tmp_path / kind, files)
    assert load_images(source, size=16).class_names == ("cat", "dog")
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}: passed over 5 files: 1 hidden, 2 not images (.txt), "
        "1 image in a format not read: convert it to JPEG (.heic), 1 outside every class folder (stray.png); "
        "1 class folder without an image (owl)"
    ]
    caplog.clear()
    assert len(list(read_images(source, size=16, channels=3, on_unreadable=pytest.fail))) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}: passed over 4 files: 1 hidden, 2 not images (.txt), "
        "1 image in a format not read: convert it to JPEG (.heic)"
    ]


def test_a_refused_tree_says_what_was_passed_over(tmp_path: Path, write_source: WriteSource) -> None:
    photos = write_source(tmp_path / "photos", dict.fromkeys(("cat/0.HEIC", "dog/1.heic"), b""))
    photos_named = "2 images in formats not read: convert them to JPEG"
    with pytest.raises(DataError, match=f"no classes in .*{photos_named}"):
        load_images(photos)
    with pytest.raises(DataError, match=f"no image in .*{photos_named}"):
        list(read_images(photos, size=16, channels=3, on_unreadable=pytest.fail))
    flat = write_source(tmp_path / "flat", {"a/0.png": colour_of(0), "1.png": colour_of(1)})
    with pytest.raises(DataError, match=r"got 1 \(a\).*1 outside every class folder \(1\.png\)"):
        load_images(flat)


def test_of_a_tree_with_splits_it_is_said_which_there_are_and_how_to_name_one(
    tmp_path: Path, write_source: WriteSource
) -> None:
    names = [f"{split}/{name}/0.png" for split in ("val", "train") for name in ("cat", "dog")]
    source = write_source(tmp_path / "tree", {name: colour_of(1) for name in names})
    with pytest.raises(DataError, match=r"has the splits train, val; say which one .* --split .* train"):
        load_images(source)
    assert load_images(source, split="val").class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"no split 'meta_val' .*: it has train, val"):
        load_images(source, split="meta_val")
