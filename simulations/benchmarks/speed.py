"""How fast images are recovered, against the published configuration and the machine's peak."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfree.host.compute import use_cpu
from server.config import ServerConfig
from server.learning.invert import RecoverEach, one_at_a_time, recover
from server.learning.invert_together import together
from server.learning.moves import invert, objective
from server.learning.pool import Pool
from server.learning.precision import autocast
from server.learning.state import begin
from server.pipeline import open_pool
from simulations.benchmarks.pools import make_pool
from simulations.benchmarks.recovery import AgainstScratch, Attempt, against_scratch
from simulations.benchmarks.timing import alternate, operations, peak, time_shares
from simulations.benchmarks.validation import load_validation
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.reporting.plots import OTHER, OURS, tidy
from simulations.reporting.record import Column, Row, Table
from simulations.reporting.scores import task_label

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
    shares: dict[str, float]
    """Of the time, by kind of work."""

    @property
    def images_a_second(self) -> float:
        return self.images / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Fraction of the machine's measured peak."""
        return self.operations / self.seconds / self.peak


@dataclass(frozen=True)
class Speed:
    """Everything ``bench speed`` measures."""

    loops: list[InnerLoop]
    recovery: AgainstScratch


def measure(out: Path, config: SimulationConfig, *, repeats: int) -> Speed:
    """Time the inner loop, then recovery of the last models of a pool from what the others taught."""
    made, server = make_pool(out, config), server_config(config)
    pool = open_pool(made.store, server)
    loops = inner_loops(pool, server, repeats=repeats)
    state = begin(open_pool(made.store, server, pool.ids[:-UNSEEN]), server)
    unseen = open_pool(made.store, server, pool.ids[-UNSEEN:])
    for iteration in range(server.iterations):
        invert(state, iteration)
    return Speed(loops, against_scratch(unseen, made.organisations, state, load_validation(config), config))


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
    loops = []
    for (name, config, _), work, took in zip(cases, works, times, strict=True):
        images = config.invert.images_per_model * min(len(pool), config.invert.models_per_iteration)
        best = peak(pool.device, config.precision)
        # Counted without vmap, whose batched operations the counter does not know.
        flops = operations(works[0] if name.startswith("default") else work)
        loops.append(InnerLoop(name, images, took, flops, best, time_shares(work, pool.device)))
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
    Column(key="images_per_second", title="images / s", format="{:.0f}"),
    Column(key="times_published", title="against published", format="{:.1f} times"),
    Column(key="gflop", title="GFLOP", format="{:.0f}"),
    Column(key="peak", title="share of peak", format="{share:.2g} % of {gflops:.0f} GFLOP/s"),
)


def table(measured: Speed) -> Table:
    """The inner loops, then what recovery costs against training from scratch."""
    loops, published = measured.loops, measured.loops[-1]
    rows: list[Row] = [
        {
            "configuration": loop.name,
            "images_per_second": loop.images_a_second,
            "times_published": loop.images_a_second / published.images_a_second,
            "gflop": loop.operations / 1e9,
            "peak": {"share": 100 * loop.share_of_peak, "gflops": loop.peak / 1e9},
        }
        for loop in loops
    ]
    notes = [f"time of {loop.name}: {_shares(loop)}" for loop in loops] + measured.recovery.sentences()
    return Table("Recovering a meta-batch", COLUMNS, tuple(rows), tuple(notes))


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
                "time_shares": loop.shares,
            }
            for loop in measured.loops
        ],
        "recovery": measured.recovery.values(),
    }


def plot(measured: Speed) -> Figure:
    """Images a second of each configuration; beside it, quality by seconds for models never seen."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    loops, *qualities = figure.subplots(1, 3, width_ratios=(3, 2, 2))
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
    tidy(loops, *qualities)
    return figure


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
