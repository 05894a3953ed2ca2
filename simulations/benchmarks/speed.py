"""How fast the server learns, against the published configuration and what the machine allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client.data.image_set import ImageSet
from fedfree.host.compute import use_cpu
from server.config import ServerConfig
from server.learning.invert import RecoverEach, one_at_a_time, recover
from server.learning.invert_together import together
from server.learning.moves import invert, objective
from server.learning.pool import Pool
from server.learning.precision import autocast
from server.learning.state import begin
from server.pipeline import open_pool
from simulations.benchmarks.pace import Pace, pace, sentence
from simulations.benchmarks.pools import make_pool
from simulations.benchmarks.recovery import AgainstScratch, Attempt, against_scratch
from simulations.benchmarks.stages import Stage, stages
from simulations.benchmarks.timing import alternate, bandwidth, bytes_moved, operations, peak, time_shares
from simulations.benchmarks.validation import load_validation
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.reporting.plots import OTHER, OURS, new_figure, tidy
from simulations.reporting.record import Cell, Column, Row, Table
from simulations.reporting.scores import task_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNSEEN = 3
"""Models of the pool that the meta-generator does not learn from."""


@dataclass(frozen=True)
class InnerLoop:
    """Recovering one meta-batch with one configuration."""

    name: str
    images: int
    seconds: float
    operations: int
    """Floating-point, of convolutions and matrix products, forward and backward."""
    peak: float
    """Operations a second of a plain large convolution in the same number format."""
    bytes: int
    """Read and written by its operations."""
    bandwidth: float
    """Bytes a second that a plain copy reads and writes here."""
    shares: dict[str, float]
    """Of the time, by kind of work."""

    @property
    def images_a_second(self) -> float:
        return self.images / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Fraction of the machine's measured peak."""
        return self.operations / self.seconds / self.peak

    @property
    def share_of_roofline(self) -> float:
        """Fraction of the bytes a second of a plain copy; above one where caches spare the memory."""
        return self.bytes / self.seconds / self.bandwidth


@dataclass(frozen=True)
class Speed:
    """Everything ``bench speed`` measures."""

    loops: list[InnerLoop]
    stages: list[Stage]
    paces: list[Pace]
    """Ours, and the published configuration's; empty where nobody asked."""
    recovery: AgainstScratch


def measure(out: Path, config: SimulationConfig, *, repeats: int, minutes: float) -> Speed:
    """Time the inner loop and the stages of an iteration, learning by the clock, then recovery of the last
    models of a pool from what the others taught.

    Args:
        minutes: that the published configuration may learn; 0 leaves learning by the clock out.
    """
    made, server = make_pool(out, config), server_config(config)
    pool, validation = open_pool(made.store, server), load_validation(config)
    loops = inner_loops(pool, server, repeats=repeats)
    parts = stages(pool, server, repeats=repeats)
    paces = _paces(pool, server, validation, config, 60 * minutes) if minutes else []
    state = begin(open_pool(made.store, server, pool.ids[:-UNSEEN]), server)
    unseen = open_pool(made.store, server, pool.ids[-UNSEEN:])
    for iteration in range(server.iterations):
        invert(state, iteration)
    recovery = against_scratch(unseen, made.organisations, state, validation, config)
    return Speed(loops, parts, paces, recovery)


def _paces(
    pool: Pool, server: ServerConfig, validation: ImageSet, config: SimulationConfig, at_most: float
) -> list[Pace]:
    published = ServerConfig.parse(
        {"preset": "paper", **server.model_dump(include={"device", "threads", "seed"}, mode="json")},
        origin="the published configuration",
    )
    ways = ((server.preset, server, math.inf), ("published", published, at_most))
    return [pace(name, pool, each, validation, config, at_most=most) for name, each, most in ways]


def inner_loops(pool: Pool, server: ServerConfig, *, repeats: int) -> list[InnerLoop]:
    """The default one model at a time and together, and the published configuration, timed in turn."""
    cases: list[tuple[str, ServerConfig, RecoverEach]] = [
        ("default", server, one_at_a_time),
        ("default, models together", server, together),
        ("published", _published(server), one_at_a_time),
    ]
    if pool.device.type == "cuda":
        compiled = partial(together, compiled=True)
        cases.insert(2, ("default, models together, compiled", server, compiled))
    works = [_recovery(pool, config, recover_each) for _, config, recover_each in cases]
    times = alternate(works, pool.device, repeats=repeats)
    loops, speed = [], bandwidth(pool.device)
    for (name, config, _), work, took in zip(cases, works, times, strict=True):
        images = config.invert.images_per_model * min(len(pool), config.invert.models_per_iteration)
        best = peak(pool.device, config.precision)
        # Counted without vmap, whose batched operations the counter does not know.
        flops = operations(works[0] if name.startswith("default") else work)
        moved, shares = bytes_moved(work), time_shares(work, pool.device)
        loops.append(InnerLoop(name, images, took, flops, best, moved, speed, shares))
    return loops


def _published(server: ServerConfig) -> ServerConfig:
    """FREE's generator, latents, rates and losses, in float32."""
    return server.model_copy(update={"invert": ServerConfig(preset="paper").invert, "precision": "float32"})


def _recovery(pool: Pool, server: ServerConfig, recover_each: RecoverEach) -> Callable[[], object]:
    """A function that recovers one meta-batch, always of the same models."""
    use_cpu(server.threads)
    state = begin(pool, server)
    members = [pool.member(number) for number in range(min(len(pool), server.invert.models_per_iteration))]

    def work() -> None:
        rng = torch.Generator().manual_seed(0)
        with autocast(server.precision, pool.device):
            recover(
                state.generator,
                state.generator_optimizer,
                members,
                objective(state, server.invert.adversarial_weight),
                rng=rng,
                recover_each=recover_each,
            )

    return work


COLUMNS = (
    Column(key="configuration", title="recovering a meta-batch"),
    Column(key="seconds", title="s", format="{:.2f}"),
    Column(key="images_per_second", title="images / s", format="{:.0f}"),
    Column(key="times_published", title="against published", format="{:.1f} times"),
    Column(key="gflop", title="GFLOP", format="{:.0f}"),
    Column(key="peak", title="share of peak", format="{share:.2g} % of {gflops:.0f} GFLOP/s"),
    Column(key="gigabytes", title="GB moved", format="{:.2f}"),
    Column(key="roofline", title="share of roofline", format="{share:.0f} % of {gigabytes:.0f} GB/s"),
)


def table(measured: Speed) -> Table:
    """The inner loops, then what recovery costs against training from scratch."""
    loops, published = measured.loops, measured.loops[-1]
    rows: list[Row] = [
        {
            "configuration": loop.name,
            **_moved(loop),
            "times_published": loop.images_a_second / published.images_a_second,
            "gflop": loop.operations / 1e9,
            "peak": {"share": 100 * loop.share_of_peak, "gflops": loop.peak / 1e9},
        }
        for loop in loops
    ]
    rows += [{"configuration": f"an iteration: {stage.name}", **_moved(stage)} for stage in measured.stages]
    notes = [f"time of {loop.name}: {_shares(loop)}" for loop in loops]
    notes += [sentence(measured.paces[0], measured.paces[1], task) for task in _tasks(measured.paces)]
    return Table("Speed of the server", COLUMNS, tuple(rows), (*notes, *measured.recovery.sentences()))


def _moved(work: InnerLoop | Stage) -> dict[str, Cell]:
    """The cells that a loop and a stage have alike."""
    roofline = {"share": 100 * work.share_of_roofline, "gigabytes": work.bandwidth / 1e9}
    return {
        "seconds": work.seconds,
        "images_per_second": work.images_a_second,
        "gigabytes": work.bytes / 1e9,
        "roofline": roofline,
    }


def _tasks(paces: Sequence[Pace]) -> list[str]:
    return list(paces[0].looks[0].accuracies) if paces else []


def _shares(loop: InnerLoop) -> str:
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in loop.shares.items() if share >= 0.01)


def values(measured: Speed) -> dict[str, object]:
    """Everything measured, as numbers."""
    return {
        "inner_loops": [
            {
                "name": loop.name,
                "images": loop.images,
                "seconds": loop.seconds,
                "images_per_second": loop.images_a_second,
                "operations": loop.operations,
                "peak_operations_per_second": loop.peak,
                "share_of_peak": loop.share_of_peak,
                "bytes": loop.bytes,
                "share_of_roofline": loop.share_of_roofline,
                "time_shares": loop.shares,
            }
            for loop in measured.loops
        ],
        "stages": [asdict(stage) for stage in measured.stages],
        "pace": [each.values() for each in measured.paces],
        "recovery": measured.recovery.values(),
    }


def plot(measured: Speed) -> Figure:
    """Images a second of each configuration; beside it, quality by seconds for models never seen."""
    figure = new_figure(14, 7.2)
    (loops, *qualities), (parts, *paces) = figure.subplots(2, 3, width_ratios=(3, 2, 2))
    names = [loop.name for loop in measured.loops]
    bars = loops.barh(names, [loop.images_a_second for loop in measured.loops], color=OURS, height=0.6)
    loops.bar_label(bars, [f"{100 * loop.share_of_peak:.2g} % of peak" for loop in measured.loops], padding=4)
    loops.invert_yaxis()
    loops.margins(x=0.35)
    loops.set_xlabel("images recovered a second")
    task = next(iter(measured.recovery.ours.accuracies))
    _draw(qualities[0], measured.recovery, lambda each: 100 * each.quality)
    _draw(qualities[1], measured.recovery, lambda each: each.accuracies[task].mean)
    qualities[0].set_ylabel("images of the class asked for, in %")
    qualities[1].set_ylabel(f"{task_label(task)} of a student, in %")
    qualities[0].legend(frameon=False)
    _draw_stages(parts, measured.stages)
    for axes, name in zip(paces, _tasks(measured.paces), strict=False):
        _draw_pace(axes, measured.paces, name)
    tidy(loops, parts, *qualities, *paces)
    return figure


def _draw_stages(axes: Axes, parts: Sequence[Stage]) -> None:
    """Seconds of each stage of an iteration."""
    bars = axes.barh([each.name for each in parts], [each.seconds for each in parts], color=OURS, height=0.6)
    axes.bar_label(bars, [f"{100 * each.share_of_roofline:.0f} % of roofline" for each in parts], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlabel("seconds of an iteration")


def _draw_pace(axes: Axes, paces: Sequence[Pace], task: str) -> None:
    """Accuracy by seconds of learning, one curve a configuration."""
    for each, colour, style in zip(paces, (OURS, OTHER), ("o-", "D--"), strict=True):
        curve = [look.accuracies[task].mean for look in each.looks]
        axes.plot([look.seconds for look in each.looks], curve, style, color=colour, label=each.name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds of learning")
    axes.set_ylabel(f"{task_label(task)}, meta_val, in %")
    axes.legend(frameon=False)


def _draw(axes: Axes, recovery: AgainstScratch, measure: Callable[[Attempt], float]) -> None:
    """A curve for each way from scratch, and the meta-generator's point."""
    curves: dict[str, list[Attempt]] = {}
    for each in recovery.scratch:
        curves.setdefault(each.way, []).append(each)
    for (way, curve), style in zip(curves.items(), cycle(("D-", "s--"))):
        axes.plot([each.seconds for each in curve], [*map(measure, curve)], style, color=OTHER, label=way)
    ours = recovery.ours
    axes.plot(ours.seconds, measure(ours), "o", color=OURS, markersize=9, label=ours.way)
    axes.set_xscale("log")
    axes.set_xlabel("seconds for a model never seen")
