"""The engines that run a prepared run directory: the same two Flower apps, in one process or under Ray.

Both leave the same files and report the same events. Relative paths in the organisations' configurations
are relative to the working directory of this process in one, of the project in the other: prepare
absolute ones.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import client.app
import server
import server.app
from fedfree.errors import ConfigError, FederationError
from server.events import OnEvent
from server.run_directory import RunDirectory, event_from_line
from simulations.grid import InProcessGrid

log = logging.getLogger(__name__)

_CONNECTION = "private"
_FOLLOW_SECONDS = 0.3
_STATUS_SECONDS = 20.0
"""Asking Flower for a run's status starts a process of one CPU second; the event log costs nothing."""
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_COMMAND_SECONDS = 120.0


def run_in_process(run: Path, *, organisations: int, on_event: OnEvent) -> None:
    """Run server and organisations one after the other in this process.

    Raises:
        FederationError: too few organisations contributed.
        Exception: whatever a programming error raises, on either side.
    """
    _check(run, organisations)
    grid = InProcessGrid(client.app.app, {"run": str(run.resolve())}, organisations=organisations)
    server.app.serve(grid, run, on_event=on_event)


def run_flower(run: Path, *, organisations: int, on_event: OnEvent) -> None:
    """Run server and organisations under Flower's simulation runtime, and stop everything it started.

    Raises:
        FederationError: the run did not complete; the message gives the reason.
    """
    directory = _check(run, organisations)
    directory.error.unlink(missing_ok=True)
    events = _Tail(directory.events)
    with _sigterm_raises(), _superlink(run.resolve()) as flower:
        run_id = flower.submit(run.resolve(), organisations)
        status, details = _follow(flower, run_id, directory, events, on_event)
    if status != "finished:completed":
        raise FederationError(_reason(directory, details) or f"the Flower run ended as {status}")


def _check(run: Path, organisations: int) -> RunDirectory:
    directory = RunDirectory(run)
    expected = directory.config().collect.organisations
    if organisations < expected:
        raise ConfigError(
            f"{directory.server_toml} expects {expected} organisations, but {organisations} take part"
        )
    return directory


def _follow(
    flower: "_SuperLink", run_id: str, directory: RunDirectory, events: "_Tail", on_event: OnEvent
) -> tuple[str, str]:
    """Report events until the run has ended; its status and details as Flower states them."""
    asked_at, ending = time.monotonic(), False
    while True:
        for line in events.lines():
            event = event_from_line(line)
            on_event(event)
            ending |= (event.stage, event.kind) == ("adapt", "finished")
        ending |= directory.error.exists()
        if ending or time.monotonic() - asked_at > _STATUS_SECONDS:
            status, details = flower.status(run_id)
            if status.startswith("finished"):
                for line in events.lines():
                    on_event(event_from_line(line))
                return status, details
            asked_at = time.monotonic()
        time.sleep(_FOLLOW_SECONDS)


def _reason(directory: RunDirectory, details: str) -> str:
    """Why a run failed: in the server app's words, else in Flower's."""
    with suppress(OSError):
        return directory.error.read_text().strip()
    return details.strip()


class _Tail:
    """What is appended to a file from now on, by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return whole.decode().splitlines()


@dataclass(frozen=True)
class _SuperLink:
    """A private SuperLink in simulation mode, and the Flower commands that talk to it."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log_file: Path

    def submit(self, run: Path, organisations: int) -> str:
        """Submit the project's apps for a run directory and return Flower's run id."""
        cpus = min(os.cpu_count() or 1, organisations)
        answer = self._flwr(
            *("run", str(_project_root()), _CONNECTION),
            *("--run-config", f"run={json.dumps(str(run))}"),
            "--federation-config",
            f"num-supernodes={organisations} client-resources-num-cpus=1 init-args-num-cpus={cpus}",
        )
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's status and details of a run."""
        if (code := self.process.poll()) is not None:
            raise FederationError(f"Flower's SuperLink ended with exit status {code}; see {self.log_file}")
        runs = self._flwr("ls", _CONNECTION, "--run-id", run_id)["runs"]
        return runs[0]["status"], runs[0]["status-details"]

    def wait_until_ready(self, port: int) -> None:
        """Return once the SuperLink listens."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(_FOLLOW_SECONDS)
        raise FederationError(
            f"Flower's SuperLink did not start within {_START_SECONDS:.0f} s; see {self.log_file}"
        )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a Flower command and return its JSON; its exit status tells nothing."""
        done = subprocess.run(
            [_executable("flwr", self.environment), *arguments, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"error-message": done.stderr or done.stdout}
        if not answer.get("success"):
            said = str(answer.get("error-message", "")).strip().splitlines() or ["it does not say why"]
            raise FederationError(f"`flwr {arguments[0]}` failed: {said[-1]}")
        return answer


@contextmanager
def _superlink(run: Path) -> Iterator[_SuperLink]:
    """Start a SuperLink of our own, and stop it with everything that it started."""
    port = _free_port()
    home = run / ".flwr"
    scratch = Path(tempfile.mkdtemp(prefix="fedfree-"))  # Ray's sockets need a short path
    environment = _environment(home, scratch)
    _write_connection(home, port)
    process = subprocess.Popen(
        [
            _executable("flower-superlink", environment),
            *("--insecure", "--simulation", "--isolation", "subprocess"),
            *("--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)),
            *("--log-file", str(home / "superlink.log")),
        ],
        env=environment,
        # Ray's workers import the apps from here before they look into Flower's bundle.
        cwd=_project_root(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        flower = _SuperLink(process, environment, home / "superlink.log")
        flower.wait_until_ready(port)
        yield flower
    finally:
        _stop(process, home)
        shutil.rmtree(scratch, ignore_errors=True)


def _environment(home: Path, scratch: Path) -> dict[str, str]:
    """This process's environment, with Flower and Ray kept private and quiet."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch),
    }


def _write_connection(home: Path, port: int) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
        f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def _stop(process: subprocess.Popen[bytes], home: Path) -> None:
    """End the SuperLink, then whatever it left: first asking, then not."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    if process.poll() is None:
        process.kill()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(_processes(home), signum)
        deadline = time.monotonic() + _STOP_SECONDS
        while _processes(home) and time.monotonic() < deadline:
            time.sleep(_FOLLOW_SECONDS)
    process.wait()


def _processes(home: Path) -> list[int]:
    """Processes that inherited our FLWR_HOME: Flower's and Ray's start sessions of their own.

    Without /proc there are none to see; Flower's then end by themselves when the SuperLink is gone.
    """
    marker = f"FLWR_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _signal_all(processes: list[int], signum: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signum)


def _executable(name: str, environment: Mapping[str, str]) -> str:
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise FederationError(
            f"{name} is not installed: install fedfree with its extra, `pip install fedfree[simulation]`"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _project_root() -> Path:
    """The folder of pyproject.toml, which names the apps."""
    root = Path(server.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise FederationError(
            f"the engine flower needs the project's sources, and {root} has no pyproject.toml: "
            "run it from a clone, or use the in-process engine"
        )
    return root


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that what was started is stopped first."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
