"""Keep a process running: again with longer and longer pauses, until a signal."""

import atexit
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fedfree.errors import FederationError
from fedfree.host.files import open_stream

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 120.0
"""An attempt that lasted so long was a success: the next pause is the shortest again."""
LONGEST_PAUSE_SECONDS = 60.0
STOP_SECONDS = 15.0
SOON_SECONDS = 1.5
"""How long somebody who pressed Ctrl-C waits at most."""


class ProcessEndedError(FederationError):
    """A process that should have gone on has ended; trying again may help."""


def persist(
    attempt: Callable[[], None],
    *,
    retries: int,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Call ``attempt`` until it returns, with pauses of 1, 2, 4, … 60 s where it breaks down.

    Raises:
        ProcessEndedError: a first attempt and ``retries`` more failed, none of which lasted HEALTHY_SECONDS.
    """
    failures = 0
    while True:
        started = clock()
        try:
            return attempt()
        except ProcessEndedError as ended:
            failures = 1 if clock() - started > HEALTHY_SECONDS else failures + 1
            if failures > retries:
                raise
            seconds = min(2.0 ** (failures - 1), LONGEST_PAUSE_SECONDS)
            log.warning("%s; again in %.0f s (retry %d of %d)", ended, seconds, failures, retries)
            pause(seconds)


@contextmanager
def child(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, output: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, so that a Ctrl-C is ours to handle; ended on the way out.

    Args:
        output: file to which it appends what it prints; nowhere by default.
    """
    with open_stream(output or Path(os.devnull), begun=True) as target:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


@contextmanager
def signals_raise(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into SystemExit (143, 130), so that what was started is stopped first.

    Args:
        first: called before it is raised.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        first()
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def ends_soon(line: Callable[[], str], *, seconds: float = SOON_SECONDS) -> Iterator[None]:
    """Let Ctrl-C end this process within so many seconds, with exit status 130, wherever it is in the block.

    Python raises KeyboardInterrupt between two of its own instructions; one that calls into C for long, and
    threads that are waited for at the end, would make a person wait. So whatever is unwound meanwhile, the
    process then ends at once: what it writes must be whole or absent at any time.

    Args:
        line: what to say on standard error where the block has not been left by then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed, told = os.pipe()
    os.set_blocking(told, False)
    left, decided = threading.Event(), threading.Event()
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_end_after, args=(pressed, seconds, left, decided, line), daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(told)
        decided.wait(seconds)


def _end_after(
    pressed: int, seconds: float, left: threading.Event, decided: threading.Event, line: Callable[[], str]
) -> None:
    """Wait for Ctrl-C, or for the end of the block without one; after Ctrl-C end the process in time."""
    while (signum := os.read(pressed, 1)) and signum[0] != signal.SIGINT:
        pass
    if not signum:
        decided.set()
        os.close(pressed)
        return
    atexit.register(os._exit, 128 + signal.SIGINT)  # taking torch and its like apart takes another second
    decided.set()
    time.sleep(seconds)
    if not left.is_set():
        shows_cursor = b"\x1b[?25h" if os.isatty(2) else b""
        os.write(2, shows_cursor + line().encode(errors="replace") + b"\n")
    os._exit(128 + signal.SIGINT)
