"""The engines that run a prepared run directory: the same two Flower apps, in one process or under Ray.

Both leave the same files and report the same events.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedfree.codec import decode_meta_learner
from fedfree.errors import ConfigError, FederationError
from fedfree.host.channel import Address
from fedfree.host.compute import count_threads
from fedfree.host.files import read_file
from fedfree.host.flower_process import environment, free_port, kill_all
from fedfree.host.supervise import signals_raise
from server.doors.superlink import COMPLETED, SuperLink, Tail, follow, reason, superlink
from server.events import OnEvent
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED
from simulations.config import SimulationConfig

AT_ONCE = 8
"""Simulated nodes that Flower has a question for, for each core; of them one works, or none."""


def run_in_process(run: Path, *, organisations: int, on_event: OnEvent) -> None:
    """Run server and organisations one after the other in this process.

    Raises:
        FederationError: too few organisations contributed.
        Exception: whatever a programming error raises, on either side.
    """
    from client.doors.flower_app import app
    from server.doors.flower_app import serve
    from simulations.federation.grid import InProcessGrid

    _check(run, organisations)
    grid = InProcessGrid(app, {"run": str(run.resolve())}, organisations=organisations)
    serve(grid, run, on_event=on_event)


def run_flower(run: Path, *, organisations: int, on_event: OnEvent) -> None:
    """Run server and organisations under Flower's simulation runtime, and stop everything it started.

    Raises:
        FederationError: the run did not complete; the message gives the reason.
    """
    directory = _check(run, organisations)
    directory.error.unlink(missing_ok=True)
    events = Tail(directory.events)
    kill = partial(kill_all, run.resolve() / ".flwr")
    with signals_raise(first=kill), _simulation(run.resolve()) as flower:
        run_id = flower.submit(
            run.resolve(),
            *_as_simulation(organisations, count_threads(directory.config().threads)),
            at_once=AT_ONCE * (os.cpu_count() or 1),
        )
        status, details = follow(flower, run_id, directory, events, on_event)
    if status != COMPLETED:
        raise FederationError(reason(directory, details) or f"the Flower run ended as {status}")


def run_engine(run: Path, config: SimulationConfig, *, on_event: OnEvent) -> None:
    """Run the Flower apps; raises FederationError where they did not complete."""
    engine = run_in_process if config.engine == "in-process" else run_flower
    engine(run, organisations=config.clients, on_event=on_event)


def lacks_only_evaluation(run: Path) -> bool:
    """Whether a run was stopped after everyone had answered: to learn again would give the same once more."""
    directory = RunDirectory(run)
    needed = directory.manifest, directory.weights, directory.adaptation, directory.recovered
    unwanted = directory.checkpoint, run / "result.json"
    if not all(path.exists() for path in needed) or any(path.exists() for path in unwanted):
        return False
    learned = decode_meta_learner(read_file(directory.manifest), read_file(directory.weights)).provenance
    accepted = tuple(directory.store().ids(ACCEPTED))
    return (learned.contributions, learned.config_sha256) == (accepted, directory.config().sha256())


def _check(run: Path, organisations: int) -> RunDirectory:
    directory = RunDirectory(run)
    expected = directory.config().collect.organisations
    if organisations < expected:
        raise ConfigError(
            f"{directory.server_toml} expects {expected} organisations, but {organisations} take part"
        )
    return directory


@contextmanager
def _simulation(run: Path) -> Iterator[SuperLink]:
    """A SuperLink that simulates its SuperNodes."""
    scratch = Path(tempfile.mkdtemp(prefix="fedfree-"))  # Ray's sockets need a short path
    home = run / ".flwr"
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(scratch)}
    quiet = {name: value for name, value in environment(home).items() if name != "RAY_ADDRESS"} | ray
    listen = Address("127.0.0.1", free_port())
    try:
        with superlink(home, listen, "--insecure", "--simulation", environment=quiet) as flower:
            yield flower
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_simulation(organisations: int, threads: int) -> tuple[str, str]:
    """Options of a run whose organisations are simulated: only as many at once as there are CPUs for.

    Two networks that train on the same two cores, two threads each, take longer than one after the other.
    """
    cpus = max(threads, min(os.cpu_count() or 1, organisations * threads))
    return (
        "--federation-config",
        f"num-supernodes={organisations} client-resources-num-cpus={threads} init-args-num-cpus={cpus}",
    )
