"""``fedfree-sim``: whole federations on one machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.config import TrainingConfig
from fedfree.codec import sha256
from fedfree.host.cli import App, run_app
from fedfree.host.files import require_writable, write_file
from fedfree.host.options import Chosen, configured
from fedfree.host.places import cache_folder
from fedfree.settings import Layer
from simulations.command_line import FLAGS, Out, run_command
from simulations.commands import bench, privacy, results, runs
from simulations.commands.stopping import goes_on_later
from simulations.config import SimulationConfig
from simulations.federation.prepare import prepare as prepare_run
from simulations.federation.public_weights import GLYPHS, make_public_weights
from simulations.planning.words import dry_run_lines
from simulations.reporting.tables import tell
from simulations.reporting.trackers import LogTo, tracked
from simulations.simulate import simulate

app = App(
    "fedfree-sim",
    "Simulate whole federations on this machine: organisations, server, baselines and report.",
    is_program=True,
)
app.add_typer(bench.app)
app.add_typer(privacy.app)
app.add_typer(results.app)


@app.command()
@configured(SimulationConfig, FLAGS)
def run(
    chosen: Chosen[SimulationConfig],
    out: Out = Path("runs/latest"),
    log_to: Annotated[LogTo | None, typer.Option(help="Log everything there too.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would happen, and what it takes.")
    ] = False,
) -> None:
    """Run a federation, compare it with the baselines, and write a report."""
    config = chosen.settings
    if dry_run:
        for line in dry_run_lines(out, config):
            tell(line)
        return
    with goes_on_later(out), tracked(log_to, out, config) as tracker:
        result = simulate(out, config, command=run_command(out, config), on_event=tracker)
        tracker.finish(result)
    runs.show_result(out, result)


app.add_typer(runs.app)


@app.command()
@configured(SimulationConfig, FLAGS)
def config(chosen: Chosen[SimulationConfig]) -> None:
    """Print what `run` with these options would use, as TOML, with where each value comes from."""
    typer.echo(chosen.to_toml(), nl=False)


@app.command()
@configured(SimulationConfig, FLAGS)
def prepare(chosen: Chosen[SimulationConfig], out: Out = Path("runs/flower")) -> None:
    """Write the run directory of a federation without running it, for `flwr run .`"""
    prepare_run(out, chosen.settings)
    Console(soft_wrap=True, markup=False).print(
        f"prepared {out}; run it with: flwr run . --run-config 'run=\"{out.resolve()}\"' "
        f"--federation-config num-supernodes={chosen.settings.clients} --stream",
        markup=False,
        highlight=False,
    )


PUBLIC_FLAGS = {
    "architecture": "architecture",
    "image_size": "image_size",
    "device": "device",
    "threads": "threads",
}


@app.command("public-weights")
@configured(TrainingConfig, PUBLIC_FLAGS, under=Layer("public-weights", GLYPHS))
def public_weights(
    chosen: Chosen[TrainingConfig],
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3, as in images trained on later.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the glyphs and of training.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder for data sets.")] = None,
) -> None:
    """Learn initial weights from glyphs, which are nobody's data, for training under differential privacy."""
    require_writable(out)
    weights = make_public_weights(
        chosen.settings, channels=channels, seed=seed, cache=cache or cache_folder()
    )
    write_file(out, weights)
    Console(soft_wrap=True, markup=False).print(
        f"wrote {out}: {chosen.settings.architecture}, sha256 {sha256(weights)[:12]}"
    )


def main() -> None:
    """Console script."""
    run_app(app)
