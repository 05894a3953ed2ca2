"""``fedfree-sim bench``: the measurements behind docs/results.md."""

from pathlib import Path
from typing import Annotated

import typer

from fedfree.cli import make_app
from simulations.benchmarks import output, quality, quality_table
from simulations.benchmarks.quality_plots import plots
from simulations.options import (
    Cache,
    Clients,
    Config,
    Dataset,
    Device,
    Episodes,
    ImageSize,
    Iterations,
    Threads,
    option,
    read_config,
    typed_command,
)

bench = make_app("bench", "Measure, and leave a table with JSON, Markdown and plots.")


@bench.callback()
def _commands() -> None:
    """Keeps the commands' names where there is only one."""


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
    given = {
        name: value for name, value in locals().items() if name not in ("out", "config", "seeds", "cases")
    }
    base = read_config(config, given)
    console = output.make_console()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    measured = quality.measure(out, base, cases=cases, seeds=range(seeds), tell=tell)
    table = quality_table.table(measured)
    output.show(table, console)
    values = quality_table.values(measured, command=typed_command())
    for path in output.write(out, "quality", values=values, table=table, plots=plots(measured)):
        tell(f"wrote {path}")
