"""``look`` says what a training would read: the same files, the same pixels, the same refusals."""

import hashlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from client.config import DataConfig
from client.data import look as looking
from client.data.loading import load_configured
from client.data.look import Look, look
from fedfree.errors import DataError
from fedfree.host.images.passed_over import Reason

WriteSource = Callable[[Path, Mapping[str, bytes]], Path]

SIDE = 16


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(index: int, size: tuple[int, int] = (20, 20)) -> bytes:
    return encode(Image.new("RGB", size, (index, 100, 7 * index % 256)))


def grey(size: tuple[int, int] = (20, 20), value: int = 9) -> bytes:
    return encode(Image.new("L", size, value))


def lying(size: tuple[int, int]) -> bytes:
    """A JPEG that its EXIF tag has turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.linear_gradient("L").convert("RGB").resize(size), "JPEG", exif=exif)


def messy() -> dict[str, bytes]:
    """Photos as they come off a telephone."""
    return {
        "cat/0.png": colour(1),
        "cat/1.png": colour(2, (40, 30)),
        "cat/deep/2.png": colour(3, (10, 12)),
        "cat/again.png": encode(Image.new("RGB", (60, 60), (1, 100, 7))),
        "dog/0.jpg": lying((40, 20)),
        "dog/1.png": grey(),
        "dog/stolen.png": colour(2, (40, 30)),
        "dog/broken.jpg": lying((40, 20))[:200],
        "dog/nothing.png": b"",
        "dog/phone.HEIC": b"?",
        "notes.txt": b"",
    }


def look_at_folder(source: Path, **options: Any) -> Look:
    return look(DataConfig(source=source, **options), size=SIDE)


@pytest.fixture(params=["tree", "tree.zip"])
def source(request: pytest.FixtureRequest, tmp_path: Path, write_source: WriteSource) -> Path:
    return write_source(tmp_path / request.param, messy())


def test_each_class_is_counted_with_its_sizes_and_what_is_special_about_its_images(source: Path) -> None:
    cat, dog = look_at_folder(source).classes
    assert (cat.name, cat.images, cat.unreadable, cat.grey, cat.turned) == ("cat", 4, 0, 0, 0)
    assert (cat.smallest, cat.median, cat.largest) == ((10, 12), (20, 20), (60, 60))
    assert (dog.images, dog.unreadable, dog.grey, dog.turned) == (3, 2, 2, 1)
    assert dog.median == (20, 40), "the upright size"


def test_what_cannot_be_read_is_named_with_the_reason_and_ends_nothing(source: Path) -> None:
    found = look_at_folder(source)
    assert [each.name for each in found.unreadable] == ["dog/broken.jpg", "dog/nothing.png"]
    assert "runcated" in found.unreadable[0].reason and "no known image format" in found.unreadable[1].reason
    with pytest.raises(DataError, match=r"dog/broken\.jpg"):
        load_configured(DataConfig(source=source), size=SIDE)


def test_what_is_passed_over_is_what_every_reader_passes_over(source: Path) -> None:
    found = look_at_folder(source)
    assert found.passed_over.paths == {
        Reason.NOT_IMAGE: {("notes.txt",)},
        Reason.NOT_READ: {("dog", "phone.HEIC")},
    }
    assert found.has_heic


def test_copies_are_told_by_their_pixels_and_contradict_each_other_across_classes(source: Path) -> None:
    within, across = sorted(look_at_folder(source).copies, key=lambda each: each.contradict)
    assert within.names == ("cat/0.png", "cat/again.png") and within.classes == ("cat",)
    assert across.names == ("cat/1.png", "dog/stolen.png") and across.classes == ("cat", "dog")


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squeeze"])
def test_the_pixels_looked_at_are_those_that_a_training_reads(
    source: Path, fit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_source: WriteSource
) -> None:
    whole = {
        name: content
        for name, content in messy().items()
        if name not in ("dog/broken.jpg", "dog/nothing.png")
    }
    whole_source = write_source(tmp_path / f"whole{source.suffix}", whole)
    seen: list[looking.Photo] = []
    kept = looking._copies
    monkeypatch.setattr(looking, "_copies", lambda photos: seen.extend(photos) or kept(photos))
    found = look_at_folder(whole_source, fit=fit)
    loaded = load_configured(DataConfig(source=whole_source, fit=fit), size=SIDE)
    hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for image in loaded.images]
    assert [each.pixels for each in seen] == hashes
    assert [each.label for each in seen] == [loaded.class_names[label] for label in loaded.labels]
    assert (found.channels, found.size) == tuple(loaded.images.shape[1:3])
    assert [each.images for each in found.classes] == loaded.labels.bincount().tolist()


@pytest.mark.parametrize(
    ("options", "counts"),
    [({"images_per_class": 2}, [2, 2]), ({"classes": ("dog",)}, [2]), ({"split": "train"}, [2, 3])],
)
def test_it_looks_at_what_is_configured(
    tmp_path: Path, write_source: WriteSource, options: dict[str, Any], counts: list[int]
) -> None:
    files = {f"cat/{index}.png": colour(index) for index in range(2)}
    files |= {f"dog/{index}.png": colour(50 + index) for index in range(3)}
    if "split" in options:
        files = {f"{split}/{name}": content for split in ("train", "test") for name, content in files.items()}
    if "classes" in options:
        files.pop("dog/2.png")
    found = look_at_folder(write_source(tmp_path / "tree", files), **options)
    assert [each.images for each in found.classes] == counts
    assert bool(found.refusal) == (len(counts) < 2)


def test_a_first_image_without_colour_makes_all_grey_as_it_does_in_training(
    tmp_path: Path, write_source: WriteSource
) -> None:
    files = {"cat/0.png": grey(), "cat/1.png": colour(1), "dog/0.png": colour(2), "dog/1.png": colour(3)}
    source = write_source(tmp_path / "tree", files)
    found = look_at_folder(source)
    assert (found.channels, found.first, found.grey) == (1, "cat/0.png", 1)
    assert look(DataConfig(source=source), size=SIDE, channels=3).channels == 3


def test_one_class_is_looked_at_and_refused_in_the_words_of_training(
    tmp_path: Path, write_source: WriteSource
) -> None:
    source = write_source(
        tmp_path / "tree", {"cat/0.png": colour(1), "cat/1.png": colour(2), "stray.png": b""}
    )
    found = look_at_folder(source)
    assert found.images == 2
    with pytest.raises(DataError) as refused:
        load_configured(DataConfig(source=source), size=SIDE)
    assert found.refusal == str(refused.value)


def test_a_folder_of_heic_photos_alone_is_refused_with_how_to_convert_them(
    tmp_path: Path, write_source: WriteSource
) -> None:
    source = write_source(tmp_path / "tree", dict.fromkeys(("cat/0.HEIC", "dog/1.heic"), b""))
    with pytest.raises(DataError, match=r"no classes in .*sips .*heif-convert"):
        look_at_folder(source)


def test_no_pixels_are_kept_and_a_large_photo_is_decoded_smaller(
    tmp_path: Path, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr("client.data.loading.room_for", pytest.fail)
    photo = encode(Image.effect_noise((2000, 1500), 50).convert("RGB"), "JPEG")
    source = write_source(tmp_path / "tree", {"cat/0.jpg": photo, "dog/0.png": colour(1)})

    def counted(image: Any) -> Any:
        decoded.append(image.width * image.height)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    found = look_at_folder(source)
    assert found.classes[0].largest == (2000, 1500)
    assert max(decoded) <= 2000 * 1500 / 16
