"""Many pixels lie in a file that nobody sees, few in memory, and a full disk is found out at once."""

import errno
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from client.data import room
from client.data.image_set import ImageSet, split_held_out
from client.data.loading import load_images
from client.data.room import room_for
from fedfree.errors import StorageError
from fedfree.host.places import cache_folder

WriteSource = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture
def photos(tmp_path: Path, write_source: WriteSource) -> Path:
    files = {}
    for index in range(12):
        buffer = BytesIO()
        Image.new("RGB", (24, 16), (20 * index, 0, 9)).save(buffer, "png")
        files[f"{'cat' if index < 6 else 'dog'}/{index:02}.png"] = buffer.getvalue()
    return write_source(tmp_path / "photos", files)


def mapped_files() -> int:
    """Nameless files of the cache folder that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(cache_folder()) in line and "(deleted)" in line for line in lines)


def test_up_to_the_limit_pixels_are_in_memory_and_above_it_in_a_file_that_goes_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "IN_MEMORY", 3 * 16 * 16)
    small = room_for((1, 3, 16, 16))
    assert small.shape == (1, 3, 16, 16) and mapped_files() == 0
    large = room_for((2, 3, 16, 16))
    large.fill_(7)
    assert int(large.sum()) == 7 * 2 * 3 * 16 * 16 and mapped_files() == 1
    assert list(cache_folder().iterdir()) == []
    del large
    assert mapped_files() == 0


def test_a_set_on_disk_is_the_set_in_memory_and_so_are_its_parts(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> list[ImageSet]:
        whole = load_images(photos, size=16)
        halves = split_held_out(whole, fraction=0.5, generator=torch.Generator().manual_seed(0))
        return [whole, *halves]

    in_memory = parts()
    monkeypatch.setattr(room, "IN_MEMORY", 1)
    on_disk = parts()
    assert mapped_files() == 3
    assert [each.fingerprint() for each in on_disk] == [each.fingerprint() for each in in_memory]
    batch = torch.tensor([4, 0, 4])
    assert torch.equal(on_disk[1].images[batch], in_memory[1].images[batch])


def test_a_disk_without_room_is_named_before_an_image_is_decoded(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room, "IN_MEMORY", 1)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("client.data.loading.decode_square", lambda *_: pytest.fail("decoded"))
    with pytest.raises(StorageError, match=r"no room in .* for 12 images, .* MB .*XDG_CACHE_HOME.*No space"):
        load_images(photos, size=64, channels=3)
    assert mapped_files() == 0 and list(cache_folder().iterdir()) == []
