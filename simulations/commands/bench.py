"""``fedfree-sim bench``: the measurements behind docs/results.md."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.errors import ConfigError
from fedfree.host.cli import App
from fedfree.host.lock import alone
from fedfree.host.options import Chosen, configured
from simulations import series
from simulations.benchmarks import alignment, poison, poison_table, quality, quality_table, scale, speed
from simulations.benchmarks.quality_plots import plots
from simulations.command_line import flags
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.federation.starts import find_start
from simulations.reporting import tables as output

app = App("bench", "Measure, and leave a table with JSON, Markdown and plots.")

POOL = ("dataset", "clients", "image_size", "iterations", "device", "threads", "cache")
"""Flags that every benchmark of a pool takes."""
Folder = Annotated[Path, typer.Option("--out", help="Folder of runs and table; continued where it is.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0, 1, … of everything random.")]


@app.command("quality")
@configured(SimulationConfig, flags(*POOL, "start", "episodes"))
@alone
def bench_quality(
    chosen: Chosen[SimulationConfig],
    out: Folder = Path("runs/bench-quality"),
    seeds: Seeds = 3,
    cases: Annotated[
        str, typer.Option(help=f"Cases or groups, separated by commas: {', '.join(quality.GROUPS)}.")
    ] = "pool",
) -> None:
    """Few-shot accuracy of whole federations: a table of cases, each over several seeds."""
    measured = quality.measure(out, chosen.settings, cases=cases, seeds=range(seeds), tell=output.tell)
    output.leave(
        out,
        "quality",
        table=quality_table.table(measured),
        setup=chosen.settings.server,
        seeds=range(seeds),
        details=quality_table.values(measured) | quality_table.only_printed(measured),
        plots=plots(measured),
        config=chosen.file,
        seconds=series.seconds(measured),
    )


@app.command("speed")
@configured(SimulationConfig, flags(*POOL, "episodes", "seed"))
@alone
def bench_speed(
    chosen: Chosen[SimulationConfig],
    out: Folder = Path("runs/bench-speed"),
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns of each configuration.")] = 7,
    minutes: Annotated[
        float, typer.Option(min=0, help="That learning as published may take beside ours; 0: not measured.")
    ] = 10.0,
) -> None:
    """Stages of an iteration, time to accuracy, and recovery of a task from a model never seen before."""
    measured = speed.measure(out, chosen.settings, repeats=repeats, minutes=minutes)
    output.leave(
        out,
        "speed",
        table=speed.table(measured),
        setup=chosen.settings.server,
        seeds=[chosen.settings.seed],
        details=speed.values(measured),
        plots={"speed": speed.plot(measured)},
        config=chosen.file,
    )


@app.command("scale")
@configured(SimulationConfig, flags("device", "threads", "seed", "start", "image_size", "cache"))
@alone
def bench_scale(
    chosen: Chosen[SimulationConfig],
    out: Folder = Path("runs/bench-scale"),
    models: Annotated[str, typer.Option(help="Pool sizes, separated by commas.")] = "20,1000,10000",
    processes: Annotated[str, typer.Option(help="Numbers of processes, separated by commas.")] = "1,2",
) -> None:
    """Time and memory of a meta-iteration as the pool grows, and as processes share it."""
    server, start = server_config(chosen.settings), find_start(chosen.settings)
    sizes = {"models": _counts(models), "processes": _counts(processes)}
    measured = scale.measure(out, server, **sizes, start=start)
    output.leave(
        out,
        "scale",
        table=scale.table(measured, what=scale.describe(start)),
        setup=chosen.settings.server,
        seeds=[chosen.settings.seed],
        details=scale.values(measured),
        plots={"scale": scale.plot(measured)},
        config=chosen.file,
    )


@app.command("alignment")
@configured(SimulationConfig, flags(*POOL))
@alone
def bench_alignment(
    chosen: Chosen[SimulationConfig], out: Folder = Path("runs/bench-alignment"), seeds: Seeds = 1
) -> None:
    """Cosine between tasks' gradients with and without the sequential path, and the accuracy it buys."""
    measured = [
        each
        for seed in range(seeds)
        for each in alignment.measure(out / str(seed), chosen.settings.model_copy(update={"seed": seed}))
    ]
    output.leave(
        out,
        "alignment",
        table=alignment.table(measured),
        setup=chosen.settings.server,
        seeds=range(seeds),
        details={"rows": alignment.values(measured)},
        plots={"alignment": alignment.plot(measured)},
        config=chosen.file,
    )


@app.command("poison")
@configured(SimulationConfig, flags(*POOL, "start"))
@alone
def bench_poison(
    chosen: Chosen[SimulationConfig],
    out: Folder = Path("runs/bench-poison"),
    seeds: Seeds = 1,
    attacks: Annotated[
        str, typer.Option(help="Attacks, separated by commas; all that this pool allows.")
    ] = poison.ALL,
    shares: Annotated[
        str, typer.Option(help="Hostile organisations: percentages, separated by commas, or one.")
    ] = "30",
) -> None:
    """What hostile organisations cost the others, with and without the defence, attack by attack."""
    configs = [chosen.settings.model_copy(update={"seed": seed}) for seed in range(seeds)]
    cells = poison.plan(chosen.settings, attacks=attacks, shares=shares)
    measured = [
        each
        for config in configs
        for each in poison.measure(out / str(config.seed), config, cells, output.tell)
    ]
    output.leave(
        out,
        "poison",
        table=poison_table.table(measured, clients=chosen.settings.clients),
        setup=chosen.settings.server,
        seeds=range(seeds),
        details=poison_table.values(measured),
        plots={"poison": poison_table.plot(measured)},
        config=chosen.file,
        seconds=sum(each.seconds for each in measured),
    )


def _counts(text: str) -> list[int]:
    """``1,2`` as numbers, sorted; raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"expected whole numbers separated by commas, got {text!r}")
    return sorted({int(word) for word in words})
