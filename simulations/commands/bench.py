"""``fedfree-sim bench``: the measurements behind docs/results.md."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedfree.errors import ConfigError
from fedfree.host.cli import make_app
from simulations.benchmarks import alignment, quality, quality_table, scale, speed
from simulations.benchmarks.quality_plots import plots
from simulations.commands.options import (
    Cache,
    Clients,
    Config,
    Dataset,
    Device,
    Episodes,
    ImageSize,
    Iterations,
    Seed,
    Threads,
    option,
    read_config,
)
from simulations.config import SimulationConfig
from simulations.federation.prepare import server_config
from simulations.reporting import tables as output

bench = make_app("bench", "Measure, and leave a table with JSON, Markdown and plots.")


@bench.command("quality")
def bench_quality(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs and the table; continued where it exists.")
    ] = Path("runs/bench-quality"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Federations a case, seeds 0, 1, …")] = 3,
    cases: Annotated[
        str, option(f"Cases or groups ({', '.join(quality.GROUPS)}), separated by commas. (default: pool)")
    ] = "pool",
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    image_size: ImageSize = None,
    iterations: Iterations = None,
    episodes: Episodes = None,
    device: Device = None,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Few-shot accuracy of whole federations: a table of cases, each over several seeds."""
    base = _config(config, locals())
    measured = quality.measure(out, base, cases=cases, seeds=range(seeds), tell=output.tell)
    output.leave(
        out,
        "quality",
        table=quality_table.table(measured),
        setup=base,
        seeds=range(seeds),
        details=quality_table.values(measured),
        plots=plots(measured),
        config=config,
        seconds=quality_table.seconds(measured),
    )


@bench.command("speed")
def bench_speed(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pool and the table.")] = Path(
        "runs/bench-speed"
    ),
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed turns of each configuration.")] = 7,
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    image_size: ImageSize = None,
    iterations: Iterations = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = None,
    cache: Cache = None,
) -> None:
    """Images recovered a second, and the time to recover a task from a model never seen before."""
    base = _config(config, locals())
    measured = speed.measure(out, base, repeats=repeats)
    output.leave(
        out,
        "speed",
        table=speed.table(measured),
        setup=base,
        seeds=[base.seed],
        details=speed.values(measured),
        plots={"speed": speed.plot(measured)},
        config=config,
    )


@bench.command("scale")
def bench_scale(
    out: Annotated[Path, typer.Option("--out", help="Folder for the stores and the table.")] = Path(
        "runs/bench-scale"
    ),
    models: Annotated[
        str, option("Pool sizes, separated by commas. (default: 20,1000,10000)")
    ] = "20,1000,10000",
    processes: Annotated[str, option("Numbers of processes. (default: 1,2)")] = "1,2",
    device: Device = None,
    threads: Threads = None,
    seed: Seed = None,
) -> None:
    """Time and memory of a meta-iteration as the pool grows, and as processes share it."""
    base = _config(None, locals())
    measured = scale.measure(out, server_config(base), models=_counts(models), processes=_counts(processes))
    output.leave(
        out,
        "scale",
        table=scale.table(measured),
        setup=base,
        seeds=[base.seed],
        details=scale.values(measured),
        plots={"scale": scale.plot(measured)},
    )


@bench.command("alignment")
def bench_alignment(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pools and the table.")] = Path(
        "runs/bench-alignment"
    ),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Pools, seeds 0, 1, …")] = 1,
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    image_size: ImageSize = None,
    iterations: Iterations = None,
    device: Device = None,
    threads: Threads = None,
    cache: Cache = None,
) -> None:
    """Cosine between tasks' gradients with and without the sequential path, and the accuracy it buys."""
    base = _config(config, locals())
    measured = [
        each
        for seed in range(seeds)
        for each in alignment.measure(out / str(seed), base.model_copy(update={"seed": seed}))
    ]
    output.leave(
        out,
        "alignment",
        table=alignment.table(measured),
        setup=base,
        seeds=range(seeds),
        details={"rows": alignment.values(measured)},
        plots={"alignment": alignment.plot(measured)},
        config=config,
    )


def _config(file: Path | None, options: dict[str, Any]) -> SimulationConfig:
    """The simulation that a command's options describe; what else it takes is passed over."""
    fields = SimulationConfig.model_fields
    return read_config(file, {name: value for name, value in options.items() if name in fields})


def _counts(text: str) -> list[int]:
    """``1,2`` as numbers, sorted; raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"expected whole numbers separated by commas, got {text!r}")
    return sorted({int(word) for word in words})
