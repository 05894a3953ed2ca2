"""``fedfree-server``: the server's work without a federation around it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedfree.cli import make_app, read_file, run_app
from server import pipeline
from server.config import ServerConfig, preset
from server.events import Event
from server.run_directory import RunDirectory
from server.store import ACCEPTED, MANIFEST, QUARANTINED, RECEIVED, WEIGHTS, write_durably

app = make_app(
    "fedfree-server",
    "Learn a meta-learner from contributed models, and look into the store that holds them.",
)

Run = Annotated[Path, typer.Argument(help="Run directory.")]


@app.command()
def learn(
    run: Run,
    contribution: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with manifest.pb and weights.safetensors; may be given several times."),
    ] = None,
    preset_name: Annotated[str, typer.Option("--preset", help="default or paper.")] = "default",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of the server (default: the preset's).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
) -> None:
    """Verify contributions, invert them and write the meta-learner, all from files."""
    values = preset(preset_name).model_dump() | {"device": device, "seed": seed}
    if iterations is not None:
        values["iterations"] = iterations
    config = ServerConfig.parse(values, origin="option")
    run.mkdir(parents=True, exist_ok=True)
    write_durably(run / "server.toml", config.to_toml().encode())
    directory = RunDirectory(run)
    store = directory.store()
    for folder in contribution or []:
        store.receive(read_file(folder / MANIFEST), read_file(folder / WEIGHTS))
    outcome = pipeline.run(
        store, config, checkpoint=directory.checkpoint, on_event=directory.recorded(_print_event)
    )
    directory.write_recovered(outcome.gallery)
    directory.write_meta_learner(outcome.meta_learner)
    directory.checkpoint.unlink(missing_ok=True)
    Console(soft_wrap=True).print(f"wrote {directory.weights}")


@app.command()
def status(run: Run) -> None:
    """Count a run's contributions, and say why any were refused."""
    store, console = RunDirectory(run).store(), Console(soft_wrap=True)
    for place in (RECEIVED, ACCEPTED, QUARANTINED):
        console.print(f"{len(store.ids(place)):>6} {place}", highlight=False)
    for identity in store.ids(QUARANTINED):
        console.print(f"{identity[:12]}: {store.reason(identity)}", highlight=False, markup=False)


def _print_event(event: Event) -> None:
    console = Console(soft_wrap=True)
    if event.kind == "quarantined":
        console.print(f"refused {event.values['contribution']}: {event.values['reason']}", markup=False)
    if event.kind == "progress" and int(event.values["iteration"]) % 10 == 0:
        console.print(f"iteration {event.values['iteration']} of {event.values['of']}", highlight=False)


def main() -> None:
    """Console script."""
    run_app(app)
