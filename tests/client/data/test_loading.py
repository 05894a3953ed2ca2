"""Private images: what is read, in what order, and what is refused with which word."""

import threading
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from client.config import DataConfig
from client.data.finding import list_classes, list_splits
from client.data.loading import load_configured, load_image, load_images, read_images
from fedfree.errors import DataError
from fedfree.host.images import decoding
from fedfree.host.images.formats import Fit

CIFAR_FS = Path(__file__).parents[4] / "shared" / "data" / "cifar-fs.zip"


def png(value: int, *, mode: str = "L", size: tuple[int, int] = (20, 20)) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def tree(
    prefix: str = "", classes: tuple[str, ...] = ("cat", "ant", "bee"), each: int = 3
) -> dict[str, bytes]:
    """Paths to PNGs; the pixel value is 10 * class place + image index."""
    return {
        f"{prefix}{name}/{index}.png": png(10 * place + index)
        for place, name in enumerate(classes)
        for index in range(each)
    }


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def both(path: Path, files: dict[str, bytes]) -> tuple[Path, Path]:
    """The same files as a folder and as a zip."""
    return make_folder(path / "folder", files), make_zip(path / "images.zip", files)


def refuse(error: DataError) -> None:
    raise error


def paths_in(source: Path) -> list[Path]:
    return [path for path, _ in read_images(source, size=16, channels=3, on_unreadable=refuse)]


@pytest.mark.parametrize("prefix", ["", "wrapping/"])
def test_a_folder_and_its_zip_give_the_same_images(tmp_path: Path, prefix: str) -> None:
    files = tree(prefix)
    from_folder = load_images(make_folder(tmp_path / "folder", files))
    from_zip = load_images(make_zip(tmp_path / "images.zip", files))
    assert from_folder.images.equal(from_zip.images)
    assert from_folder.fingerprint() == from_zip.fingerprint()


def test_classes_and_images_come_sorted_by_name(tmp_path: Path) -> None:
    images = load_images(make_zip(tmp_path / "images.zip", tree()))
    assert images.class_names == ("ant", "bee", "cat")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.images[:, 0, 0, 0].tolist() == [10, 11, 12, 20, 21, 22, 0, 1, 2]
    assert images.images.shape == (9, 1, 20, 20)


def test_the_first_images_of_the_chosen_classes_are_kept(tmp_path: Path) -> None:
    source = make_folder(tmp_path, tree())
    images = load_images(source, classes=["cat", "ant"], images_per_class=2)
    assert images.class_names == ("ant", "cat")
    assert images.images[:, 0, 0, 0].tolist() == [10, 11, 0, 1]


def test_of_a_zip_only_the_images_asked_for_are_read(tmp_path: Path) -> None:
    files = tree() | {"broken/0.png": b"nothing", "cat/9.png": b"nothing"}
    source = make_zip(tmp_path / "images.zip", files)
    assert len(load_images(source, classes=["ant", "cat"], images_per_class=3)) == 6


@pytest.mark.parametrize("wrapping", ["", "some-set/"])
def test_splits_are_told_apart(tmp_path: Path, wrapping: str) -> None:
    files = tree(f"{wrapping}meta_train/") | tree(f"{wrapping}meta_test/", ("elk", "fox"), each=2)
    source = make_zip(tmp_path / "images.zip", files)
    assert list_splits(source) == ("meta_train", "meta_test")
    assert list_classes(source, "meta_test") == {"elk": 2, "fox": 2}
    assert load_images(source, split="meta_test").class_names == ("elk", "fox")
    with pytest.raises(DataError, match=r"has the splits meta_train, meta_test; say which"):
        load_images(source)
    with pytest.raises(DataError, match=r"no split 'meta_val' .*meta_train, meta_test"):
        load_images(source, split="meta_val")


def test_a_plain_folder_has_no_splits(tmp_path: Path) -> None:
    source = make_folder(tmp_path, tree())
    assert list_splits(source) == ()
    with pytest.raises(DataError, match="it has no splits"):
        list_classes(source, "meta_train")


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    extra = {
        "__MACOSX/cat/0.png": b"",
        "cat/._0.png": b"",
        ".git/x/0.png": b"",
        "readme.txt": b"",
        "ant/n.csv": b"",
    }
    assert len(load_images(make_zip(tmp_path / "images.zip", tree() | extra))) == 9


def test_images_are_brought_to_the_size_and_channels_of_the_first(tmp_path: Path) -> None:
    files = {
        "a/0.png": png(200, mode="RGB", size=(24, 18)),
        "a/1.png": png(7),
        "b/0.png": png(9, size=(64, 64)),
    }
    images = load_images(make_folder(tmp_path, files))
    assert images.images.shape == (3, 3, 18, 18)
    assert images.images[:, :, 5, 5].tolist() == [[200, 0, 0], [7, 7, 7], [9, 9, 9]]
    assert load_images(tmp_path, size=16, channels=1).images.shape == (3, 1, 16, 16)


def test_shrinking_averages_rather_than_skips(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    buffer = BytesIO()
    Image.fromarray(stripes).save(buffer, "png")
    files = {"a/0.png": buffer.getvalue(), "b/0.png": png(0)}
    shrunk = load_images(make_folder(tmp_path, files), size=16).images[0].float()
    assert ((shrunk - 100).abs() < 12).all()


def test_transparency_becomes_white_paper(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("LA", (20, 20), (0, 0)).save(buffer, "png")
    images = load_images(make_folder(tmp_path, {"a/0.png": buffer.getvalue(), "b/0.png": png(0)}))
    assert images.images.shape[1] == 1
    assert images.images[0].unique().tolist() == [255]


def test_sixteen_bit_greyscale_is_scaled(tmp_path: Path) -> None:
    images = load_images(make_folder(tmp_path, {"a/0.png": png(25600, mode="I;16"), "b/0.png": png(3)}))
    assert images.images[:, 0, 0, 0].tolist() == [100, 3]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"not an image", "of no known"), (png(3, size=(40, 40))[:60], ""), (b"", "of no known")],
)
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    files = tree() | {"cat/broken.png": content}
    for source in (make_folder(tmp_path / "folder", files), make_zip(tmp_path / "images.zip", files)):
        with pytest.raises(DataError, match=rf"cannot read the image cat/broken\.png .*{why}.*replace it"):
            load_images(source)


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "images.zip", tree())
    content = bytearray(source.read_bytes())
    content[60] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the image cat/0\.png"):
        load_images(source)


@pytest.mark.parametrize("limit", [399, 150])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", limit)
    with pytest.raises(DataError, match=r"cannot read the image ant/0\.png .*decompression bomb"):
        load_images(make_folder(tmp_path, tree()))


def test_what_cannot_be_a_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*absent; pass an image folder or a zip"):
        load_images(tmp_path / "absent")
    text = tmp_path / "notes.zip"
    text.write_text("not a zip")
    with pytest.raises(DataError, match=r"cannot read .*notes\.zip as a zip"):
        list_splits(text)
    whole = make_zip(tmp_path / "whole.zip", tree()).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read .*half\.zip as a zip"):
        load_images(tmp_path / "half.zip")


def test_no_classes_unknown_classes_and_too_few_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no classes in .*empty"):
        load_images(tmp_path / "empty")
    source = make_folder(tmp_path / "three", tree())
    with pytest.raises(DataError, match=r"no class 'dog' in .*ant, bee, cat"):
        load_images(source, classes=["ant", "dog"])
    with pytest.raises(DataError, match=r"at least 2 classes .* got 1 \(ant\)"):
        load_images(source, classes=["ant"])
    assert load_images(source, classes=["ant"], min_classes=1).num_classes == 1


@pytest.mark.parametrize("options", [{"images_per_class": 0}, {"size": 0}, {"channels": 2}])
def test_meaningless_options_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"got [02]"):
        load_images(make_folder(tmp_path, tree()), **options)


def test_cifar_fs_is_read_as_it_lies_in_its_zip() -> None:
    if not CIFAR_FS.exists():
        pytest.skip("needs ../shared/data/cifar-fs.zip")
    assert len(list_classes(CIFAR_FS, "meta_val")) == 16
    images = load_images(CIFAR_FS, split="meta_train", classes=["apple", "wolf"], images_per_class=5)
    assert images.images.shape == (10, 3, 32, 32)


def test_one_image_is_decoded_as_the_same_image_of_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a/0.png": png(200, mode="RGB"), "b/0.png": png(90, size=(30, 20))})
    for channels in (1, 3):
        together = load_images(folder, size=16, channels=channels)
        found = read_images(folder, size=16, channels=channels, on_unreadable=refuse)
        for (path, alone), image in zip(found, together.images, strict=True):
            assert torch.equal(alone, image)
            assert torch.equal(load_image(path, size=16, channels=channels), image)


def test_images_are_found_at_any_depth_and_hidden_ones_are_not(tmp_path: Path) -> None:
    wanted = ["0.png", "a/1.JPG", "a/b/c/d/2.jpeg"]
    files = [*wanted, ".hidden.png", "a/.cache/3.png", "__MACOSX/0.png", "notes.txt"]
    for source in both(tmp_path, dict.fromkeys(files, png(3))):
        assert paths_in(source) == [source / name for name in wanted]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        paths_in(tmp_path / "empty")


def test_an_image_that_cannot_be_read_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png in .*of no known image format"):
        load_image(tmp_path / "0.png", size=16, channels=3)
    with pytest.raises(DataError, match=r"no such image: .*1\.png"):
        load_image(tmp_path / "1.png", size=16, channels=3)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squeeze"])
def test_every_reader_makes_photos_square_alike(tmp_path: Path, fit: Fit) -> None:
    folder = make_folder(tmp_path, {"a/0.png": png(200, mode="RGB", size=(48, 16)), "b/0.png": png(90)})
    configured = load_configured(DataConfig(source=folder, fit=fit), size=16, channels=3).images
    assert torch.equal(load_images(folder, size=16, channels=3, fit=fit).images, configured)
    found = read_images(folder, size=16, channels=3, fit=fit, on_unreadable=refuse)
    for (path, alone), image in zip(found, configured, strict=True):
        assert torch.equal(alone, image)
        assert torch.equal(load_image(path, size=16, channels=3, fit=fit), image)
    assert (configured[0, :, 0, 0].tolist() == [128] * 3) == (fit == "letterbox")


def test_of_several_unreadable_images_the_first_is_named(tmp_path: Path) -> None:
    broken = {f"cat/{index}.png": b"nothing" for index in range(20)}
    with pytest.raises(DataError, match=r"cannot read the image cat/0\.png"):
        load_images(make_folder(tmp_path, tree(classes=("ant", "bee")) | broken), size=16, channels=1)


def test_whoever_interrupts_reading_waits_for_no_further_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def slow(content: bytes, *options: Any) -> NDArray[np.uint8]:
        decoded.append(content)
        assert content == first or interrupted.wait(60)
        return decoding.decode_square(content, *options)

    def interrupt(done: int, of: int) -> None:
        assert of == 300
        if done == 30:
            interrupted.set()
            raise KeyboardInterrupt

    interrupted, first, later = threading.Event(), png(0), png(1)
    images = {f"ant/{index:02}.png": first for index in range(40)}
    images |= {f"bee/{index:03}.png": later for index in range(260)}
    monkeypatch.setattr("client.data.loading.decode_square", slow)
    with pytest.raises(KeyboardInterrupt):
        load_images(make_folder(tmp_path, images), size=16, channels=1, on_read=interrupt)
    assert len(decoded) < 200
