"""``fedfree-sim``: whole federations on one machine."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedfree.cli import make_app, run_app
from server.events import Event
from server.run_directory import RunDirectory
from server.store import write_durably
from simulations import federation
from simulations.config import SimulationConfig
from simulations.pictures import synthetic_picture
from simulations.progress import Progress, result_lines, result_table
from simulations.report import write_report
from simulations.result import write_result

app = make_app(
    "fedfree-sim",
    "Simulate whole federations on this machine: organisations, server, baselines and report.",
)


def _option(help: str, *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **kwargs)


Out = Annotated[Path, typer.Option("--out", help="Folder for everything the run leaves.")]
Config = Annotated[Path | None, _option("TOML file with any of these options; options given here win.")]
Dataset = Annotated[
    str | None,
    _option("glyphs, omniglot, cifar-fs, or the path of an image folder or zip. (default: glyphs)"),
]
Clients = Annotated[int | None, _option("Organisations. (default: 12)")]
ClassesEach = Annotated[int | None, _option("Private classes of each organisation. (default: 5)")]
ImagesPerClass = Annotated[int | None, _option("Private images of each class, at most. (default: 480)")]
Partition = Annotated[
    str | None, _option("How classes are dealt out: disjoint, overlapping or domain. (default: overlapping)")
]
Architectures = Annotated[
    str | None,
    _option("Of the models, dealt out in turn, e.g. conv4,resnet10,conv4-64-group. (default: conv4)"),
]
ImageSize = Annotated[int | None, _option("Pixels a side; images are resized to it. (default: 32)")]
Flip = Annotated[
    bool | None,
    _option(
        "Whether a mirrored image still shows the same class (default: colour images only).",
        "--horizontal-flip/--no-horizontal-flip",
    ),
]
Epochs = Annotated[int | None, _option("Of each organisation's training. (default: 12)")]
MinSteps = Annotated[
    int | None, _option("Of each organisation's training, however few its images. (default: 300)")
]
Preset = Annotated[str | None, _option("default, or paper: the published method. (default: default)")]
Iterations = Annotated[int | None, _option("Of the server. (default: the preset's)")]
Episodes = Annotated[int | None, _option("Test episodes of the comparison. (default: 600)")]
NWay = Annotated[int | None, _option("Classes an episode. (default: 5)", "--ways")]
NQuery = Annotated[int | None, _option("Query images a class and episode. (default: 15)", "--queries")]
Engine = Annotated[
    str | None, _option("in-process, or flower: Flower's simulation runtime. (default: in-process)")
]
Device = Annotated[str | None, _option("The server's: auto, cpu or cuda. (default: auto)")]
Threads = Annotated[int | None, _option("CPU threads. (default: 2)")]
Seed = Annotated[int | None, _option("Decides everything random. (default: 0)")]
Cache = Annotated[Path | None, _option("Folder for data sets and trained models. (default: .cache/fedfree)")]


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
    image_size: ImageSize = None,
    horizontal_flip: Flip = None,
    epochs: Epochs = None,
    min_steps: MinSteps = None,
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
    simulate(out, _read_config(config, given))


@app.command()
def prepare(
    out: Out = Path("runs/flower"),
    config: Config = None,
    dataset: Dataset = None,
    clients: Clients = None,
    preset: Preset = None,
    iterations: Iterations = None,
    threads: Threads = None,
    seed: Seed = None,
    cache: Cache = None,
) -> None:
    """Write the run directory of a federation without running it, for `flwr run .`"""
    given = {name: value for name, value in locals().items() if name not in ("out", "config")}
    simulation = _read_config(config, given)
    federation.prepare(out, simulation)
    Console(soft_wrap=True).print(
        f"prepared {out}; run it with: flwr run . --run-config 'run=\"{out.resolve()}\"' "
        f"--federation-config num-supernodes={simulation.clients} --stream",
        markup=False,
        highlight=False,
    )


def _read_config(path: Path | None, given: dict[str, Any]) -> SimulationConfig:
    """The file's values with the options given on top."""
    values = SimulationConfig.read(path).model_dump(exclude_unset=True) if path else {}
    values |= {name: value for name, value in given.items() if value is not None}
    return SimulationConfig.parse(values, origin="option")


def simulate(run: Path, config: SimulationConfig) -> None:
    """Prepare, run, evaluate and report, with the progress shown."""
    with Progress() as progress:
        progress(Event("prepare", "started"))
        federation.prepare(run, config)
        write_durably(run / "command.txt", (shlex.join(["fedfree-sim", *sys.argv[1:]]) + "\n").encode())
        federation.run_engine(run, config, on_event=progress)
        comparisons = federation.evaluate(run, config, on_event=progress)
    result = write_result(run, config, comparisons, progress.seconds)
    synthetic_picture(RunDirectory(run).read_recovered(), run / "synthetic.png")
    report = write_report(run)
    console = Console()
    console.print(result_table(result))
    for line in result_lines(result):
        console.print(line)
    console.print(f"report: {report}")


def main() -> None:
    """Console script."""
    run_app(app)
