"""Finding files in a folder or a zip: links, hidden names, odd names, damaged and hostile zips."""

import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from client.data.finding import list_classes, survey
from fedfree.errors import DataError
from fedfree.host.images import sources
from fedfree.host.images.passed_over import Reason
from fedfree.host.images.sources import open_source

MakePng = Callable[[int], bytes]
WriteSource = Callable[[Path, Mapping[str, bytes]], Path]

CLASSES = ("cat/0.png", "dog/0.png")
KINDS = pytest.mark.parametrize("kind", ["folder", "images.zip"])


def found_in(source: Path) -> tuple[set[str], dict[Reason, set[str]]]:
    """The images of a source, and what is passed over."""
    with open_source(source) as opened:
        passed = {
            reason: {"/".join(parts) for parts in paths}
            for reason, paths in opened.listing.passed_over.items()
        }
        return {"/".join(parts) for parts in opened.listing.images}, passed


@KINDS
def test_hidden_files_and_folders_are_counted_once_each(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    hidden = ("cat/._0.png", ".DS_Store", ".git/a/0.png", ".git/b/1.png", "w/__MACOSX/cat/0.png")
    source = write_source(tmp_path / kind, dict.fromkeys((*CLASSES, *hidden), b""))
    assert found_in(source) == (
        set(CLASSES),
        {Reason.HIDDEN: {"cat/._0.png", ".DS_Store", ".git", "w/__MACOSX"}},
    )


@KINDS
def test_every_file_is_an_image_or_passed_over_with_its_reason(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    images = {
        f"cat/{index}{suffix}" for index, suffix in enumerate((".webp", ".TIF", ".bmp", ".gif", ".jpeg"))
    }
    files = {*images, "cat/a.HEIC", "cat/b.nef", "notes.txt", "cat/name"}
    assert found_in(write_source(tmp_path / kind, dict.fromkeys(files, b""))) == (
        images,
        {Reason.NOT_READ: {"cat/a.HEIC", "cat/b.nef"}, Reason.NOT_IMAGE: {"notes.txt", "cat/name"}},
    )


@KINDS
def test_a_class_folder_without_an_image_is_named(
    tmp_path: Path, write_source: WriteSource, make_png: MakePng, kind: str
) -> None:
    files = dict.fromkeys(("w/cat/0.png", "w/owl/", "w/elk/a.heic"), make_png(0))
    found = survey(write_source(tmp_path / kind, files))
    assert found.classes == {"cat": 1}
    assert "2 class folders without an image (w/elk, w/owl)" in str(found.passed_over)


@KINDS
def test_names_with_odd_characters_are_read(
    tmp_path: Path, write_source: WriteSource, make_png: MakePng, kind: str
) -> None:
    files = dict.fromkeys(("a b ćmą 猫/x\ny.png", "-rf *?/%s{}'\".png"), make_png(0))
    source = write_source(tmp_path / kind, files)
    assert list_classes(source) == {"-rf *?": 1, "a b ćmą 猫": 1}
    with open_source(source) as opened:
        assert {opened.read(parts) for parts in opened.listing.images} == {make_png(0)}


def test_linked_folders_and_files_are_followed_by_every_reader(
    tmp_path: Path, write_source: WriteSource
) -> None:
    elsewhere = write_source(tmp_path / "elsewhere", dict.fromkeys(("a/0.png", "1.png"), b""))
    source = write_source(tmp_path / "folder", dict.fromkeys(CLASSES, b""))
    (source / "owl").symlink_to(elsewhere)
    (source / "cat" / "linked.png").symlink_to(elsewhere / "1.png")
    assert found_in(source) == ({*CLASSES, "owl/a/0.png", "owl/1.png", "cat/linked.png"}, {})


def test_a_link_back_to_a_folder_above_is_passed_over(tmp_path: Path, write_source: WriteSource) -> None:
    source = write_source(tmp_path / "folder", dict.fromkeys(CLASSES, b""))
    (source / "owl").symlink_to(source)
    (source / "cat" / "deep").mkdir()
    (source / "cat" / "deep" / "up").symlink_to(source / "cat")
    assert found_in(source) == (set(CLASSES), {Reason.LOOP: {"owl", "cat/deep/up"}})


def test_links_that_lead_nowhere_and_pipes_are_passed_over(tmp_path: Path, write_source: WriteSource) -> None:
    source = write_source(tmp_path / "folder", dict.fromkeys(CLASSES, b""))
    (source / "cat" / "gone.png").symlink_to(tmp_path / "absent.png")
    (source / "itself").symlink_to(source / "itself")
    os.mkfifo(source / "dog" / "pipe.png")
    assert found_in(source) == (
        set(CLASSES),
        {Reason.NOWHERE: {"cat/gone.png", "itself"}, Reason.SPECIAL: {"dog/pipe.png"}},
    )


def test_a_folder_that_cannot_be_opened_is_refused(
    tmp_path: Path, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "folder", dict.fromkeys(CLASSES, b""))
    listed = Path.iterdir

    def refuse(folder: Path) -> object:
        if folder.name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot open the folder .*dog \(Permission denied\); make it"):
        found_in(source)


def test_backslashes_in_a_zip_part_folders(
    tmp_path: Path, write_source: WriteSource, make_png: MakePng
) -> None:
    files = {"w\\": b"", "w\\cat\\": b"", "w\\cat\\0.png": make_png(1), ".\\w\\dog\\a\\0.png": make_png(2)}
    source = write_source(tmp_path / "images.zip", files)
    assert list_classes(source) == {"cat": 1, "dog": 1}
    with open_source(source) as opened:
        assert opened.read(("w", "dog", "a", "0.png")) == make_png(2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_a_zip_has_twice_the_last_is_read_and_the_other_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for content in (b"first", b"last"):
            archive.writestr("cat/0.png", content)
    with open_source(tmp_path / "images.zip") as opened:
        assert opened.listing.images == {("cat", "0.png")}
        assert opened.read(("cat", "0.png")) == b"last"
        assert opened.listing.passed_over == {Reason.REPLACED: {("cat", "0.png")}}


def test_a_link_stored_in_a_zip_is_passed_over(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/linked.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/0.png", b"")
        archive.writestr(link, "0.png")
    assert found_in(tmp_path / "images.zip") == ({"cat/0.png"}, {Reason.NOWHERE: {"cat/linked.png"}})


def test_an_encrypted_zip_is_refused_with_the_remedy(tmp_path: Path, write_source: WriteSource) -> None:
    source = write_source(tmp_path / "images.zip", dict.fromkeys(CLASSES, b""))
    content = bytearray(source.read_bytes())
    for place in (content.find(b"PK\x01\x02") + 8, content.find(b"PK\x03\x04") + 6):
        content[place] |= 1
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.zip is encrypted; unpack it with its password and pass"):
        found_in(source)


@KINDS
def test_a_file_larger_than_any_image_is_refused_before_it_is_read(
    tmp_path: Path, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = write_source(tmp_path / kind, {"cat/0.png": bytes(1000)})
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 999)
    with (
        open_source(source) as opened,
        pytest.raises(DataError, match=r"cannot read the image cat/0\.png .*1000 bytes, more than the 999"),
    ):
        opened.read(("cat", "0.png"))


def test_a_member_that_unpacks_to_hundreds_of_times_its_size_is_refused_before_it_is_unpacked(
    tmp_path: Path,
) -> None:
    source = tmp_path / "images.zip"
    sizes = {"bomb.png": sources.SMALL_MEMBER + 1, "small.png": sources.SMALL_MEMBER}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in sizes.items():
            archive.writestr(f"cat/{name}", bytes(size))
    with open_source(source) as opened:
        assert len(opened.read(("cat", "small.png"))) == sources.SMALL_MEMBER
        with pytest.raises(DataError, match=r"cat/bomb\.png .*16777217: a decompression bomb"):
            opened.read(("cat", "bomb.png"))


def test_a_zip_with_any_byte_changed_is_read_or_refused_clearly(
    tmp_path: Path, write_source: WriteSource
) -> None:
    source = write_source(tmp_path / "images.zip", {"cat/0.png": b"some bytes"})
    whole = source.read_bytes()
    for place in range(len(whole)):
        source.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            with open_source(source) as opened:
                for parts in opened.listing.images:
                    opened.read(parts)
        except DataError as error:
            assert "images.zip" in str(error)


@KINDS
def test_folders_too_deep_in_one_another_are_refused_and_those_within_the_bound_read(
    tmp_path: Path, write_source: WriteSource, kind: str
) -> None:
    deepest = "cat/" + "d/" * (sources.MOST_FOLDERS - 1) + "1.png"
    source = write_source(tmp_path / kind, dict.fromkeys((*CLASSES, deepest), b""))
    assert found_in(source)[0] == {*CLASSES, deepest}
    source = write_source(tmp_path / f"deep-{kind}", dict.fromkeys((*CLASSES, f"cat/d/{deepest}"), b""))
    with pytest.raises(DataError, match=r"more than 100 folders in one another, below cat/d/cat: flatten"):
        list_classes(source)


def test_a_zip_that_claims_thousands_of_folders_is_refused_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/" + "d/" * 30_000 + "0.png", b"")
    with pytest.raises(DataError, match="more than 100 folders"):
        survey(tmp_path / "images.zip")
