"""A SuperLink of our own, the Flower commands that talk to it, and a run followed to its end."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfree.errors import FederationError
from fedfree.host.channel import Address
from fedfree.host.files import write_file
from fedfree.host.flower_bundle import write_bundle
from fedfree.host.flower_process import executable, stop_all
from fedfree.host.supervise import ProcessEndedError, child
from server.events import OnEvent
from server.storage.run_directory import RunDirectory, events_from_lines

CONNECTION = "private"
COMPLETED = "finished:completed"

_POLL_SECONDS = 0.3
_STATUS_SECONDS = 30.0
"""How long nothing is heard before Flower is asked: that starts a process of two CPU seconds, beside training
where both share a machine."""
_START_SECONDS = 60.0
_COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink, and the Flower commands that talk to it."""

    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]
    log_file: Path
    bundle: Path
    """The Flower app that its runs are runs of."""

    def submit(self, run: Path, *options: str, at_once: int = 0) -> str:
        """Submit the bundle's apps for a run directory and return Flower's run id.

        Args:
            at_once: how many nodes may be at work on a question; 0: all.
        """
        configuration = f"run={json.dumps(str(run))} at-once={at_once}"
        answer = self._flwr("run", str(self.bundle), CONNECTION, "--run-config", configuration, *options)
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """Flower's status and details of a run."""
        self.require_alive()
        runs = self._flwr("ls", CONNECTION, "--run-id", run_id)["runs"]
        return runs[0]["status"], runs[0]["status-details"]

    def stop_unfinished(self) -> None:
        """Stop the runs that a SuperLink left in its database when it broke down, and would take up again."""
        for run in self._flwr("ls", CONNECTION)["runs"]:
            if not run["status"].startswith("finished"):
                self._flwr("stop", str(run["run-id"]), CONNECTION)

    def register(self, name: str, public_key: Path) -> None:
        """Admit the SuperNode that holds a key's private half; one admitted before stays so."""
        try:
            self._flwr("supernode", "register", str(public_key), CONNECTION, "--name", name)
        except FederationError as error:
            if "already in use" not in str(error):
                raise

    def require_alive(self) -> None:
        """Raise ProcessEndedError where the SuperLink is gone, and every run with it."""
        if (code := self.process.poll()) is not None:
            raise ProcessEndedError(f"Flower's SuperLink ended with exit status {code}; see {self.log_file}")

    def wait_until_ready(self, address: Address) -> None:
        """Return once the SuperLink listens."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.require_alive()
            with suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
                return
            time.sleep(_POLL_SECONDS)
        raise ProcessEndedError(
            f"Flower's SuperLink did not start within {_START_SECONDS:.0f} s; see {self.log_file}"
        )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a Flower command and return its JSON; its exit status tells nothing.

        Raises:
            ProcessEndedError: the SuperLink is gone, or does not answer.
            FederationError: it answers that it cannot.
        """
        try:
            done = subprocess.run(
                [executable("flwr", self.environment), *arguments, "--format", "json"],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessEndedError(
                f"`flwr {arguments[0]}` had no answer within {_COMMAND_SECONDS:.0f} s"
            ) from error
        answer = _last_json(done.stdout) or {"error-message": done.stderr or done.stdout}
        if not answer.get("success"):
            self.require_alive()  # it may have been killed in mid-command
            said = str(answer.get("error-message", "")).strip().splitlines() or ["it does not say why"]
            raise FederationError(f"`flwr {arguments[0]}` failed: {said[-1]}")
        return answer


def _last_json(printed: str) -> dict[str, Any] | None:
    """The object that a command printed, which may follow lines for people."""
    with suppress(json.JSONDecodeError):
        answer: dict[str, Any] = json.loads(printed[max(0, printed.find("{")) :])
        return answer
    return None


@contextmanager
def superlink(
    home: Path,
    listen: Address,
    *options: str,
    environment: Mapping[str, str],
    reached_at: Address | None = None,
    authority: Path | None = None,
) -> Iterator[SuperLink]:
    """Start a SuperLink of our own, and stop it with everything that it started.

    Args:
        home: where Flower keeps its state.
        options: of ``flower-superlink``.
        reached_at: where its commands find it, if not at ``listen``.
        authority: the CA that signed its certificate; None for a SuperLink without TLS.
    """
    reached_at = reached_at or listen
    _write_connection(home, reached_at, authority)
    bundle = write_bundle(home / "bundle")
    log_file = home / "superlink.log"
    command = [
        executable("flower-superlink", environment),
        *("--isolation", "subprocess", "--disable-runtime-dependency-installation"),
        *("--host", listen.host, "--port", str(listen.port), "--log-file", str(log_file)),
        *options,
    ]
    try:
        # Ray's workers import the apps from their working directory before they look into Flower's bundle.
        with child(command, environment=environment, directory=bundle) as process:
            link = SuperLink(process, environment, log_file, bundle)
            link.wait_until_ready(reached_at)
            yield link
    finally:
        stop_all(home)


def _write_connection(home: Path, address: Address, authority: Path | None) -> None:
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority))}"
    connection = f'[superlink.{CONNECTION}]\naddress = "{address}"\n{trust}\n'
    write_file(home / "config.toml", f'[superlink]\ndefault = "{CONNECTION}"\n\n{connection}'.encode())


def follow(
    flower: SuperLink,
    run_id: str,
    directory: RunDirectory,
    events: "Tail",
    on_event: OnEvent,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[str, str]:
    """Report events until the run has ended; its status and details as Flower states them.

    Raises:
        ProcessEndedError: the SuperLink is gone.
    """
    heard_at, ending = time.monotonic(), False
    while True:
        flower.require_alive()
        meanwhile()
        for event in events_from_lines(events.lines()):
            on_event(event)
            heard_at = time.monotonic()
            ending |= (event.stage, event.kind) == ("adapt", "finished")
        ending |= directory.error.exists()
        if ending or time.monotonic() - heard_at > _STATUS_SECONDS:
            status, details = flower.status(run_id)
            if status.startswith("finished"):
                for event in events_from_lines(events.lines()):
                    on_event(event)
                return status, details
            heard_at = time.monotonic()
        time.sleep(_POLL_SECONDS)


def reason(directory: RunDirectory, details: str) -> str:
    """Why a run failed: in the server app's words, else in Flower's."""
    return directory.failure() or details.strip()


class Tail:
    """What is appended to a file from now on, by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()
