"""Reading public images: once, within bounds, and with what is wrong named before anybody trains."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedfree.errors import ConfigError, DataError
from fedfree.host.starts import write_start
from fedfree.start import LoadedStart
from server.config import ServerConfig
from server.storage import public_images, run_directory
from server.storage.public_images import read_kept, read_public_images, write_kept
from server.storage.run_directory import RunDirectory


def photos(folder: Path, count: int, *, colour: bool = True, side: int = 20) -> Path:
    """Images as wide as twice their height, one shade each, at two depths."""
    for index in range(count):
        place = folder / ("deep/er" if index % 2 else "") / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shade = (10 * index, 7, 3) if colour else 10 * index
        Image.new("RGB" if colour else "L", (2 * side, side), shade).save(place)
    return folder


def read(folder: Path, *, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return read_public_images(folder, size=16, channels=channels, seed=seed).pixels


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path / "run")


def test_all_images_at_any_depth_are_read_at_the_size_asked_for_in_an_order_of_the_seed(
    tmp_path: Path,
) -> None:
    folder = photos(tmp_path / "photos", 9)
    pixels = read(folder)
    assert pixels.shape == (9, 3, 16, 16) and pixels.dtype == torch.uint8
    reds = pixels[:, 0, 0, 0].tolist()
    assert sorted(reds) == [10 * index for index in range(9)] and reds != sorted(reds)
    assert torch.equal(read(folder), pixels) and not torch.equal(read(folder, seed=1), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_coloured_images_become_what_the_federation_takes(tmp_path: Path, channels: int) -> None:
    folder = photos(tmp_path / "photos", 3, colour=channels == 1)
    assert read(folder, channels=channels).shape[1] == channels


def test_that_all_images_are_grey_is_said_where_colour_is_learned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(photos(tmp_path / "photos", 3, colour=False))
    assert "all 3 images are grey" in caplog.text


def test_broken_images_are_passed_over_and_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = photos(tmp_path / "photos", 3)
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(b"no image")
    (folder / "text.txt").write_text("no image")
    assert len(read(folder)) == 3
    assert "passed over 2 images that cannot be read: of no known image format" in caplog.text
    assert "1 not an image (.txt)" in caplog.text


def test_no_more_is_kept_than_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = photos(tmp_path / "photos", 5)
    monkeypatch.setattr(public_images, "MAX_BYTES", 3 * 3 * 16 * 16 + 5)
    assert len(read(folder)) == 3 and "took 3 of 5 images" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "no such file or folder"),
        (lambda folder: folder.mkdir(), "no image in .*expected PNG"),
        (lambda folder: photos(folder, 1), "1 public images in .*name at least 2"),
        (
            lambda folder: [photos(folder, 3)] + [each.write_bytes(b"x") for each in folder.rglob("*.png")],
            r"0 public images in .*\(3 cannot be read: of no known image format",
        ),
    ],
    ids=["no folder", "no image", "one image", "all broken"],
)
def test_what_cannot_teach_anybody_is_one_clear_error_and_leaves_nothing(
    run: RunDirectory, tmp_path: Path, prepare: Callable[[Path], object], words: str
) -> None:
    prepare(tmp_path / "photos")
    with pytest.raises(DataError, match=words):
        run.adopt_public_images(tmp_path / "photos")
    assert run.public_images() is None


def test_images_that_vanish_while_they_are_read_are_an_error_with_the_systems_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("fedfree.host.images.sources.read_image_file", vanish)
    with pytest.raises(DataError, match=r"\(3 cannot be read: No such file or directory \(3\)\)"):
        read(photos(tmp_path / "photos", 3))


def test_a_run_keeps_what_was_read_also_when_the_folder_has_gone(
    run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = photos(tmp_path / "photos", 3)
    assert run.public_images() is None
    run.adopt_public_images(folder, size=16)
    run.adopt_public_images(folder, size=16)
    folder.rename(tmp_path / "gone")
    kept = run.public_images()
    assert kept is not None and torch.equal(kept.pixels, read(tmp_path / "gone"))
    assert f"3 public images, sha256 {kept.sha256}, beside recovered images" in caplog.text


def test_with_a_start_they_are_kept_as_it_takes_images(
    run: RunDirectory, tmp_path: Path, make_start: Callable[..., LoadedStart]
) -> None:
    begun = make_start()
    write_start(tmp_path / "start", begun.start, begun.weights)
    run.adopt_start(tmp_path / "start")
    run.adopt_public_images(photos(tmp_path / "photos", 2), size=99)
    kept = run.public_images()
    assert kept is not None and kept.pixels.shape == (2, 1, 16, 16)


def test_without_one_they_are_kept_at_a_size_that_learning_brings_to_its_own(
    run: RunDirectory, tmp_path: Path
) -> None:
    run.adopt_public_images(photos(tmp_path / "photos", 2))
    kept = run.public_images()
    assert kept is not None and kept.pixels.shape[1:] == (3, *(run_directory.PUBLIC_IMAGE_SIZE,) * 2)


def test_a_run_refuses_other_public_images_than_its_own(run: RunDirectory, tmp_path: Path) -> None:
    run.adopt_public_images(photos(tmp_path / "photos", 3), size=16)
    own = run.public_images()
    with pytest.raises(ConfigError, match="a run keeps its public images, so choose another"):
        run.adopt_public_images(photos(tmp_path / "other", 4), size=16)
    kept = run.public_images()
    assert own and kept and own.sha256 == kept.sha256


def test_a_run_that_has_begun_to_learn_without_them_takes_none(run: RunDirectory, tmp_path: Path) -> None:
    run.checkpoint.write_bytes(b"")
    with pytest.raises(ConfigError, match="has begun to learn without public images"):
        run.adopt_public_images(photos(tmp_path / "photos", 3))
    assert run.public_images() is None


def test_a_preset_that_shows_them_to_nobody_refuses_them(run: RunDirectory, tmp_path: Path) -> None:
    run.server_toml.write_text('preset = "paper"\n')
    with pytest.raises(ConfigError, match=r"learn.relational_tasks is 0 \(preset paper\)"):
        run.adopt_public_images(tmp_path / "no folder is looked at")


def test_a_file_that_is_damaged_is_named_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "public_images.safetensors"
    write_kept(file, read_public_images(photos(tmp_path / "p", 2), size=16, channels=3, seed=0))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"public_images.safetensors is damaged .* delete it"):
        read_kept(file)


def test_a_photograph_of_another_shape_is_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    assert (read(tmp_path / "photos") == 200).all()
