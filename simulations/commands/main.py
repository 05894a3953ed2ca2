"""``fedfree-sim``: whole federations on one machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedfree.architectures import Architecture
from fedfree.codec import sha256
from fedfree.host.cli import make_app, run_app
from fedfree.host.files import write_file
from simulations.commands.bench import bench
from simulations.commands.options import (
    Architectures,
    Cache,
    ClassesEach,
    Clients,
    Config,
    Dataset,
    Delta,
    Device,
    Engine,
    Episodes,
    Epochs,
    Epsilon,
    Flip,
    ImageSize,
    ImagesPerClass,
    InitialWeights,
    Iterations,
    MinSteps,
    NQuery,
    NWay,
    Out,
    Partition,
    Preset,
    RotationTask,
    Seed,
    Student,
    Threads,
    read_config,
    typed_command,
)
from simulations.commands.privacy import app as privacy
from simulations.federation.prepare import prepare as prepare_run
from simulations.federation.public_weights import make_public_weights
from simulations.reporting.summary import result_lines, result_table
from simulations.simulate import simulate

app = make_app(
    "fedfree-sim",
    "Simulate whole federations on this machine: organisations, server, baselines and report.",
)
app.add_typer(bench)
app.add_typer(privacy)


@app.command()
def run(
    out: Out = Path("runs/latest"),
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    classes_each: ClassesEach = None,
    images_per_class: ImagesPerClass = None,
    partition: Partition = None,
    architectures: Architectures = None,
    student: Student = None,
    image_size: ImageSize = None,
    horizontal_flip: Flip = None,
    epochs: Epochs = None,
    min_steps: MinSteps = None,
    rotation_task: RotationTask = None,
    initial_weights: InitialWeights = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    preset: Preset = None,
    iterations: Iterations = None,
    episodes: Episodes = None,
    n_way: NWay = None,
    n_query: NQuery = None,
    engine: Engine = None,
    device: Device = None,
    threads: Threads = None,
    seed: Seed = None,
    cache: Cache = None,
) -> None:
    """Run a federation end to end, compare it with the baselines, and write a report."""
    given = {name: value for name, value in locals().items() if name not in ("out", "config")}
    result = simulate(out, read_config(config, given), command=typed_command())
    console = Console()
    console.print(result_table(result))
    for line in result_lines(result):
        console.print(line)
    console.print(f"report: {out / 'report.html'}")


@app.command()
def prepare(
    out: Out = Path("runs/flower"),
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    preset: Preset = None,
    iterations: Iterations = None,
    threads: Threads = None,
    seed: Seed = None,
    cache: Cache = None,
) -> None:
    """Write the run directory of a federation without running it, for `flwr run .`"""
    given = {name: value for name, value in locals().items() if name not in ("out", "config")}
    simulation = read_config(config, given)
    prepare_run(out, simulation)
    Console(soft_wrap=True).print(
        f"prepared {out}; run it with: flwr run . --run-config 'run=\"{out.resolve()}\"' "
        f"--federation-config num-supernodes={simulation.clients} --stream",
        markup=False,
        highlight=False,
    )


@app.command("public-weights")
def public_weights(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    architecture: Annotated[str, typer.Option(help="Of the models that begin from them.")] = "conv4-group",
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3, as in their images.")] = 3,
    image_size: Annotated[int, typer.Option(help="Pixels a side, likewise.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the glyphs and of training.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for data sets.")] = Path(".cache/fedfree"),
) -> None:
    """Learn initial weights from glyphs, which are nobody's data, for training under differential privacy."""
    weights = make_public_weights(
        Architecture.parse(architecture),
        channels=channels,
        image_size=image_size,
        device=device,
        threads=threads,
        seed=seed,
        cache=cache,
    )
    write_file(out, weights)
    Console(soft_wrap=True).print(f"wrote {out}: {architecture}, sha256 {sha256(weights)[:12]}")


def main() -> None:
    """Console script."""
    run_app(app)
