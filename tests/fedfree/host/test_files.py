"""Files that matter: whole or not at all, and a log whose torn lines spoil no others."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.training.cache import check_writable
from fedfree.errors import ConfigError, StorageError
from fedfree.host import files
from fedfree.host.files import (
    append_line,
    is_there,
    move_into_place,
    open_stream,
    read_file,
    read_piped,
    require_file,
    require_writable,
    write_file,
    write_together,
    writing_new,
)
from server.storage.store import Store


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    for line in ("one\n", "tor", "two\n", "three\n"):
        append_line(log, line)
    assert log.read_text() == "one\ntor\ntwo\nthree\n"


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*none/log: No such file"):
        append_line(tmp_path / "none" / "log", "line\n")


def test_a_stream_goes_on_where_it_was_left_or_begins_anew(tmp_path: Path) -> None:
    for begun, expected in ((False, b"b"), (True, b"bb"), (False, b"b")):
        with open_stream(tmp_path / "file", begun=begun) as stream:
            stream.write(b"b")
        assert (tmp_path / "file").read_bytes() == expected
    with pytest.raises(StorageError, match=r"cannot write .*none/file: No such file"):
        open_stream(tmp_path / "none" / "file")


def test_a_finished_file_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, path, synced = tmp_path / "partial", tmp_path / "path", list[tuple[str, bool]]()
    partial.write_bytes(b"new")
    path.write_bytes(b"old")
    monkeypatch.setattr(files, "sync", lambda each: synced.append((each.name, partial.exists())))
    move_into_place(partial, path)
    assert path.read_bytes() == b"new"
    assert synced == [("partial", True), (tmp_path.name, False)]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "path"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*path: No space left on device"):
        write_file(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["path"]
    assert path.read_bytes() == b"old"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Into which nobody writes."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_what_is_no_file_is_not_waited_for_nor_read_for_ever(pipe: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(StorageError, match=f"cannot read {path}: it is a pipe, a socket or a device"):
            read_file(path)


def test_what_is_no_file_is_not_replaced_by_one(pipe: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot write {pipe}: it is a pipe, a socket or a device"):
        write_file(pipe, b"new")
    assert pipe.is_fifo() and list(pipe.parent.iterdir()) == [pipe]


@pytest.mark.parametrize(
    "use",
    [
        read_file,
        require_file,
        require_writable,
        lambda path: write_file(path, b""),
        lambda path: append_line(path, "line"),
        open_stream,
        lambda path: move_into_place(path.parent / "file", path),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        StorageError, match=f"{tmp_path}/folder is a folder where a file is expected: move it"
    ):
        use(tmp_path / "folder")


@pytest.mark.parametrize(
    "use",
    [
        lambda file: read_file(file / "deep" / "file"),
        lambda file: write_file(file / "deep" / "file", b""),
        lambda file: require_writable(file / "file"),
        lambda file: Store(file.parent),
        lambda file: Store(file),
        lambda file: check_writable(file),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (file := tmp_path / "accepted").touch()
    with pytest.raises(StorageError, match=f"{file} is a file where a folder is expected: move it away"):
        use(file)


def test_a_pipe_is_read_where_that_is_asked_for_as_far_as_somebody_writes(pipe: Path) -> None:
    assert read_piped(pipe) == b""
    reading, writing = os.pipe()
    os.write(writing, b"token")
    os.close(writing)
    assert read_piped(Path(f"/dev/fd/{reading}")) == b"token"
    os.close(reading)


def test_a_link_that_leads_nowhere_is_no_file_that_was_never_written(tmp_path: Path) -> None:
    link = tmp_path / "link"
    assert not is_there(link)
    link.symlink_to("target")
    with pytest.raises(StorageError, match=r"cannot read .*link: No such file"):
        is_there(link)
    (tmp_path / "target").touch()
    assert is_there(link)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(pipe: Path) -> None:
    for path in (pipe, pipe / "file", pipe.parent, Path("/proc/none/file")):
        with pytest.raises(StorageError, match=f"cannot write {path}: "):
            require_writable(path)
    require_writable(pipe.parent / "new" / "folder" / "file")
    assert not (pipe.parent / "new").exists()


@contextmanager
def room_for(most: int) -> Iterator[None]:
    """Files of so many bytes at most, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make(folder: Path, files: Mapping[str, bytes]) -> None:
    with writing_new(folder, files):
        pass


def test_of_new_files_of_which_one_finds_no_room_none_is_left_to_stand_in_the_way(tmp_path: Path) -> None:
    files = {"small": b"x", "large": bytes(100)}
    with room_for(10), pytest.raises(StorageError, match="large"):
        make(tmp_path, files)
    assert list(tmp_path.iterdir()) == []
    make(tmp_path, files)
    with pytest.raises(ConfigError, match="has a small"):
        make(tmp_path, files)
    assert {each.name for each in tmp_path.iterdir()} == files.keys()


def test_new_files_are_taken_back_where_what_belongs_to_them_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no start"), writing_new(tmp_path, {"a": b"a", "mark": b""}):
        assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["a"]
        raise ConfigError("no start")
    assert list(tmp_path.iterdir()) == []


def test_of_files_that_belong_together_none_is_replaced_where_one_finds_no_room(tmp_path: Path) -> None:
    old = {tmp_path / "manifest": b"old", tmp_path / "weights": b"old"}
    write_together(old)
    new = {tmp_path / "manifest": b"new", tmp_path / "weights": bytes(100)}
    with room_for(10), pytest.raises(StorageError, match=r"cannot write .*weights"):
        write_together(new)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
    write_together(new)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == new


def test_of_two_who_write_files_that_belong_together_at_once_the_files_of_one_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(content: bytes) -> dict[Path, bytes]:
        return {tmp_path / "a": content, tmp_path / "b": content}

    other, move = threading.Thread(target=write_together, args=[pair(b"other")]), files.move_into_place

    def move_then_let_the_other_try(partial: Path, path: Path) -> None:
        move(partial, path)
        if not other.ident:
            other.start()
            other.join(timeout=0.3)

    monkeypatch.setattr(files, "move_into_place", move_then_let_the_other_try)
    write_together(pair(b"first"))
    other.join()
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"other", b"other"]
