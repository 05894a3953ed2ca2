"""A place that cannot be written, and a disk that fills: one line that names it, and nothing lost."""

import errno
import os
from pathlib import Path

import pytest

from fedfree.errors import StorageError
from server.config import ServerConfig
from server.doors.authority import certificate_pem, make_authority
from server.events import Event, ignore
from server.storage.run_directory import RunDirectory
from tests.programs import RunProgram

EVENT = Event("learn", "progress", {"iteration": 1, "of": 2})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A prepared run."""
    (tmp_path / "server.toml").write_text(ServerConfig().to_toml())
    return RunDirectory(tmp_path)


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("server", ("init", "FILE/coordinator", "--name", "127.0.0.1")),
        ("server", ("learn", "FILE/run")),
        ("server", ("serve", "--store", "FILE/run", "--insecure")),
        ("server", ("token", "add", "clinic", "--store", "FILE/run")),
        ("client", ("init", "FILE/org", "--server", "a.example:1", "--ca", "CA", "--data", "FILE")),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else each,
)
def test_a_place_that_cannot_be_written_is_named_in_one_line(
    program: str, command: tuple[str, ...], tmp_path: Path, run_program: RunProgram
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ca.crt").write_bytes(certificate_pem(make_authority()[0]))
    places = {"FILE": str(tmp_path / "file"), "CA": str(tmp_path / "ca.crt")}
    words = [word.replace("FILE", places["FILE"]).replace("CA", places["CA"]) for word in command]
    status, _, said = run_program(program, *words)
    assert (status, said.count("\n")) == (2, 1), said
    assert places["FILE"] in said and "Not a directory" in said


def test_after_a_torn_event_the_next_is_read_and_the_torn_one_is_passed_over(run: RunDirectory) -> None:
    record = run.recorded(ignore)
    record(EVENT)
    with run.events.open("a") as file:
        file.write('{"time": "2026-')
    record(EVENT)
    assert run.read_events() == [EVENT, EVENT]


def test_an_event_that_finds_no_room_is_told_as_a_full_disk(run: RunDirectory) -> None:
    run.events.symlink_to("/dev/full")
    seen: list[Event] = []
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        run.recorded(seen.append)(EVENT)
    assert seen == []
