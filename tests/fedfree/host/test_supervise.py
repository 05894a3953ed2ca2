"""Processes kept up: when they are tried again, and how long is waited."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedfree.host.flower_process import environment, processes, stop_all
from fedfree.host.supervise import HEALTHY_SECONDS, ProcessEndedError, child, ends_soon, persist


class Attempts:
    """Attempts that last as long as told and then break down; None ends well."""

    def __init__(self, *lasting: float | None) -> None:
        self._lasting = list(lasting)
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> None:
        seconds = self._lasting.pop(0)
        if seconds is not None:
            self.now += seconds
            raise ProcessEndedError("the process ended")

    def persist(self, retries: int) -> None:
        persist(self, retries=retries, clock=lambda: self.now, pause=self.pauses.append)


def test_pauses_double_up_to_a_minute() -> None:
    attempts = Attempts(*[1.0] * 8, None)
    attempts.persist(retries=8)
    assert attempts.pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_an_attempt_that_lasted_begins_the_pauses_anew() -> None:
    attempts = Attempts(1.0, 1.0, HEALTHY_SECONDS + 1, None)
    attempts.persist(retries=2)
    assert attempts.pauses == [1, 2, 1]


def test_after_so_many_retries_the_last_reason_is_told() -> None:
    attempts = Attempts(1.0, 1.0, 1.0)
    with pytest.raises(ProcessEndedError, match="the process ended"):
        attempts.persist(retries=2)
    assert attempts.pauses == [1, 2]


def test_a_child_is_ended_with_its_block_and_what_it_printed_is_kept(tmp_path: Path) -> None:
    code = "import sys, threading; print('ready', flush=True); threading.Event().wait()"
    output = tmp_path / "log"
    output.write_text("before\n")
    command = [sys.executable, "-c", code]
    with child(command, environment=os.environ, directory=tmp_path, output=output) as process:
        while output.read_text() != "before\nready\n":
            assert process.poll() is None
    assert process.returncode == -signal.SIGTERM


def test_everything_started_for_a_home_is_found_and_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    with child(command, environment=environment(tmp_path), directory=tmp_path) as process:
        assert processes(tmp_path) == [process.pid]
        assert processes(tmp_path / "other") == []
        stop_all(tmp_path)
        assert process.wait(10) != 0


STUBBORN = """
import signal, sys, threading
from fedfree.host.supervise import ends_soon
signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(word=""):
    try:
        if word:
            print(word, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass

def go_on(word=""):
    wait(word)
    while True:
        wait()

with ends_soon(lambda: "the last word", seconds=0.1):
    if sys.argv[1] == "inside":
        go_on("begun")
    if sys.argv[1] == "unwound":
        wait("begun")
go_on("begun" if sys.argv[1] == "after" else "")
"""


@pytest.mark.parametrize(("where", "said"), [("inside", b"the last word\n"), ("unwound", b"")])
def test_ctrl_c_ends_what_does_not_end_by_itself(where: str, said: bytes) -> None:
    with stubborn(where) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", said)
        assert process.returncode == 130


def test_ctrl_c_after_the_block_is_none_of_its_business() -> None:
    with stubborn("after") as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


def test_outside_the_main_thread_nothing_is_watched() -> None:
    entered = []

    def enter() -> None:
        with ends_soon(lambda: ""):
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]


@contextmanager
def stubborn(where: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, where],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            yield process
        finally:
            process.kill()
