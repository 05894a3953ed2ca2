"""A place that cannot be written, and a disk that fills: one line that names it, and nothing lost."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.doors.trust import Trust
from client.training.ledger import Ledger
from fedfree.errors import StorageError
from server.config import ServerConfig
from server.doors.authority import certificate_pem, make_authority
from server.doors.tokens import Tokens
from server.events import Event, ignore
from server.storage.run_directory import RunDirectory
from server.storage.signing_key import SigningKey
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
    assert places["FILE"] in said and "is a file where a folder is expected: move it away" in said


def test_weights_that_could_not_be_written_are_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_program: RunProgram
) -> None:
    monkeypatch.setattr(
        "simulations.commands.main.make_public_weights", lambda *_, **__: pytest.fail("trained in vain")
    )
    status, _, said = run_program("simulations", "public-weights", tmp_path)
    assert status == 2
    assert said.startswith(f"error: cannot write {tmp_path}: {tmp_path} is a folder where a file is expected")


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


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("client", ("look", "images", "--config", "PIPE")),
        ("client", ("fetch", "--from", "localhost:1", "--token-file", "PIPE", "--insecure")),
        ("client", ("fetch", "--from", "localhost:1", "--ca", "PIPE")),
        ("client", ("evaluate", "--data", "images", "--limits", "PIPE")),
        ("client", ("pack", "PIPE", "--architecture", "conv4", "--classes", "3")),
        ("client", ("inspect", "PIPE")),
        ("server", ("learn", "run", "--config", "PIPE")),
        ("server", ("start", "make", "--weights", "PIPE", "--architecture", "conv4", "--image-size", "16")),
        ("simulations", ("results", "add", "PIPE")),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else each,
)
def test_a_pipe_into_which_nobody_writes_is_refused_and_not_waited_for(
    program: str,
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_program: RunProgram,
) -> None:
    os.mkfifo(tmp_path / "PIPE")
    monkeypatch.chdir(tmp_path)
    status, _, said = run_program(program, *command)
    assert (status, said.count("\n")) == (2, 1), said
    assert "PIPE" in said


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("ledger.sqlite", lambda path: Ledger(path).entries()),
        ("tokens.json", lambda path: Tokens(path).add("clinic")),
        ("signing.json", lambda path: SigningKey(path).public),
        ("coordinator.json", lambda path: Trust(path).words()),
    ],
)
def test_what_lies_on_a_disk_that_is_not_there_now_is_not_begun_anew(
    name: str, use: Callable[[Path], object], tmp_path: Path
) -> None:
    link = tmp_path / name
    link.symlink_to(tmp_path / "disk" / name)
    with pytest.raises(StorageError, match=f"{name}: No such file"):
        use(link)
    assert link.is_symlink() and not link.exists()
