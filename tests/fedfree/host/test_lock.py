"""A folder held by one process at a time, which the others are told of."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedfree.errors import ConfigError, StorageError
from fedfree.host import lock
from fedfree.host.lock import alone, exclusive, require_free
from tests.programs import RunProgram

HOLD = (
    "import sys, threading; from pathlib import Path; from fedfree.host.lock import exclusive\n"
    "with exclusive(Path(sys.argv[1])): print('held', flush=True); threading.Event().wait()"
)


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    home = tmp_path / "coordinator" / ".flwr"
    with exclusive(home), pytest.raises(ConfigError, match="another process runs in"), exclusive(home):
        pytest.fail("both hold it")
    with exclusive(home):
        pass


def test_the_one_refused_is_told_who_holds_the_folder_and_a_killed_holder_leaves_nothing(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "a word", "--token", "secret"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as refused:
            require_free(tmp_path)
        for word in (str(tmp_path), f"process {holder.pid} on ", "since 20", "'a word'"):
            assert word in str(refused.value)
        assert "secret" not in str(refused.value)
        holder.send_signal(signal.SIGKILL)
    with exclusive(tmp_path):
        pass


def test_looking_whether_a_folder_is_free_leaves_nothing_in_it(tmp_path: Path) -> None:
    require_free(tmp_path)
    require_free(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"), exclusive(tmp_path / "file"):
        pytest.fail("held")


def test_who_holds_a_folder_is_told_also_of_a_command_whose_words_are_no_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedfree-server", "learn", os.fsdecode(b"run-\xff")])
    with exclusive(tmp_path), pytest.raises(ConfigError, match=r"learn '?run-\?"), exclusive(tmp_path):
        pytest.fail("both hold it")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        *(("simulations", f"bench {name}") for name in ("quality", "speed", "scale", "alignment", "poison")),
        *(("simulations", f"privacy {name}") for name in ("audit", "sweep")),
        ("client", "rehearse --data nowhere"),
    ],
)
def test_a_command_that_continues_a_folder_refuses_one_in_which_another_runs(
    tmp_path: Path, run_program: RunProgram, program: str, words: str
) -> None:
    with exclusive(tmp_path):
        status, _, error = run_program(program, *words.split(), "--out", tmp_path)
    assert status == 2
    assert f"another process runs in {tmp_path}: process {os.getpid()} on " in error
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_such_a_command_leaves_no_lock_and_no_folder_of_its_own_without_anything_in_it(
    tmp_path: Path,
) -> None:
    @alone
    def command(*, out: Path, name: str | None) -> None:
        assert (out / ".lock").exists()
        if name is None:
            raise ConfigError("no name")
        (out / name).write_text("written")

    for out in (tmp_path / "new", tmp_path):
        with pytest.raises(ConfigError, match="no name"):
            command(out=out, name=None)
    assert list(tmp_path.iterdir()) == []
    command(out=tmp_path / "new", name="table")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "table"]


def test_who_waited_for_a_lock_that_was_removed_takes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = lock._take, 0

    def take_and_lose(descriptor: int, folder: Path, until: float) -> None:
        nonlocal taken
        take(descriptor, folder, until)
        taken += 1
        if taken == 1:
            (folder / ".lock").unlink()

    monkeypatch.setattr(lock, "_take", take_and_lose)
    with exclusive(tmp_path), pytest.raises(ConfigError, match="another process runs in"):
        require_free(tmp_path)
    assert taken == 2
