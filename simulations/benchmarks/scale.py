"""What one meta-iteration costs as the pool grows, and as processes share it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from fedfree.architectures import Architecture, InputSpec, build
from fedfree.codec import Contribution, encode_contribution, encode_tensors, encode_weights
from fedfree.errors import FederationError
from fedfree.host.compute import peak_memory, use_cpu
from fedfree.host.files import write_file
from fedfree.host.starts import describe_folder
from fedfree.start import LoadedStart, fill_body, trained_tensors
from fedfree.statement import PrivacyStatement
from server.config import ServerConfig
from server.learning.moves import invert, meta_learn
from server.learning.state import begin
from server.pipeline import open_pool
from server.storage.run_directory import RunDirectory
from server.storage.store import ACCEPTED, RECEIVED, Store
from simulations.reporting.plots import LIGHT_GREY, OTHER, OURS, new_figure, tidy
from simulations.reporting.record import Cell, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ITERATIONS = 5
ALLOWED = 1.2
"""Times the smallest pool's cost that a larger pool may take."""
TEACHERS = 16
"""In every pool the same number, as in any pool of more than ``learn.max_teachers``."""


@dataclass(frozen=True)
class Cost:
    """Of one meta-iteration."""

    models: int
    processes: int
    start_seconds: float
    """Until the first iteration: ids and descriptions of the pool, teachers, and from a start their mean."""
    seconds: float
    """Median over the iterations after the first."""
    peak_megabytes: float | None = None
    """Of resident memory; not measured where several processes share the work."""


@dataclass(frozen=True)
class Scale:
    """Everything ``bench scale`` measures."""

    pools: list[Cost]
    teams: list[Cost]


def measure(
    out: Path,
    server: ServerConfig,
    *,
    models: Sequence[int],
    processes: Sequence[int],
    start: Path | None = None,
) -> Scale:
    """One meta-iteration in ever larger pools, then with ever more processes.

    Args:
        start: folder of what all models begin from; by default they are random.
    """
    return Scale(by_pool_size(out, server, models, start), by_processes(out, server, processes, start))


def by_pool_size(out: Path, server: ServerConfig, sizes: Sequence[int], start: Path | None) -> list[Cost]:
    """Cost with ever more contributions in one store, each in a process of its own."""
    learn = server.learn.model_copy(update={"max_teachers": min(TEACHERS, min(sizes))})
    server = server.model_copy(update={"learn": learn, "iterations": ITERATIONS})
    costs = []
    for size in sorted(sizes):
        fill(begin_run(out, server, start), size)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            costs.append(process.submit(iterate, out, server).result())
    return costs


def begin_run(run: Path, server: ServerConfig, start: Path | None) -> Store:
    """The empty store of a run prepared there, or what an earlier call left in it."""
    write_file(run / "server.toml", server.to_toml().encode())
    directory = RunDirectory(run)
    if start:
        directory.adopt_start(start)
    return directory.store()


def fill(store: Store, count: int) -> None:
    """Bring a store to so many accepted contributions."""
    for number in range(len(store.ids(ACCEPTED)), count):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(number)
            contribution = _near(store.start) if store.start else _random()
        identity = store.receive(encode_contribution(contribution), contribution.weights)
        if identity in store.ids(RECEIVED):
            store.accept(identity)


def _random() -> Contribution:
    """Of a Conv4 network that nobody trained."""
    network = build(Architecture(), num_classes=5, input=InputSpec())
    return Contribution(Architecture(), 5, InputSpec(), PrivacyStatement(), encode_weights(network))


def _near(begun: LoadedStart) -> Contribution:
    """Of a network whose every weight moved from the start, by about a hundredth of its tensor's spread."""
    start = begun.start
    network = build(start.architecture, num_classes=5, input=start.input)
    fill_body(network, begun.body, "the start")
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * parameter.std(correction=0), alpha=0.01)
    weights = encode_tensors(trained_tensors(network, begun.body))
    statement = PrivacyStatement(initial_weights=start.initial_weights)
    return Contribution(start.architecture, 5, start.input, statement, weights, start.sha256)


def iterate(run: Path, server: ServerConfig) -> Cost:
    """Run some meta-iterations on a run's store; for a fresh process, whose memory is measured."""
    use_cpu(server.threads)
    start = time.perf_counter()
    pool = open_pool(RunDirectory(run).store(), server)
    state = begin(pool, server)
    times = [time.perf_counter()]
    for iteration in range(server.iterations):
        meta_learn(state, invert(state, iteration), iteration)
        times.append(time.perf_counter())
    steps = [after - before for before, after in pairwise(times)]
    return Cost(len(pool), 1, times[0] - start, median(steps[1:]), peak_memory() / 2**20)


def by_processes(out: Path, server: ServerConfig, counts: Sequence[int], start: Path | None) -> list[Cost]:
    """Seconds of a meta-iteration that so many processes share, one thread each.

    Raises:
        FederationError: the processes did not finish.
    """
    learn = server.learn.model_copy(update={"paths": max(counts)})
    changes = {"learn": learn, "iterations": ITERATIONS, "threads": 1}
    models = 20
    costs = []
    for processes in counts:
        run = out / f"{processes}-processes"
        fill(begin_run(run, server.model_copy(update=changes), start), models)
        begun = time.time()
        _torchrun(run, processes)
        events = [event for event in RunDirectory(run).read_events() if event.stage == "learn"]
        times = [event.time for event in events if event.kind in ("started", "progress")][-ITERATIONS - 1 :]
        steps = [after - before for before, after in pairwise(times)]
        costs.append(Cost(models, processes, times[0] - begun, median(steps[1:])))
    return costs


def _torchrun(run: Path, processes: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}", "-m", "server.run", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FederationError(f"{processes} processes did not finish: {done.stderr.strip()[-500:]}")


def describe(start: Path | None) -> str:
    """What the pools are made of, in words."""
    if start is None:
        return "random Conv4-32 networks"
    found = describe_folder(start)
    return f"{found.architecture} near a start of {found.input.height} pixels"


COLUMNS = (
    Column(key="case", title="one meta-iteration"),
    Column(key="seconds", title="seconds", format="{:.2f}"),
    Column(key="seconds_ratio", title="ratio", format="{:.2f}"),
    Column(key="peak_megabytes", title="peak MB", format="{:.0f}"),
    Column(key="memory_ratio", title="ratio", format="{:.2f}"),
    Column(key="start_seconds", title="start, s", format="{:.1f}"),
)


def table(measured: Scale, *, what: str) -> Table:
    """Both series, each against its first row.

    Args:
        what: the pools are made of.
    """
    pools, teams = measured.pools, measured.teams
    rows = [_row(f"{cost.models:,} models", cost, pools[0]) for cost in pools] + [
        _row(_processes(cost.processes), cost, teams[0]) for cost in teams
    ]
    notes = (
        f"pools of {what}, {TEACHERS} teachers, median of {ITERATIONS - 1} iterations",
        f"processes: {teams[0].models} models, {teams[-1].processes} paths, one thread each",
    )
    return Table("Cost of a meta-iteration", COLUMNS, tuple(rows), notes)


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _row(name: str, cost: Cost, first: Cost) -> Row:
    row: dict[str, Cell] = {
        "case": name,
        "seconds": cost.seconds,
        "seconds_ratio": cost.seconds / first.seconds,
        "start_seconds": cost.start_seconds,
    }
    if cost.peak_megabytes and first.peak_megabytes:
        row["peak_megabytes"] = cost.peak_megabytes
        row["memory_ratio"] = cost.peak_megabytes / first.peak_megabytes
    return row


def values(measured: Scale) -> dict[str, object]:
    """Everything measured, as numbers."""
    return asdict(measured)


def plot(measured: Scale) -> Figure:
    """Cost as the pool grows, against the smallest pool; beside it, seconds as processes share the work."""
    figure = new_figure(9.5, 3.6)
    pools, teams = figure.subplots(1, 2, width_ratios=(3, 2))
    models, first = [cost.models for cost in measured.pools], measured.pools[0]
    seconds = [cost.seconds / first.seconds for cost in measured.pools]
    pools.plot(models, seconds, "o-", color=OURS, label="seconds")
    if first.peak_megabytes:
        memory = [(cost.peak_megabytes or 0) / first.peak_megabytes for cost in measured.pools]
        pools.plot(models, memory, "D--", color=OTHER, label="peak memory")
    pools.axhline(ALLOWED, color=LIGHT_GREY, linestyle=":", label="allowed")
    pools.set_xscale("log")
    pools.set_xticks(models, [f"{count:,}" for count in models])
    pools.minorticks_off()
    pools.set_ylim(0, 1.1 * max(ALLOWED, *seconds))
    pools.set_xlabel("models in the store")
    pools.set_ylabel(f"one meta-iteration, {models[0]:,} models = 1")
    pools.legend(frameon=False)
    names = [_processes(cost.processes) for cost in measured.teams]
    bars = teams.bar(names, [cost.seconds for cost in measured.teams], color=OURS, width=0.5)
    teams.bar_label(bars, fmt="%.2f")
    teams.set_ylabel("seconds of a meta-iteration")
    tidy(pools, teams)
    return figure
